"""Cards and their front matter, and the summary that is read from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from purifiers import weights
from purifiers.evaluation.records import Results
from purifiers.recipes.load import load_recipe
from purifiers.reports.cards import classifier_card, measurements, model_card, robustness_summary
from tests.reports.conftest import record

Make = Callable[..., Results]


def test_the_card_has_every_measurement_and_the_limits(make_results: Make, tmp_path: Path) -> None:
    results = make_results()
    elsewhere = [r.model_copy(update={"classifier": "another", "accuracy": 0.4321}) for r in results.records]
    card = model_card("mine", [results, results.model_copy(update={"records": elsewhere})], notes=["A `note`."])
    for part in (
        'from_pretrained("mine")',
        "In front of resnet56",
        "In front of another",
        "| clean images | - | 1,000 | 5.00 | 63.00 | 62.00 to 64.00 | 30.0 | - |",
        "| PGD-20, 8/255 | blind | 1,000 | 5.00 | 73.00 | 72.00 to 74.00 | 30.0 | - |",
        "| PGD-20, 8/255 | full | 1,000 | - | 1.23 | 0.23 to 2.23 | 30.0 | - |",
        "43.21",
        "recipe `paper`, seed 0: `purifiers train --recipe paper`",
        "2 threads (no GPU)",
        "student: 3 epochs in 3.0 s",
        "cifar10-resnet56-paper, on PGD-20, 8/255.",
    ):
        assert part in card, part
    assert card.endswith("\nA `note`.\n")
    (tmp_path / "README.md").write_text(card)
    assert "73.00 % under the strongest attack" in robustness_summary(tmp_path)


def test_the_numbers_are_in_the_front_matter(make_results: Make, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(model_card("mine", [make_results()]))
    data = ModelCard.load(tmp_path / "README.md").data  # as the hub reads it
    assert (data.license, data.model_name, data.datasets) == ("apache-2.0", "mine", ["cifar10"])
    found = [(one.metric_value, one.metric_args["view"], one.metric_args["epsilon"]) for one in data.eval_results]
    assert found == [(63.0, "none", "-"), (73.0, "blind", "8/255"), (83.0, "blind", "-"), (1.23, "full", "8/255")]
    ours = measurements((tmp_path / "README.md").read_text())
    assert [one.accuracy for one in ours] == [63.0, 73.0, 83.0, 1.23]
    assert (ours[3].classifier, ours[3].images, ours[3].interval, ours[3].psnr) == ("resnet56", 1000, (0.23, 2.23), 30.0)


def test_a_bar_in_a_name_does_not_break_the_card(make_results: Make) -> None:
    results = make_results()
    results.records.append(record("student", "full", "CW-40", 0.5, "cifar10").model_copy(update={"attack": "a|b"}))
    card = model_card("mine", [results])
    assert "| a\\|b | full |" in card
    assert measurements(card)[-1].attack == "a|b"


@pytest.mark.parametrize("index", [None, 3, [{"results": 1}], [{"name": "x", "results": [{"metrics": [{"value": 1}]}]}]])
def test_results_of_another_library_are_left_out(index: Any) -> None:
    assert measurements(f"---\n{yaml.safe_dump({'model-index': index})}---\n# theirs\n") == []
    for card in (None, "", "no front matter", "---\n: : :\n---\n", "---\n- a\n---\n"):
        assert measurements(card) == []


def test_a_card_of_a_purifier_that_continues_another_names_that(make_results: Make) -> None:
    first, start = make_results(), ["student.start=runs/first", "teacher_at.start=runs/first", "teacher_at.epochs=0"]
    after = first.model_copy(
        update={
            "recipe": load_recipe("strong", start).model_dump(mode="json"),
            "training": {"teacher_nt": [], "teacher_at": [], "student": first.training["student"]},
        }
    )
    card = model_card("mine", [after])
    assert "- teacher_nt: the untrained residual network" in card
    assert "- teacher_at: that of runs/first\n" in card
    assert "- student: 3 epochs in 3.0 s, from runs/first\n" in card
    assert "- student: 3 epochs in 3.0 s\n" in model_card("mine", [first])
    after.recipe["student"]["start"] = "/home/me/runs/second"
    placed = model_card("mine", [after])
    assert "- student: 3 epochs in 3.0 s, from second" in placed and "/home/me" not in placed
    assert "continues an earlier one" in card and "starts from teacher AT" not in card


def test_a_card_has_what_was_changed_of_the_shipped_recipe(make_results: Make) -> None:
    content = load_recipe("paper", ["student.epochs=7", "seed=3"]).model_dump(mode="json")
    card = model_card("mine", [make_results().model_copy(update={"recipe": content})])
    assert "seed 3, changed: student.epochs 7\n" in card
    content["name"] = "my own"
    assert "recipe `my own`, seed 3\n" in model_card("mine", [make_results().model_copy(update={"recipe": content})])


TRAINED = ["student.epochs=1", "student.attack={kind: fgsm, epsilon: 8/255}"]


@pytest.mark.parametrize(
    ("recipe", "overrides", "there", "missing"),
    [
        ("paper", [], "**not** the purifier", "drawn anew"),
        ("robust-cpu", [], "N-FGSM, 24/255 on its encoder", "**not** the purifier"),
        ("robust-cpu", TRAINED, "FGSM, 8/255 through both networks", "on its encoder"),
        ("robust-cpu", TRAINED, "distillation from teacher AT", "without a student"),
        ("robust-cpu", ["teacher_at.epochs=1", "teacher_at.attack={kind: fgsm}"], "FGSM, 8/255 through both", "on its encoder"),
        ("robust-cpu", [], "without a student", "distillation"),
        ("robust-cpu", [], "draws the image anew", "Gaussian noise, for"),
        ("robust-cpu", [], "drawn anew from what withstands attacks", "clean ones"),
        ("robust-cpu", [], "the class that its encoder predicts", "teacher NT the identity"),
        ("robust-cpu", ["purifier.classes=0"], "drawn anew", "class that its encoder predicts"),
        ("strong-cpu", [], "clean ones", "drawn anew"),
        ("smooth-cpu", [], "on Gaussian noise of 0.25", "**not** the purifier"),
        ("smooth-cpu", [], "on no attack", "drawn anew"),
        ("paper", [], "distillation from two teachers", "from teacher"),
        ("tiny-cpu", [], "distillation from teacher AT", "two teachers"),
        ("photos-cpu", [], "images of 128 by 128 pixels", "224"),
    ],
)
def test_a_card_has_the_limits_of_its_training(
    make_results: Make, recipe: str, overrides: list[str], there: str, missing: str
) -> None:
    content = load_recipe(recipe, overrides).model_dump(mode="json")
    card = model_card("mine", [make_results().model_copy(update={"recipe": content})])
    assert there in card and missing not in card


def test_a_classifiers_card_has_how_it_was_trained_and_for_what(tmp_path: Path) -> None:
    trained = {
        **{"dataset": "cifar10", "depth": 56, "recipe": "strong-cpu", "stage": "classifier", "seed": 0},
        **{"precision": "bf16-mixed", "settings": {"batch_size": 128, "crop": 4}, "epochs": 3, "seconds": 180.0},
        **{"accuracy": 0.9312, "images": 10_000, "commit": "abc", "unseen": False},
    }
    card = classifier_card("mine", trained)
    for part in (
        "A CIFAR ResNet-56 that the purifier of the recipe `strong-cpu`",
        "10,000 cifar10 test images: 93.12 %",
        "seed 0, bf16-mixed: 3 epochs in 3 min 00 s; batch_size 128, crop 4\n",
        '"mine"',
        "commit abc",
    ):
        assert part in card, part
    (tmp_path / "README.md").write_text(card)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.pipeline_tag, data.eval_results[0].metric_value) == ("image-classification", 93.12)
    assert measurements(card) == []  # of a purifier there are none
    assert "A CIFAR ResNet-56 that no purifier of this library" in classifier_card("mine", {**trained, "unseen": True})


def purifier_in(folder: Path, results: Results, *others: tuple[str, str, float]) -> Path:
    extra = [record("student", view, attack, accuracy, "cifar10") for view, attack, accuracy in others]
    everything = results.model_copy(update={"records": [*results.records, *extra]})
    (folder / "card.md").write_text(model_card("mine", [everything]))
    return folder


def test_the_summary_has_the_lowest_number_of_each_view(make_results: Make, tmp_path: Path) -> None:
    folder = purifier_in(tmp_path, make_results(), ("bpda", "PGD-20, 8/255", 0.0042), ("full", "CW-40", 0.001))
    summary = robustness_summary(folder)
    assert summary.startswith("Measured on cifar10 in front of resnet56: clean accuracy 63.00 %, PSNR 30.0 dB;")
    # Of both views only 8/255 was measured: CW, which has no epsilon, is not compared.
    assert "73.00 % under the strongest attack" in summary and "(PGD-20, 8/255, 1,000 images)" in summary
    assert "0.42 % under" in summary and "0.10 %" not in summary and "The classifier here" not in summary


def test_what_was_not_measured_is_reported(make_results: Make, tmp_path: Path) -> None:
    assert "no model card" in robustness_summary(tmp_path)
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\n# no numbers\n")
    assert "no model card" in robustness_summary(tmp_path)
    summary = robustness_summary(purifier_in(tmp_path, make_results(full=False)), "another")
    assert "73.00 % under" in summary and "not measured under an attacker who knows the purifier" in summary
    assert "The classifier here is another:" in summary


def test_the_cards_that_ship_are_read() -> None:
    for name in weights.PURIFIERS:
        assert robustness_summary(weights.locate(name)).count("% under the strongest attack") == 2, name
    robust = robustness_summary(weights.locate("cifar10-robust"))
    assert "29.50 % under" in robust and "(worst of the audit, 8/255, 200 images)" in robust
