"""Tables and pages show every text literally, whatever is in it."""

from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markdown_it import MarkdownIt

from purifiers.reports.render import Doubted, Table, escape, text, write_page

ODD = "a|b *c* [x](y) <i> `d` \\ e"


def test_cells_and_captions_are_shown_literally(tmp_path: Path) -> None:
    table = Table("title | one", f"caption {ODD}", ["name", "x|y"], [[ODD, "1\n2"]])
    markdown = table.markdown()
    head, rule, row = markdown.splitlines()[2:5]
    assert head == "| name | x\\|y |" and rule == "| --- | ---: |" and row.endswith(" | 1 2 |")
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    assert html.count("<td") == 2 and html.count("<th") - html.count("<thead") == 2
    shown = "a|b *c* [x](y) &lt;i&gt; `d` \\ e"
    assert f"<td>{shown}</td>" in html and f"<p>caption {shown}</p>" in html


def test_a_table_of_numbers_has_a_column_for_every_one_and_a_dash_where_there_is_none() -> None:
    table = Table.of_numbers("E0", "", "purifier", {"one": {"none": 90.04, "PGD8": 1}, "two": {"none": 50, "dB": 26.06}})
    assert table.header == ["purifier", "none", "PGD8", "dB"]
    assert table.rows == [["one", "90.0", "1.0", "-"], ["two", "50.0", "-", "26.1"]]


def test_doubted_cells_are_bold() -> None:
    table = Table("t", "c", ["name", "x", "y"], [["a", "1", "2"], ["b", "1", Doubted("2")]])
    assert "| a | 1 | 2 |\n| b | 1 | **2** |" in table.markdown()
    assert table.compact().rows == table.rows


def test_a_page_has_its_figures_inside_and_no_other_file(tmp_path: Path) -> None:
    figure = tmp_path / "figures" / "one.svg"
    figure.parent.mkdir()
    figure.write_text("<svg/>")
    (tmp_path / "secret.svg").write_text("secret")
    body = f"![one](figures/one.svg)\n\n{escape('![two](secret.svg)')}\n\n<script>x</script>\n"
    page = write_page(tmp_path / "page.md", body, "a <title>", [figure])
    content = page.read_text()
    assert page.name == "page.html" and (tmp_path / "page.md").read_text() == body
    assert 'src="data:image/svg+xml;base64,PHN2Zy8+"' in content and content.count("<img") == 1
    assert "<script" not in content and "a &lt;title&gt;" in content


def test_a_text_needs_all_its_values() -> None:
    assert "2 of 3" in text("verdict", checks=3, failed=2, images=10, doubted=set())
    with pytest.raises(UndefinedError, match="failed"):
        text("verdict", checks=3, images=10, doubted=set())
