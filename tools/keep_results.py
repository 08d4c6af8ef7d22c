"""Keep what runs measured: their results.json and tables, without the places that files had on this machine.

python tools/keep_results.py runs/strong-cpu-weights results/cifar10-cpu/compared
"""

import argparse
from pathlib import Path
from typing import Any

from purifiers.evaluation.records import Results
from purifiers.recipes.load import parse_recipe
from purifiers.reports.run_report import all_tables, headline
from purifiers.storage import write_text


def keep(results: Results, target: Path) -> None:
    """Write ``results``, which should be :func:`portable`, and their tables to ``target``."""
    results.write(target)
    write_text(target / "tables.md", "\n\n".join([*headline(results), *(table.markdown() for table in all_tables(results))]))


def portable(results: Results) -> Results:
    """The results without the places that files had on this machine."""
    if results.versions["commit"].endswith("-dirty"):
        raise SystemExit(f"results of recipe {results.recipe['name']} were measured with uncommitted changes: measure again")
    trained = None if results.trained is None else _without_places(results.trained)
    return results.model_copy(update={"recipe": _without_places(results.recipe), "trained": trained})


def _without_places(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe's content with its files' names alone."""
    # Not read again afterwards: a name that is a file here would become a place.
    recipe = parse_recipe(content).model_dump(mode="json")
    recipe["data"]["path"] = None
    for classifier in (recipe["classifier"], *recipe["companions"]):
        if classifier["source"] is not None and ":" not in classifier["source"]:
            classifier["source"] = Path(classifier["source"]).name
    for stage in ("teacher_at", "student"):
        start = recipe[stage]["start"]
        if start is not None and Path(start).is_absolute():
            recipe[stage]["start"] = f"runs/{Path(start).name}"  # which no shipped name is
    return recipe


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    chosen = parser.parse_args()
    keep(portable(Results.read(chosen.run)), chosen.target)
