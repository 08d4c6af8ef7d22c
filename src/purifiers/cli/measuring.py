"""``purifiers evaluate``, ``audit`` and ``certify``."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from purifiers import weights
from purifiers.cli import options
from purifiers.errors import CheckpointError, ConfigError, MissingFileError

if TYPE_CHECKING:
    from purifiers.evaluation.audit.result import Audit
    from purifiers.evaluation.certify import Certificate
    from purifiers.evaluation.records import AttackWarning, Results
    from purifiers.recipes.schema import Recipe
    from purifiers.runs import Run


def refuse_other_run(output: Path, own: Path | None = None) -> None:
    """Refuse, before anything is measured, what cannot be the folder for results, or holds others than those of ``own``."""
    from purifiers.runs import CACHE, RECIPE_FILE, RUN_FILES

    there = next(place for place in (output, *output.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ConfigError(f"--output {output}: {there} is {'read-only' if there.is_dir() else 'a file; expected a folder'}")
    if own is None or output.resolve() != own.resolve():
        found = [name for name in RUN_FILES if (output / name).is_file()]
        if RECIPE_FILE in found or (found and not (output / CACHE).is_dir()):  # an earlier output has a cache
            raise ConfigError(f"{output} has a {found[-1]} of something else, which would be replaced; choose another --output")


def _refuse_foreign_baselines(run: Path, recipe: "Recipe") -> None:
    """Refuse to train baselines into the run of another classifier than ``recipe``'s."""
    from purifiers.recipes.load import load_recipe
    from purifiers.runs import RECIPE_FILE

    if recipe.classifier != load_recipe(run / RECIPE_FILE).classifier:
        raise ConfigError(f"--baselines all trains into {run}, which is a run of another classifier: leave one of them out")


def _warn(warnings: "list[AttackWarning]") -> None:
    from purifiers.console import say

    for warning in warnings:
        say(f"warning: {warning}")


def report(run: "Run", folder: Path) -> "Results":
    """Measure a run, write its report into ``folder`` and print it."""
    from purifiers.console import duration, say
    from purifiers.evaluation.evaluate import evaluate_run
    from purifiers.forecast import current
    from purifiers.reports.pages import all_tables, headline, write_report

    results, examples = run.shard.finish(lambda: evaluate_run(run))
    if current():
        return results
    results.write(folder)
    page = write_report(results, examples, folder, run.folder)
    for table in all_tables(results):
        table.show()
    for sentence in headline(results):
        say(sentence)
    _warn(results.warnings)
    say(f"\nmeasured in {duration(results.seconds['evaluation'])}; open {page}")
    return results


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --output of 'purifiers train'.")],
    *,
    changes: options.Changes,
    baselines: Annotated[options.Which, options.baselines()] = "ready",
    output: Annotated[Path | None, options.output("RUN itself")] = None,
    device: options.Device = "auto",
    shard: options.ShardOfWork = None,
    dry_run: options.DryRun = False,
) -> None:
    """Attack and measure a purifier that 'train' made.

    Attack under the recipe's views, purify, measure the accuracy, and write results.json, report.md and report.html.
    """
    from purifiers.forecast import foreseen
    from purifiers.recipes.load import load_recipe
    from purifiers.runs import CACHE, RECIPE_FILE, open_run, prepare_baselines, recipe_of

    if not (run / RECIPE_FILE).is_file():
        if str(run) in weights.PURIFIERS:
            advice = f"use 'purifiers audit {run}', or 'purifiers reproduce --recipe {recipe_of(str(run))} --from-weights'"
            raise ConfigError(f"'{run}' ships with the library and is not a run: {advice}")
        raise MissingFileError(f"{run} has no {RECIPE_FILE}: expected the --output of 'purifiers train'")
    share = options.find_shard(shard, baselines)
    recipe, folder = load_recipe(run / RECIPE_FILE, changes.overrides(trained=True)), output or run
    if baselines == "all":
        _refuse_foreign_baselines(run, recipe)
    refuse_other_run(folder, run)

    def work() -> "Results":
        opened = open_run(recipe, run, device)
        if baselines != "none":
            prepare_baselines(opened, train=baselines == "all")
        opened.cache, opened.shard = folder / CACHE, replace(share)  # which counts its pieces
        return report(opened, folder)

    foreseen(work, dry_run)


def audit(
    purifiers: Annotated[list[str], typer.Argument(metavar="RUN|NAME...", help=f"{options.PURIFIERS}.")],
    *,
    changes: options.Changes,
    recipe: options.BehindRecipe = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Attack at most N images.")] = None,
    no_checks: Annotated[bool, typer.Option("--no-checks", help="Skip the trust checks (did the attacks work?).")] = False,
    baselines: Annotated[options.Which, options.baselines()] = "none",
    output: Annotated[Path | None, options.output("the run, if it is one; else runs/audit")] = None,
    device: options.Device = "auto",
    shard: options.ShardOfWork = None,
    dry_run: options.DryRun = False,
) -> None:
    """Attack defended models under every threat model.

    The attacker knows both networks, only the classifier, only other models, or can only send queries. The number to quote is
    the worst case over all attacks, image by image. Writes audit.json, audit.md and audit.html. If interrupted, the same
    command resumes. Takes hours on two cores; --limit 50 gives a first impression.
    """
    from purifiers.console import duration, say
    from purifiers.evaluation.audit.run import audit_by_name
    from purifiers.evaluation.records import Results
    from purifiers.forecast import foreseen
    from purifiers.recipes.load import load_recipe
    from purifiers.reports.pages import overview, sentences, write_audit, write_card
    from purifiers.runs import RECIPE_FILE, is_run

    share = options.find_shard(shard, baselines)
    overrides = changes.overrides(trained=True)
    overrides += [("audit.images", limit)] if limit else []
    overrides += [("audit.check_images", 0)] if no_checks else []
    runs = [Path(name) for name in purifiers if is_run(name)]
    if recipe and len(runs) == len(purifiers):
        raise ConfigError("--recipe is for purifiers that have no run; a run has its own recipe")
    if baselines == "all" and is_run(purifiers[0]):
        _refuse_foreign_baselines(runs[0], load_recipe(runs[0] / RECIPE_FILE, overrides))
    own = runs[0] if len(runs) == len(purifiers) == 1 else None
    folder = output or own or Path("runs/audit")
    refuse_other_run(folder, runs[0] if len(runs) == 1 else None)

    def work() -> "Audit":
        own = replace(share)  # which counts its pieces
        return audit_by_name(purifiers, overrides, folder, recipe=recipe, device=device, baselines=baselines, shard=own)

    if (found := foreseen(work, dry_run)) is None:
        return
    page = write_audit(found, folder)
    if own and folder.resolve() == own.resolve():
        with suppress(MissingFileError, CheckpointError):  # the run may not have been measured
            write_card(folder, Results.read(folder))
    overview(found).show(caption=True)
    for sentence, red_one in sentences(found):
        say(sentence, style="red" if red_one else None)
    _warn(found.warnings)
    say(f"\naudited in {duration(found.seconds)}; open {page}")


def _fraction(text: str) -> float:
    from purifiers.attacks.base import parse_fraction

    return float(parse_fraction(text))


def certify(
    purifier: options.What,
    *,
    changes: options.Changes,
    recipe: options.BehindRecipe = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            parser=options.reader(_fraction, "a number such as 0.25 or 64/255"),
            help="Standard deviation of the noise in [0,1] units, such as 0.25 or 64/255.",
            show_default="what the purifier was trained with",
        ),
    ] = None,
    n: Annotated[
        int, typer.Option("--n", metavar="N", help="Noisy copies per image for the certificate; more certify larger radii.")
    ] = 1000,
    n0: Annotated[int, typer.Option("--n0", metavar="N", help="Noisy copies per image to select its class.")] = 100,
    alpha: Annotated[float, typer.Option(metavar="P", help="Probability that a certificate is wrong, at most.")] = 0.001,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Certify at most N random test images.")] = 100,
    output: Annotated[Path | None, options.output("the run, if it is one; else runs/NAME-certificate")] = None,
    device: options.Device = "auto",
    shard: options.ShardOfWork = None,
    dry_run: options.DryRun = False,
) -> None:
    """Prove how large a perturbation must be to change a class.

    Certify by randomised smoothing: classify many noisy copies of each image, purified and unpurified. No attacker can change
    the winning class by a perturbation shorter (L2) than the certified radius. Train for it with the recipe smooth or
    smooth-cpu. Writes certificate.json, certificate.md and a figure. If interrupted, the same command resumes.
    """
    from purifiers.console import say
    from purifiers.evaluation.certify import Smoothing, certify_run
    from purifiers.forecast import foreseen
    from purifiers.recipes.load import load_recipe
    from purifiers.reports.pages import certificate_tables, write_certificate
    from purifiers.runs import CACHE, is_run, open_defended, recipe_of

    share = options.find_shard(shard)
    overrides, name = changes.overrides(trained=True), weights.locate(purifier).resolve().name
    own = Path(purifier) if is_run(purifier) else None
    folder = output or own or Path("runs") / f"{name}-certificate"
    refuse_other_run(folder, own)
    if sigma is None and (trained := recipe_of(purifier, recipe)) is not None:
        sigma = load_recipe(trained, overrides).student.noise
        if not sigma:
            raise ConfigError(f"{purifier} was not trained on Gaussian noise (student.noise): give --sigma")
    smoothing = None if sigma is None else Smoothing(sigma, n0, n, alpha)  # before anything is downloaded

    def work() -> "Certificate":
        run = open_defended(purifier, overrides, folder, recipe, device)
        run.cache, run.shard = folder / CACHE, replace(share)  # which counts its pieces
        assert smoothing is not None  # a purifier without a recipe is not opened
        return run.shard.finish(lambda: certify_run(run, name, smoothing, limit))

    if (certificate := foreseen(work, dry_run)) is None:
        return
    page = write_certificate(certificate, folder)
    for table in certificate_tables(certificate):
        table.show(caption=True)
    say(f"\nopen {page}")
