"""A folder of images, one subfolder for each class."""

from collections import Counter
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from purifiers.console import say
from purifiers.data.datasets import DATASETS
from purifiers.data.files import SUFFIXES, counted, image_files, read_image, read_rgb
from purifiers.data.images import ImageSet
from purifiers.errors import ConfigError, DataError, MissingFileError
from purifiers.seeds import seed_for

TEST_SHARE = 0.2
NAMED = 20  # unreadable files that an error names; it counts all


def folder_classes(path: str | None) -> tuple[str, ...] | None:
    """The class names of such a folder; None if it is not here or not laid out so."""
    return tuple(_training_files(path)) or None


def folder_shape(path: str | None) -> tuple[int, int] | None:
    """Height and width of the first image of such a folder, or None if it is not here, not laid out so or not readable."""
    with suppress(DataError, StopIteration):
        first = read_rgb(next(iter(_training_files(path).values()))[0])
        return first.height, first.width
    return None


def _training_files(path: str | None) -> dict[str, list[Path]]:
    with suppress(DataError, OSError):
        return class_files(Path(path), "train") if path else {}
    return {}


@DATASETS.register("folder", classes=folder_classes, size=folder_shape)
def load_folder(split: Literal["train", "test"], path: str | None = None, size: int | None = None) -> ImageSet:
    """Images from ``path/<class>/*``, or from ``path/train/<class>/*`` and ``path/test/<class>/*`` (or ``val``), in any case.

    Without folders for the two splits, about a fifth of every class is the test split, drawn by each file's name, so that files
    added later move no image to the other split (but for the one that keeps a split of a very small class from being empty).
    Classes are numbered in the alphabetical order of their folders, or in numeric order where all their names are numbers;
    hidden ones are left out. What else is left out or changed is counted in a line. Pixels: see :func:`read_rgb`.

    ``size``: height and width: each image is scaled to cover it and its centre is kept. Needed where sizes differ.

    Raises:
        ConfigError: no ``path``, or images of several sizes and no ``size``.
        MissingFileError: no such folder, or fewer than two class folders.
        DataError: unreadable files; a class folder without images of its own; train and test folders with different classes.
    """
    if path is None:
        raise ConfigError("the data set 'folder' needs data.path (or --images): a folder with one subfolder per class")
    remarks: Counter[str] = Counter()
    files = class_files(Path(path), split, remarks if split == "train" else None)
    if list(files) != sorted(files):
        say(f"{'classes':<16} numbered as numbers: 10 after 9, and not after 1 as in alphabetical order (torchvision's)")
    images, unreadable = _read_all(files, size, remarks)
    if unreadable:
        more, also = _read_all(class_files(Path(path), "test" if split == "train" else "train"), size, remarks)
        unreadable += also
        listed = "\n  ".join([*unreadable[:NAMED], *(["..."] if len(unreadable) > NAMED else [])])
        count = len(images) + len(more) + len(unreadable)
        raise DataError(f"{len(unreadable)} of {count} images cannot be read; mend or remove them:\n  {listed}")
    shapes = sorted({image.shape[:2] for image in images})
    if len(shapes) > 1:
        shorter = sorted(min(image.shape[:2]) for image in images)
        advice = f"give one, that of the classifier's own training if known: --set data.size={shorter[len(shorter) // 2]}"
        raise ConfigError(f"the images have {len(shapes)} sizes (height, width), from {shapes[0]} to {shapes[-1]}; {advice}")
    if told := counted(remarks):
        say(f"{f'{split} images':<16} left out or changed: {told}")
    labels = torch.tensor([label for label, of_class in enumerate(files.values()) for _ in of_class], dtype=torch.int64)
    return ImageSet(Path(path).name, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels, tuple(files))


def class_files(root: Path, split: Literal["train", "test"], left_out: Counter[str] | None = None) -> dict[str, list[Path]]:
    """The classes below ``root``, in the order of their labels, with the files of a split; see :func:`load_folder`."""
    left_out = Counter() if left_out is None else left_out  # of both splits
    if not root.is_dir():
        raise MissingFileError(f"there is no folder {root}")
    named = {name.lower(): root / name for name in _folders(root)}
    # One without folders is a class, whatever its name.
    own = [named[name] for name in ("train", "test", "val") if name in named and _folders(named[name])]
    if not own:
        return {name: _drawn(root / name, files, split) for name, files in _classes(root, left_out).items()}
    if own[0].name.lower() != "train" or len(own) == 1:
        raise DataError(f"{root} has a folder {own[0].name} of its own; it needs both train and test or val")
    train, test = (_classes(folder, left_out) for folder in own[:2])
    if list(train) != list(test):
        raise DataError(f"{own[0]} and {own[1]} do not have the same class folders")
    return train if split == "train" else test


def _folders(home: Path) -> list[str]:
    return sorted(entry.name for entry in home.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _classes(home: Path, left_out: Counter[str]) -> dict[str, list[Path]]:
    """The class folders in ``home``, in the order of their labels, with their images."""
    names = _folders(home)
    if odd := [name for name in names if name.encode(errors="ignore").decode() != name]:
        raise DataError(f"{home} has folders whose names, those of the classes, are not UTF-8: {odd}; rename them")
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    if len(names) < 2:
        raise MissingFileError(f"{home} needs at least two subfolders with images, one for each class; found {len(names)}")
    files = {name: image_files(home / name, lambda error: left_out.update([str(error.strerror)]), left_out) for name in names}
    if empty := [str(home / name) for name in names if not any(file.parent == home / name for file in files[name])]:
        advice = "add some, or remove the folder; folders of the two splits are named train and test (or val)"
        raise DataError(f"every folder is a class, and there is no image itself in {', '.join(empty)}: {advice}")
    strays = [file for file in home.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != "." and file.is_file()]
    left_out["images outside of the class folders"] += len(strays)
    return files


def _drawn(folder: Path, files: list[Path], split: str) -> list[Path]:
    """The files of a split, of a class that has no folders for them."""
    if len(files) < 2:
        raise DataError(f"{folder} has one image; a class needs at least 2, one to train on and one to test on")
    draws = {file: seed_for(0, folder.name, str(file.relative_to(folder))) / 2**32 for file in files}
    ranked = sorted(files, key=draws.__getitem__)
    # The lowest draw is for testing and the highest for training, so that no split of a small class is empty.
    tests = {ranked[0], *(file for file in ranked[:-1] if draws[file] < TEST_SHARE)}
    return [file for file in files if (file in tests) == (split == "test")]


def _read_all(files: dict[str, list[Path]], size: int | None, remarks: Counter[str]) -> tuple[list[np.ndarray], list[str]]:
    """The images of ``files``, uint8 (H, W, 3), and the faults of those that cannot be read; remarks on them are counted."""
    images, unreadable = [], []
    for file in chain(*files.values()):
        try:
            picture = read_image(file)
            remarks.update(picture.remarks)
            image = picture.over_white()
            images.append(np.asarray(image if size is None else cover(image, size, size)))
        except DataError as error:
            unreadable.append(str(error))
    return images, unreadable


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """``image`` scaled to cover ``height`` by ``width`` pixels, and its centre kept."""
    scale = max(width / image.width, height / image.height)
    wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - width) // 2, (high - height) // 2
    return image.crop((left, top, left + width, top + height))
