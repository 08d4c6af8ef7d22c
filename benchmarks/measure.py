"""How benchmarks measure: what is compared is timed in turns, in one process, beside the limits of the machine."""

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

BUDGET = 4.0
"""Seconds, about, for one comparison."""
SHORTEST = 0.02
"""Seconds: what takes less is repeated until it takes as long, so that the clock's resolution does not count."""
TURNS = 9
LONG = "BENCHMARK_LONG"
"""The environment variable with which what takes hours is measured too."""

Works = Mapping[str, Callable[[], object]]


@dataclass
class Table:
    """What a benchmark found, ready for JSON."""

    columns: list[str]
    rows: list[list[str]]  # a cell for each column
    bars: list[str] = field(default_factory=list)  # what should be reached, with what was measured
    notes: list[str] = field(default_factory=list)  # what else there is to know, such as what is not installed


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and what it is about."""

    title: str
    how: str  # in a few sentences
    run: Callable[[bool, Path], Table]  # of whether it is to be quick, and an empty folder


def clock() -> float:
    """Seconds: with one thread of this process alone, which other programs on the core do not lengthen; else wall-clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work: Callable[[], object], shortest: float = SHORTEST) -> float:
    """Seconds of one call of ``work``."""
    begun, calls = clock(), 0
    while not calls or clock() - begun < shortest:
        work()
        calls += 1
    return (clock() - begun) / calls


def interleaved(works: Works, quick: bool = False) -> dict[str, list[float]]:
    """Seconds of each work in each of 2 to 9 turns, as the budget allows, after one that does not count. Every other turn is in
    reverse order, so that a drift of the machine's speed affects all alike."""
    first = {name: seconds(work, 0) for name, work in works.items()}
    turns = 1 if quick else max(2, min(TURNS, round(BUDGET / sum(first.values()))))
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            found[name].append(seconds(works[name]))
    return found


def ratio(slow: list[float], fast: list[float]) -> float:
    """The median of paired ratios of two works of one run."""
    return median(one / other for one, other in zip(slow, fast, strict=True))


def digits(value: float) -> str:
    """A number with two or three digits that count."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def limit_works() -> dict[str, Callable[[], object]]:
    """What shows the machine's limits: a product of two float32 matrices of 1024 x 1024, and a copy of 64 MiB."""
    left, right, product = (torch.rand(1024, 1024) for _ in range(3))
    source, target = (torch.zeros(2**24) for _ in range(2))
    return {"matrix product": lambda: torch.mm(left, right, out=product), "copy": lambda: target.copy_(source)}


def limits(found: Mapping[str, list[float]]) -> tuple[float, float]:
    """Floating-point operations a second, and bytes a second, read and written, from the seconds of :func:`limit_works`."""
    return 2 * 1024**3 / median(found["matrix product"]), 2 * 4 * 2**24 / median(found["copy"])


def machine() -> dict[str, Any]:
    """What the machine is, and its limits now."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    flags = next((set(line.split()) for line in info if line.startswith("flags")), set())
    vector = next((name for name in ("amx_int8", "avx512_vnni", "avx512f", "avx2") if name in flags), "")
    rate, bandwidth = limits(interleaved(limit_works()))
    return {
        "processor": " ".join(filter(None, [names[0] if names else platform.machine(), vector])),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gflops": round(rate / 1e9, 1),
        "copy": round(bandwidth / 1e9, 1),
    }
