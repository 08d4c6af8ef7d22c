"""Stages of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from purifiers.errors import ConfigError
from purifiers.recipes.schema import Recipe
from purifiers.runs import Run
from purifiers.training.pipeline import train_classifier, train_recipe


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
