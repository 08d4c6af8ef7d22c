"""Images to try a defence on without its data set: scikit-learn's digits, the user's own, or free pictures."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from purifiers.data import ImageSet, load_images
from purifiers.data.cifar10 import CLASSES
from purifiers.data.files import read_rgb
from purifiers.data.folder import class_files, cover
from purifiers.errors import ConfigError, DataError, ImageTooLargeError, InputError
from purifiers.recipes.parts import Data
from purifiers.recipes.schema import Recipe

LONGEST = 20
"""How many times as long as wide a picture may be."""
LARGEST = 50_000_000
"""Pixels of a picture, at most: some kilobytes can hold one that fills the memory."""
MOST = 10
"""Samples at most of a data set, of as many classes."""
_OWN = "The samples are test images of the data set that the purifier was trained on."
_CELLS = 32
_FINE = 8
_Polygon = tuple[str, tuple[tuple[float, float], ...]]
# Drawn by us on 32 by 32 cells: what is behind everything, polygons from back to front, and the middles of wheels.
_DRAWINGS: dict[str, tuple[str, tuple[_Polygon, ...], tuple[tuple[int, int], ...]]] = {
    "ship": (
        "#a9cbe8",
        (
            ("#2c5f86", ((0, 22), (32, 22), (32, 32), (0, 32))),
            ("#7a2e2a", ((3, 19), (29, 19), (25, 25), (7, 25))),
            ("#f0f0ee", ((8, 15), (23, 15), (23, 19), (8, 19))),
            ("#f0f0ee", ((10, 11), (18, 11), (18, 15), (10, 15))),
            ("#c9452f", ((13, 6), (16, 6), (16, 11), (13, 11))),
        ),
        (),
    ),
    "airplane": (
        "#8fbde6",
        (
            ("#dfe5ea", ((2, 15), (5, 13), (26, 13), (30, 15.5), (26, 18), (5, 18))),
            ("#b9c2ca", ((12, 15), (18, 15), (10, 26), (7, 26))),
            ("#c9d1d8", ((13, 13), (18, 13), (13, 5), (10, 5))),
            ("#b3262b", ((3, 14), (7, 14), (4, 7), (1, 7))),
        ),
        (),
    ),
    "truck": (
        "#c4d6e4",
        (
            ("#77797a", ((0, 24), (32, 24), (32, 32), (0, 32))),
            ("#e9e4d8", ((2, 7), (20, 7), (20, 23), (2, 23))),
            ("#b5322b", ((20, 11), (26, 11), (30, 17), (30, 23), (20, 23))),
            ("#33404c", ((22, 12.5), (25.5, 12.5), (28, 17), (22, 17))),
        ),
        ((6, 24), (24, 24)),
    ),
    "automobile": (
        "#cfd9df",
        (
            ("#6d7073", ((0, 22), (32, 22), (32, 32), (0, 32))),
            ("#b3262b", ((2, 17), (8, 16), (12, 10), (22, 10), (26, 16), (30, 18), (30, 24), (2, 24))),
            ("#26323c", ((10, 16), (13, 11.5), (16.5, 11.5), (16.5, 16))),
            ("#26323c", ((18, 16), (18, 11.5), (21.5, 11.5), (24, 16))),
        ),
        ((8, 24), (24, 24)),
    ),
}


@dataclass(frozen=True)
class Samples:
    """A few images, in the size and with the classes that a classifier was made for.

    Attributes:
        data: the images, each with its class.
        credit: whose they are, in a sentence.
    """

    data: ImageSet
    credit: str

    @property
    def captions(self) -> list[str]:
        """The class of each."""
        return [self.data.classes[label] for label in self.data.labels.tolist()]


def samples_for(recipe: Recipe) -> Samples:
    """Images for what ``recipe`` trained. Nothing is downloaded, and no image of CIFAR-10 is needed or shown.

    Raises:
        ConfigError, MissingFileError, DataError: the recipe's own folder of images, from which the classes are known, is not
            there or not usable.
    """
    if recipe.data.name == "cifar10":
        return _pictures(_CELLS)
    if recipe.data.name == "folder":
        return _from_folder(recipe.data)
    data = load_images(recipe.data.name, "test", **recipe.data.source())
    firsts = [int((data.labels == label).nonzero()[0]) for label in data.labels.unique().tolist()]
    return Samples(data.subset(torch.tensor(firsts[:MOST])), _OWN)


def read_picture(file: Path, height: int, width: int) -> Tensor:
    """An image file as the classifier gets it: scaled to cover ``height`` by ``width``, its centre kept; uint8 (3, H, W).

    Raises:
        InputError: in words for whoever dropped it: it is no image, a damaged one, or too long.
    """
    try:
        image = read_rgb(file, max_pixels=LARGEST)
    except ImageTooLargeError as error:
        raise InputError(f"'{file.name}' is too large: at most {LARGEST / 1e6:.0f} megapixels.") from error
    except DataError as error:
        raise InputError(
            f"'{file.name}' cannot be read as an image: it is of another kind, or damaged. Drop a PNG, JPEG, WebP, BMP, GIF or "
            "TIFF file."
        ) from error
    if max(image.size) > LONGEST * min(image.size):
        raise InputError(
            f"'{file.name}' has {image.width} by {image.height} pixels: its middle would show nothing of it; crop it first."
        )
    return _pixels(cover(image, height, width))


def _from_folder(config: Data) -> Samples:
    if config.path is None or not Path(config.path).is_dir():
        raise ConfigError(
            f"its images are not at {config.path}, and with them the names of its classes: say where they are with --data-dir"
        )
    files = class_files(Path(config.path), "test")
    firsts = [(label, of_class[0]) for label, of_class in enumerate(files.values()) if of_class][:MOST]
    images = [read_rgb(file) for _, file in firsts]
    width, height = (config.size, config.size) if config.size else images[0].size
    return Samples(
        ImageSet(
            name=Path(config.path).name,
            images=torch.stack([_pixels(cover(image, height, width)) for image in images]),
            labels=torch.tensor([label for label, _ in firsts]),
            classes=tuple(files),
        ),
        _OWN,
    )


def _pictures(size: int) -> Samples:
    from skimage import data  # takes a moment, and only these pictures need it

    cat = Image.fromarray(data.chelsea()).crop((60, 0, 360, 300))
    horse = Image.fromarray(np.where(data.horse(), 255, 0).astype(np.uint8)).crop((36, 0, 364, 328)).convert("RGB")
    pictures = {"cat": cat, "horse": horse} | {name: _drawn(name) for name in _DRAWINGS}
    return Samples(
        ImageSet(
            name="pictures",
            images=torch.stack([_pixels(cover(picture, size, size)) for picture in pictures.values()]),
            labels=torch.tensor([CLASSES.index(name) for name in pictures]),
            classes=CLASSES,
        ),
        "The cat is a photograph by Stefan van der Walt, the horse a drawing by Andreas Preuss; both are CC0 and come with "
        "scikit-image. The other samples are drawings of our own. None is of CIFAR-10.",
    )


def _drawn(name: str) -> Image.Image:
    behind, polygons, wheels = _DRAWINGS[name]
    image = Image.new("RGB", (_CELLS * _FINE, _CELLS * _FINE), behind)
    draw = ImageDraw.Draw(image)
    for colour, corners in polygons:
        draw.polygon([(x * _FINE, y * _FINE) for x, y in corners], fill=colour)
    for x, y in wheels:
        for radius, colour in ((26, "#151515"), (11, "#c8c8c8")):
            middle = x * _FINE, y * _FINE
            draw.ellipse((middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius), fill=colour)
    return image


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
