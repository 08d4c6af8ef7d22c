"""Progress and results for the user: a progress bar on a terminal, else a line per finished piece of work and per minute."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from purifiers.errors import OutOfTime

console = Console(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
"""Standard output. Logs are wide enough for every table."""


titles: list[str] = []
"""Of what is in progress now, the outermost first."""
MINUTE = 60.0  # seconds between two lines of progress, where there is no terminal


class _Rate(ProgressColumn):
    def render(self, task: ProgressTask) -> Text:
        return Text(f"{task.speed:,.{0 if task.speed > 10 else 1}f}/s" if task.speed else "", style="cyan")


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[float], None]]:
    """A bar with rate and time left of ``total`` images, or, without a terminal, a line per minute; yields a function to call
    with the number just done."""
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        titles.append(title)
        done = shown = 0.0
        since = time.perf_counter()

        def advance(count: float) -> None:
            nonlocal done, shown, since
            bar.advance(task, count)
            done += count
            seconds = time.perf_counter() - since
            if seconds >= MINUTE and done < total and not console.is_terminal:
                rate = (done - shown) / seconds  # of the last minute: what was read from disk before took no time
                say(f"{title:<16} {done:,.0f} of {total:,}, {rate:,.1f}/s, {duration((total - done) / rate)} left")
                shown, since = done, time.perf_counter()

        try:
            yield advance
        finally:
            titles.pop()


def say(message: str = "", style: str | None = None) -> None:
    """Print a line at once, also into a pipe; ``style`` is a colour of rich's, for terminals."""
    console.print(message, markup=False, style=style)
    sys.stdout.flush()


def detail(message: str) -> None:
    """Print a line where there is no terminal, and so no progress bar."""
    if not console.is_terminal:
        say(message)


def duration(seconds: float) -> str:
    """Seconds in words: ``48 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Stopwatch:
    """Measures the seconds since it was created."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed wall-clock seconds."""
        return time.perf_counter() - self._begun


class Deadline:
    """A time limit, in minutes from now; None for no limit."""

    def __init__(self, minutes: float | None = None) -> None:
        self._watch = Stopwatch()
        self._limit = None if minutes is None else 60 * minutes
        self._advanced = False

    def check(self, done: str, next_seconds: float = 0.0, *, finished: bool = True) -> None:
        """Raise OutOfTime if the next piece of work would not fit. The first always may start, else a long one never would.

        Args:
            done: the piece that was finished last, for the message.
            next_seconds: the likely time of the next.
            finished: ``done`` was finished within this limit, and not by an earlier call.
        """
        self._advanced = self._advanced or finished
        if self._limit is not None and self._watch.seconds + (next_seconds if self._advanced else 0) > self._limit:
            limit = duration(self._limit)
            advice = "run the same command (without --restart) to resume"
            raise OutOfTime(f"stopped at the time limit of {limit} after {done}; {advice}")
