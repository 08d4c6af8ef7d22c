"""The report of a run: Markdown, and one self-contained HTML file. Reads results and figures, computes nothing."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import yaml
from markupsafe import Markup

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
    """Write ``figures/``, ``report.md``, ``report.html`` and, of a training, the model card into ``folder``.

    Args:
        results: what to report.
        examples: images for the picture.
        folder: created if missing.
        run: the folder of the run that was measured, if that is another.

    Returns:
        The HTML page's path.
    """
    figures = save_figures(results, examples, folder / "figures")
    write_card(folder, results, run)
    content = page(
        "report.md.j2",
        results=results,
        headline=headline(results),
        changed=examples.changed,
        tables=[Markup(table.markdown()) for table in all_tables(results)],
        recipe=Markup(yaml.safe_dump(results.recipe, sort_keys=False)),
    )
    return write_page(folder / "report.md", content, f"purifiers: {results.recipe['name']}", figures)


def write_card(folder: Path, results: Results, run: Path | None = None) -> None:
    """Write the model card of a training into ``folder``.

    Its tables include the worst cases of the run's audit, if one can be read in ``folder`` or in ``run``, the training's own
    folder. Nothing is written for results of shipped weights, which have a card.
    """
    if "student" not in results.training:
        return
    name = (run or folder).resolve().name
    own = None
    for place in (folder, run or folder):
        with suppress(MissingFileError, CheckpointError):
            audit = Audit.read(place)
            if audit.purifiers == [name] and audit.records[0].classifier == results.records[0].classifier:
                own = own or audit
    write_text(folder / RUN_CARD_FILE, model_card(name, [results], f"path/to/{name}", own))


def all_tables(results: Results) -> list[Table]:
    """Every table that these results can fill."""
    found = []
    if comparison.purifiers_of(results):
        found += [comparison.table_1_for_all(results), comparison.table_of_baselines(results)]
    found.append(tables.table_1(results))
    if tables.has_table_2(results):
        found.append(tables.table_2(results))
    if any(record.purifier.startswith(VARIANT) for record in results.records):
        found.append(tables.table_3(results))
    found.append(tables.threat_models(results))
    return [*found, tables.training(results)] if results.training else found


def write_seeds(runs: Sequence[Results], folder: Path) -> Table:
    """Write Table 2 over several runs that differ in their seeds to ``table2.md`` in ``folder``, and return it."""
    table = tables.table_2_over_seeds(runs)
    write_text(folder / "table2.md", table.markdown())
    return table


def headline(results: Results) -> list[str]:
    """The results in a few sentences, with what limits them."""
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
