"""The tables of the benchmarks and how their figures are taken; no benchmark runs here."""

import json

import pytest

from benchmarks import run
from benchmarks.measure import Table, digits, interleaved, ratio

TABLE = Table(["way", "ms"], [["eager", "1.5"]], bars=["twice as fast (bar: 1.5)"], notes=["one is missing"])


def record() -> dict[str, object]:
    at = {"processor": "a processor", "threads": 1, "torch": "2", "gflops": 90.0, "copy": 10.0}
    return {**vars(TABLE), "machine": at, "seconds": 3, "commit": "abc"}


@pytest.mark.parametrize("name", run.BENCHMARKS)
def test_a_section_has_the_table_its_bars_and_the_machine(name: str) -> None:
    page = run.section(run.BENCHMARKS[name], record())
    for text in (
        run.BENCHMARKS[name].title,
        "| eager | 1.5 |",
        "- twice",
        "- one is missing",
        "a processor, one thread",
        "`abc`",
    ):
        assert text in page
    assert "Not run yet" in run.section(run.BENCHMARKS[name], None)


def test_the_page_is_that_of_the_records() -> None:
    """So nobody edits a table by hand."""
    records = json.loads(run.RECORDS.read_text())
    page = run.PAGE.read_text()
    between = page.partition(run.BEGIN)[2].partition(run.END)[0]
    assert between == run.sections(records)


def test_works_are_compared_in_turns() -> None:
    order: list[str] = []
    found = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, quick=True)  # type: ignore[misc]
    assert order[0] == "a" and set(found) == {"a", "b"} and min(map(min, found.values())) > 0
    assert ratio([4.0, 6.0, 1.0], [2.0, 2.0, 1.0]) == 2
    assert [digits(value) for value in (1234.5, 12.34, 0.01234)] == ["1,234", "12.3", "0.0123"]


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--only", "puriffication"])
    with pytest.raises(SystemExit):
        run.main()
    assert "purification" in capsys.readouterr().err
