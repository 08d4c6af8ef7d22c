"""Stages of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from purifiers.errors import ConfigError
from purifiers.recipes.load import recipe_text
from purifiers.recipes.schema import Recipe
from purifiers.runs import RECIPE_FILE, Run
from purifiers.training.pipeline import train_classifier, train_recipe
from purifiers.training.starting import settled


def test_held_out_images_are_no_training_images(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    held_out = "student.held_out={images: 8, attack: {kind: fgsm}}"
    run = train_recipe(tiny_recipe(held_out, "student.epochs=2"), tmp_path / "run", device="cpu")
    history = run.histories["student"]
    assert [0 <= record["withstood"] <= 1 for record in history] == [True, True]
    count = len(run.images("train"))
    size = run.recipe.student.batch_size
    assert history[0]["images_per_second"] * history[0]["seconds"] == pytest.approx((count - 8) // size * size)
    with pytest.raises(ConfigError, match="held_out"):
        train_recipe(tiny_recipe(held_out.replace("8", "1000000")), tmp_path / "other", device="cpu")


@pytest.mark.parametrize("faster", ["32-true", "bf16-mixed"])
def test_auto_is_the_faster_precision_when_a_run_begins_and_stays(
    faster: str, tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tiny_recipe("precision=auto"), tmp_path, torch.device("cpu"), tmp_path / "cache")
    monkeypatch.setattr("purifiers.training.starting.fastest_precision", lambda device: faster)
    assert settled(run, restart=False).precision == faster
    (tmp_path / RECIPE_FILE).write_text(recipe_text(tiny_recipe("precision=bf16-mixed")))
    assert settled(run, restart=False).precision == "bf16-mixed"
    assert settled(run, restart=True).precision == faster
    fixed = Run(tiny_recipe("precision=32-true"), tmp_path, torch.device("cpu"), tmp_path / "cache")
    assert settled(fixed, restart=False) is fixed.recipe


def test_a_classifier_may_be_trained_under_attack(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """It withstands the attack better than an ordinary one of as many steps."""
    attack = "{kind: pgd, epsilon: 0.1, step_size: 0.05, num_steps: 3}"
    right = []
    for own in (["classifier.training.attack=" + attack, "classifier.training.ema=0.9"], []):
        epochs = ["classifier.training.epochs=6", "classifier.training.held_out={images: 100, attack: " + attack + "}"]
        folder = tmp_path / f"run-{len(own)}"
        run = Run(tiny_recipe("data.limit=600", *epochs, *own), folder, torch.device("cpu"), folder / "cache")
        train_classifier(run, "classifier")
        right.append(max(record["withstood"] for record in run.histories["classifier"]))
    assert right[0] > right[1]
