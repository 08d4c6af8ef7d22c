"""The report of a run, in Markdown and as one self-contained HTML file. Reads results and figures, computes nothing."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from purifiers.errors import CheckpointError, MissingFileError
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.examples import Examples
from purifiers.evaluation.records import CLEAN, VARIANT, Results
from purifiers.hub import RUN_CARD_FILE
from purifiers.reports import comparison, tables
from purifiers.reports.cards import model_card
from purifiers.reports.figures import save_figures
from purifiers.reports.render import Table, lines, page, write_page
from purifiers.reports.tables import select
from purifiers.storage import write_text


def write_report(results: Results, examples: Examples, folder: Path, run: Path | None = None) -> Path:
    """Write ``figures/``, ``report.md``, ``report.html`` and, for a training, the model card into ``folder``.

    ``run`` is the folder of the run that was measured, if not ``folder``; returns the HTML page's path.
    """
    write_card(folder, results, run)
    results = results.titled()
    figures = save_figures(results, examples, folder / "figures")
    about = {"headline": headline(results), "changed": examples.changed, "tables": all_tables(results)}
    content = page("report.md.j2", results=results, **about)
    return write_page(folder / "report.md", content, f"purifiers: {results.recipe['name']}", figures)


def write_card(folder: Path, results: Results, run: Path | None = None) -> None:
    """Write the model card of a training into ``folder``; nothing for results of shipped weights, which have one.

    Its tables include the worst cases of the run's audit, if one is in ``folder`` or in ``run``, the training's own folder.
    """
    if "student" not in results.training:
        return
    name = (run or folder).resolve().name
    audits = []
    for place in (folder, run or folder):
        with suppress(MissingFileError, CheckpointError):
            audits.append(Audit.read(place))
    own = ([name], results.records[0].classifier)
    audit = next((one for one in audits if (one.purifiers, one.records[0].classifier) == own), None)
    write_text(folder / RUN_CARD_FILE, model_card(name, [results], f"path/to/{name}", audit))


def all_tables(results: Results) -> list[Table]:
    """Every table that these results can fill."""
    results = results.titled()
    compared = bool(comparison.purifiers_of(results))
    choice = {
        comparison.table_1_for_all: compared,
        comparison.table_of_baselines: compared,
        tables.table_1: True,
        tables.table_2: tables.has_table_2(results),
        tables.table_3: any(record.purifier.startswith(VARIANT) for record in results.records),
        tables.threat_models: True,
        tables.training: bool(results.training),
    }
    return [make(results) for make, wanted in choice.items() if wanted]


def write_seeds(runs: Sequence[Results], folder: Path) -> Table:
    """Write Table 2 over several runs that differ in their seeds to ``table2.md`` in ``folder``, and return it."""
    table = tables.table_2_over_seeds([one.titled() for one in runs])
    write_text(folder / "table2.md", table.markdown())
    return table


def headline(results: Results) -> list[str]:
    """The results and their limits in a few sentences."""
    results = results.titled()
    blind = select(results)
    clean = blind.pop(CLEAN)
    return lines(
        "headline",
        clean=clean,
        blind=list(blind.values()),
        others=tables.through_purifier(results),
        comparison=comparison.sentence(results),
        claim=tables.claim([results]) if tables.claim_applies(results) else "",
    )
