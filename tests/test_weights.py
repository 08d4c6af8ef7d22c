"""The weights that come with the library: whole, small enough, with a card, and as good as the card says."""

import hashlib
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from purifiers import PurifiedClassifier, Purifier, weights
from purifiers.attacks import FGSM, PGD
from purifiers.data import ImageSet, load_images, to_float
from purifiers.data.files import read_rgb
from purifiers.data.folder import cover
from purifiers.errors import CheckpointError, MissingFileError
from purifiers.hub import metadata
from purifiers.networks import ResNet
from purifiers.recipes.load import NAMES, load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.recipes.training_settings import STARTS
from purifiers.registry import load_network
from tests.conftest import CIFAR10, EFFICIENTNET, PHOTOS, needs_cifar10, needs_photos


def card_of(name: str) -> str:
    return (weights.locate(name) / "README.md").read_text()


def accuracies_in(name: str) -> dict[str, float]:
    """The accuracies in the card's front matter, in %, by their names, in front of the first classifier."""
    return {one["name"]: one["value"] for one in reversed(metadata(card_of(name))["model-index"][0]["results"][0]["metrics"])}


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
        "| PGD-20, 8/255 | blind |",
        "## Limits",
        "against attackers who know it"
        if (recipe_of(name).student.attack or recipe_of(name).latent)
        else "**not** the purifier",
    ):
        assert said in card_of(name), said


@pytest.mark.parametrize("name", weights.NAMES)
def test_a_card_is_of_the_file_beside_it(name: str) -> None:
    checksum = hashlib.sha256((weights.locate(name) / "model.safetensors").read_bytes()).hexdigest()
    assert f"`{checksum}`" in card_of(name)
    assert "-dirty" not in card_of(name)


@pytest.mark.parametrize("name", NAMES)
def test_recipes_name_weights_that_are_there(name: str) -> None:
    recipe = load_recipe(name)
    assert set(recipe.weights.values()) <= set(weights.NAMES)
    starts = {recipe.student.start, recipe.teacher_at.start} - {None, *STARTS}
    assert {start for start in starts if start and not start.startswith("runs/")} <= set(weights.PURIFIERS)


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(MissingFileError, match=r"no purifier at 'cifar-10'; did you mean 'cifar10'"):
        Purifier.from_pretrained("cifar-10")
    with pytest.raises(MissingFileError, match=r"no purifier at '\./cifar10'"):
        Purifier.from_pretrained("./cifar10")
    with pytest.raises(CheckpointError, match="a classifier"):
        Purifier.from_pretrained(weights.CLASSIFIERS[0])


COUNT = 100


@pytest.fixture(scope="module")
def data() -> ImageSet:
    """A hundred of the ten thousand test images that the cards are about."""
    return load_images("cifar10", "test", path=str(CIFAR10)).limited(COUNT, seed=0)


@pytest.fixture(scope="module")
def attacked(data: ImageSet) -> Callable[[str], tuple[torch.nn.Module, torch.Tensor]]:
    """A shipped classifier by name, and the images that FGSM made for it: once for all purifiers in front of it."""

    @cache
    def attacked(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
        classifier = load_network(weights.locate(name))
        return classifier, FGSM()(classifier, to_float(data.images), data.labels)

    return attacked


def right(model: torch.nn.Module, images: torch.Tensor, data: ImageSet) -> float:
    with torch.no_grad():
        return 100 * (model(images).argmax(1) == data.labels).float().mean().item()


def close_to(accuracy: float, count: int = COUNT) -> object:
    """Within four standard errors of what the card has for many more images."""
    return pytest.approx(accuracy, abs=4 * (accuracy * (100 - accuracy) / count) ** 0.5)


@needs_cifar10
@pytest.mark.parametrize("name", weights.CLASSIFIERS)
def test_a_shipped_classifier_is_as_good_as_its_card_says(name: str, data: ImageSet) -> None:
    classifier = load_network(weights.locate(name))
    assert isinstance(classifier, ResNet)
    assert right(classifier, to_float(data.images), data) == close_to(accuracies_in(name)["accuracy"])


@needs_cifar10
@pytest.mark.parametrize("name", [name for name in weights.PURIFIERS if name.startswith("cifar10")])
def test_a_shipped_purifier_is_as_good_as_its_card_says(
    name: str, data: ImageSet, attacked: Callable[[str], tuple[torch.nn.Module, torch.Tensor]]
) -> None:
    recipe, images = recipe_of(name), to_float(data.images)
    classifier, adversarial = attacked(recipe.classifier.source or recipe.weights["classifier"])
    model = PurifiedClassifier(Purifier.from_pretrained(name), classifier)
    assert right(model, images, data) == close_to(accuracies_in(name)["accuracy (none, view none)"])
    assert right(model, adversarial, data) == close_to(accuracies_in(name)["accuracy (FGSM, 8/255, view blind)"])


class EfficientNet(nn.Module):
    """EfficientNet-lite0 for ImageNet, pretrained elsewhere: images in [0,1], 224 pixels -> logits."""

    def __init__(self) -> None:
        super().__init__()
        network = pytest.importorskip("efficientnet_lite_pytorch", reason="the network of the classifier is not installed")
        self.network = network.EfficientNet.from_name("efficientnet-lite0").float().eval()
        self.network.load_state_dict(load_file(EFFICIENTNET))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - 0.498) / 0.502)


@needs_photos
def test_the_purifier_of_photographs_is_as_good_as_its_card_says() -> None:
    files = sorted(PHOTOS.glob("*.jpg"))[3::4][::10]  # every fourth is a test image, by convention
    labels = torch.tensor([int(file.name[:3]) for file in files])
    pictures = torch.stack([torch.from_numpy(np.array(cover(read_rgb(file), 224, 224))).permute(2, 0, 1) for file in files])
    data, classifier = ImageSet("photos", pictures, labels, tuple(map(str, range(1000)))), EfficientNet()
    adversarial = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=5)(classifier, to_float(pictures), labels)
    model = PurifiedClassifier(Purifier.from_pretrained("photos"), classifier)
    assert right(classifier, adversarial, data) <= 5
    card = accuracies_in("photos")
    assert right(model, to_float(pictures), data) == close_to(card["accuracy (none, view none)"], len(files))
    assert right(model, adversarial, data) == close_to(card["accuracy (PGD-20, 8/255, view blind)"], len(files))
