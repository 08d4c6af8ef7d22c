"""How time and memory grow, and how long it takes to start."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import LONG, Benchmark, Table, digits, interleaved, limit_works
from purifiers import Purifier
from purifiers.attacks import BIM
from purifiers.networks import ResNet

HELP, IMPORT = 0.3, 1.2
FILES = """
import sys
from pathlib import Path
from purifiers import Purifier
from purifiers.bulk.purify_files import purify_files
from purifiers.networks import CAE
purify_files(Purifier(CAE(widths=[4], blocks=[1])), Path(sys.argv[1]), Path(sys.argv[2]))
used = Path("/proc/self/status")
Path(sys.argv[3]).write_text(used.read_text() if used.exists() else "")
"""


def child(*arguments: str) -> float:
    """CPU seconds of a Python process of its own."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"python {arguments[0]} ... ended with status {process.returncode}")
    return used.ru_utime + used.ru_stime


def exponent(sizes: list[float], times: list[float]) -> float:
    """Of the power of the size that fits the times best: 1 is a straight line."""
    return float(np.polyfit([math.log(size) for size in sizes], [math.log(time) for time in times], 1)[0])


def startup(quick: bool, _: Path) -> Table:
    """Processes that only start."""
    ways = {
        "`purifiers --help`": ("-m", "purifiers", "--help"),
        "`import torch`": ("-c", "import torch"),
        "`from purifiers import Purifier`": ("-c", "from purifiers import Purifier"),
    }
    turns = [{name: child(*way) for name, way in ways.items()} for _ in range(1 if quick else 3)]
    spent = {name: median([turn[name] for turn in turns]) for name in ways}
    rows = [[name, digits(spent[name])] for name in ways]
    share = spent["`from purifiers import Purifier`"] / spent["`import torch`"]
    bars = [
        f"`--help` takes {digits(spent['`purifiers --help`'])} s (bar: {HELP})",
        f"importing a purifier takes {share:.2f} of importing torch (bar: {IMPORT})",
    ]
    return Table(["", "CPU seconds"], rows, bars)


def files(quick: bool, folder: Path) -> Table:
    """Purifying files with a network that costs next to nothing: what is left is ours."""
    counts = [1, 10, 40] if quick else [1, 1000, 10**4, 10**5, 10**6] if LONG in os.environ else [1, 250, 1000, 4000]
    start, rows, times, about = 0.0, [], [0.0], folder / "status"
    (folder / "in").mkdir()
    for before, count in pairwise([0, *counts]):
        for i in range(before, count):
            Image.fromarray(np.full((32, 32, 3), i % 256, np.uint8)).save(folder / "in" / f"{i}.png")
        spent = child("-c", FILES, str(folder / "in"), str(folder / f"out{count}"), str(about))
        found = re.search(r"VmHWM:\s*(\d+)", about.read_text())
        start = spent if count == 1 else start
        each = "-" if count == 1 else digits(1000 * (spent - start) / count)
        times.append(max(spent - start, 0.01))
        rows.append([f"{count:,}", digits(spent), each, digits(int(found[1]) / 1024) if found else "-"])
    power = exponent([float(count) for count in counts[1:]], times[2:])
    note = f"Without the start, time grows with the number to the power of {power:.2f}."
    columns = ["files of 32 x 32", "CPU seconds", "ms a file, without the start", "MB at most"]
    return Table(columns, rows, notes=[note, f"`{LONG}=1` measures up to a million."])


def sides(quick: bool, _: Path) -> Table:
    """One image of each side, by `optimize()`."""
    fast = Purifier.from_pretrained("cifar10").placed("cpu").optimize()
    edges = [16, 32] if quick else [32, 64, 128, 256, 512]
    works: dict[str, Callable[[], object]] = {str(edge): partial(fast, torch.rand(1, 3, edge, edge)) for edge in edges}
    with torch.no_grad():
        times = interleaved({**works, **limit_works()}, quick)
    found = {edge: median(times[str(edge)]) for edge in edges}
    rows = [[str(edge), digits(1000 * spent), digits(1e6 * spent / edge**2)] for edge, spent in found.items()]
    power = exponent([float(edge**2) for edge in edges], [*found.values()])
    return Table(
        ["side", "ms", "seconds a megapixel"], rows, notes=[f"Time grows with the pixels to the power of {power:.2f}."]
    )


def classes(quick: bool, _: Path) -> Table:
    """An attack on ResNet-20s of so many classes."""
    counts = [2, 10] if quick else [10, 100, 1000, 10000]
    images, labels = torch.rand(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    attack = BIM(num_steps=2)
    nets = {count: ResNet(20, num_classes=count).eval() for count in counts}
    times = interleaved({str(count): partial(attack, net, images, labels) for count, net in nets.items()}, quick)
    rows = [[f"{count:,}", digits(1000 * median(times[str(count)]) / 8)] for count in counts]
    grown = median(times[str(counts[-1])]) / median(times[str(counts[0])])
    note = f"{counts[-1]:,} classes take {grown:.2f} times as long as {counts[0]:,}: the last layer and its loss."
    return Table(["classes", "ms a step and image"], rows, notes=[note])


BENCHMARKS = {
    "startup": Benchmark("Start-up", "Python processes that end at once; medians of three.", startup),
    "files": Benchmark(
        "Growth with the number of files",
        "`purify_files` with a network of one layer, in a process of its own.",
        files,
    ),
    "sides": Benchmark("Growth with the side of an image", "One image through `cifar10`, optimised.", sides),
    "classes": Benchmark("Growth with the number of classes", "BIM on a ResNet-20 with random weights.", classes),
}
