"""What is printed is what was said."""

import io

import pytest
from rich.console import Console

from purifiers import console
from purifiers.console import progress, say
from purifiers.reports.render import Doubted, Table

NAME = "[bold]x[/bold] [/red] [1] :bug:"


def test_names_that_look_like_markup_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Table(NAME, "", ["purifier", NAME], [[NAME, Doubted("9")]]).show()
    say(NAME)
    assert capsys.readouterr().out.count(NAME) == 4


def test_a_bar_shows_a_name_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=terminal, force_terminal=True, width=200, emoji=False))
    with progress(NAME, 1) as advance:
        advance(1)
    assert NAME in terminal.getvalue()


def test_without_a_terminal_a_line_per_minute_has_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter((0, 30, 60, 60, 180, 180, 200))  # when it began, and when each piece was done or a line was printed
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(seconds))
    with progress("attacking", 100) as advance:
        for count in (5, 15, 20, 60):
            advance(count)
    first, second = capsys.readouterr().out.splitlines()
    assert "20 of 100" in first and "0.3/s" in first and "4 min 00 s left" in first
    assert "40 of 100" in second and "0.2/s" in second and "6 min 00 s left" in second
