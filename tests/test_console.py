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
