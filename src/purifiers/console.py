"""What a person sees while work goes on: a progress bar on a terminal, one line for each finished piece otherwise."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.table import Table
from rich.text import Text

from purifiers.errors import OutOfTime

console = Console(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
"""Where results and messages for the user go: standard output. Logs are wide enough for every table."""


class _Rate(ProgressColumn):
    def render(self, task: ProgressTask) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="cyan")


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress of ``total`` images; yields a function to call with the number of images just done.

    On a terminal a bar with rate and time left, which is gone at the end; nothing otherwise.
    """
    name = TextColumn("{task.description}", markup=False)  # which may hold what rich takes for markup
    columns = (name, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def say(message: str = "", style: str | None = None) -> None:
    """One line to standard output, at once, also when it is a pipe; ``style`` is a colour of rich's, for terminals."""
    console.print(message, markup=False, style=style)
    sys.stdout.flush()


def detail(message: str) -> None:
    """A line for logs: printed where there is no terminal, and so no bar that says the same."""
    if not console.is_terminal:
        say(message)


def duration(seconds: float) -> str:
    """Seconds as people say them: ``48 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed wall-clock seconds."""
        return time.perf_counter() - self._begun


class Deadline:
    """A time limit for a piece of a long work; None for no limit.

    Args:
        minutes: from now.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self._watch = Stopwatch()
        self._limit = None if minutes is None else 60 * minutes
        self._advanced = False

    def check(self, done: str, next_seconds: float = 0.0, *, finished: bool = True) -> None:
        """Stop here if the next piece, which will take ``next_seconds``, would not fit.

        The first piece is begun even where it would not, as otherwise one longer than the limit would never be done.

        Args:
            done: the last thing that was finished, for people.
            next_seconds: what the next piece is likely to take.
            finished: ``done`` was finished within this limit, and not by an earlier call.

        Raises:
            OutOfTime: with ``done`` in its message.
        """
        self._advanced = self._advanced or finished
        if self._limit is not None and self._watch.seconds + (next_seconds if self._advanced else 0) > self._limit:
            limit = duration(self._limit)
            raise OutOfTime(
                f"stopped for the time limit of {limit} after {done}; the same command (without --restart) goes on from there"
            )


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """A table on standard output, numbers to the right; of cells that are ``Text`` with their style."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="left" if i == 0 else "right", no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    console.print(table)
