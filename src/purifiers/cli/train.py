"""``purifiers train``."""

from pathlib import Path
from typing import Annotated

import typer

from purifiers.cli import options
from purifiers.cli.common import refuse_file


def train(
    *,
    changes: options.Changes,
    recipe: Annotated[str | None, options.recipe("digits; folder with --images")] = None,
    images: Annotated[str | None, typer.Option(metavar="DIR", help="Your images, one subfolder per class.")] = None,
    shipped_classifiers: options.ShippedClassifiers = False,
    output: Annotated[Path | None, options.output("runs/RECIPE")] = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    minutes: options.Minutes = None,
    restart: options.Restart = False,
) -> None:
    """Train a purifier for a classifier.

    Train a classifier (or take yours), the two teachers and the student. Purifier.from_pretrained and 'purifiers evaluate'
    take the output folder. If interrupted, the same command resumes.
    """
    from purifiers.console import Deadline, Stopwatch, duration, say
    from purifiers.recipes.load import load_recipe, with_shipped_classifiers
    from purifiers.training.pipeline import train_recipe
    from purifiers.weights import NAMES

    watch = Stopwatch()
    chosen = load_recipe(recipe or ("folder" if images else "digits"), changes.overrides(images=images, seed=seed))
    if shipped_classifiers:
        chosen = with_shipped_classifiers(chosen)
    folder = output or Path("runs") / chosen.name
    refuse_file(folder)
    train_recipe(chosen, folder, device=device, restart=restart, deadline=Deadline(minutes))
    say(f"trained in {duration(watch.seconds)}")
    say(f"\nThe purifier is in {folder}. Measure it:  purifiers evaluate {folder}")
    # A plain name would mean the purifier that ships.
    say(f'In Python:  Purifier.from_pretrained("{"./" if str(folder) in NAMES else ""}{folder}")')
