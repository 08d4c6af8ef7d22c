"""What is printed is what was said."""

import pytest
from rich.text import Text

from purifiers.console import progress, say, show_table


def test_names_that_look_like_markup_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    name = "[bold]x[/bold] [/red] [1]"
    show_table(name, ["purifier", name], [[name, Text("9", "red")]])
    with progress(name, 1) as advance:
        advance(1)
    say(name)
    assert capsys.readouterr().out.count(name) == 4
