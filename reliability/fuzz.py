"""Bad input: damaged files, impossible tensors. A failure is any error but the library's own, a hang, or too much memory."""

import io
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from PIL import Image
from promise import Promise, Result

from purifiers.data.files import FORMATS, read_rgb
from purifiers.errors import PurifiersError

SECONDS = 10  # for one input; more is a hang
MEGABYTES = 500  # by which the process may grow


class Hang(BaseException):
    """An input took too long."""


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutated(random: np.random.Generator, seeds: list[bytes]) -> bytes:
    """One of ``seeds`` with a few bytes changed, cut, repeated, or replaced by a part of another one."""
    content = bytearray(seeds[random.integers(len(seeds))])
    for _ in range(random.integers(1, 6)):
        start, end = sorted(random.integers(0, len(content) + 1, 2).tolist())
        end = min(end, start + int(2 ** random.integers(0, 12)))
        match random.integers(6):
            case 0:
                content[start:end] = random.bytes(end - start)
            case 1:
                del content[start:end]
            case 2:
                content[start:start] = content[start:end]
            case 3:
                other = seeds[random.integers(len(seeds))]
                content[start:end] = other[start:end]
            case 4:  # numbers that overflow
                content[start : start + 4] = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0")[random.integers(3)]
            case _:
                content = content[: max(1, start)]
    return bytes(content)


def fuzzed(target: Callable[[bytes], object], inputs: Iterator[bytes]) -> Result:
    """Feed ``inputs`` to ``target``; the first of each kind of failure is reported."""
    count = survived = 0
    found: dict[str, str] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    warnings.simplefilter("ignore")  # Pillow's on damaged tags
    for content in inputs:
        count += 1
        try:
            with _within(SECONDS):
                target(content)
            survived += 1
        except PurifiersError:
            survived += 1
        except (Exception, Hang) as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(one.filename).name}:{one.lineno}" for one in frames if "purifiers" in one.filename]
            found.setdefault(f"{type(error).__name__} at {ours[-1:]}", f"{error!s:.200}; input {content[:200].hex()}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    failures = [f"{kind}: {first}" for kind, first in found.items()]
    if grown > MEGABYTES:
        failures.append(f"memory grew by {grown} MB, more than {MEGABYTES}")
    return Result(count, survived, "inputs", f"at most {grown} MB more memory", failures)


def pictures() -> list[bytes]:
    """A small file of each format and of the odder kinds."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    kinds = [colours, *(colours.convert(mode) for mode in ("L", "P", "1", "RGBA", "LA", "CMYK", "I;16"))]
    found = []
    for form in FORMATS:
        for image in kinds:
            buffer = io.BytesIO()
            try:
                image.save(buffer, form)
            except (OSError, ValueError, KeyError):  # a format without this kind
                continue
            found.append(buffer.getvalue())
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    colours.save(buffer, "JPEG", exif=exif, dpi=(72, 72))
    return [*found, buffer.getvalue()]


def images(count: int, _: Path) -> Result:
    """Damaged image files."""
    random, seeds = np.random.default_rng(count), pictures()
    return fuzzed(lambda content: read_rgb(content, max_pixels=10**6), (mutated(random, seeds) for _ in range(count)))


PROMISES = {
    "damaged-images": Promise(
        "A damaged image file is refused with a message, or read.",
        "files of six formats with bytes changed, cut, repeated and mixed, by a seeded mutator",
        images,
        5_000,
        1_000_000,
    ),
}
