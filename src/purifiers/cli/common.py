"""What several commands do: recipes with what the command line changes in them, checks, and the report of a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purifiers.cli.options import EVALUATION_ONLY
from purifiers.errors import ConfigError

if TYPE_CHECKING:
    from purifiers.evaluation.records import Results
    from purifiers.recipes.schema import Recipe
    from purifiers.runs import Run

Changes = list[str | tuple[str, Any]]
"""Changes of a recipe: ``student.epochs=5`` or ``("student.epochs", 5)``; the last one of a key wins."""


def changes(
    settings: Sequence[str] | None,
    *,
    classifier: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    data_dir: str | None = None,
    images: str | None = None,
    seed: int | None = None,
) -> Changes:
    """What the options change in a recipe; raises ConfigError for two folders of images."""
    if images and data_dir:
        raise ConfigError("--images and --data-dir both name the folder of the data set: give one of them")
    named = {
        "data.name": images and "folder",
        "data.path": images or data_dir,
        "classifier.source": classifier,
        "classifier.mean": mean,
        "classifier.std": std,
        "seed": seed,
    }
    return [*(settings or ()), *((key, value) for key, value in named.items() if value is not None)]


def evaluation_changes(settings: Sequence[str] | None, **options: Any) -> Changes:
    """:func:`changes` of a purifier that is trained already; raises ConfigError for a setting that training used."""
    for setting in settings or ():
        if not setting.startswith(EVALUATION_ONLY):
            raise ConfigError(f"--set {setting}: training is over; only {', '.join(EVALUATION_ONLY)} can be changed")
    return changes(settings, **options)


def changing(changed: Changes) -> Callable[[str | Path, Sequence[tuple[str, Any]]], "Recipe"]:
    """Reads a recipe with ``changed`` and with the caller's own changes: for :func:`purifiers.runs.open_defended`."""
    from purifiers.recipes.load import load_recipe

    return lambda name, further: load_recipe(name, [*changed, *further])


def recipe_behind(what: str, recipe: str | None, changed: Changes) -> "Recipe":
    """The recipe of the purifier ``what``; where that is unknown, the one for a folder of images."""
    from purifiers.recipes.load import load_recipe
    from purifiers.runs import recipe_of

    return load_recipe(recipe_of(what, recipe) or "folder", changed)


def refuse_unused(options: Mapping[str, object], without: str) -> None:
    """Refuse options that would have no effect, as another is missing."""
    if unused := [name for name, value in options.items() if value]:
        raise ConfigError(f"{unused[0]} has no effect without {without}")


def refuse_file(output: Path) -> None:
    """Refuse a file as the folder for results."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; expected a folder")


def refuse_other_run(output: Path, own: Path | None = None) -> None:
    """Refuse a file, and the folder of a run other than ``own``, as the folder for results."""
    from purifiers.runs import RECIPE_FILE

    refuse_file(output)
    if (own is None or output.resolve() != own.resolve()) and (output / RECIPE_FILE).is_file():
        raise ConfigError(f"{output} is another run, whose results would be replaced; choose another --output")


def refuse_foreign_baselines(run: Path, recipe: "Recipe") -> None:
    """Refuse to train baselines into the run of another classifier than ``recipe``'s."""
    from purifiers.recipes.load import load_recipe
    from purifiers.runs import RECIPE_FILE

    if recipe.classifier != load_recipe(run / RECIPE_FILE).classifier:
        raise ConfigError(
            f"--baselines all trains them into {run}, which is a run of another classifier: leave one of them out"
        )


def report(run: "Run", folder: Path) -> "Results":
    """Measure a run, write its report into ``folder`` and print it."""
    from purifiers.console import duration, say, show_table
    from purifiers.evaluation.evaluate import evaluate_run
    from purifiers.reports.run_report import all_tables, headline, write_report

    results, examples = evaluate_run(run)
    results.write(folder)
    page = write_report(results, examples, folder, run.folder)
    for table in (table.compact() for table in all_tables(results)):
        show_table(table.title, table.header, table.rows)
    for sentence in headline(results):
        say(sentence)
    for warning in results.warnings:
        say(f"warning ({warning.attack}, view {warning.view}): {warning.message}")
    say(f"\nmeasured in {duration(results.seconds['evaluation'])}; open {page}")
    return results
