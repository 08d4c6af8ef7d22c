"""Cleaning image files."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from purifiers.console import progress
from purifiers.data import to_float, to_uint8
from purifiers.data.files import SUFFIXES, image_files, read_rgb
from purifiers.errors import ConfigError, DataError, MissingFileError
from purifiers.files import atomic_path
from purifiers.purifier import Purifier


@dataclass
class BulkResult:
    """What happened to the files: how many were purified, how many were there already, and which failed, with why."""

    purified: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)


def purify_files(purifier: Purifier, source: Path, target: Path, *, overwrite: bool = False) -> BulkResult:
    """Purify an image file, or every image below a folder, into PNG files of the same names and tree.

    PNG because it loses nothing. One image at a time, so that sizes may differ and memory stays small. Files that are
    there already and newer than their source are skipped; one that cannot be read stops nothing and is reported.

    Args:
        purifier: on its device.
        source: a file (png, jpg, webp, bmp, gif, tif) or a folder.
        target: a .png file or a folder for a file, a folder for a folder; made if missing.
        overwrite: purify again what is there already, for example after the purifier has changed.

    Raises:
        MissingFileError: ``source`` does not exist, or holds no image.
        ConfigError: ``target`` lies inside ``source`` or is of the other sort.
    """
    result = BulkResult()
    pairs = _pairs(source, target, result)
    weight = next(purifier.parameters(), None)
    device = weight.device if weight is not None else torch.device("cpu")
    with progress("purifying", len(pairs)) as advance:
        for original, purified in pairs:
            if not overwrite and purified.exists() and purified.stat().st_mtime >= original.stat().st_mtime:
                result.skipped += 1
            else:
                try:
                    _purify_file(purifier, original, purified, device)
                    result.purified += 1
                except DataError as error:
                    result.failed.append(str(error))
            advance(1)
    return result


def _pairs(source: Path, target: Path, result: BulkResult) -> list[tuple[Path, Path]]:
    if not source.exists():
        raise MissingFileError(f"there is no file or folder {source}")
    if source.is_file():
        if source.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{source} is no image that can be read here ({', '.join(SUFFIXES)})")
        if not target.is_dir() and target.suffix.lower() != ".png":
            raise ConfigError(f"{target} must end in .png, or be a folder that is there: PNG is what is written")
        purified = target / f"{source.stem}.png" if target.is_dir() else target
        if purified.resolve() == source.resolve():
            raise ConfigError(f"this would write over {source}; give another name")
        return [(source, purified)]
    if target.is_file():
        raise ConfigError(f"{source} is a folder, {target} a file; give a folder to write to")
    if target.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"{target} lies inside {source}; purified images would be purified again on the next run")
    files = image_files(source)
    if not files:
        raise MissingFileError(f"no image below {source} ({', '.join(SUFFIXES)})")
    taken: dict[Path, Path] = {}
    for file in files:
        purified = (target / file.relative_to(source)).with_suffix(".png")
        if taken.setdefault(purified, file) != file:
            result.failed.append(f"{file}: would become {purified}, like {taken[purified].name}; rename one")
    return [(file, purified) for purified, file in taken.items()]


def _purify_file(purifier: Purifier, original: Path, purified: Path, device: torch.device) -> None:
    pixels = torch.from_numpy(np.array(read_rgb(original))).permute(2, 0, 1).unsqueeze(0)
    with torch.no_grad():
        cleaned = to_uint8(purifier(to_float(pixels.to(device))))
    with atomic_path(purified) as temporary:
        Image.fromarray(cleaned[0].permute(1, 2, 0).cpu().numpy()).save(temporary)
