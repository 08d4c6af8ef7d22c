"""A folder of images: one subfolder for each class, a table of labels, or no labels."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from purifiers.console import say
from purifiers.data.datasets import DATASETS
from purifiers.data.files import SUFFIXES, counted, image_files, read_image, read_rgb
from purifiers.data.images import ImageSet, drawn
from purifiers.data.labels import PREDICTED, UNKNOWN, in_order, numbered, read_classes, read_table, whole
from purifiers.data.large import IMAGES, decode
from purifiers.errors import ConfigError, DataError, MissingFileError
from purifiers.seeds import seed_for
from purifiers.storage import digest

TEST_SHARE = 0.2
OUTSIDE = "images outside of train and test"
NAMED = 20  # unreadable files that an error names; it counts all


def folder_classes(path: str | None = None, labels: str | None = None, classes: str | None = None) -> tuple[str, ...] | None:
    """The class names of such a folder; None if it is not here, not laid out so, or if its labels are no names."""
    with suppress(DataError, OSError):
        return (path and listed(Path(path), "train", labels, classes)[1]) or None
    return None


def folder_shape(path: str | None = None, labels: str | None = None) -> tuple[int, int] | None:
    """Height and width of the first image of such a folder, or None if it is not here, not laid out so or not readable."""
    with suppress(DataError, OSError):
        return _first_shape([*listed(Path(path), "train", labels)[0]][:1]) if path else None
    return None


def _first_shape(files: Iterable[Path]) -> tuple[int, int] | None:
    for file in files:
        with suppress(DataError):
            image = read_rgb(file)
            return image.height, image.width
    return None


@DATASETS.register("folder", classes=folder_classes, size=folder_shape)
def load_folder(
    split: Literal["train", "test"],
    path: str | None = None,
    size: int | None = None,
    labels: str | None = None,
    classes: str | None = None,
    cache: Path | str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """Images from ``path/<class>/*``, or from ``path/train/<class>/*`` and ``path/test/<class>/*`` (or ``val``), in any case.

    Without folders for the two splits, about a fifth of every class is the test split, drawn by each file's name, so that files
    added later move no image to the other split (but for the one that keeps a split of a very small class from being empty).
    Classes are numbered in the alphabetical order of their folders, or in numeric order where all their names are numbers;
    hidden ones are left out. What else is left out or changed is counted in a line. Pixels: see :func:`read_rgb`.

    ``size``: height and width: each image is scaled to cover it and its centre is kept. Needed where sizes differ.
    ``labels``: instead of class folders a CSV file (:func:`purifiers.data.labels.read_table`), whose labels, if all are numbers
    and there are no ``classes``, are the classifier's outputs, from 0. Or ``classifier``: the images, wherever they are below
    ``path``, are labelled by the classifier's predictions later, as those of a folder without class folders are anyway.
    ``classes``: a file of the names of all of the classifier's outputs (:func:`purifiers.data.labels.read_classes`).
    ``cache``: a folder where images that do not fit into memory are kept decoded (:func:`purifiers.data.large.decode`).
    ``limit``: only so many of the images are read, drawn by ``seed``.

    Raises:
        ConfigError: no ``path``, or images of several sizes and no ``size``.
        MissingFileError: no such folder or file, or fewer than two class folders.
        DataError: unreadable files; a class folder without images of its own; train and test folders with different classes;
            labels that are not among ``classes``.
    """
    if path is None:
        raise ConfigError("the data set 'folder' needs data.path (or --images): a folder of images")
    remarks: Counter[str] = Counter()
    files, names = listed(Path(path), split, labels, classes, remarks if split == "train" else None)
    if not files:
        raise DataError(f"there are no {split} images in {path}")
    chosen: tuple[int, ...] = ()
    if limit is not None and limit < len(files):
        chosen = limit, seed
        every = [*files.items()]
        files = dict(every[i] for i in drawn(len(files), limit, seed).tolist())

    def read(file: Path) -> tuple[np.ndarray, Sequence[str]]:
        picture = read_image(file)
        image = picture.over_white()
        return np.array(image if size is None else cover(image, size, size)), picture.remarks

    shape = ((size, size) if size is not None else _first_shape(files)) or (1, 1)

    def decoded(part: str, files: Iterable[Path]) -> tuple[torch.Tensor, list[str], list[tuple[int, int]]]:
        home = Path(cache) / f"{IMAGES}{digest(path, part, shape, *chosen):.16}" if cache else None
        return decode([*files], read, shape, remarks, f"reading {part} images", home)

    images, unreadable, shapes = decoded(split, files)
    if unreadable:
        other: Literal["train", "test"] = "test" if split == "train" else "train"
        others = listed(Path(path), other, labels, classes)[0]
        _, also, _ = decoded(other, others)
        unreadable += also
        faults = "\n  ".join([*unreadable[:NAMED], *(["..."] if len(unreadable) > NAMED else [])])
        raise DataError(
            f"{len(unreadable)} of {len(files) + len(others)} images cannot be read; mend or remove them:\n  {faults}"
        )
    shorter = sorted(map(min, shapes))
    shapes = sorted({shape, *shapes})
    if len(shapes) > 1:
        advice = f"give one, that of the classifier's own training if known: --set data.size={shorter[len(shorter) // 2]}"
        raise ConfigError(f"the images have {len(shapes)} sizes (height, width), from {shapes[0]} to {shapes[-1]}; {advice}")
    if told := counted(remarks):
        say(f"{f'{split} images':<16} left out or changed: {told}")
    numbers = torch.tensor([*files.values()], dtype=torch.int64)
    return ImageSet(Path(path).name, images, numbers, names, labels_predicted=bool((numbers == UNKNOWN).all()))


def listed(
    root: Path,
    split: Literal["train", "test"],
    labels: str | None,
    classes: str | None = None,
    left_out: Counter[str] | None = None,
) -> tuple[dict[Path, int], tuple[str, ...]]:
    """The files of a split with their labels, and the names of the classes; none where labels are numbers or predicted. See
    :func:`load_folder`; ``left_out`` counts what is not among them."""
    left_out = Counter() if left_out is None else left_out  # of both splits
    names = () if classes is None else read_classes(Path(classes))
    if by_folder := labels is None and not (root.is_dir() and _unlabelled(root)):
        of_class = class_files(root, split, left_out)
        own = {file: name for name, files in of_class.items() for file in files}
        chosen, order = [*own], tuple(of_class)
        if not names and list(order) != sorted(order):
            say(f"{'classes':<16} numbered as numbers: 10 after 9, and not after 1 as in alphabetical order (torchvision's)")
    else:
        files = image_files(root, lambda error: left_out.update([str(error.strerror)]), left_out)
        if labels in (None, PREDICTED):
            if len(files) < 2:
                raise MissingFileError(f"{root} needs images, at least two; found {len(files)}")
            return dict.fromkeys(_of_split(root, files, split, left_out), UNKNOWN), names
        own = read_table(Path(labels), root)
        own = own if names else whole(own, labels)
        left_out["images that the labels leave out"] += len({*files} - own.keys())
        chosen, order = _of_split(root, sorted(own), split, left_out), tuple(in_order(own.values()))
    if names:
        numbers = numbered({*own.values()}, names, str(root) if by_folder else str(labels))
    elif not by_folder and all(name.isdecimal() for name in order):
        numbers, order = {name: int(name) for name in order}, ()
    else:
        numbers = {name: i for i, name in enumerate(order)}
    return {file: numbers[own[file]] for file in chosen}, names or order


def _unlabelled(root: Path) -> bool:
    """Whether a folder has no subfolders, or none but those of the splits, with images and no class folders in them."""
    splits = {name.lower(): root / name for name in _folders(root)}
    return splits.keys() in (set(), {"train", "test"}, {"train", "val"}, {"train", "test", "val"}) and not any(
        map(_folders, splits.values())
    )


def _of_split(root: Path, files: list[Path], split: str, left_out: Counter[str]) -> list[Path]:
    """Those of ``files`` below the split's folder, if ``root`` has one for each split, or else about four fifths or one."""
    named = {name.lower(): root / name for name in _folders(root)}
    train, test = named.get("train"), named.get("test", named.get("val"))
    if train is None or test is None:
        return _drawn(root, "", files, split)
    left_out[OUTSIDE] += sum(not (file.is_relative_to(train) or file.is_relative_to(test)) for file in files)
    return [file for file in files if file.is_relative_to(train if split == "train" else test)]


def class_files(root: Path, split: Literal["train", "test"], left_out: Counter[str] | None = None) -> dict[str, list[Path]]:
    """The classes below ``root``, in the order of their labels, with the files of a split; see :func:`load_folder`."""
    left_out = Counter() if left_out is None else left_out  # of both splits
    if not root.is_dir():
        raise MissingFileError(f"there is no folder {root}")
    named = {name.lower(): root / name for name in _folders(root)}
    # One without folders is a class, whatever its name.
    own = [named[name] for name in ("train", "test", "val") if name in named and _folders(named[name])]
    if not own:
        return {name: _drawn(root / name, name, files, split) for name, files in _classes(root, left_out).items()}
    if own[0].name.lower() != "train" or len(own) == 1:
        raise DataError(f"{root} has a folder {own[0].name} of its own; it needs both train and test or val")
    train, test = (_classes(folder, left_out) for folder in own[:2])
    left_out[OUTSIDE] += sum(len(image_files(folder, lambda error: None, Counter())) for folder in own[2:])
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
    names = in_order(names)
    if len(names) < 2:
        raise MissingFileError(
            f"{home} needs at least two subfolders with images, one for each class; found {len(names)}; "
            f"images that are in no class folders need --labels, a CSV file or '{PREDICTED}'"
        )
    files = {name: image_files(home / name, lambda error: left_out.update([str(error.strerror)]), left_out) for name in names}
    if empty := [str(home / name) for name in names if not any(file.parent == home / name for file in files[name])]:
        advice = "add some, or remove the folder; folders of the two splits are named train and test (or val)"
        raise DataError(f"every folder is a class, and there is no image itself in {', '.join(empty)}: {advice}")
    strays = [file for file in home.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != "." and file.is_file()]
    left_out["images outside of the class folders"] += len(strays)
    return files


def _drawn(folder: Path, name: str, files: list[Path], split: str) -> list[Path]:
    """The files of a split, drawn by their names in ``folder`` and ``name``, that of a class."""
    if len(files) < 2:
        raise DataError(f"{folder} has one image; at least 2 are needed, one to train on and one to test on")
    draws = {file: seed_for(0, name, os.path.relpath(file, folder)) / 2**32 for file in files}
    ranked = sorted(files, key=draws.__getitem__)
    # The lowest draw is for testing and the highest for training, so that no split of a small class is empty.
    tests = {ranked[0], *(file for file in ranked[:-1] if draws[file] < TEST_SHARE)}
    return [file for file in files if (file in tests) == (split == "test")]


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """``image`` scaled to cover ``height`` by ``width`` pixels, and its centre kept."""
    return ImageOps.fit(image, (width, height))
