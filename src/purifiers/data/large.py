"""Images that need not fit into memory: decoded once, in parallel, into a file that is indexed as a tensor in memory is.

The system reads it where it is needed, and keeps in free memory what was read. Smaller sets are in memory from the start.
"""

import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from purifiers.console import progress
from purifiers.data.images import slices
from purifiers.errors import DataError
from purifiers.storage import locked

IMAGES = "images-"
"""How the names of folders of decoded images begin."""
IN_MEMORY = 2 * 2**30
"""Bytes: larger sets of images are in files."""
TOGETHER = 256  # images between two entries into the index
Read = Callable[[Path], tuple[np.ndarray, Sequence[str]]]  # an image file -> its pixels, uint8 (H, W, 3), and remarks


def empty(
    shape: Sequence[int], dtype: torch.dtype, folder: Path | None = None, name: str = "", device: torch.device | str = "cpu"
) -> Tensor:
    """A tensor that is not filled yet: in the memory of ``device``, or, if it is larger than ``IN_MEMORY`` and on the CPU, in a
    file in ``folder``, by default the system's for temporary files. With a ``name`` the folder has to be there. Without one the
    file ends with the process, and the folder is not made.

    Raises:
        DataError: there is no space for the file.
    """
    if (size := math.prod(shape) * dtype.itemsize) <= IN_MEMORY or torch.device(device).type != "cpu":
        return torch.empty(*shape, dtype=dtype, device=device)
    wanted = (folder or Path(tempfile.gettempdir())).absolute()
    folder = next(one for one in (wanted, *wanted.parents) if one.is_dir())  # a file without a name needs none of its own
    advice = f"{size / 1e9:.1f} GB are needed in {folder}: free some, choose another output folder, or a smaller data.size"
    with (folder / name).open("a+b") if name else tempfile.TemporaryFile(dir=folder) as handle:
        there = handle.seek(0, os.SEEK_END)
        if size - there > shutil.disk_usage(folder).free:
            raise DataError(f"no space left on the disk; {advice}")
        try:  # reserved now, as a full disk would end a process that writes to a mapped file
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, size)
            handle.truncate(max(size, there))
        except OSError as error:
            handle.truncate(there)  # what was reserved until then
            raise DataError(f"{error.strerror}; {advice}") from error
        return torch.from_numpy(np.memmap(handle, np.uint8, "r+", shape=(size,))).view(dtype).view(*shape)


def decode(
    files: Sequence[Path], read: Read, shape: tuple[int, int], remarks: Counter[str], title: str, home: Path | None
) -> tuple[Tensor, list[str], list[tuple[int, int]]]:
    """The images of ``files``, uint8 (N, 3, H, W), those of another (height, width) than ``shape`` left out; the faults of
    those that cannot be read; and (height, width) of all that were read now.

    Threads read several at once. A set that is kept in a file stays in the folder ``home``, if there is one: of the same files,
    with others after them or not, those that were read are not read again.
    """
    size = len(files), 3, *shape
    known: list[str] = []
    faults: list[str] = []
    shapes: list[tuple[int, int]] = []

    def outcome(file: Path) -> tuple[np.ndarray, Sequence[str]] | DataError:
        try:
            return read(file)
        except DataError as error:
            return error

    with ExitStack() as held:
        if kept := home is not None and math.prod(size) > IN_MEMORY:
            assert home is not None
            held.enter_context(locked(home, wait=True, forecast=True))
            index, pixels = home / "index.jsonl", home / "pixels.u8"
            known = index.read_text(encoding="utf-8").splitlines() if index.exists() else []
            lines = {file: json.dumps([os.fsdecode(file), file.stat().st_size, file.stat().st_mtime_ns]) for file in files}
            if [*lines.values()][: len(known)] != known:  # of another process the old file stays as it is
                known = []
                index.unlink()
                pixels.unlink(missing_ok=True)
        images = empty(size, torch.uint8, home if kept else None, pixels.name if kept else "")
        if kept:
            entries, handle = held.enter_context(index.open("a", encoding="utf-8")), held.enter_context(pixels.open("r+b"))
        count = len(known)
        pool, advance = held.enter_context(ThreadPoolExecutor()), held.enter_context(progress(title, len(files)))
        advance(count)
        for part in slices(len(files) - len(known), TOGETHER):
            some, done = files[len(known) :][part], []
            for file, found in zip(some, pool.map(outcome, some), strict=True):
                if isinstance(found, DataError):
                    faults.append(str(found))
                else:
                    remarks.update(found[1])
                    shapes.append(found[0].shape[:2])
                    if shapes[-1] == shape:
                        images[count] = torch.from_numpy(found[0]).permute(2, 0, 1)
                        count += 1
                        done.append(file)
                advance(1)
            if kept:
                os.fsync(handle.fileno())
                entries.write("".join(f"{lines[file]}\n" for file in done))
                entries.flush()
    return images[:count], faults, shapes
