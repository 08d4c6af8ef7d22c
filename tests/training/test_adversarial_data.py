"""Who attacks which training image, and who judges which purified one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from purifiers.data import ImageSet
from purifiers.errors import TrainingError
from purifiers.recipes.load import load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.runs import Run
from purifiers.training.adversarial_data import Panel, attack_training_images
from tests.conftest import TINY, Linear

SHAPE = (3, 4, 4)
LEVELS = {"weak": 10, "strong": 40}


def panel(count: int, precision: str = "32-true") -> Panel:
    return Panel([Linear(5, SHAPE, seed).eval().requires_grad_(False) for seed in range(count)], precision)  # type: ignore[arg-type]


def recipe(rounds: int, **options: object) -> Recipe:
    attacks = {name: {"kind": "fgsm", "epsilon": f"{levels}/255"} for name, levels in LEVELS.items()}
    return load_recipe("digits", [*TINY, ("training_attacks", attacks), ("attack_rounds", rounds), *options.items()])


@pytest.fixture
def data() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(100, 150, (60, *SHAPE), dtype=torch.uint8, generator=generator)
    return ImageSet("grey", images, torch.arange(60) % 5, tuple("abcde"))


def test_each_classifier_judges_its_share_of_a_batch() -> None:
    three, images = panel(3), torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(1))
    judged = three(images)
    for classifier, part in zip(three.classifiers, (slice(0, 3), slice(3, 5), slice(5, 7)), strict=True):
        torch.testing.assert_close(judged[part], classifier(images[part]))
    judged = three(images[:4])  # each has one at least
    for classifier, part in zip(three.classifiers, (slice(0, 2), slice(2, 3), slice(3, 4)), strict=True):
        torch.testing.assert_close(judged[part], classifier(images[part]))
    assert three(images[:2]).shape == (2, 5)  # fewer images than classifiers


def test_a_classifier_may_work_in_place() -> None:
    images = torch.rand(4, *SHAPE, requires_grad=True)
    before = images.detach().clone()
    logits = Panel([nn.Sequential(nn.ReLU(inplace=True), Linear(5, SHAPE, seed)) for seed in range(2)])(images * 1)
    logits.sum().backward()
    assert torch.equal(images, before) and images.grad is not None
    with torch.no_grad():
        Panel([nn.Sequential(nn.Threshold(2, 0, inplace=True), Linear(5, SHAPE))])(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "word"), [(torch.rand(2, *SHAPE), "classifier"), (torch.full((2, *SHAPE), torch.nan), "rate")]
)
def test_a_loss_is_not_finite_by_the_classifier_or_by_the_purifier(images: torch.Tensor, word: str) -> None:
    class Divides(Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) / 0

    panel = Panel([Divides(5, SHAPE)])
    with pytest.raises(TrainingError, match=word), panel.watched():
        panel(images)
        raise TrainingError("try a smaller learning rate")


def test_every_image_is_attacked_once_in_each_round_by_one_attack_on_one_classifier(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, settings = panel(2), recipe(rounds=2)
    run = Run(settings, tmp_path, torch.device("cpu"), tmp_path / "cache")
    pairs = attack_training_images(run, two, data)
    images, adversarial = pairs.split([3, 6], dim=1)
    assert pairs.dtype == torch.uint8
    assert torch.equal(images, data.images)
    jobs = []
    for turn in adversarial.split(3, dim=1):
        moved = turn.int() - data.images.int()
        # FGSM moves every pixel by its whole epsilon, along the sign of a gradient that tells the classifiers apart.
        sizes = moved.abs().flatten(1).amax(1)
        assert sizes.tolist().count(10) == sizes.tolist().count(40) == 30
        made_by = []
        for classifier in two.classifiers:
            images = (data.images / 255).requires_grad_(True)
            torch.nn.functional.cross_entropy(classifier(images), data.labels, reduction="sum").backward()
            assert images.grad is not None
            made_by.append((moved.sign() == images.grad.sign()).flatten(1).all(1))
        assert (made_by[0] ^ made_by[1]).all()
        assert made_by[0].sum() == 30
        jobs.append(torch.stack([sizes == 40, made_by[0]]))
    assert not torch.equal(*jobs), "rounds deal the images anew"
    monkeypatch.setattr("purifiers.training.adversarial_data.BLOCK", 7)
    monkeypatch.setattr("purifiers.data.large.IN_MEMORY", 0)
    assert torch.equal(attack_training_images(run, two, data), pairs), "in parts, and in a file"


def test_more_attacks_and_classifiers_than_images(data: ImageSet, tmp_path: Path) -> None:
    run = Run(recipe(rounds=1), tmp_path, torch.device("cpu"), tmp_path / "cache")
    few = data.subset(torch.arange(3))
    moved = attack_training_images(run, panel(4), few)[:, 3:].int() - few.images.int()  # eight jobs
    assert set(moved.abs().flatten(1).amax(1).tolist()) <= set(LEVELS.values())


def test_half_precision_is_the_classifier_s_alone(data: ImageSet, tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> None:
    one, settings = panel(1, "bf16-mixed"), recipe(rounds=1, precision="bf16-mixed")
    run = Run(settings, tmp_path, torch.device("cpu"), tmp_path / "cache")
    assert one(torch.rand(2, *SHAPE)).dtype == torch.float32
    moved = (attack_training_images(run, one, data)[:, 3:].int() - data.images.int()).abs()
    assert set(moved.flatten(1).amax(1).tolist()) == set(LEVELS.values())


def test_a_weight_of_two_is_an_attack_named_twice(data: ImageSet, tmp_path: Path) -> None:
    weak, strong = ({"kind": "fgsm", "epsilon": f"{levels}/255"} for levels in LEVELS.values())
    both = ({"weak": weak, "strong": {**strong, "weight": 2}}, {"weak": weak, "strong": strong, "again": strong})
    runs = [Run(recipe(1, training_attacks=attacks), tmp_path, torch.device("cpu"), None) for attacks in both]
    weighted, twice = (attack_training_images(run, panel(2), data) for run in runs)
    assert torch.equal(weighted, twice)
    sizes = (weighted[:, 3:].int() - data.images.int()).abs().flatten(1).amax(1).tolist()
    assert [sizes.count(levels) for levels in LEVELS.values()] == [20, 40]
