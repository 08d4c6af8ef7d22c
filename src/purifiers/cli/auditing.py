"""The commands that ask what a defence is worth: audit and certify. As in :mod:`purifiers.cli.commands`, imports are inside."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from purifiers.cli.commands import loaded, overrides_of, refuse_other_run, refuse_training_settings
from purifiers.errors import ConfigError


def audit(parsed: argparse.Namespace) -> int:
    """Attack defended models under every threat model, and say what is left."""
    from purifiers.console import duration, say, show_table
    from purifiers.evaluation.audit_runs import open_audited
    from purifiers.reports.audit import HEADLINE, overview, sentences, write_audit
    from purifiers.training.run import is_run

    refuse_training_settings(parsed.overrides)
    runs = [what for what in parsed.whats if is_run(what)]
    if parsed.recipe and len(runs) == len(parsed.whats):
        raise ConfigError("--recipe is for purifiers that are no runs; a run brings its own")
    if parsed.baselines == "all" and parsed.classifier and runs:
        raise ConfigError("--baselines all would train them for the --classifier into a run that is of another: not together")
    folder = parsed.output or (Path(runs[0]) if len(parsed.whats) == len(runs) == 1 else Path("runs/audit"))
    refuse_other_run(folder, Path(runs[0]) if len(runs) == 1 else None)
    settings = [("audit.images", parsed.count)] if parsed.count else []
    settings += [("audit.check_images", 0)] if parsed.no_checks else []
    opened = open_audited(
        parsed.whats,
        _loader(parsed, settings),
        folder,
        recipe=parsed.recipe,
        baselines=parsed.baselines or "none",
        device=parsed.device,
    )
    found = opened.audit(folder / "cache")
    page = write_audit(found, folder)
    table = overview(found).compact()
    first = table.header.index(HEADLINE[0])
    for row in table.rows:
        if found.failed(row[0]):
            row[first:] = [f"[red]{cell}[/red]" for cell in row[first:]]
    show_table(table.title, table.header, table.rows)
    say(table.caption)
    for sentence, doubted in sentences(found):
        say(sentence, style="red" if doubted else None)
    for warning in found.warnings:
        say(f"warning ({warning.attack}, view {warning.view}): {warning.message}")
    say(f"\naudited in {duration(found.seconds)}; open {page}")
    return 0


def certify(parsed: argparse.Namespace) -> int:
    """Certify by randomised smoothing, print, and write it down."""
    from purifiers import weights
    from purifiers.console import say, show_table
    from purifiers.evaluation.certify import Smoothing, certify_run
    from purifiers.reports.certificate import certificate_tables, write_certificate
    from purifiers.training.run import is_run, open_defended

    refuse_training_settings(parsed.overrides)
    own = weights.locate(parsed.what) if is_run(parsed.what) else None
    name = Path(parsed.what).name
    output = parsed.output or own or Path("runs") / f"{name}-certificate"
    refuse_other_run(output, own)
    run = open_defended(parsed.what, _loader(parsed), output, parsed.recipe, parsed.device)
    sigma = run.recipe.student.noise if parsed.sigma is None else parsed.sigma
    if parsed.sigma is None and not sigma:
        raise ConfigError("this purifier was not trained on Gaussian noise (student.noise): give the smoothing's --sigma")
    smoothing = Smoothing(sigma, parsed.n0, parsed.n, parsed.alpha)
    certificate = certify_run(run, name, smoothing, parsed.n_images)
    page = write_certificate(certificate, output)
    for table in certificate_tables(certificate):
        short = table.compact()
        show_table(short.title, short.header, short.rows)
        say(short.caption)
    say(f"\nopen {page}")
    return 0


def _loader(parsed: argparse.Namespace, settings: Sequence[tuple[str, object]] = ()):  # type: ignore[no-untyped-def]
    """Recipes with what the command line sets, ``settings``, and what the caller sets besides, the last before the first."""
    own = [*overrides_of(parsed), *settings]
    return lambda name, further: loaded(name, [*own, *further])
