"""The command line's words: commands, options and their help."""

import argparse
from pathlib import Path

from purifiers.cli import auditing, commands
from purifiers.naming import nearest
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
        epilog="Start with 'purifiers demo': it trains and measures everything on a small data set, in minutes.",
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
    _add_recipe(demo, default="digits")
    _add_run(demo, output="runs/demo")
    _add_training(demo)
    _add_baselines(demo, default="all")

    train = add(
        "train",
        commands.train,
        "train a purifier for a classifier",
        "Train a classifier (or take yours), the two teachers and the student. The output folder can be given to "
        "Purifier.from_pretrained and to 'purifiers evaluate'. Interrupted? The same command goes on where it stopped.",
    )
    _add_recipe(train, default="digits, or folder with --images")
    _add_run(train)
    _add_training(train)
    _add_classifier(train)
    train.add_argument("--images", metavar="DIR", help="your images, one sub-folder for each class")

    evaluate = add(
        "evaluate",
        commands.evaluate,
        "attack and measure what 'train' made",
        "Attack the run's classifier, purify, count, and write results.json, report.md and report.html. Training is over: "
        f"only {', '.join(commands.EVALUATION_ONLY)} can be set here.",
    )
    evaluate.add_argument("run", metavar="RUN", type=Path, help="the --output of 'purifiers train'")
    _add_run(evaluate, output=None)
    _add_baselines(evaluate, default="ready")
    _add_classifier(evaluate, trains=False)

    reproduce = add(
        "reproduce",
        commands.reproduce,
        "Tables 1 and 2 of the paper, from training or from shipped weights to the report",
        "Train everything and measure it; the paper's numbers stand beside ours on CIFAR-10. Table 1: the purifier, and other "
        "people's, against every attack. Table 2: what each teacher brings (three more students). Table 3: what each "
        "ingredient of the recipe brings, where the recipe names variants. What is finished in the output folder is reused.",
    )
    _add_recipe(reproduce, default="paper")
    reproduce.add_argument(
        "--from-weights",
        action="store_true",
        help="measure the weights of this recipe that come with the library (Table 1) instead of training",
    )
    reproduce.add_argument(
        "--tables",
        type=_tables,
        metavar="1,2,3",
        help="which to train for; Table 1 always is (default: all)",
    )
    reproduce.add_argument(
        "--seeds",
        type=_seeds,
        metavar="0,1,2",
        help="train and measure once with each seed, into folders of their own, and give Table 2 over all of them",
    )
    _add_baselines(reproduce, default="all; with --from-weights or --seeds: ready")
    _add_run(reproduce)
    _add_training(reproduce)
    _add_classifier(reproduce)

    audit = add(
        "audit",
        auditing.audit,
        "attack defended models under every threat model, and say what is left",
        "Attack the whole of purifier and classifier: by an attacker who knows everything, only the classifier, only other "
        "models, or who can only ask. The number to quote is the worst case over all attacks, image by image. Writes "
        "audit.json, audit.md and audit.html. Stopped? The same command goes on. Hours on two cores; --images 50 gives a first "
        "impression.",
    )
    _add_defended(audit, output="the run, if it is one; or runs/audit", several=True)
    audit.add_argument("--images", metavar="N", dest="count", type=_count, help="attack at most N images with anything")
    audit.add_argument("--no-checks", action="store_true", help="leave out the trust checks")
    _add_baselines(audit, default="none", where="other purifiers of the first one's recipe, audited too")

    certify = add(
        "certify",
        auditing.certify,
        "prove how long a perturbation has to be to change a class",
        "Certify by randomised smoothing: Gaussian noise, the purifier and the classifier, many times for each image, with the "
        "classifier alone beside it. No attacker, whatever is known to him, changes the class that wins by a perturbation "
        "shorter (L2) than the certified radius. Train for it with the recipe smooth or smooth-cpu. Writes certificate.json, "
        "certificate.md and a figure; images that are done are kept, so that the same command goes on where it stopped.",
    )
    _add_defended(certify, output="the run, if it is one; or runs/NAME-certificate")
    certify.add_argument(
        "--sigma",
        type=float,
        help="standard deviation of the noise, in [0,1] units (default: what the purifier was trained on, student.noise)",
    )
    certify.add_argument(
        "--n",
        type=int,
        default=1000,
        help="noisy copies of each image to bound the probability of its class; more certify larger radii (default: "
        "%(default)s; the paper: 100000)",
    )
    certify.add_argument("--n0", type=int, default=100, help="noisy copies to select that class (default: %(default)s)")
    certify.add_argument(
        "--alpha", type=float, default=0.001, help="probability, at most, that a certificate is wrong (default: %(default)s)"
    )
    certify.add_argument(
        "--images",
        metavar="N",
        dest="n_images",
        type=_count,
        default=100,
        help="on how many random test images (default: %(default)s)",
    )

    purify = add(
        "purify",
        commands.purify,
        "clean image files with a trained purifier",
        "Purify an image, or every image below a folder, into PNG files of the same names. Files that are there already "
        "are skipped; unreadable ones are listed at the end, with exit status 1.",
    )
    purify.add_argument("source", metavar="IN", type=Path, help="an image file, or a folder of them")
    purify.add_argument("target", metavar="OUT", help="where to write: a file for a file, a folder for a folder")
    purify.add_argument(
        "--purifier", metavar="NAME|DIR", required=True, help="a shipped one (cifar10), or the --output of 'train'"
    )
    purify.add_argument("--overwrite", action="store_true", help="purify again what is there already")
    _add_device(purify)
    return parser


def _add_defended(command: argparse.ArgumentParser, output: str, several: bool = False) -> None:
    """One or several purifiers with the classifiers behind them: see :func:`purifiers.training.run.open_defended`."""
    command.add_argument(
        "whats" if several else "what",
        metavar="RUN|NAME",
        nargs="+" if several else None,
        help="the --output of 'purifiers train', a shipped purifier (cifar10), or a saved one's folder",
    )
    command.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="data set and classifier of a purifier without a run (default: of a shipped one, the recipe that trained it)",
    )
    _add_run(command, output=output)
    _add_classifier(command, trains=False)


def _add_recipe(command: argparse.ArgumentParser, default: str) -> None:
    names = "digits, folder, paper, paper-cpu, robust, robust-cpu, smooth, smooth-cpu, strong, strong-cpu"
    shipped = f"a shipped recipe ({names}) or a YAML file"
    command.add_argument("--recipe", metavar="NAME|FILE", help=f"{shipped} (default: {default})")
    command.set_defaults(default_recipe=default.split(",")[0])


def _add_run(command: argparse.ArgumentParser, output: str | None = "runs/RECIPE") -> None:
    told = f"folder for everything that is made (default: {output or 'RUN itself'})"
    command.add_argument("--output", metavar="DIR", type=Path, default=None, help=told)
    command.set_defaults(default_output=output)
    command.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="change any value of the recipe, e.g. --set student.epochs=5; may be given many times",
    )
    _add_device(command)


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: %(default)s)")


def _add_training(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, help="seed of all randomness (default: the recipe's)")
    command.add_argument(
        "--minutes",
        metavar="N",
        type=_minutes,
        help="stop, with exit status 3, before the epoch that would not fit into N minutes; the same command goes on",
    )
    command.add_argument("--restart", action="store_true", help="discard what an earlier run left in the output folder")


def _add_baselines(
    command: argparse.ArgumentParser, default: str, where: str = "the recipe's other purifiers, to compare with in Table 1"
) -> None:
    command.add_argument(
        "--baselines",
        choices=("all", "ready", "none"),
        help=f"{where}: all, trained here if they are not yet; those that are "
        f"ready, as they need no training or have had it; or none (default: {default})",
    )


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of minutes above 0, please; got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a number of 1 or more, please; got {text}")
    return value


def _seeds(text: str) -> tuple[int, ...]:
    chosen = tuple(int(part) for part in text.split(","))
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise argparse.ArgumentTypeError(f"several different seeds, please, such as 0,1,2; got {text}")
    return chosen


def _tables(text: str) -> tuple[int, ...]:
    chosen = tuple(int(part) for part in text.split(","))
    if not set(chosen) <= {1, 2, 3}:
        raise argparse.ArgumentTypeError(f"tables are numbered 1 to 3; got {text}")
    return chosen


def _add_classifier(command: argparse.ArgumentParser, trains: bool = True) -> None:
    command.add_argument(
        "--classifier",
        metavar="SOURCE",
        help="your classifier, which is only read: module:function, a .safetensors file, a saved folder or a shipped name",
    )
    if trains:
        command.add_argument(
            "--shipped-classifiers",
            action="store_true",
            help="take the recipe's classifiers from the weights that come with the library instead of training them",
        )
    command.add_argument("--data-dir", metavar="DIR", help="where the data set lies: CIFAR-10's batches, or your own folder")
