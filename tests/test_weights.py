"""The weights that come with the library: whole, small enough, with a card, and as good as the card says."""

import re

import pytest
import torch

from purifiers import PurifiedClassifier, Purifier, weights
from purifiers.data import load_images, to_float
from purifiers.errors import CheckpointError, MissingFileError
from purifiers.networks import CLASSIFIERS, load_network
from purifiers.recipes import NAMES, load_recipe
from tests.conftest import CIFAR10, needs_cifar10

CLASSIFIER = "cifar10-resnet20"
PURIFIERS = [name for name in weights.NAMES if "-resnet" not in name]


def card_of(name: str) -> str:
    return (weights.locate(name) / "README.md").read_text()


def test_all_of_it_is_at_most_12_megabytes() -> None:
    folders = [weights.locate(name) for name in weights.NAMES]
    assert folders
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < 12_000_000


@pytest.mark.parametrize("name", PURIFIERS)
def test_a_shipped_purifier_loads_by_name_and_its_card_says_what_it_is(name: str) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    purified = Purifier.from_pretrained(name)(images)
    assert purified.shape == images.shape
    assert 0 <= purified.min() <= purified.max() <= 1
    for said in (
        "recipe `",
        "seed ",
        "at commit ",
        "| clean images |",
        "| PGD8 | blind |",
        "## Limits",
        "**not** the purifier",
    ):
        assert said in card_of(name), said


@pytest.mark.parametrize("name", NAMES)
def test_recipes_name_weights_that_are_there(name: str) -> None:
    assert set(load_recipe(name).weights.values()) <= set(weights.NAMES)


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(MissingFileError, match=r"no purifier at 'cifar-10'; did you mean 'cifar10'"):
        Purifier.from_pretrained("cifar-10")
    with pytest.raises(CheckpointError, match="holds a 'resnet', not a purifier"):
        Purifier.from_pretrained(CLASSIFIER)


@needs_cifar10
def test_shipped_weights_are_as_good_as_their_cards_say() -> None:
    data = load_images("cifar10", "test", path=str(CIFAR10)).limited(1000, seed=0)
    classifier = load_network(weights.locate(CLASSIFIER))
    assert isinstance(classifier, tuple(CLASSIFIERS.values()))
    images, labels = to_float(data.images), data.labels

    def right(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return (model(images).argmax(1) == labels).float().mean().item()

    said = float(re.findall(r"test images: ([\d.]+) %", card_of(CLASSIFIER))[0])
    assert 100 * right(classifier) == pytest.approx(said, abs=3)  # a thousand of the ten thousand images
    for name in PURIFIERS:
        clean = next(line for line in card_of(name).splitlines() if line.startswith("| clean images |"))
        said = float(clean.split("|")[6])
        assert 100 * right(PurifiedClassifier(Purifier.from_pretrained(name), classifier)) == pytest.approx(said, abs=3.5)
