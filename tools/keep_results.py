"""Keep what runs measured, or write anew the pages of what was kept.

    python tools/keep_results.py runs/strong-cpu-weights results/cifar10-cpu/compared
    python tools/keep_results.py results

With a target: the run's results.json and tables go there, without the places that files had on this machine. Without one: every
page below the folder is made anew from the results.json, audit.json and certificate.json beside it, and where a folder has
seed-0, seed-1 and so on, their table2.md.
"""

import argparse
from pathlib import Path
from typing import Any

from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.certify import Certificate
from purifiers.evaluation.records import Results
from purifiers.recipes.load import parse_recipe
from purifiers.reports.figures import audit_figure, certificate_figure, save_figure
from purifiers.reports.pages import (
    AUDIT_FIGURE,
    CERTIFICATE_FIGURE,
    all_tables,
    audit_page,
    certificate_page,
    headline,
    write_seeds,
)
from purifiers.storage import write_text
from purifiers.weights import HUB


def keep(results: Results, target: Path) -> None:
    """Write ``results``, which should be :func:`portable`, and their tables to ``target``."""
    results.write(target)
    write_tables(results, target)


def write_tables(results: Results, folder: Path) -> None:
    """Write the sentences and tables of ``results`` to ``tables.md``."""
    write_text(folder / "tables.md", "\n\n".join([*headline(results), *(table.markdown() for table in all_tables(results))]))


def write_pages(root: Path) -> None:
    """Write every page and figure below ``root`` anew; the records stay as they are."""
    for path in sorted(root.rglob(Results.filename)):
        write_tables(Results.read(path.parent), path.parent)
    for path in sorted(root.rglob(Audit.filename)):
        audit = Audit.read(path.parent)
        write_text(path.parent / "audit.md", audit_page(audit))
        save_figure(audit_figure(audit), path.parent / AUDIT_FIGURE)
    for path in sorted(root.rglob(Certificate.filename)):
        certificate = Certificate.read(path.parent)
        write_text(path.parent / "certificate.md", certificate_page(certificate))
        save_figure(certificate_figure(certificate), path.parent / CERTIFICATE_FIGURE)
    for path in sorted(root.rglob("seed-0")):
        write_seeds([Results.read(seed) for seed in sorted(path.parent.glob("seed-*"))], path.parent)


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
    for stage in ("teacher_at", "student"):
        start = recipe[stage]["start"]
        if start is not None and Path(start).is_absolute():
            recipe[stage]["start"] = f"runs/{Path(start).name}"  # which no shipped name is
    shortened: dict[str, Any] = names_alone(recipe)
    return shortened


def names_alone(value: Any) -> Any:
    """``value`` with the names alone of the files and folders in it, also behind ``hf:`` and in ``purifier+classifier``."""
    if isinstance(value, dict):
        return {key: names_alone(one) for key, one in value.items()}
    if isinstance(value, list):
        return [names_alone(one) for one in value]
    if not isinstance(value, str):
        return value
    hub = HUB if value.startswith(HUB) else ""
    places = value.removeprefix(hub).split("+")
    return hub + "+".join(Path(place).name if Path(place).is_absolute() else place for place in places)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a run, or of kept results")
    parser.add_argument("target", type=Path, nargs="?")
    chosen = parser.parse_args()
    if chosen.target is None:
        write_pages(chosen.folder)
    else:
        keep(portable(Results.read(chosen.folder)), chosen.target)
