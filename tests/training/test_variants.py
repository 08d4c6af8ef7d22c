from pathlib import Path

import pytest

from purifiers.errors import ConfigError
from purifiers.evaluation.evaluate import evaluate_run
from purifiers.evaluation.records import VARIANT
from purifiers.recipes.load import NAMES, changed, load_recipe, variant_recipes
from purifiers.recipes.schema import Recipe
from purifiers.registry import fingerprint
from purifiers.reports.tables import table_3
from purifiers.runs import open_run
from purifiers.training.pipeline import train_recipe, train_variants
from tests.conftest import TINY

COMPANION = {"network": {"network": "resnet", "depth": 20}, "training": {"epochs": 1, "batch_size": 32}}
VARIANTS = {
    "all ingredients": {"student.epochs": 1},
    "heavier pixels": {"student.beta": 50},
    "no companion": {"companions": []},
}


def recipe(**options: object) -> Recipe:
    return load_recipe("digits", [*TINY, ("companions", [COMPANION]), ("variants", VARIANTS), *options.items()])


@pytest.mark.parametrize("name", NAMES)
def test_variants_of_shipped_recipes_are_valid_and_differ(name: str) -> None:
    recipe = load_recipe(name)
    found = variant_recipes(recipe)
    texts = [one.model_dump_json() for one in found.values()]
    assert len(set(texts)) == len(texts)


def test_a_variant_of_what_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        variant_recipes(recipe(variants={"typo": {"student.epoch": 3}}))
    with pytest.raises(ConfigError, match="variants: titles have to differ"):
        recipe(variants={"a b": {}, "A-B": {}})


def test_variants_are_trained_on_the_same_classifiers_and_stand_in_table_3(tmp_path: Path) -> None:
    tmp_path = tmp_path / "run"
    run = train_recipe(recipe(), tmp_path, device="cpu")
    train_variants(run, "cpu")
    assert list(run.variants) == list(VARIANTS)
    assert len({fingerprint(student) for student in [*run.variants.values(), run.purifiers["student"]]}) == 4
    assert not list((tmp_path / "variants").rglob("classifier")), "no classifier is trained again"
    opened = open_run(run.recipe, tmp_path, "cpu")
    assert [fingerprint(one) for one in opened.variants.values()] == [fingerprint(one) for one in run.variants.values()]
    assert "companion_1" in opened.histories
    results, _ = evaluate_run(opened)
    table = table_3(results)
    assert [row[0] for row in table.rows] == list(VARIANTS)
    assert "student.epochs 1" in table.caption
    record = next(r for r in results.records if r.purifier == VARIANT + "heavier pixels" and r.attack == "FGSM")
    assert table.rows[1][table.header.index("FGSM")] == f"{100 * record.accuracy:.2f}"
    # Another order, or another setting, gives no variant the weights of another one.
    mixed = {"all ingredients": VARIANTS["all ingredients"], "new": {"student.gamma": 0}, "no companion": {"companions": []}}
    reopened = open_run(changed(run.recipe, {"variants": mixed}), tmp_path, "cpu")
    assert list(reopened.variants) == ["all ingredients", "no companion"]
    assert fingerprint(reopened.variants["no companion"]) == fingerprint(run.variants["no companion"])
    other = changed(run.recipe, {"variants": {**VARIANTS, "heavier pixels": {"student.beta": 60}}})
    assert list(open_run(other, tmp_path, "cpu").variants) == ["all ingredients", "no companion"]
    # A run that was moved goes on as it was.
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    again = train_recipe(recipe(), moved, device="cpu")
    train_variants(again, "cpu")
    assert [fingerprint(one) for one in again.variants.values()] == [fingerprint(one) for one in run.variants.values()]
