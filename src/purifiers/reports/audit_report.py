"""The report of an audit: a table of all purifiers, one of all attacks, and a summary. Reads records, computes nothing."""

from pathlib import Path

from purifiers.evaluation.audit.result import GROUPS, NORMS, WORST, Audit, group_of
from purifiers.evaluation.records import CLEAN
from purifiers.reports.figures import audit_figure, save_figure
from purifiers.reports.render import Doubted, Table, cells, lines, page, percent, span, text, write_page

NAMES = dict(zip(NORMS, ("L-inf", "L2"), strict=True))
WORST_CASES = {norm: f"worst case {name}" for norm, name in NAMES.items()}
"""By norm, the columns whose numbers are not reliable if a trust check failed."""
VERDICT = "trust checks (L-inf)"
FIGURE = "figures/audit.svg"


def overview(audit: Audit) -> Table:
    """Every purifier under every threat model, and its worst case."""
    cleans = {name: audit.clean(name) for name in audit.purifiers}
    rows = []
    for name, clean in cleans.items():
        groups = [audit.worst(name, "linf", group) for group in GROUPS]
        worst = [audit.worst(name, norm) for norm in NAMES]
        rows.append(
            [
                name,
                " / ".join(dict.fromkeys(f"{record.n:,}" for record in worst if record)) or "-",
                percent(clean.accuracy),
                *cells(clean, "PSNR (dB)"),
                *(percent(record.accuracy) if record else "-" for record in groups),
                *(f"{percent(record.accuracy)} ({span(record.ci95)})" if record else "-" for record in worst),
                verdict(audit, name),
            ]
        )
    caption = text("overview", cleans=cleans, settings=audit.settings)
    header = ["purifier", "images", "clean", "PSNR (dB)", *GROUPS, *WORST_CASES.values(), VERDICT]
    for row in rows:
        red = doubted(audit, row[0])
        row[:] = [Doubted(cell) if column in red else cell for column, cell in zip(header, row, strict=True)]
    return Table("Every purifier under every threat model", caption, header, rows, ("images", "PSNR (dB)"))


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
    return Table("Every attack", text("attacks", cascade=cascade), columns, rows)


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
        remarks = lines(
            "remarks",
            name=name,
            undefended=audit.clean(name).accuracy_undefended,
            unchecked=audit.settings["check_images"] == 0,
            missing=sorted({*GROUPS} - measured),
            left_out=[f"{warning.attack} ({warning.view})" for warning in audit.left_out(name)],
        )
        found += [(remark, False) for remark in remarks]
    return found


def audit_page(audit: Audit) -> str:
    """The report in Markdown; its figure is at ``FIGURE``."""
    audit = audit.titled()
    others = [attacks(audit), *([trust(audit)] if any(audit.checks.values()) else [])]
    return page("audit.md.j2", audit=audit, overview=overview(audit), tables=others, figure=FIGURE, sentences=sentences(audit))


def write_audit(audit: Audit, folder: Path) -> Path:
    """Write ``audit.json``, ``audit.md``, ``audit.html`` and a figure into ``folder``; returns the HTML page's path."""
    audit.write(folder)
    save_figure(audit_figure(audit), folder / FIGURE)
    return write_page(folder / "audit.md", audit_page(audit), "purifiers: audit", [folder / FIGURE])


def _worst_case(audit: Audit, name: str, norm: str) -> str:
    tried = [r for r in audit.records if (r.purifier, r.norm) == (name, norm) and r.view not in (CLEAN, WORST)]
    white_box = [r.attack for r in tried if group_of(r.view) == "white-box"]
    worst, autoattack = audit.worst(name, norm), any(title.startswith("AutoAttack") for title in white_box)
    return text("worst_case", name=name, norm=NAMES[norm], worst=worst, tried=tried, autoattack=autoattack)
