"""What several commands do: checks, and the report of a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from purifiers.cli.options import Overrides
from purifiers.errors import ConfigError

if TYPE_CHECKING:
    from purifiers.evaluation.records import Results
    from purifiers.recipes.schema import Recipe
    from purifiers.runs import Run


def recipe_behind(what: str, recipe: str | None, overrides: Overrides) -> "Recipe":
    """The recipe of the purifier ``what``; where that is unknown, the one for a folder of images."""
    from purifiers.recipes.load import load_recipe
    from purifiers.runs import recipe_of

    return load_recipe(recipe_of(what, recipe) or "folder", overrides)


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
    from purifiers.console import duration, say
    from purifiers.evaluation.evaluate import evaluate_run
    from purifiers.reports.run_report import all_tables, headline, write_report

    results, examples = evaluate_run(run)
    results.write(folder)
    page = write_report(results, examples, folder, run.folder)
    for table in all_tables(results):
        table.show()
    for sentence in headline(results):
        say(sentence)
    for warning in results.warnings:
        say(f"warning ({warning.attack}, view {warning.view}): {warning.message}")
    say(f"\nmeasured in {duration(results.seconds['evaluation'])}; open {page}")
    return results
