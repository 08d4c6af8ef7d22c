"""``purifiers app``."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from purifiers.cli import options

if TYPE_CHECKING:
    from purifiers.data import ImageSet
    from purifiers.recipes.schema import Recipe


def app(
    purifier: options.What = "cifar10",
    *,
    changes: options.Changes,
    recipe: options.BehindRecipe = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 opens the page to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 for any free port.")] = 7860,
    device: options.Device = "auto",
) -> None:
    """Open a web page to attack images and purify them.

    On the page an image is attacked by an attacker who knows the classifier alone, or the purifier too; then it is purified
    and classified. It runs on this machine, contacts no other, and needs no data set. Needs pip install 'purifiers[app]'.
    Ctrl-C ends it.
    """
    from purifiers import weights
    from purifiers.app.page import Defence, serve_page
    from purifiers.app.samples import samples_for
    from purifiers.console import say
    from purifiers.purifier import PurifiedClassifier
    from purifiers.reports.cards import robustness_summary
    from purifiers.runs import open_defended, own_classifier

    samples = []

    def images(recipe: "Recipe") -> "ImageSet":
        samples.append(samples_for(recipe))
        return samples[0].data

    run = open_defended(purifier, changes.overrides(), Path(os.devnull), recipe, device, images)  # writes no files
    place = weights.locate(purifier)
    name = purifier if purifier in weights.NAMES else place.resolve().name
    student = run.purifiers["student"]
    behind, behind_name = own_classifier(name, student) or (run.classifier, run.classifier_name)
    attacks = run.recipe.evaluation.attacks.values()
    defence = Defence(
        PurifiedClassifier(student, behind),
        name,
        behind_name,
        replace(samples[0], data=run.images("test")),
        robustness_summary(place, behind_name if changes.classifier or recipe else None),
        next((attack.epsilon for attack in attacks if attack.norm == "linf" and attack.epsilon), 8 / 255),
    )
    with suppress(KeyboardInterrupt):
        serve_page(defence, host, port, lambda address: say(f"open {address}  (Ctrl-C ends it)"))
