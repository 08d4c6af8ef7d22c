"""The report of a run: Markdown, and one self-contained HTML file. Reads results and figures, computes nothing."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from purifiers.console import duration
from purifiers.errors import CheckpointError, MissingFileError
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.examples import Examples
from purifiers.evaluation.records import CLEAN, VARIANT, Record, Results
from purifiers.hub import RUN_CARD_FILE
from purifiers.reports.cards import model_card
from purifiers.reports.claim import is_the_papers, table_2_over_seeds, verdict
from purifiers.reports.comparison import comparison_sentence, purifiers_of, table_1_for_all, table_of_baselines
from purifiers.reports.figures import save_figures
from purifiers.reports.tables import (
    ATTACKERS,
    TABLE_2_ROWS,
    Table,
    percent,
    select,
    table_1,
    table_2,
    table_3,
    threat_models,
    through_purifier,
    training,
    weakest,
)
from purifiers.storage import write_text

GUESSING = 0.5
"""Clean accuracy of a classifier below which the report says so."""
COSTLY = 0.1
"""Loss of clean accuracy through the purifier above which the report says so."""
NOTES = (
    "BIM is the standard method of Kurakin et al. (2017). The paper's text has it take every gradient at the original "
    "image, which would make it one step of FGSM.",
    "CW is the form with a fixed constant (1), as 40 iterations leave no room for a search. It stops at the smallest "
    "perturbation that it finds, so purification undoes it more easily than attacks that use their whole epsilon.",
    "The paper's attacker knows the classifier but not the purifier. Numbers under the view blind say nothing about an "
    "attacker who knows it; those under the other views do, and are upper bounds: stronger attacks may exist.",
)
CAPTIONS = {
    "examples": "Figure 5 of the paper, on {chosen}, one of each class where there are enough. Under each image: the "
    "classifier's class, green if right, and the PSNR against the original. The last two rows show differences to the "
    "original around grey, amplified.",
    "accuracy": "Accuracy by attack: without a purifier, with it, and with it against an attacker who knows it (the lowest of "
    "the views, where there are several).",
    "training": "Losses of every stage.",
}


def write_report(results: Results, examples: Examples, folder: Path, run: Path | None = None) -> Path:
    """Write ``figures/``, ``report.md``, ``report.html`` and, of a training, the model card into ``folder``.

    Args:
        results: what to report.
        examples: for the picture.
        folder: anywhere.
        run: the folder of the run that was measured, where that is another.

    Returns:
        The page's path.
    """
    figures = {path.stem: path for path in save_figures(results, examples, folder / "figures")}
    tables = all_tables(results)
    chosen = "the first test images that the attack changes the class of"
    if not examples.changed:
        chosen = "the first test images that are classified right (the attack changed the class of none)"
    captions = CAPTIONS | {"examples": CAPTIONS["examples"].format(chosen=chosen)}
    write_card(folder, results, run)
    write_text(folder / "report.md", _markdown(results, tables, figures, captions))
    write_text(folder / "report.html", _html(results, tables, figures, captions))
    return folder / "report.html"


def write_card(folder: Path, results: Results, run: Path | None = None) -> None:
    """Write the model card of a training into ``folder``, with the worst cases of its audit if one can be read there or in
    ``run``, the training's own folder, where that is another."""
    if "student" not in results.training:
        return  # of shipped weights the card is there already
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
    tables = [table_1_for_all(results), table_of_baselines(results)] if purifiers_of(results) else []
    tables.append(table_1(results))
    if all(select(results, stage) for stage in TABLE_2_ROWS):
        tables.append(table_2(results))
    if any(record.purifier.startswith(VARIANT) for record in results.records):
        tables.append(table_3(results))
    tables.append(threat_models(results))
    if results.training:
        tables.append(training(results))
    return tables


def write_seeds(runs: Sequence[Results], folder: Path) -> Table:
    """Write Table 2 over several runs that differ in their seeds to ``table2.md`` in ``folder``, and return it."""
    table = table_2_over_seeds(runs)
    write_text(folder / "table2.md", table.markdown())
    return table


def headline(results: Results) -> list[str]:
    """The results in plain sentences."""
    blind, others = select(results), through_purifier(results)
    clean = blind.pop(CLEAN)
    lines = [
        f"On clean images the classifier is right on {percent(clean.accuracy_undefended)} % without the purifier and on "
        f"{percent(clean.accuracy)} % with it."
    ]
    if blind:
        worst = weakest(blind.values())
        lines.append(
            f"Attacks on the classifier alone leave it {_range(r.accuracy_undefended for r in blind.values())} %; "
            f"after purification it has {_range(r.accuracy for r in blind.values())} % (lowest: {worst.attack})."
        )
    if others:
        worst = weakest(others)
        views = dict.fromkeys(record.view for record in others)
        lowest = f", the lowest of the views {', '.join(views)}" if len(views) > 1 else ""
        lines.append(
            f"An attacker who {ATTACKERS[worst.view]} leaves at most {percent(worst.accuracy)} % ({worst.attack}, {worst.n:,} "
            f"images, 95 % interval up to {percent(worst.ci95[1])} %{lowest}): a stronger attack may leave less."
        )
    else:
        lines.append("No attack through the purifier was measured: nothing here speaks of an attacker who knows of it.")
    lines += comparison_sentence(results)
    if all(select(results, stage) for stage in TABLE_2_ROWS) and is_the_papers(results):
        lines.append(verdict([results]))
    return lines + _remarks(clean, blind)


def _remarks(clean: Record, blind: dict[str, Record]) -> list[str]:
    """What makes the numbers above worth less than they seem."""
    idle = [name for name, record in blind.items() if record.accuracy_undefended >= clean.accuracy_undefended]
    remarks = []
    if idle:
        remarks.append(f"Not tested: {', '.join(idle)} had no effect on the classifier even without the purifier.")
    if clean.accuracy_undefended < GUESSING:
        remarks.append("The classifier itself is right on less than every second clean image: train that first.")
    if (cost := clean.accuracy_undefended - clean.accuracy) > COSTLY:
        remarks.append(f"The purifier costs {percent(cost)} points on clean images: is the attacker worth that?")
    return remarks


def _range(shares: Iterable[float]) -> str:
    values = sorted(shares)
    low, high = percent(values[0]), percent(values[-1])
    return low if low == high else f"between {low} and {high}"


def _facts(results: Results) -> dict[str, str]:
    """How it was run, as pairs."""
    return {
        "recipe": f"{results.recipe['name']}, seed {results.seed}",
        "purifier": f"{results.parameters:,} parameters",
        **machine_and_versions(results.hardware, results.versions),
        "time": ", ".join(f"{part} {duration(seconds)}" for part, seconds in results.seconds.items()),
    }


def machine_and_versions(machine: Mapping[str, str | int], versions: Mapping[str, str]) -> dict[str, str]:
    """What it ran on and with, in words."""
    return {
        "machine": f"{machine['name']}, {machine['threads']} threads, {machine['platform']} ({machine['device']})",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def _warnings(results: Results) -> list[str]:
    return [f"{w.attack}, view {w.view}: {w.message}" for w in results.warnings]


def _markdown(results: Results, tables: list[Table], figures: dict[str, Path], captions: dict[str, str]) -> str:
    parts = [f"# purifiers: {results.recipe['name']}", *headline(results)]
    for name, path in figures.items():
        if name == "training":
            continue
        parts.append(f"![{name}](figures/{path.name})\n\n{captions[name]}")
    parts += [table.markdown() for table in tables]
    parts.append("## Read this before you quote a number\n\n" + "\n".join(f"- {note}" for note in NOTES))
    warnings = _warnings(results) or ["none"]
    parts.append("## Warnings of the attacks\n\n" + "\n".join(f"- {text}" for text in warnings))
    parts.append(f"## Training\n\n![training](figures/{figures['training'].name})")
    parts.append("## How it was run\n\n" + "\n".join(f"- {name}: {text}" for name, text in _facts(results).items()))
    parts.append("```yaml\n" + yaml.safe_dump(results.recipe, sort_keys=False) + "```")
    return "\n\n".join(parts) + "\n"


def _html(results: Results, tables: list[Table], figures: dict[str, Path], captions: dict[str, str]) -> str:
    return page(
        "report.html.j2",
        title=results.recipe["name"],
        headline=headline(results),
        tables=tables,
        figures={name: embedded(path, name) for name, path in figures.items()},
        captions=captions,
        notes=NOTES,
        warnings=_warnings(results),
        facts=_facts(results),
        recipe=yaml.safe_dump(results.recipe, sort_keys=False),
    )


def page(template: str, **content: Any) -> str:
    """A template of this folder, filled; what is not marked as safe is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("purifiers.reports", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)


def embedded(path: Path, name: str) -> Markup:
    """A figure as an image that is part of the page; ``name`` is its text for those who cannot see it."""
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    content = base64.b64encode(path.read_bytes()).decode()
    return Markup('<img alt="{}" src="data:image/{};base64,{}">').format(name, kind, content)
