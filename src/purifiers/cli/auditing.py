"""The commands that ask what a defence is worth: audit and certify. As in :mod:`purifiers.cli.commands`, imports are inside."""

import argparse
from contextlib import suppress
from pathlib import Path

from purifiers.cli import options
from purifiers.cli.commands import loader, refuse_other_run, refuse_training_settings
from purifiers.errors import CheckpointError, ConfigError, MissingFileError


def add_commands(add: options.Add) -> None:
    """Add them to the command line."""
    command = add(
        "audit",
        audit,
        "attack defended models under every threat model, and say what is left",
        "Attack the whole of purifier and classifier: by an attacker who knows everything, only the classifier, only other "
        "models, or who can only ask. The number to quote is the worst case over all attacks, image by image. Writes "
        "audit.json, audit.md and audit.html. Stopped? The same command goes on. Hours on two cores; --images 50 gives a first "
        "impression.",
    )
    options.add_defended(command, output="the run, if it is one; or runs/audit", several=True)
    command.add_argument(
        "--images", metavar="N", dest="count", type=options.count, help="attack at most N images with anything"
    )
    command.add_argument("--no-checks", action="store_true", help="leave out the trust checks")
    options.add_baselines(command, default="none", where="other purifiers of the first one's recipe, audited too")

    command = add(
        "certify",
        certify,
        "prove how long a perturbation has to be to change a class",
        "Certify by randomised smoothing: Gaussian noise, the purifier and the classifier, many times for each image, with the "
        "classifier alone beside it. No attacker, whatever is known to him, changes the class that wins by a perturbation "
        "shorter (L2) than the certified radius. Train for it with the recipe smooth or smooth-cpu. Writes certificate.json, "
        "certificate.md and a figure; images that are done are kept, so that the same command goes on where it stopped.",
    )
    options.add_defended(command, output="the run, if it is one; or runs/NAME-certificate")
    command.add_argument(
        "--sigma",
        type=options.fraction,
        help="standard deviation of the noise, in [0,1] units, such as 0.25 or 64/255 (default: what the purifier was trained "
        "on, student.noise)",
    )
    command.add_argument(
        "--n",
        type=int,
        default=1000,
        help="noisy copies of each image to bound the probability of its class; more certify larger radii (default: "
        "%(default)s; the paper: 100000)",
    )
    command.add_argument("--n0", type=int, default=100, help="noisy copies to select that class (default: %(default)s)")
    command.add_argument(
        "--alpha", type=float, default=0.001, help="probability, at most, that a certificate is wrong (default: %(default)s)"
    )
    command.add_argument(
        "--images",
        metavar="N",
        dest="n_images",
        type=options.count,
        default=100,
        help="on how many random test images (default: %(default)s)",
    )


def audit(parsed: argparse.Namespace) -> int:
    """Attack defended models under every threat model, and say what is left."""
    from rich.text import Text

    from purifiers.console import duration, say, show_table
    from purifiers.evaluation.audit.open import open_audited
    from purifiers.evaluation.records import Results
    from purifiers.reports.audit_report import doubted, overview, sentences, write_audit
    from purifiers.reports.run_report import write_card
    from purifiers.runs import is_run
    from purifiers.training.baselines import prepare_baselines

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
        loader(parsed, settings),
        folder,
        recipe=parsed.recipe,
        device=parsed.device,
    )
    if parsed.baselines in ("all", "ready"):
        prepare_baselines(opened.run, train=parsed.baselines == "all")
        opened.add_baselines()
    found = opened.audit(folder / "cache")
    page = write_audit(found, folder)
    if len(runs) == len(parsed.whats) == 1 and folder.resolve() == Path(runs[0]).resolve():
        with suppress(MissingFileError, CheckpointError):  # where it is not measured; the audit does not hang on it
            write_card(folder, Results.read(folder))
    table = overview(found).compact()
    red = {row[0]: doubted(found, row[0]) for row in table.rows}
    rows = [
        [Text(cell, "red") if column in red[row[0]] else cell for column, cell in zip(table.header, row, strict=True)]
        for row in table.rows
    ]
    show_table(table.title, table.header, rows)
    say(table.caption)
    for sentence, red_one in sentences(found):
        say(sentence, style="red" if red_one else None)
    for warning in found.warnings:
        say(f"warning ({warning.attack}, view {warning.view}): {warning.message}")
    say(f"\naudited in {duration(found.seconds)}; open {page}")
    return 0


def certify(parsed: argparse.Namespace) -> int:
    """Certify by randomised smoothing, print, and write it down."""
    from purifiers import weights
    from purifiers.console import say, show_table
    from purifiers.evaluation.certify import Smoothing, certify_run
    from purifiers.reports.certificate_report import certificate_tables, write_certificate
    from purifiers.runs import is_run, open_defended

    refuse_training_settings(parsed.overrides)
    own = weights.locate(parsed.what) if is_run(parsed.what) else None
    name = parsed.what if parsed.what in weights.NAMES else Path(parsed.what).resolve().name
    output = parsed.output or own or Path("runs") / f"{name}-certificate"
    refuse_other_run(output, own)
    run = open_defended(parsed.what, loader(parsed), output, parsed.recipe, parsed.device)
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
