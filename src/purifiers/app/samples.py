"""Images to try a defence on without its data set: scikit-learn's digits, the user's own images, or free pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from purifiers.data import ImageSet, load_images
from purifiers.data.cifar10 import CLASSES
from purifiers.data.files import read_rgb
from purifiers.data.folder import cover, listed
from purifiers.data.labels import UNKNOWN, read_classes
from purifiers.errors import ConfigError, DataError, ImageTooLargeError, InputError
from purifiers.recipes.parts import Data
from purifiers.recipes.schema import Recipe

LONGEST = 20
"""The largest aspect ratio of a picture."""
LARGEST = 50_000_000
"""Pixels of a picture, at most: a file of some kilobytes can fill the memory."""
MOST = 10
"""Samples of a data set, at most; each is of another class."""
SIZE = 224
"""The side of photographs for a recipe that names none."""
_PICTURES = (
    "The cat was photographed by Stefan van der Walt, the horse drawn by Andreas Preuss; both pictures are CC0, and come with "
    "scikit-image, not from CIFAR-10."
)
_PHOTOGRAPHS = (
    "The photographs come with scikit-image, in the public domain or as CC0: a cat by Stefan van der Walt, coffee by Rachel "
    "Michetti, a rocket by SpaceX, an astronaut by NASA. The captions are the classifier's predictions."
)


def samples_for(recipe: Recipe) -> ImageSet:
    """Samples of the size and classes of ``recipe``'s classifier. Nothing is downloaded, and no image of CIFAR-10 is shown.

    Raises:
        ConfigError, MissingFileError, DataError: the recipe's folder of images is missing or not usable.
    """
    if recipe.data.name == "cifar10":
        return _pictures()
    if recipe.data.name == "folder":
        return _photographs(recipe.data) if _unknown(recipe) else _from_folder(recipe.data)
    data = load_images(recipe.data.name, "test", **recipe.data.source())
    firsts = [int((data.labels == label).nonzero()[0]) for label in data.labels.unique().tolist()]
    return data.subset(torch.tensor(firsts[:MOST]))


def credit_of(recipe: Recipe) -> str:
    """The origin of the samples, in a sentence."""
    if recipe.data.name == "cifar10":
        return _PICTURES
    if _unknown(recipe):
        return _PHOTOGRAPHS
    return f"The samples are test images of '{Path(recipe.data.path or recipe.data.name).name}'."


def _unknown(recipe: Recipe) -> bool:
    """Whether the recipe is for any folder of images, and names none."""
    return recipe.data.name == "folder" and recipe.data.path is None


def read_picture(file: Path, height: int, width: int) -> Tensor:
    """An image file as the classifier gets it: scaled to cover ``height`` by ``width``, its centre kept; uint8 (3, H, W).

    Raises:
        InputError: it is not an image, damaged, too large or too narrow.
    """
    try:
        image = read_rgb(file, max_pixels=LARGEST)
    except ImageTooLargeError as error:
        raise InputError(f"'{file.name}' is too large: at most {LARGEST / 1e6:.0f} megapixels.") from error
    except DataError as error:
        kinds = "PNG, JPEG, WebP, BMP, GIF or TIFF"
        raise InputError(f"'{file.name}' is damaged or not an image. Drop a {kinds} file.") from error
    if max(image.size) > LONGEST * min(image.size):
        raise InputError(f"'{file.name}' is too narrow, {image.width} by {image.height} pixels: crop it first.")
    return _covering(image, height, width)


def _from_folder(config: Data) -> ImageSet:
    if config.path is None or not Path(config.path).is_dir():
        raise ConfigError(f"there is no folder of images at {config.path}: give it with --data-dir")
    files, names = listed(Path(config.path), "test", config.labels, config.classes)
    if not files:
        raise DataError(f"there are no test images in {config.path}")
    first: dict[object, tuple[Path, int]] = {}  # of every class, or, without labels, every image
    for file, label in files.items():
        first.setdefault(file if label == UNKNOWN else label, (file, label))
    chosen, labels = zip(*list(first.values())[:MOST], strict=True)
    pictures = [read_rgb(file) for file in chosen]
    width, height = (config.size, config.size) if config.size else pictures[0].size
    return ImageSet(Path(config.path).name, _stacked(pictures, height, width), torch.tensor(labels), names, UNKNOWN in labels)


def _photographs(config: Data) -> ImageSet:
    from skimage import data

    pictures = [Image.fromarray(picture()) for picture in (data.chelsea, data.coffee, data.rocket, data.astronaut)]
    images = _stacked(pictures, config.size or SIZE, config.size or SIZE)
    names = () if config.classes is None else read_classes(Path(config.classes))
    return ImageSet("photographs", images, torch.full((len(images),), UNKNOWN), names, labels_predicted=True)


def _pictures() -> ImageSet:
    from skimage import data  # takes a moment, and only these samples need it

    cat = Image.fromarray(data.chelsea())
    horse = Image.fromarray(np.where(data.horse(), 255, 0).astype(np.uint8)).convert("RGB")
    images = _stacked((cat, cat.crop((130, 30, 330, 230)), horse), 32, 32)
    return ImageSet("pictures", images, torch.tensor([CLASSES.index(name) for name in ("cat", "cat", "horse")]), CLASSES)


def _stacked(pictures: Sequence[Image.Image], height: int, width: int) -> Tensor:
    return torch.stack([_covering(picture, height, width) for picture in pictures])


def _covering(image: Image.Image, height: int, width: int) -> Tensor:
    return torch.from_numpy(np.array(cover(image, height, width))).permute(2, 0, 1)
