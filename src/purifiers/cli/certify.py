"""``purifiers certify``."""

from pathlib import Path
from typing import Annotated

import typer

from purifiers.cli import options
from purifiers.cli.common import refuse_other_run
from purifiers.errors import ConfigError


def _fraction(text: str) -> float:
    from purifiers.attacks.base import parse_fraction

    return float(parse_fraction(text))


def certify(
    purifier: options.What,
    *,
    changes: options.EvaluationChanges,
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
) -> None:
    """Prove how large a perturbation must be to change a class.

    Certify by randomised smoothing: classify many noisy copies of each image, purified and unpurified. No attacker can change
    the winning class by a perturbation shorter (L2) than the certified radius. Train for it with the recipe smooth or
    smooth-cpu. Writes certificate.json, certificate.md and a figure. If interrupted, the same command resumes.
    """
    from purifiers import weights
    from purifiers.console import say
    from purifiers.evaluation.certify import Smoothing, certify_run
    from purifiers.recipes.load import load_recipe
    from purifiers.reports.certificate_report import certificate_tables, write_certificate
    from purifiers.runs import is_run, open_defended, recipe_of

    overrides = changes.overrides(trained=True)
    own = weights.locate(purifier) if is_run(purifier) else None
    name = purifier if purifier in weights.NAMES else Path(purifier).resolve().name
    folder = output or own or Path("runs") / f"{name}-certificate"
    refuse_other_run(folder, own)
    if sigma is None and (trained := recipe_of(purifier, recipe)) is not None:
        sigma = load_recipe(trained, overrides).student.noise
        if not sigma:
            raise ConfigError(f"{purifier} was not trained on Gaussian noise (student.noise): give --sigma")
    smoothing = None if sigma is None else Smoothing(sigma, n0, n, alpha)  # before anything is downloaded
    run = open_defended(purifier, overrides, folder, recipe, device)
    run.cache = folder / "cache"
    assert smoothing is not None  # a purifier without a recipe is not opened
    certificate = certify_run(run, name, smoothing, limit)
    page = write_certificate(certificate, folder)
    for table in certificate_tables(certificate):
        table.show(caption=True)
    say(f"\nopen {page}")
