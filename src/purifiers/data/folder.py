"""A folder of images, one sub-folder for each class."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from purifiers.data.images import ImageSet
from purifiers.errors import ConfigError, DataError, MissingFileError
from purifiers.seeds import generator_for

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TEST_SHARE = 0.2


def load_folder(split: Literal["train", "test"], path: str | None = None, size: int | None = None) -> ImageSet:
    """Images from ``path/<class>/*`` or, if it has them, ``path/train/<class>/*`` and ``path/test/<class>/*``.

    Without folders of its own for the two splits, a fifth of every class, chosen once and for all by a fixed seed, is
    the test split. Classes are numbered in the alphabetical order of their folders; grey images become RGB.

    Args:
        split: which of the two.
        path: the folder.
        size: height and width: each image is scaled to cover it and its centre is kept. Needed where sizes differ.

    Raises:
        ConfigError: no ``path``, or images of several sizes and no ``size``.
        MissingFileError: no such folder, or no class folders with images in it.
        DataError: files that cannot be read, all named; train and test folders with different classes.
    """
    if path is None:
        raise ConfigError("the data set 'folder' needs data.path (or --images): a folder with one sub-folder per class")
    root = Path(path)
    if not root.is_dir():
        raise MissingFileError(f"there is no folder {root}")
    own_splits = (root / "train").is_dir() and (root / "test").is_dir()
    home = root / split if own_splits else root
    classes = _class_names(home)
    if own_splits and classes != _class_names(root / "train"):
        raise DataError(f"{root / 'train'} and {root / 'test'} do not have the same class folders")
    chosen = [(file, label) for label, name in enumerate(classes) for file in _class_files(home / name, split, own_splits)]
    if not chosen:
        raise MissingFileError(f"no image for the {split} split in {home} ({', '.join(SUFFIXES)})")
    return ImageSet(
        name=root.name,
        images=_read_all([file for file, _ in chosen], size),
        labels=torch.tensor([label for _, label in chosen], dtype=torch.int64),
        classes=classes,
    )


def image_files(folder: Path) -> list[Path]:
    """All image files below ``folder``, by their endings, sorted."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def read_rgb(file: Path) -> Image.Image:
    """Read one image file as RGB.

    Raises:
        DataError: it is not an image, or a damaged one.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: {error}") from error


def _class_names(home: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in home.iterdir() if entry.is_dir() and image_files(entry)))
    if len(names) < 2:
        raise MissingFileError(f"{home} needs at least two sub-folders with images, one for each class; found {len(names)}")
    return names


def _class_files(folder: Path, split: str, own_splits: bool) -> list[Path]:
    files = image_files(folder)
    if own_splits:
        return files
    order = torch.randperm(len(files), generator=generator_for(0, "folder split", folder.name)).tolist()
    cut = round(len(files) * TEST_SHARE)
    return [files[i] for i in sorted(order[:cut] if split == "test" else order[cut:])]


def _read_all(files: list[Path], size: int | None) -> torch.Tensor:
    arrays: list[np.ndarray] = []
    unreadable: list[str] = []
    for file in files:
        try:
            image = read_rgb(file)
        except DataError as error:
            unreadable.append(str(error))
            continue
        arrays.append(np.asarray(image if size is None else _cover(image, size)))
    if unreadable:
        listed = "\n  ".join(unreadable[:20])
        raise DataError(f"{len(unreadable)} of {len(files)} images cannot be read; mend or remove them:\n  {listed}")
    shapes = sorted({array.shape[:2] for array in arrays})
    if len(shapes) > 1:
        raise ConfigError(f"the images have {len(shapes)} sizes, from {shapes[0]} to {shapes[-1]}; give one with data.size=N")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _cover(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
