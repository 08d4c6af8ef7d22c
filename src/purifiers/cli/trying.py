"""The command that shows a page to try a purifier on. As in :mod:`purifiers.cli.commands`, imports are inside."""

import argparse
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from purifiers.cli import options
from purifiers.cli.commands import loader

if TYPE_CHECKING:
    from purifiers.data import ImageSet
    from purifiers.recipes.schema import Recipe


def add_command(add: options.Add) -> None:
    """Add it to the command line."""
    command = add(
        "app",
        app,
        "a web page to attack images on, and to see what a purifier makes of them",
        "Serve a page on which an image is attacked by somebody who knows the classifier, or the purifier too, purified, and "
        "classified each time. It runs on this machine, asks no other, and needs no data set. Wants pip install "
        "'purifiers[app]'. Ctrl-C ends it.",
    )
    options.add_what(command, default="cifar10")
    options.add_behind(command)
    options.add_set(command)
    command.add_argument(
        "--host", default="127.0.0.1", help="where to listen; 0.0.0.0 opens the page to the network (default: %(default)s)"
    )
    command.add_argument("--port", type=int, default=7860, help="0 for any that is free (default: %(default)s)")
    options.add_device(command)


def app(parsed: argparse.Namespace) -> int:
    """Serve the web page."""
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

    nothing_is_made = Path(os.devnull)
    run = open_defended(parsed.what, loader(parsed), nothing_is_made, parsed.recipe, parsed.device, images)
    place = weights.locate(parsed.what)
    name = parsed.what if parsed.what in weights.NAMES else place.resolve().name
    purifier = run.purifiers["student"]
    classifier, classifier_name = own_classifier(name, purifier) or (run.classifier, run.classifier_name)
    lengths = [attack.epsilon for attack in run.recipe.evaluation.attacks.values() if attack.norm == "linf" and attack.epsilon]
    defence = Defence(
        PurifiedClassifier(purifier, classifier),
        name,
        classifier_name,
        replace(samples[0], data=run.images("test")),
        robustness_summary(place, classifier_name if parsed.classifier or parsed.recipe else None),
        next(iter(lengths), 8 / 255),
    )
    with suppress(KeyboardInterrupt):  # that is how it ends
        serve_page(defence, parsed.host, parsed.port, lambda address: say(f"open {address}  (Ctrl-C ends it)"))
    return 0
