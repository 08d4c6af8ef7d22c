from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from purifiers.app.samples import credit_of, read_picture, samples_for
from purifiers.data import load_images, to_float
from purifiers.data.cifar10 import CLASSES
from purifiers.errors import ConfigError, DataError, InputError
from purifiers.recipes.load import load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.registry import load_network
from purifiers.weights import locate


def halves(path: Path, width: int, height: int) -> Path:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0], pixels[:, width // 2 :, 2] = 255, 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_digits_are_test_images_one_of_each_class(tiny_recipe: Callable[..., Recipe]) -> None:
    samples = samples_for(tiny_recipe())
    assert [samples.classes[label] for label in samples.labels] == [str(i) for i in range(10)]
    test = {image.numpy().tobytes() for image in load_images("digits", "test").images}
    assert all(image.numpy().tobytes() in test for image in samples.images)
    assert "digits" in credit_of(tiny_recipe())


def test_for_cifar10_they_are_free_pictures_that_its_classifier_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purifiers.app.samples.load_images", None)  # which would download the data set
    recipe = load_recipe("strong-cpu")
    samples = samples_for(recipe)
    assert samples.images.shape == (3, 3, 32, 32) and samples.classes == CLASSES
    with torch.no_grad():
        said = load_network(locate("cifar10-resnet56"))(to_float(samples.images)).argmax(1)
    assert torch.equal(said, samples.labels)
    assert "Stefan van der Walt" in credit_of(recipe)


def test_of_a_folder_they_are_its_own_test_images(tmp_path: Path) -> None:
    for name in ("b", "a"):
        for split in ("train", "test"):
            halves(tmp_path / split / name / "x.png", 8, 6)
    recipe = load_recipe("folder", [("data.path", str(tmp_path)), ("classifier.source", "a:b")])
    samples = samples_for(recipe)
    assert (samples.classes, samples.labels.tolist(), samples.images.shape) == (("a", "b"), [0, 1], (2, 3, 6, 8))
    assert tmp_path.name in credit_of(recipe) and "trained" not in credit_of(recipe)
    samples = samples_for(load_recipe("folder", [("data.path", str(tmp_path)), ("data.size", 5), ("classifier.source", "a:b")]))
    assert tuple(samples.images.shape) == (2, 3, 5, 5)
    gone = load_recipe("folder", [("data.path", str(tmp_path / "gone")), ("classifier.source", "a:b")])
    with pytest.raises(ConfigError, match="--data-dir"):
        samples_for(gone)


def test_a_folder_without_test_images_is_told(tmp_path: Path) -> None:
    for i in range(2):
        halves(tmp_path / "train" / f"{i}.png", 8, 6)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="no test images"):
        samples_for(load_recipe("folder", [("data.path", str(tmp_path)), ("classifier.source", "a:b")]))


def test_of_a_recipe_without_its_folder_they_are_free_photographs_that_the_classifier_names(tmp_path: Path) -> None:
    recipe = load_recipe("photos-cpu", [("classifier.source", "a:b")])
    samples = samples_for(recipe)
    assert tuple(samples.images.shape) == (4, 3, 224, 224) and samples.unlabelled
    assert samples.images.float().std((1, 2, 3)).min() > 20  # each shows something
    assert "NASA" in credit_of(recipe)
    (tmp_path / "classes.txt").write_text("cat\ncup\n")
    own = [("classifier.source", "a:b"), ("data.size", 48), ("data.classes", str(tmp_path / "classes.txt"))]
    named = samples_for(load_recipe("folder", own))
    assert (named.classes, tuple(named.images.shape[2:])) == (("cat", "cup"), (48, 48))


def test_a_picture_of_any_size_is_scaled_and_its_middle_kept(tmp_path: Path) -> None:
    for width, height in ((300, 100), (7, 5), (8, 8)):
        pixels = read_picture(halves(tmp_path / "x.png", width, height), 8, 8)
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, 8, 8)
        assert (pixels[0, :, 0] > 200).all() and (pixels[2, :, -1] > 200).all(), (width, height)


def test_what_is_no_picture_is_told(tmp_path: Path) -> None:
    bad = tmp_path / "holiday.png"
    bad.write_text("not an image")
    with pytest.raises(InputError, match=r"'holiday\.png' is damaged or not an image"):
        read_picture(bad, 8, 8)
    bad.write_bytes(halves(tmp_path / "x.png", 64, 64).read_bytes()[:60])
    with pytest.raises(InputError, match="damaged"):
        read_picture(bad, 8, 8)
    with pytest.raises(InputError, match="300 by 10 pixels"):
        read_picture(halves(tmp_path / "long.png", 300, 10), 8, 8)
