"""Stages of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from purifiers.errors import ConfigError
from purifiers.recipes.schema import Recipe
from purifiers.training.pipeline import train_recipe


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
