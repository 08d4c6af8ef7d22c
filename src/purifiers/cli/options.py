"""Options that several commands share, as annotated types, and how their values are read."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from purifiers.classifiers import CLASSIFIER_FORMS
from purifiers.errors import ConfigError
from purifiers.shards import Shard

Overrides = list[str | tuple[str, Any]]  # of a recipe: "student.epochs=5" or ("student.epochs", 5); the last of a key wins

_CLASSIFIER_KEYS = ("classifier.source", "classifier.mean", "classifier.std", "classifier.network")
EVALUATION_ONLY = (
    "evaluation",
    "audit",
    "baselines",
    "data.path",
    "data.size",
    "data.labels",
    "data.classes",
    "data.test_limit",
    *_CLASSIFIER_KEYS,
)
"""The keys of a recipe that can be set after training."""
PURIFIERS = "The --output of 'purifiers train', a shipped purifier (such as cifar10), or the folder of a saved one"
# As purifiers.recipes.load.NAMES, without the second that importing pydantic takes.
_RECIPES = ", ".join(sorted(path.stem for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml")))


def reader(read: Callable[[str], Any], form: str, valid: Callable[[Any], bool] = lambda value: True) -> Callable[[str], Any]:
    """``read``, with a message that names the expected ``form`` where it raises ValueError or its result is not ``valid``."""

    def parse(text: str) -> Any:
        with suppress(ValueError):
            if valid(value := read(text)):
                return value
        raise typer.BadParameter(f"expected {form}; got '{text}'")

    return parse


def listed(kind: type, form: str, valid: Callable[[Any], bool] = lambda value: True) -> Callable[[str], Any]:
    """A :func:`reader` of values of a ``kind``, separated by commas."""
    return reader(lambda text: [kind(part) for part in text.split(",")], form, valid)


_channels = listed(float, "numbers separated by commas, such as 0.485,0.456,0.406")


def recipe(default: bool | str = True) -> Any:
    """The recipe to train with."""
    return typer.Option(metavar="NAME|FILE", help=f"A shipped recipe ({_RECIPES}) or a YAML file.", show_default=default)


def output(default: bool | str = True) -> Any:
    """The folder for results."""
    return typer.Option(metavar="DIR", help="Folder for everything that is written.", show_default=default)


def baselines(default: bool | str = True) -> Any:
    """The other purifiers."""
    return typer.Option(
        help="The recipe's other purifiers, to compare with. all: train those that need it; ready: only those that need no "
        "training now; or none.",
        show_default=default,
    )


def shard(default: bool | str = "RANK/WORLD_SIZE of the environment, if set") -> Any:
    """One process's share of the work."""
    return typer.Option(
        metavar="I/N",
        help="Do part I of N of the work, from 0 on, with the same output folder for all; the last one completes it.",
        show_default=default,
    )


ShardOfWork = Annotated[str | None, shard()]
BehindRecipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Recipe with the data set and the classifier of a purifier that has no run. "
        "Default: for a shipped purifier, the recipe that trained it.",
    ),
]
What = Annotated[str, typer.Argument(metavar="RUN|NAME", help=f"{PURIFIERS}.")]
WhatOrHub = Annotated[str, typer.Argument(metavar="RUN|NAME", help=f"{PURIFIERS}; or owner/name on the Hugging Face hub.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value of the recipe, e.g. student.epochs=5. Can be repeated. After training, only these can be changed: "
        f"{', '.join(EVALUATION_ONLY)}.",
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all randomness.", show_default="the recipe's")]
Minutes = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        parser=reader(float, "a number of minutes above 0", lambda minutes: 0 < minutes < math.inf),
        help="Stop, with exit status 3, before an epoch that would not fit into N minutes. The same command resumes.",
    ),
]
Restart = Annotated[bool, typer.Option("--restart", help="First delete what an earlier run wrote into the output folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print how long it will take here; do nothing.")]
ShippedClassifiers = Annotated[
    bool, typer.Option("--shipped-classifiers", help="Use the recipe's shipped classifiers instead of training them.")
]
Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 or :: for all.")
]
Which = Literal["all", "ready", "none"]
MaxPixels = Annotated[int, typer.Option(metavar="N", min=1, help="Refuse images with more pixels before they are decoded.")]


def find_shard(given: str | None, baselines: Which = "none") -> Shard:
    """The shard of the option, or else of the environment, by default the whole; ConfigError if each would train baselines."""
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    found = Shard.parse(given or (f"{rank}/{size}" if rank and size else "0/1"))
    if baselines == "all" and found.count > 1:
        raise ConfigError("--baselines all trains, which is not done in shards: once without --shard, then --baselines ready")
    return found


@dataclass(frozen=True)
class Changes:
    """The options that change a recipe; a command that has a parameter of this class has all of them."""

    classifier: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help=f"The classifier to protect, which is never changed: {CLASSIFIER_FORMS}."),
    ] = None
    mean: Annotated[
        Sequence[float] | None,
        typer.Option(
            metavar="R,G,B",
            parser=_channels,
            help="Mean that the classifier's images are normalised with, one number or one per channel, in [0,1] units: "
            "0.485,0.456,0.406.",
        ),
    ] = None
    std: Annotated[
        Sequence[float] | None,
        typer.Option(metavar="R,G,B", parser=_channels, help="Standard deviation, likewise: 0.229,0.224,0.225."),
    ] = None
    data_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the data set: CIFAR-10's batches, or your own images.")
    ] = None
    images: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Your images: one subfolder per class, or any folder with --labels. Without either, the classifier's "
            "predictions are the labels.",
        ),
    ] = None
    labels: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Labels of --images: a CSV file of file,label; or classifier: its predictions."),
    ] = None
    classes: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Names of all the classifier's classes, if --images has fewer."),
    ] = None
    settings: Settings = None

    def overrides(self, *, trained: bool = False, seed: int | None = None) -> Overrides:
        """The changes, for :func:`purifiers.recipes.load.load_recipe`.

        Raises:
            ConfigError: two folders of images, or, for a purifier that is ``trained``, a setting that training used.
        """
        settings = self.settings or []
        if trained and (used := [setting for setting in settings if not setting.startswith(EVALUATION_ONLY)]):
            raise ConfigError(f"--set {used[0]}: training is over; only {', '.join(EVALUATION_ONLY)} can be changed")
        if self.images and self.data_dir:
            raise ConfigError("--images and --data-dir both name the folder of the data set: give one of them")
        named = {
            "data.name": self.images and "folder",
            "data.path": self.images or self.data_dir,
            "data.labels": self.labels,
            "data.classes": self.classes,
            "classifier.source": self.classifier,
            "classifier.mean": self.mean,
            "classifier.std": self.std,
            "seed": seed,
        }
        return [*settings, *((key, value) for key, value in named.items() if value is not None)]

    def refuse_unused(self, without: str, **others: object) -> None:
        """Refuse these options and ``others``, which would have no effect ``without`` another one."""
        if unused := [name for name, value in {**others, **vars(self)}.items() if value]:
            option = "set" if unused[0] == "settings" else unused[0].replace("_", "-")
            raise ConfigError(f"--{option} has no effect without {without}")
