"""Cleaning image files in bulk."""

import errno
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from purifiers.bulk.pieces import BATCH_PIXELS, png_texts, purify_pictures, refuse_other_channels, saved_with
from purifiers.bulk.side_by_side import side_by_side
from purifiers.console import progress
from purifiers.data.files import SUFFIXES, Picture, image_files, image_size, is_whole, read_image, text_under
from purifiers.errors import ConfigError, DataError, MissingFileError, first_line
from purifiers.purifier import Purifier
from purifiers.registry import fingerprint
from purifiers.shards import Shard
from purifiers.storage import atomic_path, digest, write_text

MARK = "purifiers"
"""The PNG text, or JPEG comment, with the purifier that made a file, and its source and the state of that."""
JPEG = (".jpg", ".jpeg")
FAILED_FILE = "failed.txt"
PART_FILE = "failed-{}-of-{}.txt"  # of one of several shards
FAILED_TITLE = "# Images that 'purifiers purify' could not clean, and why\n"
NOT_OURS = "is there already and was not made by 'purifiers purify'; --overwrite replaces it"
MANY = 500
"""Images below which it does not pay to optimise the purifier, which takes a few seconds."""
AHEAD = 2
"""Batches that are decoded while one is purified and one written."""
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that every further file would meet too."""


@dataclass
class BulkResult:
    """Counts of files, and the failures."""

    purified: int = 0
    replaced: int = 0  # of the purified: those that overwrote the output of another purifier or source
    skipped: int = 0  # were there already
    remarks: Counter[str] = field(default_factory=Counter)  # what was left out, or is not quite as in its file, and how often
    failed: list[str] = field(default_factory=list)  # which, and why
    stop: bool = False  # at the first failure

    def fail(self, reason: str) -> None:
        """Add a failure, on one line: what cannot be printed, in names, is escaped. Raises DataError if it should stop."""
        self.failed.append("".join(one if one.isprintable() else repr(one)[1:-1] for one in reason))
        if self.stop:
            raise DataError(f"{self.failed[-1]}; --on-error skip lists it and continues")


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
    max_pixels: int = 50_000_000,
    compare: Path | None = None,
    on_error: Literal["skip", "stop"] = "skip",
    shard: Shard | None = None,
) -> BulkResult:
    """Purify an image file, or every image below a folder, into PNGs of the same names and tree; a single one also into a JPEG.

    Memory stays bounded. Files that this purifier made already from the same state of their source are skipped, so the same
    call resumes. A file that cannot be read or written is skipped and reported, of a folder also in its ``failed.txt``.

    Args:
        source: a file (png, jpg, webp, bmp, gif, tif) or a folder; linked folders in it are not entered.
        target: a .png or .jpg file or a folder for a file, a folder for a folder; made if missing.
        overwrite: purify again what is there already, and replace files of the same names that were not made here.
        max_pixels: width times height; larger images are refused before they are decoded.
        compare: a folder for pictures of the original, the purified image and their difference, side by side.
        on_error: ``stop`` raises a DataError at the first file that cannot be read or written.
        shard: the share of a folder's files to purify here; it joins the lists of what was skipped of all that have ended.

    Raises:
        MissingFileError: ``source`` does not exist, or there is no image in it.
        ConfigError: ``target`` or ``compare`` lie inside one another or ``source``, or one is a file and should be a folder;
            a ``failed.txt`` there that is not ours; a purifier that does not take RGB.
        OSError: the disk is full or read-only.
    """
    refuse_other_channels(purifier)
    result, shard = BulkResult(stop=on_error == "stop"), shard or Shard()
    if not source.exists():
        raise MissingFileError(f"there is no file or folder {source}")
    for folder in (compare, target if source.is_dir() else None):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; give a folder to write to")
    jobs = (_one_job if source.is_file() else _jobs)(source, target, compare, result)
    fast = purifier.optimize() if len(jobs) >= MANY else purifier  # the same for all shards, as its rounding differs
    jobs = [job for number, job in enumerate(jobs) if shard.takes(number)]
    with progress("purifying", len(jobs)) as advance:
        _Bulk(fast, fingerprint(purifier.network)[:16], overwrite, max_pixels, result, advance).run(jobs)
    if source.is_dir():
        with suppress(OSError):  # if nothing can be written, the failures say so
            _list(result.failed, target, shard)
    return result


def failed_list(failed: Collection[str]) -> str:
    """The content of a list of failures."""
    return FAILED_TITLE + "".join(f"{line}\n" for line in sorted(failed))


def refuse_other_list(content: bytes, place: Path | str) -> None:
    """Raise ConfigError for a file of the user's at the ``place`` of the list of failures."""
    if not content.startswith(FAILED_TITLE.encode()):
        raise ConfigError(f"{place} was not made by 'purifiers purify', which lists failures there: move it")


def led_out(folder: Path, name: Path | str) -> str:
    """Why a file of this name is not written below ``folder``: through a link, which leads out of it; empty if it may be."""
    parent = (folder / name).parent
    inside = parent.resolve().is_relative_to(folder.resolve())
    return "" if inside else f"{parent} is a link that leads out of {folder}; remove it"


def _list(failed: Collection[str], target: Path, shard: Shard) -> None:
    """Write the list of failures. A shard keeps one of its own, and joins those of all shards that have ended."""
    parts = [target / PART_FILE.format(index, shard.count) for index in range(shard.count)] if shard.count > 1 else []
    for other in {*target.glob(PART_FILE.format("[0-9]*", "[0-9]*"))}.difference(parts):
        other.unlink(missing_ok=True)
    _write_list(parts[shard.index] if parts else target / FAILED_FILE, {*failed})
    joined: set[str] | None = None
    while parts and joined != (found := set[str]().union(*map(_read_list, parts))):  # again if another shard ended in between
        joined = found
        _write_list(target / FAILED_FILE, joined)


def _write_list(file: Path, failed: Collection[str]) -> None:
    if failed:
        write_text(file, failed_list(failed))
    else:
        file.unlink(missing_ok=True)


def _read_list(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()[1:]
    except FileNotFoundError:  # nothing failed, or the shard has not ended yet
        return []


def _one_job(source: Path, target: Path, compare: Path | None, _: BulkResult) -> list[_Job]:
    if source.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{source} is no image that can be read here ({', '.join(SUFFIXES)})")
    if not target.is_dir() and target.suffix.lower() not in (".png", *JPEG):
        raise ConfigError(f"{target} must end in .png or .jpg, or be an existing folder")
    purified = target / f"{source.stem}.png" if target.is_dir() else target
    comparison = compare and compare / purified.name
    paths = [path.resolve() for path in (source, purified, comparison) if path is not None]
    if len(set(paths)) < len(paths):
        raise ConfigError(f"{source}: the result would write over it, or over the comparison; give another name or folder")
    return [_Job(source, purified, comparison)]


def _jobs(source: Path, target: Path, compare: Path | None, result: BulkResult) -> list[_Job]:
    if target.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"{target} lies inside {source}; purified images would be purified again on the next run")
    pairs = [(compare.resolve(), other.resolve()) for other in (source, target)] if compare else []
    if any(one.is_relative_to(other) or other.is_relative_to(one) for one, other in pairs):
        raise ConfigError(f"the comparisons need a folder apart from {source} and {target}; {compare} is not")
    listed = target / FAILED_FILE
    if listed.is_file():
        refuse_other_list(listed.read_bytes(), listed)
    files = image_files(source, lambda error: result.fail(f"{os.fsdecode(error.filename)}: {error.strerror}"), result.remarks)
    if not files and not result.failed:
        raise MissingFileError(f"no image below {source} ({', '.join(SUFFIXES)})")
    taken: dict[Path, Path] = {}
    for file in files:
        name = file.relative_to(source).with_suffix(".png")
        if taken.setdefault(name, file) != file:
            result.fail(f"{file}: would become {target / name}, like {taken[name].name}; rename one")
    jobs = {file: _Job(file, target / name, compare and compare / name) for name, file in taken.items()}
    for name, file in taken.items():
        for folder in filter(None, (target, compare)):
            if file in jobs and (reason := led_out(folder, name)):
                del jobs[file]
                result.fail(f"{file}: {reason}")
    return [*jobs.values()]


@dataclass
class _Bulk:
    """The work: threads decode ahead and encode behind, while the network runs in this one."""

    purifier: Purifier
    made_by: str
    overwrite: bool
    max_pixels: int
    result: BulkResult
    advance: Callable[[int], None]
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(min(4, os.cpu_count() or 1)))
    writing: list[tuple[_Job, Future[None]]] = field(default_factory=list)

    def run(self, jobs: Sequence[_Job]) -> None:
        """Do them all."""
        ahead: deque[list[tuple[_Job, Future[Picture]]]] = deque()
        try:
            for batch in self.batches(jobs):
                ahead.append([(job, self.pool.submit(read_image, job.original, max_pixels=self.max_pixels)) for job in batch])
                if len(ahead) > AHEAD:
                    self.purify(ahead.popleft())
            for decoding in ahead:
                self.purify(decoding)
            self.settle()
        finally:
            self.pool.shutdown(cancel_futures=True)  # files that are being written are completed

    def batches(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """The unfinished jobs, in groups of equal size; only headers are read here."""
        waiting: dict[tuple[int, int], list[_Job]] = defaultdict(list)
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
            waiting[size].append(job)
            if len(waiting[size]) * size[0] * size[1] >= BATCH_PIXELS:
                yield waiting.pop(size)
        yield from waiting.values()

    def is_done(self, job: _Job) -> bool:
        """Whether the files to write are there, made by this purifier from this state of the source."""
        about, source = job.original.stat(), digest(os.fsencode(job.original.resolve()).hex())
        job.mark = f"{self.made_by} {source[:16]} {about.st_size} {about.st_mtime_ns}"
        outputs = [file for file in (job.purified, job.comparison) if file is not None]
        there = [] if self.overwrite else [file for file in outputs if os.path.lexists(file)]
        for file in there:
            mark = text_under(file, MARK).strip()
            if not mark:
                raise DataError(f"{file} {NOT_OURS}")
            job.replaces = job.replaces or mark != job.mark
        # One that was cut off since, on a disk that was full or failed, counts as missing.
        return len(there) == len(outputs) and not job.replaces and all(map(is_whole, there))

    def purify(self, batch: Sequence[tuple[_Job, Future[Picture]]]) -> None:
        """Purify a batch that is being decoded, and start to write it."""
        read: list[tuple[_Job, Picture]] = []
        for job, future in batch:
            try:
                picture = future.result()
            except (DataError, MemoryError) as error:
                self.fail(job, error)
            else:
                self.result.remarks.update(picture.remarks)
                read.append((job, picture))
        purified = purify_pictures(self.purifier, [picture for _, picture in read])
        self.settle()
        for (job, picture), pixels in zip(read, purified, strict=True):
            if isinstance(pixels, Exception):
                self.fail(job, pixels)
            else:
                self.writing.append((job, self.pool.submit(_write, job, picture, pixels)))

    def settle(self) -> None:
        """Wait for the files that are being written, and count them."""
        for job, future in self.writing:
            try:
                future.result()
            except DataError as error:
                self.fail(job, error)
            else:
                self.result.purified += 1
                self.result.replaced += job.replaces
                self.advance(1)
        self.writing = []

    def fail(self, job: _Job, error: Exception) -> None:
        """Report that a file failed, and where."""
        named = str(error).startswith(f"{job.original}: ")
        reason = getattr(error, "strerror", None) or first_line(error)
        self.result.fail(str(error) if named else f"{job.original}: {reason}")
        self.advance(1)


def _write(job: _Job, picture: Picture, pixels: np.ndarray) -> None:
    purified = Image.fromarray(pixels)
    if job.comparison is not None:
        _save(side_by_side(picture.colours, purified), job.comparison, {MARK: job.mark})
    if job.purified.suffix.lower() in JPEG:
        purified = replace(picture, colours=purified).over_white()
    elif picture.alpha is not None:
        purified.putalpha(picture.alpha)
    _save(purified, job.purified, {**picture.text, MARK: job.mark}, **saved_with(picture))


def _save(image: Image.Image, file: Path, texts: dict[str, str], **about: Any) -> None:
    if file.suffix.lower() in JPEG:
        about |= {"quality": 95, "comment": f"{MARK}: {texts[MARK]}"}
    else:
        about["pnginfo"] = png_texts(texts)
    try:
        with atomic_path(file) as temporary:
            image.save(temporary, **about)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in FATAL:
            raise
        in_the_way = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = f"{file.parent} is no folder" if in_the_way else getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"cannot write {file}: {reason}") from error
