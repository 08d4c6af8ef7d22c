"""What each command does: calls, and prints. What a command needs is imported in it, so that --help answers at once."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from purifiers.errors import ConfigError, MissingFileError

if TYPE_CHECKING:
    from purifiers.recipes.schema import Recipe

EVALUATION_ONLY = (
    "evaluation",
    "audit",
    "data.path",
    "data.size",
    "data.test_limit",
    "classifier.source",
    "classifier.mean",
    "classifier.std",
    "classifier.network",
    "baselines",
)
"""What may be set when training is over."""
ALL_TABLES = (1, 2, 3)


def overrides_of(parsed: argparse.Namespace) -> list[str | tuple[str, object]]:
    """All ways of changing the recipe as one list; what stands last wins."""
    given = vars(parsed)
    chosen: list[str | tuple[str, object]] = [*parsed.overrides]
    if given.get("images"):
        chosen += [("data.name", "folder"), ("data.path", parsed.images)]
    if given.get("data_dir"):
        chosen.append(("data.path", parsed.data_dir))
    if given.get("classifier"):
        chosen.append(("classifier.source", parsed.classifier))
    chosen += [(f"classifier.{name}", given[name]) for name in ("mean", "std") if given.get(name)]
    if given.get("seed") is not None:
        chosen.append(("seed", parsed.seed))
    return chosen


def _trained(parsed: argparse.Namespace, tables: Sequence[int], deadline=None):  # type: ignore[no-untyped-def]
    from purifiers.console import Deadline, Stopwatch, duration, say
    from purifiers.training.pipeline import train_recipe, train_variants

    recipe, folder = _recipe_and_folder(parsed)
    watch = Stopwatch()
    deadline = deadline or Deadline(parsed.minutes)
    run = train_recipe(recipe, folder, device=parsed.device, ablation=2 in tables, restart=parsed.restart, deadline=deadline)
    _compare(parsed, run, default="all" if 1 in tables and vars(parsed).get("seeds") is None else "ready")
    if 3 in tables:
        train_variants(run, parsed.device)
    say(f"trained in {duration(watch.seconds)}")
    return run


def _shipped(parsed: argparse.Namespace):  # type: ignore[no-untyped-def]
    from purifiers.console import Deadline
    from purifiers.recipes.load import load_recipe
    from purifiers.runs import RECIPE_FILE, open_weights

    if parsed.seed is not None or parsed.restart or (parsed.tables or (1,)) != (1,):
        raise ConfigError("--from-weights takes ours as it is: not with --seed, --restart, or --tables other than 1")
    if parsed.minutes is not None and parsed.baselines != "all":
        raise ConfigError("--minutes limits training, and --from-weights trains nothing without --baselines all")
    refuse_training_settings(parsed.overrides)
    recipe, folder = _recipe_and_folder(parsed)
    if (folder / RECIPE_FILE).is_file():
        raise ConfigError(f"{folder} is a run that was trained, whose results would be replaced; give another --output")
    run = open_weights(recipe, load_recipe(parsed.recipe or parsed.default_recipe), folder, parsed.device)
    run.deadline = Deadline(parsed.minutes)
    _compare(parsed, run, default="ready")
    return run


def _compare(parsed: argparse.Namespace, run, default: str) -> None:  # type: ignore[no-untyped-def]
    """Prepare the baselines that were asked for; the command 'train' has no such option, and none."""
    from purifiers.run_baselines import prepare_baselines

    if "baselines" in parsed and (chosen := parsed.baselines or default) != "none":
        prepare_baselines(run, train=chosen == "all")


def _recipe_and_folder(parsed: argparse.Namespace):  # type: ignore[no-untyped-def]
    from purifiers.recipes.load import load_recipe, with_shipped_classifiers

    own_images = vars(parsed).get("images") is not None
    recipe = load_recipe(parsed.recipe or ("folder" if own_images else parsed.default_recipe), overrides_of(parsed))
    if vars(parsed).get("shipped_classifiers"):
        recipe = with_shipped_classifiers(recipe)
    shipped = "-weights" if vars(parsed).get("from_weights") else ""
    folder = parsed.output or Path(parsed.default_output.replace("RECIPE", recipe.name + shipped))
    refuse_file(folder)
    return recipe, folder


def loader(parsed: argparse.Namespace, settings: Sequence[tuple[str, object]] = ()):  # type: ignore[no-untyped-def]
    """Reads recipes with what the command line sets, ``settings``, and what the caller sets besides, which come first."""
    from purifiers.recipes.load import load_recipe

    own = [*overrides_of(parsed), *settings]
    return lambda name, further: load_recipe(name, [*own, *further])


def recipe_behind(parsed: argparse.Namespace) -> "Recipe":
    """The recipe of the purifier WHAT with what the command line sets; where it is not known, one of images of one's own."""
    from purifiers.recipes.load import load_recipe
    from purifiers.runs import recipe_of

    # --size of an export is one of its images too.
    sized = [("data.size", parsed.size)] if vars(parsed).get("size") and vars(parsed).get("images") else []
    return load_recipe(recipe_of(parsed.what, parsed.recipe) or "folder", [*overrides_of(parsed), *sized])


def refuse_idle(parsed: argparse.Namespace, where: str) -> None:
    """Refuse options that change a recipe of which nothing is used."""
    options = {"recipe": "recipe", "mean": "mean", "std": "std", "data_dir": "data-dir", "images": "images", "overrides": "set"}
    for name, option in options.items():
        if vars(parsed).get(name):
            raise ConfigError(f"--{option} is for {where}, and there is none")


def train(parsed: argparse.Namespace) -> int:
    """Train, and say what to do next."""
    from purifiers import weights
    from purifiers.console import say

    run = _trained(parsed, tables=(1,))
    say(f"\nThe purifier is in {run.folder}. Measure it:  purifiers evaluate {run.folder}")
    shipped = str(run.folder) in weights.NAMES  # a plain name would be taken for the library's own
    say(f'In Python:  Purifier.from_pretrained("{"./" if shipped else ""}{run.folder}")')
    return 0


def reproduce(parsed: argparse.Namespace) -> int:
    """Train or take shipped weights, then measure and report."""
    seeds = vars(parsed).get("seeds")
    if seeds is not None:
        return _over_seeds(parsed, seeds)
    run = _shipped(parsed) if vars(parsed).get("from_weights") else _trained(parsed, vars(parsed).get("tables") or ALL_TABLES)
    _report(run, run.folder)
    return 0


def _over_seeds(parsed: argparse.Namespace, seeds: Sequence[int]) -> int:
    from purifiers.console import Deadline, say, show_table
    from purifiers.reports.run_report import write_seeds

    tables = parsed.tables or ALL_TABLES
    if parsed.from_weights or 2 not in tables or parsed.seed is not None:
        raise ConfigError("--seeds is for Table 2, which is trained: not with --from-weights, --seed, or --tables without 2")
    parent = _recipe_and_folder(parsed)[1]
    deadline = Deadline(parsed.minutes)  # one for all seeds together; all are trained before the first is measured
    runs = []
    for seed in seeds:
        say(f"\nseed {seed}")
        parsed.seed, parsed.output = seed, parent / f"seed-{seed}"
        runs.append(_trained(parsed, tables, deadline))
    table = write_seeds([_report(run, run.folder) for run in runs], parent)
    show_table(table.title, table.header, table.rows)
    say(table.caption)
    return 0


def evaluate(parsed: argparse.Namespace) -> int:
    """Measure and report what an earlier run trained."""
    from purifiers import weights
    from purifiers.recipes.load import load_recipe
    from purifiers.runs import RECIPE_FILE, open_run, recipe_of

    recipe_file = parsed.run / RECIPE_FILE
    if not recipe_file.is_file():
        if str(parsed.run) in weights.PURIFIERS:
            recipe = recipe_of(str(parsed.run))
            raise ConfigError(
                f"'{parsed.run}' ships with the library and is no run: 'purifiers audit {parsed.run}' attacks it in every way, "
                f"'purifiers reproduce --recipe {recipe} --from-weights' measures it, with --classifier in front of yours"
            )
        raise MissingFileError(f"{parsed.run} holds no {RECIPE_FILE}; give the --output of 'purifiers train'")
    refuse_training_settings(parsed.overrides)
    if parsed.baselines == "all" and parsed.classifier:
        raise ConfigError("--baselines all would train them for the --classifier into a run that is of another: not together")
    output = parsed.output or parsed.run
    refuse_other_run(output, parsed.run)
    run = open_run(load_recipe(recipe_file, overrides_of(parsed)), parsed.run, parsed.device)
    _compare(parsed, run, default="ready")
    _report(run, output)
    return 0


def refuse_training_settings(overrides: Sequence[str]) -> None:
    """Refuse to set what training has decided already."""
    for override in overrides:
        if not override.startswith(EVALUATION_ONLY):
            raise ConfigError(f"--set {override}: training is over; here only {', '.join(EVALUATION_ONLY)} can be set")


def refuse_file(output: Path) -> None:
    """Refuse a file where a folder is to be made."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; give a folder")


def refuse_other_run(output: Path, own: Path | None = None) -> None:
    """Refuse a folder for results that is a file, or a run other than ``own``."""
    from purifiers.runs import RECIPE_FILE

    refuse_file(output)
    if (own is None or output.resolve() != own.resolve()) and (output / RECIPE_FILE).is_file():
        raise ConfigError(f"{output} is a run of its own, whose results would be replaced; give another --output")


def _report(run, folder: Path):  # type: ignore[no-untyped-def]
    from purifiers.console import duration, say, show_table
    from purifiers.evaluation.evaluate import evaluate_run
    from purifiers.reports.run_report import all_tables, headline, write_report

    results, examples = evaluate_run(run)
    results.write(folder)
    page = write_report(results, examples, folder, run.folder)
    for table in all_tables(results):
        short = table.compact()
        show_table(short.title, short.header, short.rows)
    for sentence in headline(results):
        say(sentence)
    for warning in results.warnings:
        say(f"warning ({warning.attack}, view {warning.view}): {warning.message}")
    say(f"\nmeasured in {duration(results.seconds['evaluation'])}; open {page}")
    return results


def fail(message: str) -> int:
    """Tell the user what was wrong; returns the exit status for it."""
    print(f"purifiers: error: {message}", file=sys.stderr)
    return 1
