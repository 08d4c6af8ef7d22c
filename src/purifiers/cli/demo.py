"""``purifiers demo``."""

from pathlib import Path
from typing import Annotated

from purifiers.cli import options
from purifiers.cli.reproduce import reproduce


def demo(
    recipe: Annotated[str, options.recipe()] = "digits",
    output: Annotated[Path, options.output()] = Path("runs/demo"),
    settings: options.Settings = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    minutes: options.Minutes = None,
    restart: options.Restart = False,
    baselines: Annotated[options.Which, options.baselines()] = "all",
) -> None:
    """Run the paper's whole pipeline on a small data set, in minutes.

    Train a classifier, the two teachers and the students on scikit-learn's digits, attack them in six ways, and write both
    tables of the paper, its figure and an HTML report. Needs neither a download nor a GPU.
    """
    reproduce(
        recipe,
        output=output,
        settings=settings,
        device=device,
        seed=seed,
        minutes=minutes,
        restart=restart,
        baselines=baselines,
    )
