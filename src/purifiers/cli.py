"""The command line: parses, calls, prints."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from purifiers.errors import ConfigError, MissingFileError, OutOfTime, PurifiersError
from purifiers.naming import nearest
from purifiers.version import __version__

# What a command needs is imported in the command, so that --help and mistakes answer at once.

EVALUATION_ONLY = ("evaluation", "data.path", "data.size", "data.test_limit", "classifier.source", "classifier.network")
"""What may be set when training is over."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for an error that the user can mend, 3 at --minutes, 130 after Ctrl-C."""
    parsed, unknown = _parser().parse_known_args(arguments)
    if unknown:
        parsed.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return int(parsed.command(parsed))
    except OutOfTime as stopped:
        print(f"purifiers: {stopped}", file=sys.stderr)
        return 3
    except PurifiersError as error:
        return _fail(str(error))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "; free some space and run the same command again: it goes on where it stopped" if full else ""
        return _fail(f"{error}{advice}")
    except KeyboardInterrupt:
        _fail("stopped; nothing finished is lost: the same command goes on from there")
        return 130


def _fail(message: str) -> int:
    print(f"purifiers: error: {message}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        unknown = [word for word in message.split() if word.startswith("--")]
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        hint = nearest(unknown[0], known) if message.startswith("unrecognized") and unknown else ""
        self.exit(2, f"purifiers: error: {message}{hint}\nTry '{self.prog} --help'.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="purifiers",
        description="Make an image classifier withstand adversarial examples without touching it: "
        "train a purifier that cleans each image first, measure what it is worth, and use it.",
        epilog="Start with 'purifiers demo': it trains and measures everything on a small data set, in minutes.",
    )
    parser.add_argument("--version", action="version", version=f"purifiers {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, run, summary: str, description: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
        command = commands.add_parser(name, help=summary, description=description)
        command.set_defaults(command=run, parser=command)
        return command

    demo = add(
        "demo",
        _reproduce,
        "the paper's whole pipeline on a small data set, in minutes",
        "Train a classifier, the two teachers and the students on scikit-learn's digits, attack them six ways, and write "
        "both tables of the paper, its picture and an HTML report. Needs no download and no GPU.",
    )
    _add_recipe(demo, default="digits")
    _add_run(demo, output="runs/demo")
    _add_training(demo)

    train = add(
        "train",
        _train,
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
        _evaluate,
        "attack and measure what 'train' made",
        "Attack the run's classifier, purify, count, and write results.json, report.md and report.html. Training is over: "
        f"only {', '.join(EVALUATION_ONLY)} can be set here.",
    )
    evaluate.add_argument("run", metavar="RUN", type=Path, help="the --output of 'purifiers train'")
    _add_run(evaluate, output=None)
    _add_classifier(evaluate)

    reproduce = add(
        "reproduce",
        _reproduce,
        "Tables 1 and 2 of the paper, from training or from shipped weights to the report",
        "Train everything and measure it; the paper's numbers stand beside ours on CIFAR-10. Table 1: the purifier against "
        "every attack. Table 2: what each teacher brings (three more students). Table 3: what each ingredient of the recipe "
        "brings, where the recipe names variants. What is finished in the output folder is reused.",
    )
    _add_recipe(reproduce, default="paper")
    reproduce.add_argument(
        "--from-weights",
        action="store_true",
        help="train nothing: measure the weights of this recipe that come with the library (Table 1)",
    )
    reproduce.add_argument(
        "--tables",
        type=_tables,
        default=(1, 2, 3),
        metavar="1,2,3",
        help="which to train for; Table 1 always is (default: all)",
    )
    _add_run(reproduce)
    _add_training(reproduce)
    _add_classifier(reproduce)

    purify = add(
        "purify",
        _purify,
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


def _add_recipe(command: argparse.ArgumentParser, default: str) -> None:
    shipped = "a shipped recipe (digits, folder, paper, strong, strong-cpu) or a YAML file"
    command.add_argument("--recipe", metavar="NAME|FILE", help=f"{shipped} (default: {default})")
    command.set_defaults(default_recipe=default.split(",")[0])


def _add_run(command: argparse.ArgumentParser, output: str | None = "runs/RECIPE") -> None:
    where = f"folder for everything that is made (default: {output or 'RUN itself'})"
    command.add_argument("--output", metavar="DIR", type=Path, default=None, help=where)
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


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of minutes above 0, please; got {text}")
    return value


def _tables(text: str) -> tuple[int, ...]:
    chosen = tuple(int(part) for part in text.split(","))
    if not set(chosen) <= {1, 2, 3}:
        raise argparse.ArgumentTypeError(f"tables are numbered 1 to 3; got {text}")
    return chosen


def _add_classifier(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--classifier",
        metavar="SOURCE",
        help="your classifier, which is only read: module:function, a .safetensors file, a saved folder or a shipped name",
    )
    command.add_argument("--data-dir", metavar="DIR", help="where the data set lies: CIFAR-10's batches, or your own folder")


def _overrides(parsed: argparse.Namespace) -> list[str | tuple[str, object]]:
    """All ways of changing the recipe as one list; what stands last wins."""
    given = vars(parsed)
    chosen: list[str | tuple[str, object]] = list(parsed.overrides)
    if given.get("images"):
        chosen += [("data.name", "folder"), ("data.path", _absolute(parsed.images))]
    if given.get("data_dir"):
        chosen.append(("data.path", _absolute(parsed.data_dir)))
    if given.get("classifier"):
        chosen.append(("classifier.source", _absolute(parsed.classifier)))
    if given.get("seed") is not None:
        chosen.append(("seed", parsed.seed))
    return chosen


def _absolute(text: str) -> str:
    """A path that exists, as one that still holds when the run is opened from another folder; other texts as they are."""
    return str(Path(text).resolve()) if Path(text).exists() else text


def _trained(parsed: argparse.Namespace, tables: Sequence[int]):  # type: ignore[no-untyped-def]
    from purifiers.console import Deadline, Stopwatch, duration, say
    from purifiers.training.pipeline import train
    from purifiers.training.variants import train_variants

    recipe, folder = _recipe_and_folder(parsed)
    watch = Stopwatch()
    deadline = Deadline(parsed.minutes)
    run = train(recipe, folder, device=parsed.device, ablation=2 in tables, restart=parsed.restart, deadline=deadline)
    if 3 in tables:
        train_variants(run, parsed.device)
    say(f"trained in {duration(watch.seconds)}")
    return run


def _shipped(parsed: argparse.Namespace):  # type: ignore[no-untyped-def]
    from purifiers.training.run import RECIPE_FILE, open_weights

    recipe, folder = _recipe_and_folder(parsed)
    if (folder / RECIPE_FILE).is_file():
        raise ConfigError(f"{folder} is a run that was trained, whose results would be replaced; give another --output")
    return open_weights(recipe, folder, parsed.device)


def _recipe_and_folder(parsed: argparse.Namespace):  # type: ignore[no-untyped-def]
    from purifiers.recipes import load_recipe

    own_images = vars(parsed).get("images") is not None
    name = parsed.recipe or ("folder" if own_images else parsed.default_recipe)
    overrides = _overrides(parsed)
    recipe = load_recipe(name, overrides)
    if recipe.data.name == "cifar10" and recipe.data.path is None and os.environ.get("PURIFIERS_DATA"):
        # Kept in the run, so that it can be evaluated where the variable is not set.
        recipe = load_recipe(name, [*overrides, ("data.path", _absolute(os.environ["PURIFIERS_DATA"]))])
    shipped = "-weights" if vars(parsed).get("from_weights") else ""
    folder = parsed.output or Path(parsed.default_output.replace("RECIPE", recipe.name + shipped))
    _refuse_file(folder)
    return recipe, folder


def _train(parsed: argparse.Namespace) -> int:
    from purifiers.console import say

    run = _trained(parsed, tables=(1,))
    say(f"\nThe purifier is in {run.folder}. Measure it:  purifiers evaluate {run.folder}")
    say(f'In Python:  Purifier.from_pretrained("{run.folder}")')
    return 0


def _reproduce(parsed: argparse.Namespace) -> int:
    run = _shipped(parsed) if vars(parsed).get("from_weights") else _trained(parsed, vars(parsed).get("tables", (1, 2)))
    _report(run, run.folder)
    return 0


def _evaluate(parsed: argparse.Namespace) -> int:
    from purifiers.recipes import load_recipe
    from purifiers.training.run import RECIPE_FILE, open_run

    recipe_file = parsed.run / RECIPE_FILE
    if not recipe_file.is_file():
        raise MissingFileError(f"{parsed.run} holds no {RECIPE_FILE}; give the --output of 'purifiers train'")
    for override in parsed.overrides:
        if not override.startswith(EVALUATION_ONLY):
            raise ConfigError(f"--set {override}: training is over; here only {', '.join(EVALUATION_ONLY)} can be set")
    output = parsed.output or parsed.run
    _refuse_file(output)
    if output.resolve() != parsed.run.resolve() and (output / RECIPE_FILE).is_file():
        raise ConfigError(f"{output} is a run of its own, whose results would be replaced; give another --output")
    run = open_run(load_recipe(recipe_file, _overrides(parsed)), parsed.run, parsed.device)
    _report(run, output)
    return 0


def _refuse_file(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; give a folder")


def _report(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    from purifiers.console import duration, say, show_table
    from purifiers.evaluation.run import evaluate_run
    from purifiers.reports.report import headline, write_report
    from purifiers.reports.tables import all_tables

    results, examples = evaluate_run(run)
    results.write(folder)
    page = write_report(results, examples, folder)
    for table in all_tables(results):
        short = table.compact()
        show_table(short.title, short.header, short.rows)
    for sentence in headline(results):
        say(sentence)
    for warning in results.warnings:
        say(f"warning ({warning.attack}, view {warning.view}): {warning.message}")
    say(f"\nmeasured in {duration(results.seconds['evaluation'])}; open {page}")


def _purify(parsed: argparse.Namespace) -> int:
    from purifiers.console import say
    from purifiers.deploy.bulk import purify_files
    from purifiers.purifier import Purifier
    from purifiers.training.run import make_fabric

    purifier = Purifier.from_pretrained(parsed.purifier).to(make_fabric(parsed.device, "32-true").device)
    target = Path(parsed.target)
    if parsed.target.endswith(("/", os.sep)) and parsed.source.is_file():
        target = target / f"{parsed.source.stem}.png"
    result = purify_files(purifier, parsed.source, target, overwrite=parsed.overwrite)
    say(f"{result.purified} purified, {result.skipped} there already, {len(result.failed)} failed")
    for failure in result.failed:
        _fail(failure)
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
