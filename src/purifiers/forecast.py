"""How long a call will take on this machine.

The call is gone through with samples in place of the work: while :func:`forecast` runs, every long loop of the library times a
sample, notes what all of it would take, and goes on with a stand-in for its result. So the call's own code finds how much there
is to do, and what is finished already. Nothing is written, but for decoded images that do not fit into memory.
"""

import math
import re
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from purifiers.console import Stopwatch, console, duration, say, titles
from purifiers.device import one_pass
from purifiers.errors import ConfigError, DataError, MissingFileError
from purifiers.storage import read_only

T = TypeVar("T")
SAMPLE = 0.05
"""Seconds that the larger of two timed passes takes at least, if a batch is large enough."""
GROWTH = 4
"""Factor from one timed batch size to the next."""
SLOW = 0.5
"""A pass of so many seconds is run once."""
SHOWN = 10
"""Lines of a forecast that are printed, the longest ones."""
BRIEF = 10.0
"""Seconds of a call of which only the whole is printed."""


@dataclass(frozen=True)
class Pace:
    """What a pass takes: ``batch`` seconds for every batch and ``image`` seconds for every image in it."""

    batch: float
    image: float

    def seconds(self, images: float, batches: float, passes: float = 1.0) -> float:
        """The time of so many passes of ``images`` in ``batches``."""
        return passes * (batches * self.batch + images * self.image)


@dataclass
class Line:
    """One piece of the work, of so many images, whose number ``setting`` limits: an option with ``{}`` in place of its value,
    or None."""

    title: str
    setting: str | None
    seconds: float = 0.0
    images: int = 0


@dataclass
class Forecast:
    """What a call will take: :attr:`seconds` in all, and :attr:`lines`, in the order of the work."""

    lines: list[Line] = field(default_factory=list)
    setting: str | None = None  # of what is noted now
    stand_ins: list[nn.Module] = field(default_factory=list)  # networks that the call itself will train
    over: bool = False
    _found: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of the whole call."""
        return sum(line.seconds for line in self.lines)

    def note(self, seconds: float, images: int, title: str | None = None) -> None:
        """Add to the line of ``title``, by default that of the progress bar."""
        title = title or (titles[-1] if titles else "work")
        line = next((one for one in self.lines if (one.title, one.setting) == (title, self.setting)), None)
        if line is None:
            self.lines.append(line := Line(title, self.setting))
        line.seconds += seconds
        line.images = max(line.images, images)

    def pace(self, kind: Hashable, work: Callable[[int], object], largest: int, least: int = 1) -> Pace:
        """What ``work``, a pass of a batch of the size that it is called with, takes; what is of one ``kind`` is timed once."""

        def timed() -> Pace:
            size = smallest = min(least, largest)
            first = seconds = _timed(work, size)
            # What a batch takes beside its images shows only in larger ones.
            while size < largest and seconds < max(SAMPLE, 2 * first):
                size = min(largest, GROWTH * size)
                seconds = _timed(work, size)
            if size == smallest:
                return Pace(0.0, first / smallest)
            image = max(0.0, seconds - first) / (size - smallest)
            return Pace(max(0.0, first - smallest * image), image)

        return self.once(("pace", kind), timed)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returned when it was first called for this key."""
        if key not in self._found:
            self._found[key] = make()
        found: T = self._found[key]
        return found

    def passes(self, model: nn.Module, images: Tensor, largest: int, *, gradient: bool = False) -> Pace:
        """What a pass of ``images``, float (N, C, H, W), through ``model`` takes, forward or with the ``gradient``."""

        def work(size: int) -> None:
            one_pass(model, images[torch.arange(size, device=images.device) % len(images)], gradient)

        return self.pace((repr(model), images.shape[1:], gradient), work, largest)

    def fresh(self, images: int, *kind: Hashable) -> int:
        """How many of ``images`` are in none of the earlier calls of this ``kind``, of which each has a part of the larger."""
        before = self.once(kind, lambda: 0)
        self._found[kind] = max(before, images)
        return max(0, images - before)

    def halving(self) -> tuple[str, float] | None:
        """The option that would about halve the time, with its value, or comes nearest, and the seconds then; or None."""
        found = [self._halved(setting) for setting in {line.setting: None for line in self.lines if line.setting}]
        return min(found, key=lambda one: abs(one[1] / self.seconds - 0.5), default=None)

    def _halved(self, setting: str) -> tuple[str, float]:
        own = [line for line in self.lines if line.setting == setting]

        def left(limit: int) -> float:
            return self.seconds - sum(line.seconds * max(0.0, 1 - limit / line.images) for line in own)

        # Never fewer than a tenth of the images: the result would not be comparable.
        most = max(line.images for line in own)
        least = value = max(1, most // 10)
        for limit in range(least, most, max(1, most // 100)):
            value = limit if left(limit) <= 0.52 * self.seconds else value
        digits = 10 ** max(0, math.floor(math.log10(value)) - 1)
        value = value // digits * digits
        return setting.format(value), left(value)

    def show(self) -> None:
        """Print it."""
        say(f"forecast: {duration(self.seconds)} on this machine")
        if self.seconds < BRIEF:
            return
        shown = sorted(self.lines, key=lambda line: -line.seconds)[:SHOWN]
        for line in self.lines:
            if line in shown:
                say(f"  {line.title:<44} {duration(line.seconds):>12}")
        if rest := self.lines[len(shown) :]:
            others = self.seconds - sum(line.seconds for line in shown)
            say(f"  {f'{len(rest)} others':<44} {duration(others):>12}")
        if found := self.halving():
            say(f"  {found[0]} would take {duration(found[1])}")


_active: ContextVar[Forecast | None] = ContextVar("forecast", default=None)


def current() -> Forecast | None:
    """The forecast that is being made, or None: then the work is done."""
    plan = _active.get()
    return None if plan is None or plan.over else plan


def forecast(work: Callable[[], object]) -> Forecast:
    """How long ``work`` will take on this machine, such as ``lambda: purifiers.audit(...)``; it is not done, and nothing is
    written. Raises what ``work`` raises, as far as its arguments are wrong."""
    plan = Forecast()
    token = _active.set(plan)
    try:
        _go_through(work)
    finally:
        _active.reset(token)
    return plan


def foreseen(work: Callable[[], T], dry_run: bool, brief: bool = False) -> T | None:
    """Print the forecast of ``work``, then do it; only the former in a ``dry_run``, which returns None. What is ``brief`` is
    done at once."""
    if brief and not dry_run:
        return work()
    plan = Forecast()
    token = _active.set(plan)
    try:
        try:
            _go_through(work)
            plan.show()
        except Exception as error:
            # A setting that cannot be used would otherwise be found after hours; what else is wrong the work itself reports.
            if dry_run or isinstance(error, (ConfigError, DataError, MissingFileError)):
                raise
        plan.over = True
        return None if dry_run else work()
    finally:
        _active.reset(token)


def kept(key: Hashable, make: Callable[[], T]) -> T:
    """What ``make`` returns. What was read for a forecast is not read again for the work."""
    plan = _active.get()
    if plan is None or (plan.over and key not in plan._found):
        return make()
    return plan._found.pop(key) if plan.over else plan.once(key, make)


@contextmanager
def limited_by(setting: str | None) -> Iterator[None]:
    """The work within is of a number of images that this option limits; see :class:`Line`. A context, or a decorator."""
    if (plan := current()) is None:
        yield
        return
    before, plan.setting = plan.setting, setting
    try:
        yield
    finally:
        plan.setting = before


def amounts(settings: object) -> str:
    """``settings`` with every number but 0 alike: those of one text cost the same for each image."""
    return re.sub(r"[\d.]*[1-9][\d.]*(e-?\d+)?", "#", repr(settings))


def _go_through(work: Callable[[], object]) -> None:
    quiet = console.quiet
    try:
        console.quiet = True
        with torch.random.fork_rng(devices=[]), read_only():
            work()
    finally:
        console.quiet = quiet


def _timed(work: Callable[[int], object], size: int) -> float:
    """Seconds of ``work`` at this ``size``: the quicker of two runs, as libraries prepare in the first; one, if it is slow."""
    found: list[float] = []
    while len(found) < 2 and sum(found) < SLOW:
        _wait()
        watch = Stopwatch()
        work(size)
        _wait()
        found.append(watch.seconds)
    return min(found)


def _wait() -> None:
    if torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            if torch.cuda.memory_allocated(device):  # waiting for another would start it
                torch.cuda.synchronize(device)
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
