"""A classifier and images of the owner's own, of any size: from the folder to the defended classifier."""

import json
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
from purifiers.evaluation.audit.run import audit
from purifiers.evaluation.certify import Smoothing, certify_run
from purifiers.evaluation.evaluate import evaluate, evaluate_run
from purifiers.evaluation.records import PREDICTED
from purifiers.forecast import foreseen
from purifiers.networks import CAE
from purifiers.recipes.audit_settings import STANDARD_VIEWS
from purifiers.recipes.load import changed, load_recipe, recipe_text
from purifiers.recipes.schema import Recipe
from purifiers.registry import fingerprint
from purifiers.reports.pages import all_tables, certificate_tables, headline, overview, sentences
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


def test_images_without_labels_of_the_same_run_and_of_another(tmp_path: Path) -> None:
    """The classifier's own predictions are the labels, and every record and table of them says so."""
    write_images(tmp_path / "images", 16, "RGB")
    recipe = recipe_of("classifier.source=owners_module:rgb", "data.labels=classifier", "data.limit=null")
    train_recipe(recipe, tmp_path / "run", device="cpu")
    run = open_run(recipe, tmp_path / "run", "cpu")
    results, _ = evaluate_run(run)
    clean, attacked = results.records
    assert all(one.labels_predicted and one.accuracy == one.agreement for one in results.records)
    assert clean.accuracy_undefended == 1 and attacked.accuracy_undefended <= 1
    assert PREDICTED in str(results) and PREDICTED in headline(results)
    titles = [table.title for table in all_tables(results)]
    assert [title for title in titles if "Training" not in title] == [title for title in titles if "predictions" in title]
    certificate = certify_run(run, "mine", Smoothing(0.1, n0=1, n=20), images=1)
    assert certificate.labels_predicted and "predictions" in certificate_tables(certificate)[0].title
    with_names = load_recipe(tmp_path / "run" / "recipe.yaml", ["data.labels=null"])
    assert open_run(with_names, tmp_path / "run", "cpu").images("test").classes == ("dark", "light")


def test_companions_know_the_classes_that_the_classifier_predicts(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 16, "RGB")
    recipe = recipe_of(
        "classifier.source=owners_module:rgb", "data.labels=classifier", "companions=[{source: cifar10-resnet20}]"
    )
    with pytest.raises(ConfigError, match=r"'cifar10-resnet20' has 10 classes, and the images have 2"):
        train_recipe(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_the_name_that_asks_for_predictions_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "classifier").mkdir()
    assert recipe_of("data.labels=classifier").data.labels == "classifier"


def test_a_baselines_place_is_found_from_everywhere(tmp_path: Path) -> None:
    Purifier(CAE(widths=[4], blocks=[1])).save_pretrained(tmp_path / "mine")
    recipe = recipe_of("baselines.mine={kind: pretrained, source: mine}")
    assert recipe.baselines["mine"].source == str(tmp_path / "mine")


@pytest.mark.parametrize("folder", ["new", "run"])
def test_a_restart_decodes_large_sets_once(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there before the restart discards what an earlier run left."""
    write_images(tmp_path / "images", 16, "RGB")
    monkeypatch.setattr("purifiers.data.large.IN_MEMORY", 0)
    recipe = recipe_of("classifier.source=owners_module:rgb", "data.limit=null", "data.test_limit=null")
    if folder == "run":
        train_recipe(recipe, tmp_path / folder, device="cpu")
    foreseen(lambda: train_recipe(recipe, tmp_path / folder, device="cpu", restart=True), dry_run=False)
    assert not (tmp_path / folder / "empty").exists()
    assert len([*(tmp_path / folder / "cache").glob("images-*")]) == 2


def test_a_table_of_labels_and_the_names_of_the_outputs(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 16, "RGB")
    rows = [f"{name}/{i}.png,{name}" for name in ("dark", "light") for i in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    (tmp_path / "names.txt").write_text("light\ndark")
    tables = "data.labels=labels.csv", "data.classes=names.txt"
    recipe = recipe_of("classifier.source=owners_module:rgb", *tables, "data.limit=null")
    run = train_recipe(recipe, tmp_path / "run", device="cpu")
    assert run.images("test").classes == ("light", "dark")
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["light", "dark"]
    numbers = [f"{name}/{i}.png,{label}" for label, name in enumerate(("light", "dark")) for i in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *numbers]))
    again = open_run(changed(recipe, {"data.classes": None}), tmp_path / "run", "cpu").images("test")
    assert torch.equal(again.labels, run.images("test").labels) and again.classes == ("light", "dark")
    rows[0] = "dark/0.png,grey"
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    with pytest.raises(ConfigError, match=r"has 2 classes, and the images have 3 .*--classes"):
        train_recipe(changed(recipe, {"data.classes": None}), tmp_path / "other", device="cpu")


def test_what_needs_labels_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 16, "RGB")
    with pytest.raises(ConfigError, match="--classifier"):
        train_recipe(recipe_of("data.labels=classifier"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_tensors_without_labels() -> None:
    model, images = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)), torch.rand(5, 3, 4, 4)
    found = evaluate(torch.nn.Identity(), model, images, attacks={"FGSM": "fgsm"})
    assert found.records[0].labels_predicted and found.records[0].accuracy == 1
    views = dict.fromkeys(STANDARD_VIEWS, ()) | {"blind": ("FGSM",)}
    quick = {"views": views, "check_images": 0}
    audited = audit(torch.nn.Identity(), model, images, settings=quick)
    assert all(one.labels_predicted for one in audited.records)
    assert "predictions" in overview(audited).title and any(PREDICTED in sentence for sentence, _ in sentences(audited))
    with pytest.raises(InputError, match="NaN"):
        evaluate(torch.nn.Identity(), torch.nn.Sequential(model, NotFinite()), images)


class NotFinite(torch.nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(len(logits))[:, None] == 3, torch.nan, logits)
