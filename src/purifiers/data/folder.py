"""A folder of images, one sub-folder for each class."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from purifiers.data.datasets import DATASETS
from purifiers.data.files import image_files, read_rgb
from purifiers.data.images import ImageSet
from purifiers.errors import ConfigError, DataError, MissingFileError
from purifiers.seeds import seed_for

TEST_SHARE = 0.2
TEST_FOLDERS = ("test", "val")
NAMED = 20
"""Unreadable files that an error names; it counts all."""


def folder_classes(path: str | None) -> tuple[str, ...] | None:
    """The class names of such a folder, or None if it is not here or not laid out so."""
    try:
        return _class_names(_home(Path(path or ""), "train")[0]) if path and Path(path).is_dir() else None
    except (DataError, MissingFileError, OSError):
        return None


def folder_shape(path: str | None) -> tuple[int, int] | None:
    """Height and width of the first image of such a folder, or None if it is not here, not laid out so or not readable."""
    try:
        if not path or not Path(path).is_dir():
            return None
        home = _home(Path(path), "train")[0]
        first = read_rgb(image_files(home / _class_names(home)[0])[0])
    except (DataError, MissingFileError, OSError):
        return None
    return first.height, first.width


@DATASETS.register("folder", classes=folder_classes, size=folder_shape)
def load_folder(split: Literal["train", "test"], path: str | None = None, size: int | None = None) -> ImageSet:
    """Images from ``path/<class>/*``, or from ``path/train/<class>/*`` and ``path/test/<class>/*`` (or ``val``).

    Without folders of its own for the two splits, about a fifth of every class is the test split. Each file's name
    decides for itself, so that files added later move no image from one split to the other. The exception is the one
    image that keeps a split of a very small class from being empty: it is given back when the split has another.
    Classes are numbered in the alphabetical order of their folders, hidden ones left out; see :func:`read_rgb` for what becomes
    of pixels.

    Args:
        split: which of the two.
        path: the folder.
        size: height and width: each image is scaled to cover it and its centre is kept. Needed where sizes differ.

    Raises:
        ConfigError: no ``path``, or images of several sizes and no ``size``.
        MissingFileError: no such folder, or no class folders with images in it.
        DataError: files that cannot be read, the first 20 named; train and test folders with different classes.
    """
    if path is None:
        raise ConfigError("the data set 'folder' needs data.path (or --images): a folder with one sub-folder per class")
    files = class_files(Path(path), split)
    chosen = [(file, label) for label, of_class in enumerate(files.values()) for file in of_class]

    def others() -> list[Path]:
        other = class_files(Path(path), "test" if split == "train" else "train")
        return [file for of_class in other.values() for file in of_class]

    return ImageSet(
        name=Path(path).name,
        images=_read_all([file for file, _ in chosen], size, others),
        labels=torch.tensor([label for _, label in chosen], dtype=torch.int64),
        classes=tuple(files),
    )


def class_files(root: Path, split: Literal["train", "test"]) -> dict[str, list[Path]]:
    """The classes below ``root``, in the order of their labels, with the files of a split; see :func:`load_folder`.

    Raises:
        MissingFileError, DataError: see there; no file is opened.
    """
    if not root.is_dir():
        raise MissingFileError(f"there is no folder {root}")
    home, own_splits = _home(root, split)
    return {name: _class_files(home / name, split, own_splits) for name in _class_names(home)}


def _home(root: Path, split: str) -> tuple[Path, bool]:
    """The folder that holds the class folders of a split, and whether it is that split's own."""
    train, tests = root / "train", [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not train.is_dir() and not tests:
        return root, False
    if not train.is_dir() or not tests:
        found = train if train.is_dir() else tests[0]
        raise DataError(f"{root} has a folder {found.name} of its own; it needs both train and {' or '.join(TEST_FOLDERS)}")
    if _class_names(train) != _class_names(tests[0]):
        raise DataError(f"{train} and {tests[0]} do not have the same class folders")
    return (train if split == "train" else tests[0]), True


def _class_names(home: Path) -> tuple[str, ...]:
    entries = [entry for entry in home.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    names = tuple(sorted(entry.name for entry in entries if image_files(entry)))
    if len(names) < 2:
        raise MissingFileError(f"{home} needs at least two sub-folders with images, one for each class; found {len(names)}")
    return names


def _class_files(folder: Path, split: str, own_splits: bool) -> list[Path]:
    files = image_files(folder)
    if own_splits:
        return files
    if len(files) < 2:
        raise DataError(f"{folder} has one image; a class needs at least 2, one to train on and one to test on")
    draws = {file: seed_for(0, folder.name, str(file.relative_to(folder))) / 2**32 for file in files}
    ranked = sorted(files, key=draws.__getitem__)
    # The lowest draw is for testing and the highest for training, so that no split of a small class is empty.
    tests = {ranked[0], *(file for file in ranked[:-1] if draws[file] < TEST_SHARE)}
    return [file for file in files if (file in tests) == (split == "test")]


def _read_all(files: list[Path], size: int | None, others: Callable[[], list[Path]]) -> torch.Tensor:
    """The images of ``files``; where one cannot be read, those of ``others`` that cannot be either are told with it."""
    arrays: list[np.ndarray] = []
    unreadable: list[str] = []

    def read(file: Path) -> Image.Image | None:
        try:
            return read_rgb(file)
        except DataError as error:
            unreadable.append(str(error))
            return None

    for file in files:
        if (image := read(file)) is not None:
            arrays.append(np.asarray(image if size is None else cover(image, size, size)))
    if unreadable:
        for file in (rest := others()):
            read(file)
        files = [*files, *rest]
        listed = "\n  ".join([*unreadable[:NAMED], *(["..."] if len(unreadable) > NAMED else [])])
        raise DataError(f"{len(unreadable)} of {len(files)} images cannot be read; mend or remove them:\n  {listed}")
    shorter = sorted(min(array.shape[:2]) for array in arrays)
    shapes = sorted({array.shape[:2] for array in arrays})
    if len(shapes) > 1:
        raise ConfigError(
            f"the images have {len(shapes)} sizes (height, width), from {shapes[0]} to {shapes[-1]}; give one, that of the "
            f"classifier's own training if you know it: --set data.size={shorter[len(shorter) // 2]}"
        )
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """``image`` scaled to cover ``height`` by ``width`` pixels, and its centre kept."""
    scale = max(width / image.width, height / image.height)
    wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - width) // 2, (high - height) // 2
    return image.crop((left, top, left + width, top + height))
