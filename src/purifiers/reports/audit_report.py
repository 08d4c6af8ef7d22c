"""The report of an audit: one table of all purifiers, one of all attacks, and sentences. Reads records, computes nothing."""

from pathlib import Path

import yaml

from purifiers.attacks import show_fraction
from purifiers.console import duration
from purifiers.evaluation.audit.result import GROUPS, NORMS, WORST, Audit
from purifiers.evaluation.records import CLEAN, Record
from purifiers.reports.figures import audit_figure, save_figure
from purifiers.reports.run_report import embedded, machine_and_versions, page
from purifiers.reports.tables import Table, epsilon_of, interval, percent
from purifiers.storage import write_text

NAMES = dict(zip(NORMS, ("L-inf", "L2"), strict=True))
WORST_CASES = {norm: f"worst case {name}" for norm, name in NAMES.items()}
"""By norm, the columns that turn red where a trust check failed."""
USEFUL = 0.5
"""Of a classifier that is right on a smaller share of clean images the audit says that there is little to defend."""
VERDICT = "trust checks (L-inf)"
FIGURE = "figures/audit.svg"
CAPTION = (
    "What each purifier holds, by what the attacker knows: accuracy on clean images, and under the worst of the attacks of "
    "each threat model in L-inf; of the worst of all, with its 95 % interval."
)
NOTES = (
    "The worst case counts an image as right only if it is right under every attack. It is an upper bound: an attack that was "
    "not tried may leave less.",
    "gray-box: the attacker knows the classifier, not the purifier. transfer: only other models. black-box: only answers of "
    "the whole, at so many queries an image as the settings below say. white-box: everything, by the gradients that the "
    "purifier passes on (full), with the identity in their place (bpda), and averaged over its random draws (eot).",
    "Of a random purifier an image is judged by one and the same draw under all attacks, which is none of those that the "
    "attacks saw.",
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
        f"Accuracy in % on random test images of {first.dataset}, {_in_front_of(audit)}; clean on {clean_on} of them, with the "
        f"likeness of purified to original images (PSNR). gray-box, transfer, black-box "
        f"and white-box: the worst case over the attacks of that threat model, L-inf {ball}. Worst case: over all attacks of "
        f"the norm, image by image, with the 95 % interval; L2 {ball_l2}. Images: those that all attacks of the norm share."
    )
    header = ["purifier", "images", "clean", "PSNR (dB)", "gray-box", "transfer", "black-box", "white-box"]
    header += [*WORST_CASES.values(), VERDICT]
    return Table("Every purifier under every threat model", caption, header, rows, details=("images", "PSNR (dB)"))


def attacks(audit: Audit) -> Table:
    """Every attack on every purifier."""
    rows = [
        [
            record.purifier,
            record.view,
            record.attack,
            epsilon_of(record),
            f"{record.n:,}" if record.attacked is None else f"{record.n:,} ({_broken(record, record.attacked)})",
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
    if cascade := audit.settings["cascade"]:
        caption = (
            "A cascade: each attack was made on the images that those of its group further up had left, and what it left of "
            "all images is in %; L2: median length of the perturbation of those that were attacked."
        )
    accuracy = "left so far" if cascade else "accuracy"
    header = ["purifier", "view", "attack", "epsilon", "images", accuracy, "95 % interval", "L2", "time"]
    return Table("Every attack", caption, header, rows)


def trust(audit: Audit) -> Table:
    """Every trust check."""
    rows = [[name, check.name, check.status, check.sentence] for name, checks in audit.checks.items() for check in checks]
    caption = (
        "A failed check means that the attacks were hindered, not that the purifier is strong: do not believe its numbers, but "
        "for 0 %, which cannot be too high. The checks attack in L-inf."
    )
    return Table("Can these numbers be trusted?", caption, ["purifier", "check", "status", "in words"], rows)


def doubted(audit: Audit, purifier: str) -> set[str]:
    """The columns of :func:`overview` that are not to be believed: a trust check failed, so that they are too high. What is 0
    cannot be."""
    if not audit.failed(purifier):
        return set()
    worst = {column: audit.worst(purifier, norm) for norm, column in WORST_CASES.items()}
    columns = {column for column, record in worst.items() if record and record.accuracy}
    return columns | ({VERDICT} if columns else set())


def verdict(audit: Audit, purifier: str) -> str:
    """The trust checks of one purifier in a few words."""
    checks = [check for check in audit.checks.get(purifier, []) if check.status != "not applicable"]
    if not checks:
        return "not checked"
    on = f"on {min(audit.settings['check_images'], audit.clean(purifier).n):,} images"
    if failed := len(audit.failed(purifier)):
        return f"{'do not believe: ' if doubted(audit, purifier) else ''}{failed} of {len(checks)} failed {on}"
    return f"{len(checks)} passed {on}"


def sentences(audit: Audit) -> list[tuple[str, bool]]:
    """What was found, in plain sentences, each with whether it says not to believe."""
    said: list[tuple[str, bool]] = []
    for name in audit.purifiers:
        red = doubted(audit, name)
        for norm, column in WORST_CASES.items():
            record = audit.worst(name, norm)
            if record is None:
                said.append((f"{name}: no attack in {NAMES[norm]} was measured.", False))
                continue
            said.append((f"{name}: {_sentence(audit, record)}", column in red))
        said += [
            (f"{name}: {'do not believe these numbers. ' if red else ''}{check.name}: {check.sentence}", bool(red))
            for check in audit.failed(name)
        ]
        if (alone := audit.clean(name)).accuracy_undefended < USEFUL:
            share = percent(alone.accuracy_undefended)
            said.append((f"{name}: the classifier alone is right on {share} % of clean images: train that first.", False))
        if audit.settings["check_images"] == 0:
            said.append((f"{name}: no trust check was made.", False))
        missing = {group for group in GROUPS.values() if not _measured(audit, name, group)}
        if missing:
            said.append((f"{name}: not measured under {', '.join(sorted(missing))}.", False))
        if left := [f"{warning.attack} ({warning.view})" for warning in audit.left_out(name)]:
            said.append((f"{name}: left out, as they cannot be run on it: {', '.join(left)}.", False))
    return said


def write_audit(audit: Audit, folder: Path) -> Path:
    """Write ``audit.json``, ``audit.md`` and ``audit.html`` into ``folder``; returns the page's path."""
    audit.write(folder)
    first, *others = [overview(audit), attacks(audit), *([trust(audit)] if any(audit.checks.values()) else [])]
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
    parts = ["# purifiers: audit", first.markdown(), f"![audit]({FIGURE})\n\n{CAPTION}", "## In words"]
    parts += [f"**{text}**" if red else text for text, red in sentences(audit)]
    parts += [table.markdown() for table in others]
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
        tables=[first, *others],
        doubted={name: doubted(audit, name) for name in audit.purifiers},
        notes=NOTES,
        warnings=warnings,
        facts=facts,
        settings=settings,
    )
    write_text(folder / "audit.html", content)
    return folder / "audit.html"


def _in_front_of(audit: Audit) -> str:
    """Which classifier is behind which purifiers; behind the first all that are not named."""
    behind: dict[str, list[str]] = {}
    for name in audit.purifiers:
        behind.setdefault(audit.clean(name).classifier, []).append(name)
    (first, _), *others = behind.items()
    return "; ".join([f"in front of {first}", *(f"{', '.join(names)} in front of {one}" for one, names in others)])


def _sentence(audit: Audit, worst: Record) -> str:
    norm = worst.norm or ""
    tried = [
        record
        for record in audit.records
        if (record.purifier, record.norm) == (worst.purifier, norm) and record.view not in (CLEAN, WORST)
    ]
    kinds = {name: attack["kind"] for name, attack in audit.settings["attacks"].items() if attack}
    whole = {kinds.get(record.attack.removesuffix(", rand")) for record in tried if GROUPS[record.view] == "white-box"}
    without = "" if "autoattack" in whole else ", AutoAttack on the whole not among them"
    if not {"full", "eot"} & {record.view for record in tried}:
        without = ", none of them by the gradient of the whole"
    attacks = f"{len(tried)} {NAMES[norm]} attack{'s' * (len(tried) != 1)}"
    return (
        f"under the worst of {attacks} within {show_fraction(worst.epsilon)}{without}, image by "
        f"image, it is right on {percent(worst.accuracy)} % of {worst.n:,} images (95 % interval {interval(worst)} %); a "
        "stronger attack may leave less."
    )


def _broken(record: Record, attacked: int) -> str:
    return f"{attacked - round(record.accuracy * record.n):,} of {attacked:,} broken"


def _measured(audit: Audit, purifier: str, group: str) -> bool:
    return any(audit.worst(purifier, norm, group) for norm in NAMES)
