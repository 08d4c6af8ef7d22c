"""The command line's words: commands, options and their help."""

import argparse
from pathlib import Path

from purifiers import weights
from purifiers.cli import auditing, commands, deploying, exporting, options, trying
from purifiers.errors import nearest
from purifiers.version import __version__


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        unknown = [word for word in message.split() if word.startswith("--")]
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        hint = nearest(unknown[0], known) if message.startswith("unrecognized") and unknown else ""
        self.exit(2, f"purifiers: error: {message}{hint}\nTry '{self.prog} --help'.\n")


def make_parser() -> argparse.ArgumentParser:
    """The whole command line; a parsed one has the function of its command in ``command``."""
    parser = _Parser(
        prog="purifiers",
        description="Make an image classifier withstand adversarial examples without touching it: "
        "train a purifier that cleans each image first, measure what it is worth, and use it.",
        epilog="Start with 'purifiers demo': it trains and measures everything on a small data set, in minutes. Shipped "
        f"purifiers: {', '.join(weights.PURIFIERS)}; classifiers: {', '.join(weights.CLASSIFIERS)}.",
    )
    parser.add_argument("--version", action="version", version=f"purifiers {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, run, summary: str, description: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
        command = subparsers.add_parser(name, help=summary, description=description)
        command.set_defaults(command=run, parser=command)
        return command

    demo = add(
        "demo",
        commands.reproduce,
        "the paper's whole pipeline on a small data set, in minutes",
        "Train a classifier, the two teachers and the students on scikit-learn's digits, attack them six ways, and write "
        "both tables of the paper, its picture and an HTML report. Needs no download and no GPU.",
    )
    options.add_recipe(demo, default="digits")
    options.add_run(demo, output="runs/demo")
    options.add_training(demo)
    options.add_baselines(demo, default="all")

    train = add(
        "train",
        commands.train,
        "train a purifier for a classifier",
        "Train a classifier (or take yours), the two teachers and the student. The output folder can be given to "
        "Purifier.from_pretrained and to 'purifiers evaluate'. Interrupted? The same command goes on where it stopped.",
    )
    options.add_recipe(train, default="digits, or folder with --images")
    options.add_run(train)
    options.add_training(train)
    options.add_classifier(train)
    train.add_argument("--images", metavar="DIR", help="your images, one sub-folder for each class")

    evaluate = add(
        "evaluate",
        commands.evaluate,
        "attack and measure what 'train' made",
        "Attack the run's classifier, purify, count, and write results.json, report.md and report.html. Training is over: "
        f"only {', '.join(commands.EVALUATION_ONLY)} can be set here.",
    )
    evaluate.add_argument("run", metavar="RUN", type=Path, help="the --output of 'purifiers train'")
    options.add_run(evaluate, output=None)
    options.add_baselines(evaluate, default="ready")
    options.add_classifier(evaluate, trains=False)

    reproduce = add(
        "reproduce",
        commands.reproduce,
        "Tables 1 and 2 of the paper, from training or from shipped weights to the report",
        "Train everything and measure it; the paper's numbers stand beside ours on CIFAR-10. Table 1: the purifier, and other "
        "people's, against every attack. Table 2: what each teacher brings (three more students). Table 3: what each "
        "ingredient of the recipe brings, where the recipe names variants. What is finished in the output folder is reused.",
    )
    options.add_recipe(reproduce, default="paper")
    reproduce.add_argument(
        "--from-weights",
        action="store_true",
        help="measure the weights of this recipe that come with the library (Table 1) instead of training",
    )
    reproduce.add_argument(
        "--tables",
        type=options.tables,
        metavar="1,2,3",
        help="which to train for; Table 1 always is (default: all)",
    )
    reproduce.add_argument(
        "--seeds",
        type=options.seeds,
        metavar="0,1,2",
        help="train and measure once with each seed, into folders of their own, and give Table 2 over all of them",
    )
    options.add_baselines(reproduce, default="all; with --from-weights or --seeds: ready")
    options.add_run(reproduce)
    options.add_training(reproduce)
    options.add_classifier(reproduce)

    auditing.add_commands(add)

    exporting.add_command(add)
    deploying.add_commands(add)
    trying.add_command(add)
    return parser
