"""The weights that come with the library: whole, small enough, with a card, and as good as the card says."""

import hashlib
from functools import cache

import pytest
import torch

from purifiers import PurifiedClassifier, Purifier, weights
from purifiers.attacks import FGSM
from purifiers.data import ImageSet, load_images, to_float
from purifiers.errors import CheckpointError, MissingFileError
from purifiers.hub import metadata
from purifiers.networks import ResNet
from purifiers.recipes.load import NAMES, load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.registry import load_network
from tests.conftest import CIFAR10, needs_cifar10


def card_of(name: str) -> str:
    return (weights.locate(name) / "README.md").read_text()


def accuracy_in(name: str, attack: str = "") -> float:
    """The accuracy that the card's front matter has, in %: on clean images, or of one that is purified after a blind attack."""
    metrics = metadata(card_of(name))["model-index"][0]["results"]
    wanted = f"accuracy ({attack}, view blind)"
    found = [metric for result in metrics for metric in result["metrics"] if not attack or metric["name"] == wanted]
    return found[0]["value"]


def recipe_of(name: str) -> Recipe:
    return next(one for one in map(load_recipe, NAMES) if one.weights.get("student") == name)


def test_all_of_it_is_at_most_24_megabytes_and_what_most_users_need_at_most_12() -> None:
    folders = [weights.locate(name) for name in weights.NAMES]
    assert folders
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < 24_000_000
    needed = [weights.locate(name) for name in ("cifar10", "cifar10-paper", "cifar10-resnet56")]
    assert sum(path.stat().st_size for folder in needed for path in folder.iterdir()) < 12_000_000


@pytest.mark.parametrize("name", weights.PURIFIERS)
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
        "against attackers who know it" if recipe_of(name).student.attack else "**not** the purifier",
    ):
        assert said in card_of(name), said


@pytest.mark.parametrize("name", weights.NAMES)
def test_a_card_is_of_the_file_beside_it(name: str) -> None:
    checksum = hashlib.sha256((weights.locate(name) / "model.safetensors").read_bytes()).hexdigest()
    assert f"`{checksum}`" in card_of(name)
    assert "-dirty" not in card_of(name)


@pytest.mark.parametrize("name", NAMES)
def test_recipes_name_weights_that_are_there(name: str) -> None:
    assert set(load_recipe(name).weights.values()) <= set(weights.NAMES)


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(MissingFileError, match=r"no purifier at 'cifar-10'; did you mean 'cifar10'"):
        Purifier.from_pretrained("cifar-10")
    with pytest.raises(MissingFileError, match=r"no purifier at '\./cifar10'"):
        Purifier.from_pretrained("./cifar10")
    with pytest.raises(CheckpointError, match="a classifier"):
        Purifier.from_pretrained(weights.CLASSIFIERS[0])


@cache
def data() -> ImageSet:
    """A few of the ten thousand test images that the cards speak of: always the same, so that nothing here is left to chance."""
    return load_images("cifar10", "test", path=str(CIFAR10)).limited(200, seed=0)


@cache
def classifier(name: str) -> ResNet:
    network = load_network(weights.locate(name))
    assert isinstance(network, ResNet)
    return network


@cache
def attacked(name: str) -> torch.Tensor:
    return FGSM(epsilon=8 / 255)(classifier(name), to_float(data().images), data().labels)


def right(model: torch.nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return 100 * (model(images).argmax(1) == data().labels).float().mean().item()


@needs_cifar10
@pytest.mark.parametrize("name", weights.CLASSIFIERS)
def test_a_shipped_classifier_is_as_good_as_its_card_says(name: str) -> None:
    assert right(classifier(name), to_float(data().images)) == pytest.approx(accuracy_in(name), abs=5)


@needs_cifar10
@pytest.mark.parametrize("name", weights.PURIFIERS)
def test_a_shipped_purifier_is_as_good_as_its_card_says(name: str) -> None:
    recipe = recipe_of(name)
    behind = recipe.classifier.source or recipe.weights["classifier"]
    model = PurifiedClassifier(Purifier.from_pretrained(name), classifier(behind))
    assert right(model, to_float(data().images)) == pytest.approx(accuracy_in(name), abs=6)
    assert right(model, attacked(behind)) == pytest.approx(accuracy_in(name, "FGSM"), abs=6)
    assert right(model, attacked(behind)) > right(classifier(behind), attacked(behind)) + 10
