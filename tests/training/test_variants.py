import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from purifiers.errors import ConfigError
from purifiers.evaluation.evaluate import evaluate_run
from purifiers.evaluation.records import VARIANT
from purifiers.recipes.load import NAMES, changed, load_recipe, variant_recipes
from purifiers.recipes.schema import Recipe
from purifiers.registry import fingerprint
from purifiers.reports.tables import table_3
from purifiers.runs import Run, open_run
from purifiers.training.pipeline import train_recipe, train_variants
from tests.conftest import TINY

VARIANTS = {
    "all ingredients": {"student.epochs": 2},
    "heavier pixels": {"student.beta": 50},
    "no companion": {"companions": []},
}


def recipe(**options: object) -> Recipe:
    return load_recipe("digits", [*TINY, ("variants", VARIANTS), *options.items()])


@pytest.mark.parametrize("name", NAMES)
def test_variants_of_shipped_recipes_are_valid_and_differ(name: str) -> None:
    recipe = load_recipe(name)
    found = variant_recipes(recipe)
    texts = [one.model_dump_json() for one in found.values()]
    assert len(set(texts)) == len(texts)


def test_a_variant_of_what_does_not_exist_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        variant_recipes(recipe(variants={"typo": {"student.epoch": 3}}))
    with pytest.raises(ConfigError, match="epoch"):
        train_recipe(recipe(variants={"typo": {"student.epoch": 3}}), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="titles have to differ"):
        recipe(variants={"a b": {}, "A-B": {}})


def test_the_groups_of_a_variant_are_its_own() -> None:
    first = {"student.network": {"network": "cae", "widths": [4], "blocks": [1], "skip_every": 0}}
    given = recipe(variants={"first": first, "second": {"student.network.widths": [6]}})
    widths = [one.student.network and one.student.network.arguments["widths"] for one in variant_recipes(given).values()]
    assert widths == [[4], [6]]
    assert given.variants["first"]["student.network"]["widths"] == [4] == first["student.network"]["widths"]


def test_a_variants_companion_is_never_the_classifier_itself(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[Mapping[str, nn.Module]] = []

    def noted(recipe: Recipe, folder: Path, *, classifiers: Mapping[str, nn.Module], **options: object) -> Run:
        shared.append(classifiers)
        return tiny_run

    monkeypatch.setattr("purifiers.training.pipeline.train_recipe", noted)
    alike = tiny_run.recipe.classifier.model_dump(mode="json")
    run = replace(tiny_run, recipe=changed(tiny_run.recipe, {"variants": {"two": {"companions": [alike]}}}))
    train_variants(run, "cpu")
    assert shared == [{"classifier": run.classifiers["classifier"]}]


def test_places_in_variants_and_surrogates_are_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path)
    variants = {
        "flat": {"teacher_at.start": "mine", "data.path": "mine", "student.start": "scratch"},
        "nested": {"companions": [{"source": "mine"}, {"source": "module:build"}], "student": {"start": "cifar10"}},
    }
    found = recipe(variants=variants, **{"audit.surrogates": ["mine+cifar10-resnet20", "mine"]})
    there = str(tmp_path / "mine")
    assert found.variants == {
        "flat": {"teacher_at.start": there, "data.path": there, "student.start": "scratch"},
        "nested": {"companions": [{"source": there}, {"source": "module:build"}], "student": {"start": "cifar10"}},
    }
    assert found.audit.surrogates == (f"{there}+cifar10-resnet20", there)


def test_variants_are_trained_on_the_same_classifiers_and_stand_in_table_3(tiny_run: Run, tmp_path: Path) -> None:
    def settings(classifier: Path) -> dict[str, object]:
        source = {"classifier": {"source": str(classifier)}, "companions": [{"source": str(classifier)}]}
        short = {"data.limit": 64, **{f"{stage}.epochs": 1 for stage in ("teacher_nt", "teacher_at", "student")}}
        fgsm = {"evaluation.attacks": {"FGSM": {"kind": "fgsm", "epsilon": 0.1}}, "evaluation.adaptive_attacks": []}
        return {**source, **short, **fgsm, "evaluation.views": "blind", "baselines": {}}

    classifier = shutil.copytree(tiny_run.checkpoint("classifier"), tmp_path / "classifier")
    folder = tmp_path / "run"
    run = train_recipe(recipe(**settings(classifier)), folder, device="cpu")
    train_variants(run, "cpu")
    assert list(run.variants) == list(VARIANTS)
    assert len({fingerprint(student) for student in [*run.variants.values(), run.purifiers["student"]]}) == 4
    assert not list((folder / "variants").rglob("classifier"))
    opened = open_run(run.recipe, folder, "cpu")
    assert [fingerprint(one) for one in opened.variants.values()] == [fingerprint(one) for one in run.variants.values()]
    results, _ = evaluate_run(opened)
    table = table_3(results)
    assert [row[0] for row in table.rows] == list(VARIANTS)
    assert "student.epochs 2" in table.caption
    record = next(r for r in results.records if r.purifier == VARIANT + "heavier pixels" and r.attack == "FGSM")
    assert table.rows[1][table.header.index("FGSM")] == f"{100 * record.accuracy:.2f}"
    # Another order, or another setting, gives no variant the weights of another one.
    mixed = {"all ingredients": VARIANTS["all ingredients"], "new": {"student.gamma": 0}, "no companion": {"companions": []}}
    reopened = open_run(changed(run.recipe, {"variants": mixed}), folder, "cpu")
    assert list(reopened.variants) == ["all ingredients", "no companion"]
    assert fingerprint(reopened.variants["no companion"]) == fingerprint(run.variants["no companion"])
    other = changed(run.recipe, {"variants": {**VARIANTS, "heavier pixels": {"student.beta": 60}}})
    assert list(open_run(other, folder, "cpu").variants) == ["all ingredients", "no companion"]


def test_variants_of_a_run_that_was_moved_with_its_classifier_are_not_trained_again(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"data.limit": 64, **{f"{stage}.epochs": 1 for stage in ("teacher_nt", "teacher_at", "student")}}
    place = shutil.copytree(tiny_run.checkpoint("classifier"), tmp_path / "one" / "classifier").parent
    for _ in range(2):
        own = {"classifier": {"source": str(place / "classifier")}, "variants": {"other": {"student.beta": 5}}}
        train_variants(train_recipe(recipe(**short, **own), place / "run", device="cpu"), "cpu")
        place, output = place.rename(tmp_path / "two"), capsys.readouterr().out
    assert output.count("is trained already") == 6
