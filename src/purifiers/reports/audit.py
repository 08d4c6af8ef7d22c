"""The report of an audit: one table of all purifiers, one of all attacks, and sentences. Reads records, computes nothing."""

from pathlib import Path

import yaml

from purifiers.attacks import show_fraction
from purifiers.console import duration
from purifiers.evaluation.audited import GROUPS, WORST, Audit
from purifiers.evaluation.records import CLEAN, Record
from purifiers.files import write_text
from purifiers.reports.figures import audit_figure, save_figure
from purifiers.reports.report import embedded, machine_and_versions, page
from purifiers.reports.tables import Table, epsilon_of, interval, percent

HEADLINE = ("worst case L-inf", "worst case L2", "trust checks")
"""The columns that turn red where a trust check failed."""
FIGURE = "figures/audit.svg"
CAPTION = (
    "What each purifier keeps of a clean image, and what it holds: accuracy on clean images, and under the worst case in L-inf "
    "with its 95 % interval. A purifier that lets more of the input pass is further to the right."
)
NAMES = {"linf": "L-inf", "l2": "L2"}
NOTES = (
    "The worst case counts an image as right only if it is right under every attack. It is an upper bound: an attack that was "
    "not tried may leave less.",
    "gray-box: the attacker knows the classifier, not the purifier. transfer: only other models. black-box: only answers of "
    "the whole, at so many queries an image as the settings below say. white-box: everything, by exact gradients (full), with "
    "the identity in place of the purifier's gradient (bpda), and averaged over its random draws (eot).",
    "Of a random purifier all attacks on the same images are judged by one and the same draw, which is none of those that the "
    "attacks saw. Attacks on other images, as in a cascade, are judged by other draws, and the worst case takes the best for "
    "the attacker: it is lower by chance too.",
)


def overview(audit: Audit) -> Table:
    """Every purifier under every threat model, and its worst case."""
    rows = []
    for name in audit.purifiers:
        clean = audit.clean(name)
        groups = [audit.worst(name, "linf", group) for group in ("gray-box", "transfer", "black-box", "white-box")]
        worst = {norm: audit.worst(name, norm) for norm in NAMES}
        counts = dict.fromkeys(f"{record.n:,}" for record in worst.values() if record)
        rows.append(
            [
                name,
                " / ".join(counts) or "-",
                percent(clean.accuracy),
                f"{clean.psnr:.1f}",
                *(percent(record.accuracy) if record else "-" for record in groups),
                *(f"{percent(record.accuracy)} ({interval(record)})" if record else "-" for record in worst.values()),
                verdict(audit, name),
            ]
        )
    ball, ball_l2 = audit.settings["epsilon"], audit.settings["epsilon_l2"]
    first = audit.records[0]
    clean_on = " / ".join(dict.fromkeys(f"{audit.clean(name).n:,}" for name in audit.purifiers))
    caption = (
        f"Accuracy in % on random test images of {first.dataset}; clean on {clean_on} of them, with the likeness of purified "
        f"to original images (PSNR). gray-box, transfer, black-box "
        f"and white-box: the worst case over the attacks of that threat model, L-inf {ball}. Worst case: over all attacks of "
        f"the norm, image by image, with the 95 % interval; L2 {ball_l2}. Images: those that all attacks of the norm share."
    )
    header = ["purifier", "images", "clean", "PSNR (dB)", "gray-box", "transfer", "black-box", "white-box", *HEADLINE]
    return Table("Every purifier under every threat model", caption, header, rows, details=("images", "PSNR (dB)"))


def attacks(audit: Audit) -> Table:
    """Every attack on every purifier."""
    rows = [
        [
            record.purifier,
            record.view,
            record.attack,
            epsilon_of(record),
            f"{record.n:,}" if record.attacked is None else f"{record.n:,} ({record.attacked:,} attacked)",
            percent(record.accuracy),
            interval(record),
            f"{record.l2:.2f}",
            duration(record.seconds),
        ]
        for record in audit.records
        if record.view not in (CLEAN, WORST)
    ]
    caption = (
        "Accuracy in % of the defended model. L2: median length of the perturbation, 0 where most images came back unchanged."
    )
    if audit.settings["cascade"]:
        caption += (
            " A cascade: images that an attack of the same group further up broke are not attacked again, and count as broken; "
            "L2 is of those that were attacked."
        )
    header = ["purifier", "view", "attack", "epsilon", "images", "accuracy", "95 % interval", "L2", "time"]
    return Table("Every attack", caption, header, rows)


def trust(audit: Audit) -> Table:
    """Every trust check."""
    rows = [[name, check.name, check.status, check.sentence] for name, checks in audit.checks.items() for check in checks]
    caption = (
        "A failed check means that the attacks were hindered, not that the purifier is strong: do not believe its numbers."
    )
    return Table("Can these numbers be trusted?", caption, ["purifier", "check", "status", "in words"], rows)


def verdict(audit: Audit, purifier: str) -> str:
    """The trust checks of one purifier in a few words."""
    checks = [check for check in audit.checks.get(purifier, []) if check.status != "not applicable"]
    if not checks:
        return "not checked"
    failed = len(audit.failed(purifier))
    return f"do not believe: {failed} of {len(checks)} failed" if failed else f"{len(checks)} passed"


def sentences(audit: Audit) -> list[tuple[str, bool]]:
    """What was found, in plain sentences, each with whether it says not to believe."""
    said: list[tuple[str, bool]] = []
    for name in audit.purifiers:
        for norm in NAMES:
            record = audit.worst(name, norm)
            if record is None:
                said.append((f"{name}: no attack in {NAMES[norm]} was measured.", False))
                continue
            said.append((f"{name}: {_sentence(audit, record)}", bool(audit.failed(name))))
        said += [
            (f"{name}: do not believe these numbers. {check.name}: {check.sentence}", True) for check in audit.failed(name)
        ]
        if audit.settings["check_images"] == 0:
            said.append((f"{name}: no trust check was made.", False))
        missing = {group for group in GROUPS.values() if not _measured(audit, name, group)}
        if missing:
            said.append((f"{name}: not measured under {', '.join(sorted(missing))}.", False))
    return said


def write_audit(audit: Audit, folder: Path) -> Path:
    """Write ``audit.json``, ``audit.md`` and ``audit.html`` into ``folder``; returns the page's path."""
    audit.write(folder)
    tables = [overview(audit), attacks(audit), *([trust(audit)] if any(audit.checks.values()) else [])]
    settings = yaml.safe_dump(audit.settings, sort_keys=False)
    warnings = [f"{warning.attack}, view {warning.view}: {warning.message}" for warning in audit.warnings]
    facts = {
        "seed": str(audit.seed),
        "classifiers": ", ".join(dict.fromkeys(record.classifier for record in audit.records)),
        "random purifiers": ", ".join(audit.random) or "none",
        **machine_and_versions(audit.hardware, audit.versions),
        "time": duration(audit.seconds),
    }
    save_figure(audit_figure(audit), folder / FIGURE)
    parts = ["# purifiers: audit", *(f"**{text}**" if doubted else text for text, doubted in sentences(audit))]
    parts += [f"![audit]({FIGURE})\n\n{CAPTION}", *(table.markdown() for table in tables)]
    parts.append("## Read this before you quote a number\n\n" + "\n".join(f"- {note}" for note in NOTES))
    parts.append("## Warnings of the attacks\n\n" + "\n".join(f"- {text}" for text in warnings or ["none"]))
    parts.append("## How it was run\n\n" + "\n".join(f"- {name}: {text}" for name, text in facts.items()))
    parts.append(f"```yaml\n{settings}```")
    write_text(folder / "audit.md", "\n\n".join(parts) + "\n")
    content = page(
        "audit.html.j2",
        headline=sentences(audit),
        figure=embedded(folder / FIGURE, "audit"),
        caption=CAPTION,
        tables=tables,
        doubted=[name for name in audit.purifiers if audit.failed(name)],
        red=HEADLINE,
        notes=NOTES,
        warnings=warnings,
        facts=facts,
        settings=settings,
    )
    write_text(folder / "audit.html", content)
    return folder / "audit.html"


def _sentence(audit: Audit, worst: Record) -> str:
    tried = sum(
        (record.purifier, record.norm) == (worst.purifier, worst.norm) and record.view not in (CLEAN, WORST)
        for record in audit.records
    )
    return (
        f"under the worst of {tried} {NAMES[worst.norm or '']} attacks within {show_fraction(worst.epsilon)}, image by image, "
        f"it is right on {percent(worst.accuracy)} % of {worst.n:,} images (95 % interval {interval(worst)} %); a stronger "
        "attack may leave less."
    )


def _measured(audit: Audit, purifier: str, group: str) -> bool:
    return any(audit.worst(purifier, norm, group) for norm in NAMES)
