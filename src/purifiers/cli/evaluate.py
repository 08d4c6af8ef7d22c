"""``purifiers evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from purifiers.cli import options
from purifiers.cli.common import refuse_foreign_baselines, refuse_other_run, report
from purifiers.errors import ConfigError, MissingFileError


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --output of 'purifiers train'.")],
    *,
    changes: options.EvaluationChanges,
    baselines: Annotated[options.Which, options.baselines()] = "ready",
    output: Annotated[Path | None, options.output("RUN itself")] = None,
    device: options.Device = "auto",
) -> None:
    """Attack and measure a purifier that 'train' made.

    Attack the run's classifier, purify, measure the accuracy, and write results.json, report.md and report.html.
    """
    from purifiers import weights
    from purifiers.recipes.load import load_recipe
    from purifiers.runs import RECIPE_FILE, open_run, prepare_baselines, recipe_of

    if not (run / RECIPE_FILE).is_file():
        if str(run) in weights.PURIFIERS:
            raise ConfigError(
                f"'{run}' ships with the library and is not a run. To attack it in every way: 'purifiers audit {run}'; to "
                f"measure it: 'purifiers reproduce --recipe {recipe_of(str(run))} --from-weights'"
            )
        raise MissingFileError(f"{run} has no {RECIPE_FILE}: expected the --output of 'purifiers train'")
    recipe = load_recipe(run / RECIPE_FILE, changes.overrides(trained=True))
    if baselines == "all":
        refuse_foreign_baselines(run, recipe)
    refuse_other_run(output or run, run)
    opened = open_run(recipe, run, device)
    if baselines != "none":
        prepare_baselines(opened, train=baselines == "all")
    opened.cache = (output or run) / "cache"
    report(opened, output or run)
