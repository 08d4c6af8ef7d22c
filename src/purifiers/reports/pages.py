"""The pages of a run, an audit and a certification, and their tables. They read records, and compute nothing."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from purifiers.console import duration
from purifiers.errors import CheckpointError, MissingFileError
from purifiers.evaluation.audit.result import GROUPS, WORST, Audit, group_of
from purifiers.evaluation.certify import Certificate
from purifiers.evaluation.evaluate import Examples
from purifiers.evaluation.records import CLEAN, VARIANT, Results
from purifiers.hub import RUN_CARD_FILE
from purifiers.reports import tables
from purifiers.reports.cards import model_card
from purifiers.reports.figures import audit_figure, certificate_figure, save_figure, save_figures
from purifiers.reports.render import Doubted, Table, cells, lines, page, percent, span, text, write_page
from purifiers.storage import write_text

NAMES = {"linf": "L-inf", "l2": "L2"}
WORST_CASES = {norm: f"worst case {name}" for norm, name in NAMES.items()}
"""By norm, the columns whose numbers are not reliable if a trust check failed."""
VERDICT = "trust checks (L-inf)"
AUDIT_FIGURE, CERTIFICATE_FIGURE = "figures/audit.svg", "figures/certificate.svg"


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
    name, audit = (run or folder).resolve().name, None
    for place in (run or folder, folder):
        with suppress(MissingFileError, CheckpointError):
            found = Audit.read(place)
            same = all(
                getattr(found.records[0], key) == getattr(results.records[0], key)
                for key in ("classifier", "dataset", "labels_predicted")
            )
            if same and found.purifiers == [name]:
                audit = found
    write_text(folder / RUN_CARD_FILE, model_card(name, [results], f"path/to/{name}", audit))


def all_tables(results: Results) -> list[Table]:
    """Every table that these results can fill."""
    results = results.titled()
    compared = bool(tables.purifiers_of(results))
    choice = {
        tables.table_1_for_all: compared,
        tables.table_of_baselines: compared,
        tables.table_1: True,
        tables.table_2: tables.has_table_2(results),
        tables.table_3: any(record.purifier.startswith(VARIANT) for record in results.records),
        tables.threat_models: True,
        tables.training: bool(results.training),
    }
    without = tables.table_of_baselines, tables.training  # accuracies
    return [make(results).of([] if make in without else results.records) for make, wanted in choice.items() if wanted]


def write_seeds(runs: Sequence[Results], folder: Path) -> Table:
    """Write Table 2 over several runs that differ in their seeds to ``table2.md`` in ``folder``, and return it."""
    table = tables.table_2_over_seeds([one.titled() for one in runs]).of(runs[0].records)
    write_text(folder / "table2.md", table.markdown())
    return table


def headline(results: Results) -> list[str]:
    """The results and their limits in a few sentences."""
    results = results.titled()
    blind = tables.select(results)
    clean = blind.pop(CLEAN)
    return lines(
        "headline",
        clean=clean,
        blind=list(blind.values()),
        others=tables.through_purifier(results),
        comparison=tables.comparison(results),
        claim=tables.claim([results]) if tables.claim_applies(results) else "",
    )


def overview(audit: Audit) -> Table:
    """Every purifier under every threat model, and its worst case."""
    header = ["purifier", "images", "clean", "PSNR (dB)", *GROUPS, *WORST_CASES.values(), VERDICT]
    cleans, rows = {name: audit.clean(name) for name in audit.purifiers}, []
    for name, clean in cleans.items():
        groups = [audit.worst(name, "linf", group) for group in GROUPS]
        worst = [audit.worst(name, norm) for norm in NAMES]
        row = [
            name,
            " / ".join(dict.fromkeys(f"{record.n:,}" for record in worst if record)) or "-",
            *cells(clean, "purified", "PSNR (dB)"),
            *(percent(record.accuracy) if record else "-" for record in groups),
            *(f"{percent(record.accuracy)} ({span(record.ci95)})" if record else "-" for record in worst),
            verdict(audit, name),
        ]
        red = doubted(audit, name)
        rows.append([Doubted(cell) if column in red else cell for column, cell in zip(header, row, strict=True)])
    caption = text("overview", cleans=cleans, settings=audit.settings)
    return Table("Every purifier under every threat model", caption, header, rows, ("images", "PSNR (dB)")).of(audit.records)


def attacks(audit: Audit) -> Table:
    """Every attack on every purifier."""
    columns = ["purifier", "view", "attack", "images", "purified", "95 % interval", "L2", "time"]
    records = [record for record in audit.records if record.view not in (CLEAN, WORST)]
    rows = [cells(record, *columns) for record in records]
    for row, one in zip(rows, records, strict=True):
        if one.attacked is not None:
            row[3] += f" ({one.attacked - round(one.accuracy * one.n):,} of {one.attacked:,} broken)"
    cascade = audit.settings["cascade"]
    columns[4] = "accuracy so far" if cascade else "accuracy"
    return Table("Every attack", text("attacks", cascade=cascade), columns, rows).of(records)


def trust(audit: Audit) -> Table:
    """Every trust check."""
    rows = [[name, check.name, check.status, check.sentence] for name, checks in audit.checks.items() for check in checks]
    return Table("Can these numbers be trusted?", text("trust"), ["purifier", "check", "status", "finding"], rows)


def doubted(audit: Audit, purifier: str) -> set[str]:
    """The columns of :func:`overview` whose numbers may be too high, as a trust check failed; 0 cannot be too high."""
    worst = {column: audit.worst(purifier, norm) for norm, column in WORST_CASES.items()}
    columns = {column for column, record in worst.items() if record and record.accuracy}
    return columns | {VERDICT} if columns and audit.failed(purifier) else set()


def verdict(audit: Audit, purifier: str) -> str:
    """The trust checks of one purifier in a few words."""
    return text(
        "verdict",
        checks=len([check for check in audit.checks.get(purifier, []) if check.status != "not applicable"]),
        failed=len(audit.failed(purifier)),
        images=min(audit.settings["check_images"], audit.clean(purifier).n),
        doubted=doubted(audit, purifier),
    )


def sentences(audit: Audit) -> list[tuple[str, bool]]:
    """The results in sentences, each with whether it is about numbers that are not reliable."""
    audit, found = audit.titled(), list[tuple[str, bool]]()
    for name in audit.purifiers:
        red = doubted(audit, name)
        found += [(_worst_case(audit, name, norm), column in red) for norm, column in WORST_CASES.items()]
        found += [(text("failed_check", name=name, check=check, doubted=red), bool(red)) for check in audit.failed(name)]
        measured = {group for group in GROUPS for norm in NAMES if audit.worst(name, norm, group)}
        remarks = lines("remarks", audit=audit, name=name, missing=sorted({*GROUPS} - measured))
        found += [(remark, False) for remark in remarks]
    return found


def audit_page(audit: Audit) -> str:
    """The report in Markdown; its figure is at :data:`AUDIT_FIGURE`."""
    audit = audit.titled()
    others = [attacks(audit), *([trust(audit)] if any(audit.checks.values()) else [])]
    return page("audit.md.j2", audit=audit, overview=overview(audit), tables=others, sentences=sentences(audit))


def write_audit(audit: Audit, folder: Path) -> Path:
    """Write ``audit.json``, ``audit.md``, ``audit.html`` and a figure into ``folder``; returns the HTML page's path."""
    audit.write(folder)
    save_figure(audit_figure(audit), folder / AUDIT_FIGURE)
    return write_page(folder / "audit.md", audit_page(audit), "purifiers: audit", [folder / AUDIT_FIGURE])


def _worst_case(audit: Audit, name: str, norm: str) -> str:
    tried = [r for r in audit.records if (r.purifier, r.norm) == (name, norm) and r.view not in (CLEAN, WORST)]
    white_box = [r.attack for r in tried if group_of(r.view) == "white-box"]
    worst, autoattack = audit.worst(name, norm), any(title.startswith("AutoAttack") for title in white_box)
    return text("worst_case", name=name, norm=NAMES[norm], worst=worst, tried=tried, autoattack=autoattack)


def certificate_tables(certificate: Certificate) -> list[Table]:
    """Certified accuracy by radius, and the models' other numbers: a column for each model."""
    models = certificate.models
    rows = [
        [f"{levels[0].radius:.4g}", *(cell for level in levels for cell in (percent(level.accuracy), span(level.ci95)))]
        for levels in zip(*(model.certified_accuracy for model in models), strict=True)
    ]
    header = ["L2 radius", *(column for model in models for column in (model.name, "95 % interval"))]
    about = [
        ["accuracy without perturbation", *(percent(model.natural_accuracy) for model in models)],
        ["abstained", *(percent(model.abstention) for model in models)],
        ["average certified radius", *(f"{model.average_radius:.3f}" for model in models)],
        ["time", *(duration(model.seconds) for model in models)],
    ]
    return [
        Table("Certified accuracy by radius", text("certified", one=certificate), header, rows, details=("95 % interval",)).of(
            [certificate]
        ),
        Table("The smoothed classifiers", text("smoothed"), ["", *(model.name for model in models)], about).of([certificate]),
    ]


def certificate_page(certificate: Certificate) -> str:
    """The page in Markdown; its figure is at ``CERTIFICATE_FIGURE``."""
    return page("certificate.md.j2", one=certificate, tables=certificate_tables(certificate))


def write_certificate(certificate: Certificate, folder: Path) -> Path:
    """Write ``certificate.json``, ``certificate.md`` and a figure into ``folder``; returns the page's path."""
    certificate.write(folder)
    save_figure(certificate_figure(certificate), folder / CERTIFICATE_FIGURE)
    write_text(path := folder / "certificate.md", certificate_page(certificate))
    return path
