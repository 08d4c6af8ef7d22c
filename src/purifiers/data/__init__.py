"""Where images come from. Every source gives an :class:`ImageSet`."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

from purifiers.data import cifar10, digits
from purifiers.data.cifar10 import load_cifar10
from purifiers.data.digits import load_digits
from purifiers.data.folder import folder_classes, folder_shape, load_folder
from purifiers.data.images import ImageSet, as_image_set, augmented, shuffled_batches, slices, to_float, to_uint8
from purifiers.errors import ConfigError, nearest

__all__ = [
    "SOURCES",
    "ImageSet",
    "as_image_set",
    "augmented",
    "class_names",
    "image_shape",
    "load_images",
    "shuffled_batches",
    "slices",
    "to_float",
    "to_uint8",
]

SOURCES: dict[str, Callable[..., ImageSet]] = {"digits": load_digits, "cifar10": load_cifar10, "folder": load_folder}
"""Name -> loader. A loader takes the split, and of ``path`` and ``size`` what it understands."""
FIXED = {"digits": (digits.CLASSES, digits.SIZES[0]), "cifar10": (cifar10.CLASSES, 32)}
"""Name -> the classes, and the height and width of images where no size is given, of sources that always have the same."""


def load_images(name: str, split: Literal["train", "test"], **options: Any) -> ImageSet:
    """Load a split of a data set by its name; options that are None are left to the loader's defaults.

    Raises:
        ConfigError: an unknown data set, or an option that it does not take.
        MissingFileError, DataError: see the loaders.
    """
    if name not in SOURCES:
        raise ConfigError(f"there is no data set '{name}'{nearest(name, SOURCES)}")
    given = {key: value for key, value in options.items() if value is not None}
    valid = inspect.signature(SOURCES[name]).parameters
    for key in given:
        if key not in valid:
            raise ConfigError(f"the data set '{name}' takes no data.{key}")
    return SOURCES[name](split, **given)


def class_names(name: str, path: str | None = None) -> tuple[str, ...] | None:
    """The classes of a data set, without reading its images; None where that cannot be told, as a folder is not here."""
    return FIXED[name][0] if name in FIXED else folder_classes(path)


def image_shape(name: str, path: str | None = None, size: int | None = None) -> tuple[int, int] | None:
    """Height and width of a data set's images, of which one at most is read; None where that cannot be told."""
    if size is None and name not in FIXED:
        return folder_shape(path)
    size = size or FIXED[name][1]
    return size, size
