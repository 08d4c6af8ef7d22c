"""A classifier and images of the owner's own, of any size: from the folder to the defended classifier."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from purifiers import PurifiedClassifier, Purifier
from purifiers.cli.options import Changes
from purifiers.data import ImageSet
from purifiers.errors import ConfigError, InputError
from purifiers.evaluation.evaluate import evaluate_run
from purifiers.recipes.load import changed, load_recipe, recipe_text
from purifiers.recipes.schema import Recipe
from purifiers.registry import fingerprint
from purifiers.runs import open_run, open_weights
from purifiers.training.pipeline import train_recipe

MODULE = """
import torch
from torch import nn

def network(channels):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))

def rgb():
    return network(3)

def grey():
    return network(1)

class Turning(nn.Module):
    '''Changes itself, and only after it was checked.'''
    def __init__(self):
        super().__init__()
        self.network = network(3)
        self.register_buffer("calls", torch.zeros(()))
        self.patience = 7

    def forward(self, images):
        self.patience -= 1
        if self.patience < 0:
            self.calls += 1
        return self.network(images)
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owners_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "owners_module", raising=False)


def write_images(folder: Path, size: int, mode: str) -> None:
    random = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 100)):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            pixels = random.integers(low, low + 100, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")


def recipe_of(*overrides: str) -> Recipe:
    tiny = (
        "data.path=images", "data.limit=4", "data.test_limit=2", "purifier.widths=[3]", "purifier.blocks=[1]", "baselines={}",
        "training_attacks.PGD.num_steps=1", "teacher_at.epochs=1", "teacher_nt.epochs=1", "student.epochs=1",
        "evaluation.attacks={FGSM: {kind: fgsm, epsilon: 8/255}}", "evaluation.adaptive_attacks=[]", "evaluation.views=[blind]",
    )  # fmt: skip
    return load_recipe("folder", [*tiny, *overrides])


@pytest.mark.parametrize(("size", "mode"), [(32, "RGB"), (96, "L"), (224, "RGB")])
def test_images_of_any_size_in_colour_and_grey(size: int, mode: str, tmp_path: Path) -> None:
    write_images(tmp_path / "images", size, mode)
    source = f"classifier.source=owners_module:{'rgb' if mode == 'RGB' else 'grey'}"
    run = train_recipe(recipe_of(source, "classifier.mean=[0.5]", "classifier.std=[0.25]"), tmp_path / "run", device="cpu")
    defended = PurifiedClassifier(Purifier.from_pretrained(tmp_path / "run"), run.classifier)
    images = torch.rand(2, 3, size, size, requires_grad=True)
    logits = defended(images)
    assert logits.shape == (2, 2)
    logits[:, 0].sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0


def test_the_classifier_is_the_same_after_everything(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 16, "RGB")
    run = train_recipe(recipe_of("classifier.source=owners_module:rgb"), tmp_path / "run", device="cpu")
    opened = open_run(run.recipe, tmp_path / "run", "cpu")
    results, _ = evaluate_run(opened)
    assert results.classifier_sha256 == fingerprint(run.classifier) == fingerprint(opened.classifier)


def test_a_classifier_that_changes_in_training_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 16, "RGB")
    with pytest.raises(InputError, match="the weights or statistics of the classifier changed while it was used"):
        train_recipe(recipe_of("classifier.source=owners_module:Turning"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_images_of_other_classes_than_the_runs_are_refused(tmp_path: Path) -> None:
    """In the place of the same folder, or of another one with as many classes; but another classifier may have these."""
    write_images(tmp_path / "images", 16, "RGB")
    run = train_recipe(recipe_of("classifier.source=owners_module:rgb"), tmp_path / "run", device="cpu")
    (tmp_path / "images" / "dark").rename(tmp_path / "images" / "murky")
    with pytest.raises(ConfigError, match=r"dark, light.*light, murky"):
        open_run(run.recipe, tmp_path / "run", "cpu")
    digits = changed(run.recipe, {"data": {"name": "digits"}})
    with pytest.raises(ConfigError, match="dark, light"):
        open_run(digits, tmp_path / "run", "cpu")
    other = changed(run.recipe, {"classifier.source": "owners_module:grey"})
    assert open_run(other, tmp_path / "run", "cpu").images("test").classes == ("light", "murky")
    (tmp_path / "images" / "murky").rename(tmp_path / "images" / "dark")
    assert open_run(run.recipe, tmp_path / "run", "cpu").images("test").classes == ("dark", "light")


def test_images_of_other_classes_than_a_shipped_classifiers_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe("strong-cpu")
    images = ImageSet("x", torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.arange(2), tuple("abcdefghij"))
    with pytest.raises(ConfigError, match=r"airplane.*a, b, c"):
        open_weights(recipe, recipe, tmp_path, "cpu", images)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mean=[0.5]"], "go together"),
        (["mean=[0.5,0.5]", "std=[0.5,0.5]"], r"three numbers each, or one each; got \(0\.5, 0\.5\) and"),
        (["mean=[0.5,0.5,0.5]", "std=[0.5]"], "three numbers each"),
        (["mean=[0.5]", "std=[0]"], "std is above 0"),
        (["mean=[123.7]", "std=[58.4]"], "divide by 255"),
        (["mean=[.nan]", "std=[0.5]"], "valid number"),
        (["source=null", "mean=[0.5]", "std=[0.5]"], r"network\.mean"),
    ],
)
def test_a_normalisation_that_cannot_be(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of("classifier.source=owners_module:rgb", *(f"classifier.{override}" for override in overrides))


def test_a_normalisation_is_of_its_classifier(tmp_path: Path) -> None:
    """Another --classifier drops that of the recipe; flags and --set give one."""
    (tmp_path / "model").mkdir()
    given = ["classifier.source=a:b", "classifier.mean=[0.5]", "classifier.std=[0.5]"]
    (tmp_path / "recipe.yaml").write_text(recipe_text(load_recipe("folder", given)))

    def classifier(*settings: str, **options: Any) -> tuple[str | None, tuple[float, ...] | None, tuple[float, ...] | None]:
        found = load_recipe(tmp_path / "recipe.yaml", Changes(settings=list(settings), **options).overrides()).classifier
        return found.source, found.mean, found.std

    assert classifier() == ("a:b", (0.5,), (0.5,))
    assert classifier(mean=[0.1, 0.2, 0.3], std=[1, 1, 1]) == ("a:b", (0.1, 0.2, 0.3), (1, 1, 1))
    assert classifier(classifier="a:b") == ("a:b", (0.5,), (0.5,))
    assert classifier(classifier="c:d") == ("c:d", None, None)
    assert classifier("classifier.source=c:d") == ("c:d", None, None)
    assert classifier(classifier="c:d", mean=[0], std=[0.5]) == ("c:d", (0,), (0.5,))
    assert classifier("classifier.mean=[0.2]", "classifier.std=[0.2]", classifier="c:d")[1] == (0.2,)
    assert classifier(classifier="hf:model")[0] == f"hf:{tmp_path / 'model'}"
    assert classifier(classifier="hf:owner/model")[0] == "hf:owner/model"
