"""Options that several commands share, and what their values may be."""

import argparse
from collections.abc import Callable
from pathlib import Path

from purifiers.classifiers import CLASSIFIER_FORMS

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
"""Adds a command: its name, what runs it and gives the exit status, a summary of a line, and a description."""


def add_defended(command: argparse.ArgumentParser, output: str, several: bool = False) -> None:
    """One or several purifiers with the classifiers behind them: see :func:`purifiers.runs.open_defended`."""
    add_what(command, several=several)
    add_run(command, output=output)
    add_behind(command)


def add_what(command: argparse.ArgumentParser, *, several: bool = False, hub: bool = False, default: str | None = None) -> None:
    """Which purifier; ``hub``: where one of the Hugging Face hub works too, as nothing but the purifier is needed."""
    forms = ["the --output of 'purifiers train'", "a shipped purifier (cifar10)", "a saved one's folder"]
    forms += ["owner/name of the Hugging Face hub"] if hub else []
    command.add_argument(
        "whats" if several else "what",
        metavar="RUN|NAME",
        nargs="+" if several else "?" if default else None,
        default=default,
        help=", ".join(forms[:-1]) + f", or {forms[-1]}" + (f" (default: {default})" if default else ""),
    )


def add_behind(command: argparse.ArgumentParser) -> None:
    """What stands behind a purifier: its recipe, and the user's classifier."""
    command.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="data set and classifier of a purifier without a run (default: of a shipped one, the recipe that trained it)",
    )
    add_classifier(command, trains=False)


def add_recipe(command: argparse.ArgumentParser, default: str) -> None:
    """Which recipe."""
    shipped = f"a shipped recipe ({', '.join(_shipped_recipes())}) or a YAML file"
    command.add_argument("--recipe", metavar="NAME|FILE", help=f"{shipped} (default: {default})")
    command.set_defaults(default_recipe=default.split(",")[0])


def _shipped_recipes() -> list[str]:
    # As purifiers.recipes.load.NAMES has them, without the seconds that importing it takes.
    return sorted(path.stem for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml"))


def add_run(command: argparse.ArgumentParser, output: str | None = "runs/RECIPE") -> None:
    """Where everything is made, changed values of the recipe, and the device."""
    told = f"folder for everything that is made (default: {output or 'RUN itself'})"
    command.add_argument("--output", metavar="DIR", type=Path, default=None, help=told)
    command.set_defaults(default_output=output)
    add_set(command)
    add_device(command)


def add_set(command: argparse.ArgumentParser) -> None:
    """Changed values of the recipe."""
    command.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="change any value of the recipe, e.g. --set student.epochs=5; may be given many times",
    )


def add_device(command: argparse.ArgumentParser) -> None:
    """On what to compute."""
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: %(default)s)")


def add_training(command: argparse.ArgumentParser) -> None:
    """Seed, time and starting afresh."""
    command.add_argument("--seed", type=int, help="seed of all randomness (default: the recipe's)")
    command.add_argument(
        "--minutes",
        metavar="N",
        type=minutes,
        help="stop, with exit status 3, before the epoch that would not fit into N minutes; the same command goes on",
    )
    command.add_argument("--restart", action="store_true", help="discard what an earlier run left in the output folder")


def add_baselines(
    command: argparse.ArgumentParser, default: str, where: str = "the recipe's other purifiers, to compare with in Table 1"
) -> None:
    """Which other purifiers."""
    command.add_argument(
        "--baselines",
        choices=("all", "ready", "none"),
        help=f"{where}: all, trained here if they are not yet; those that are "
        f"ready, as they need no training or have had it; or none (default: {default})",
    )


def minutes(text: str) -> float:
    """A number of minutes above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of minutes above 0, please; got {text}")
    return value


def count(text: str) -> int:
    """A number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a number of 1 or more, please; got {text}")
    return value


def fraction(text: str) -> float:
    """A length in [0,1] units: 0.25 or 64/255."""
    from purifiers.attacks.base import parse_fraction

    try:
        return float(parse_fraction(text))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def numbers(text: str) -> list[float]:
    """Numbers between commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers between commas, please, such as 0.485,0.456,0.406; got {text}") from None


def seeds(text: str) -> tuple[int, ...]:
    """Several different seeds."""
    chosen = tuple(int(part) for part in text.split(","))
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise argparse.ArgumentTypeError(f"several different seeds, please, such as 0,1,2; got {text}")
    return chosen


def tables(text: str) -> tuple[int, ...]:
    """Numbers of tables."""
    chosen = tuple(int(part) for part in text.split(","))
    if not set(chosen) <= {1, 2, 3}:
        raise argparse.ArgumentTypeError(f"tables are numbered 1 to 3; got {text}")
    return chosen


def add_classifier(command: argparse.ArgumentParser, trains: bool = True) -> None:
    """The user's classifier, and where a data set lies."""
    command.add_argument(
        "--classifier",
        metavar="SOURCE",
        help=f"your classifier, which is only read: {CLASSIFIER_FORMS}",
    )
    told = "of the classifier's images, one number or one a channel, in [0,1] units, such as"
    command.add_argument("--mean", metavar="R,G,B", type=numbers, help=f"mean {told} 0.485,0.456,0.406")
    command.add_argument("--std", metavar="R,G,B", type=numbers, help=f"standard deviation {told} 0.229,0.224,0.225")
    if trains:
        command.add_argument(
            "--shipped-classifiers",
            action="store_true",
            help="take the recipe's classifiers from the weights that come with the library instead of training them",
        )
    command.add_argument("--data-dir", metavar="DIR", help="where the data set lies: CIFAR-10's batches, or your own folder")
