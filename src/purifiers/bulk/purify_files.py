"""Cleaning image files in bulk."""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from purifiers.bulk.comparison import side_by_side
from purifiers.bulk.pieces import BATCH_PIXELS, purify_pixels, refuse_other_channels
from purifiers.console import progress
from purifiers.data.files import SUFFIXES, Picture, image_files, image_size, png_text, read_image
from purifiers.errors import ConfigError, DataError, MissingFileError
from purifiers.purifier import Purifier
from purifiers.registry import fingerprint
from purifiers.storage import atomic_path, write_text

MAX_PIXELS = 50_000_000
"""Of an image, if nothing else is said."""
MARK = "purifiers"
"""The PNG text that says which purifier made a file, and of which state of its source."""
FAILED_FILE = "failed.txt"
FAILED_TITLE = "# Images that 'purifiers purify' could not clean, and why\n"
WAITING = 1024
"""Files whose size is known, at most, before a batch of fewer images than fit into it is begun."""
AHEAD = 2
"""Batches that are decoded while one is purified and one written."""
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What would fail for every further file too."""


@dataclass
class BulkResult:
    """What happened to the files.

    Attributes:
        purified: how many were purified.
        replaced: how many of these had been made by another purifier before.
        skipped: how many were there already.
        animated: of how many the first of several frames was taken.
        failed: which failed, with why.
    """

    purified: int = 0
    replaced: int = 0
    skipped: int = 0
    animated: int = 0
    failed: list[str] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        """Note a failure; names that are not UTF-8 are made printable."""
        self.failed.append(reason.encode("utf-8", "backslashreplace").decode())


@dataclass
class _Job:
    original: Path
    purified: Path
    comparison: Path | None
    mark: str = ""
    replaces: bool = False


def purify_files(
    purifier: Purifier,
    source: Path,
    target: Path,
    *,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    compare: Path | None = None,
) -> BulkResult:
    """Purify an image file, or every image below a folder, into PNG files of the same names and tree.

    PNG because it loses nothing. Images of equal size are purified together; memory stays bounded, whatever their number
    and sizes. What is there already, made by this purifier from the same state of its source, is skipped: the same call goes
    on after an interruption. A file that cannot be read or written stops nothing and is reported, below a folder also in
    ``failed.txt`` of ``target``.

    Args:
        purifier: on its device.
        source: a file (png, jpg, webp, bmp, gif, tif) or a folder; linked folders in it are not entered.
        target: a .png file or a folder for a file, a folder for a folder; made if missing.
        overwrite: purify again what is there already, and replace files of the same names that were not made here.
        max_pixels: width times height; larger images are refused before they are decoded.
        compare: a folder for pictures of the original, the purified image and their difference, side by side.

    Raises:
        MissingFileError: ``source`` does not exist, or holds no image.
        ConfigError: ``target`` or ``compare`` lie inside one another or ``source``, or are of the other sort; a purifier that
            does not take RGB.
        OSError: the disk is full or read-only.
    """
    refuse_other_channels(purifier)
    result = BulkResult()
    jobs = _jobs(source, target, compare, result)
    with progress("purifying", len(jobs)) as advance:
        _Bulk(purifier, overwrite, max_pixels, result, advance).run(jobs)
    if source.is_dir():
        with suppress(OSError):  # where nothing can be written, the failures say so
            _list_failed(target / FAILED_FILE, result.failed)
    return result


def _jobs(source: Path, target: Path, compare: Path | None, result: BulkResult) -> list[_Job]:
    if not source.exists():
        raise MissingFileError(f"there is no file or folder {source}")
    if compare is not None and compare.exists() and not compare.is_dir():
        raise ConfigError(f"{compare} is a file; give a folder for the comparisons")
    if source.is_file():
        if source.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{source} is no image that can be read here ({', '.join(SUFFIXES)})")
        if not target.is_dir() and target.suffix.lower() != ".png":
            raise ConfigError(f"{target} must end in .png, or be a folder that is there: PNG is what is written")
        purified = target / f"{source.stem}.png" if target.is_dir() else target
        comparison = compare and compare / purified.name
        for path in (purified, comparison):
            if path is not None and path.resolve() == source.resolve():
                raise ConfigError(f"this would write over {source}; give another name")
        if comparison is not None and comparison.resolve() == purified.resolve():
            raise ConfigError(f"the comparison would be written over {purified}; give another folder")
        return [_Job(source, purified, comparison)]
    if target.is_file():
        raise ConfigError(f"{source} is a folder, {target} a file; give a folder to write to")
    if target.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"{target} lies inside {source}; purified images would be purified again on the next run")
    if compare is not None and any(
        compare.resolve().is_relative_to(other.resolve()) or other.resolve().is_relative_to(compare.resolve())
        for other in (source, target)
    ):
        raise ConfigError(f"the comparisons need a folder apart from {source} and {target}; {compare} is not")
    problems: list[OSError] = []
    files = image_files(source, problems.append)
    for problem in problems:
        result.fail(f"{os.fsdecode(problem.filename)}: {problem.strerror}")
    if not files and not problems:
        raise MissingFileError(f"no image below {source} ({', '.join(SUFFIXES)})")
    taken: dict[Path, Path] = {}
    for file in files:
        name = file.relative_to(source).with_suffix(".png")
        if taken.setdefault(name, file) != file:
            result.fail(f"{file}: would become {target / name}, like {taken[name].name}; rename one")
    return [_Job(file, target / name, compare and compare / name) for name, file in taken.items()]


class _Bulk:
    """The work: threads decode ahead and encode behind, while the network runs in this one."""

    def __init__(
        self, purifier: Purifier, overwrite: bool, max_pixels: int, result: BulkResult, advance: Callable[[int], None]
    ) -> None:
        self.purifier = purifier
        self.made_by = fingerprint(purifier.network)[:16]
        self.overwrite = overwrite
        self.max_pixels = max_pixels
        self.result = result
        self.advance = advance
        self.pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        self.writing: list[tuple[_Job, Future[None]]] = []

    def run(self, jobs: Sequence[_Job]) -> None:
        """Do them all."""
        ahead: deque[list[tuple[_Job, Future[Picture]]]] = deque()
        try:
            for batch in self.batches(jobs):
                ahead.append([(job, self.pool.submit(read_image, job.original, max_pixels=self.max_pixels)) for job in batch])
                if len(ahead) > AHEAD:
                    self.purify(ahead.popleft())
            while ahead:
                self.purify(ahead.popleft())
            self.settle()
        finally:
            self.pool.shutdown(cancel_futures=True)  # what is being written is finished, or was never there

    def batches(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """What is to be done, in groups of equal size; only headers are read here."""
        waiting: dict[tuple[int, int], list[_Job]] = {}
        for job in jobs:
            try:
                if self.is_done(job):
                    self.result.skipped += 1
                    self.advance(1)
                    continue
                size = image_size(job.original, max_pixels=self.max_pixels)
            except (DataError, OSError) as error:
                self.fail(job, error)
                continue
            group = waiting.setdefault(size, [])
            group.append(job)
            if len(group) * size[0] * size[1] >= BATCH_PIXELS:
                yield waiting.pop(size)
            elif sum(map(len, waiting.values())) >= WAITING:
                yield waiting.pop(max(waiting, key=lambda one: len(waiting[one])))
        yield from waiting.values()

    def is_done(self, job: _Job) -> bool:
        """Is the purified file there, from this purifier and this state of the source?"""
        about = job.original.stat()
        job.mark = f"{self.made_by} {about.st_size} {about.st_mtime_ns}"
        if self.overwrite or not os.path.lexists(job.purified):
            return False
        mark = png_text(job.purified, MARK)
        if not mark:
            raise DataError(f"{job.purified} is there already and was not made by 'purifiers purify'; --overwrite replaces it")
        job.replaces = mark.split()[0] != self.made_by
        return mark == job.mark and (job.comparison is None or job.comparison.exists())

    def purify(self, batch: Sequence[tuple[_Job, Future[Picture]]]) -> None:
        """Purify a batch that is being decoded, and hand it over to be written."""
        groups: dict[tuple[int, int], list[tuple[_Job, Picture]]] = {}
        for job, future in batch:
            try:
                picture = future.result()
            except (DataError, MemoryError) as error:
                self.fail(job, error)
            else:
                self.result.animated += picture.animated
                groups.setdefault(picture.colours.size, []).append((job, picture))
        for group in groups.values():
            done = self.purify_group(group)
            self.settle()
            self.writing = [(job, self.pool.submit(_write, job, picture, pixels)) for job, picture, pixels in done]

    def purify_group(self, group: Sequence[tuple[_Job, Picture]]) -> list[tuple[_Job, Picture, np.ndarray]]:
        """Purify pictures of one size; if that fails, one by one, so that each answers for itself."""
        try:
            stacked = torch.from_numpy(np.stack([np.asarray(picture.colours) for _, picture in group]))
            purified = purify_pixels(self.purifier, stacked.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
        except (RuntimeError, ValueError, MemoryError) as error:
            if len(group) > 1:
                return [done for one in group for done in self.purify_group([one])]
            self.fail(group[0][0], error)
            return []
        return [(job, picture, pixels) for (job, picture), pixels in zip(group, purified, strict=True)]

    def settle(self) -> None:
        """Wait for what is being written, and count it."""
        for job, future in self.writing:
            try:
                future.result()
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in FATAL:
                    raise
                self.fail(job, error, f"cannot write {job.purified}: ")
            else:
                self.result.purified += 1
                self.result.replaced += job.replaces
                self.advance(1)
        self.writing = []

    def fail(self, job: _Job, error: Exception, doing: str = "") -> None:
        """Note what was wrong with a file, and at what."""
        reason = (error.strerror if isinstance(error, OSError) else None) or (str(error) or type(error).__name__).splitlines()[
            0
        ]
        self.result.fail(reason if str(job.original) in reason else f"{job.original}: {doing}{reason}")
        self.advance(1)


def _write(job: _Job, picture: Picture, pixels: np.ndarray) -> None:
    purified = Image.fromarray(pixels)
    if job.comparison is not None:
        with atomic_path(job.comparison) as temporary:
            side_by_side(picture.colours, purified).save(temporary)
    if picture.alpha is not None:
        purified.putalpha(picture.alpha)
    text = PngImagePlugin.PngInfo()
    text.add_text(MARK, job.mark)
    for key, value in picture.text.items():
        if key != MARK:
            text.add_text(key, value)
    about: dict[str, Any] = {"icc_profile": picture.icc, "exif": picture.exif, "dpi": picture.dpi}
    with atomic_path(job.purified) as temporary:
        purified.save(temporary, pnginfo=text, **{key: value for key, value in about.items() if value is not None})


def _list_failed(path: Path, failed: Sequence[str]) -> None:
    if failed:
        write_text(path, FAILED_TITLE + "\n".join(failed) + "\n")
    elif path.is_file() and path.read_text(errors="replace").startswith(FAILED_TITLE):
        path.unlink()
