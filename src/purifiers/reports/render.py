"""What all reports share: numbers as text, tables, and the templates of this folder."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from purifiers.attacks import VIEWS, show_fraction
from purifiers.console import console, duration, say
from purifiers.evaluation.records import CLEAN, PREDICTED, Record
from purifiers.reports.paper import CLEAN_UNDEFENDED
from purifiers.storage import write_text, yaml_text

_MARKDOWN = {ord(character): f"\\{character}" for character in "\\`*[<|"} | {ord("\n"): " "}


class Doubted(str):
    """A cell whose number is not reliable."""


@dataclass(frozen=True)
class Table:
    """A table of strings, with a title above and a caption below, the meaning of the numbers.

    Cells that are :class:`Doubted` are bold, on a terminal red; columns whose names are in ``details`` are left out there.
    """

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]
    details: tuple[str, ...] = ()

    @classmethod
    def of_numbers(cls, title: str, caption: str, first: str, rows: Mapping[str, Mapping[str, float]]) -> "Table":
        """A row for each of ``rows``, its name in the column ``first``; one decimal, and ``-`` where a row has no number."""
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        cells = [[name, *(f"{row[column]:.1f}" if column in row else "-" for column in columns)] for name, row in rows.items()]
        return cls(title, caption, [first, *columns], cells)

    def of(self, records: Iterable[Any]) -> "Table":
        """The same, with what is to be known of the labels of ``records`` in its title."""
        predicted = any(record.labels_predicted for record in records)
        return replace(self, title=f"{self.title}; labels: the classifier's own predictions") if predicted else self

    def compact(self) -> "Table":
        """The same table without its details."""
        kept = [i for i, name in enumerate(self.header) if name not in self.details]
        rows = [[row[i] for i in kept] for row in self.rows]
        return replace(self, header=[self.header[i] for i in kept], rows=rows, details=())

    def show(self, *, caption: bool = False) -> None:
        """Print the table without its details, numbers to the right."""
        shown, title = self.compact(), Text(self.title)
        table = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for i, name in enumerate(shown.header):
            table.add_column(Text(name), justify="right" if i else "left", no_wrap=not i, overflow="fold")
        for row in shown.rows:
            table.add_row(*(Text(cell, "red" if isinstance(cell, Doubted) else "") for cell in row))
        console.print(table)
        if caption:
            say(self.caption)

    def markdown(self) -> str:
        """The table in GitHub's Markdown, numbers to the right."""
        rule = ["---"] + ["---:"] * (len(self.header) - 1)
        body = "\n".join(f"| {' | '.join(map(escape, row))} |" for row in (self.header, rule, *self.rows))
        return f"### {escape(self.title)}\n\n{body}\n\n{escape(self.caption)}\n"


def escape(value: object) -> str:
    """``value`` as Markdown that shows it literally, on one line, also in a table; tables and ``Markup`` as they are, what is
    :class:`Doubted` bold."""
    if isinstance(value, Table):
        return value.markdown()
    literal = value if isinstance(value, Markup) else str(value).translate(_MARKDOWN)
    return f"**{literal}**" if isinstance(value, Doubted) else literal


def percent(share: float) -> str:
    """A share in [0,1] as a percentage with two decimals, as in the paper."""
    return f"{100 * share:.2f}"


def span(ends: tuple[float, float]) -> str:
    """An interval of shares, in percent."""
    return f"{percent(ends[0])} to {percent(ends[1])}"


def half_width(records: Iterable[Record]) -> float:
    """The longer side of the widest 95 % interval, in points."""
    return 100 * max(max(record.accuracy - record.ci95[0], record.ci95[1] - record.accuracy) for record in records)


def epsilon_of(record: Record) -> str:
    """The attack's epsilon, with its norm where that is not L-inf."""
    return show_fraction(record.epsilon) + (" (L2)" if record.norm == "l2" and record.epsilon is not None else "")


def title_of(attack: str) -> str:
    """An attack as the name of a column."""
    return "clean" if attack == CLEAN else attack


def cells(record: Record, *columns: str) -> list[str]:
    """The fields of a record as text, by the names of their columns; ``-`` where there is none."""
    clean = record.view == CLEAN
    fields = {
        "purifier": record.purifier,
        "attack": "clean images" if clean else record.attack,
        "view": "-" if clean else record.view,
        "images": f"{record.n:,}",
        "undefended": percent(record.accuracy_undefended) if record.on_classifier else "-",
        "purified": percent(record.accuracy),
        "95 % interval": span(record.ci95),
        "agreement": percent(record.agreement),
        "PSNR (dB)": f"{record.psnr:.1f}",
        "SSIM": "-" if record.ssim is None else f"{record.ssim:.3f}",
        "L2": f"{record.l2:.2f}",
        "time": duration(record.seconds),
    }
    return [fields[column] for column in columns]


_PLAIN = jinja2.Environment(
    loader=jinja2.PackageLoader("purifiers.reports", "."),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_PLAIN.filters.update(percent=percent, span=span, duration=duration, count="{:,}".format)
_PLAIN.filters.update(without_folder=lambda path: Path(path).name if Path(path).is_absolute() else path)  # of this machine
_PLAIN.filters.update(yaml=lambda content: Markup(yaml_text(content)))
_PLAIN.globals.update(
    all_views=VIEWS, half_width=half_width, show_fraction=show_fraction, papers_clean=CLEAN_UNDEFENDED, predicted=PREDICTED
)
_PAGES = _PLAIN.overlay(finalize=escape)


def lines(macro: str, /, **values: Any) -> list[str]:
    """The output of a macro of ``texts.j2``, as its lines without the empty ones."""
    made = getattr(_PLAIN.get_template("texts.j2").module, macro)(**values)
    return [" ".join(line.split()) for line in made.splitlines() if line.strip()]


def text(macro: str, /, **values: Any) -> str:
    """The output of a macro of ``texts.j2`` on one line."""
    return " ".join(lines(macro, **values))


def page(template: str, **content: Any) -> str:
    """A page in Markdown, from a template of this folder; all values but ``Markup`` are shown literally."""
    return _PAGES.get_template(template).render(**content)


def write_page(path: Path, markdown: str, title: str, figures: Iterable[Path]) -> Path:
    """Write ``markdown`` to ``path``, and beside it as one self-contained HTML file, whose path is returned.

    HTML in it is shown as text; ``figures`` are the SVG and PNG files that it shows from ``figures/``.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = body.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    for figure in figures:
        kind = "svg+xml" if figure.suffix == ".svg" else "png"
        content = base64.b64encode(figure.read_bytes()).decode()
        body = body.replace(f'src="figures/{figure.name}"', f'src="data:image/{kind};base64,{content}"')
    write_text(path, markdown)
    page_path = path.with_suffix(".html")
    write_text(page_path, _PLAIN.get_template("page.html.j2").render(title=Markup.escape(title), body=body))
    return page_path
