"""Put the weights of a finished run into the library, each with its model card, and its results under results/.

    python tools/ship_weights.py runs/strong-cpu cifar10 --also runs/unseen \\
        --classifiers classifier=cifar10-resnet20 companion_1=cifar10-resnet32

The runs must have been evaluated. `--also` names folders of further results of the same purifier. Pictures are not
copied: they show images of the data set.
"""

import argparse
import shutil
from pathlib import Path

import torch

import purifiers.weights
from purifiers.evaluation.records import Results
from purifiers.files import write_text
from purifiers.networks import CONFIG_FILE, WEIGHTS_FILE, load_network, place
from purifiers.recipes import changed, load_recipe, parse_recipe
from purifiers.reports.card import classifier_card, model_card
from purifiers.reports.report import headline
from purifiers.reports.tables import all_tables
from purifiers.training.classifier import accuracy
from purifiers.training.run import RECIPE_FILE, Run, make_fabric

ROOT = Path(purifiers.weights.__file__).parent
RESULTS = Path(__file__).parents[1] / "results"
LIMIT = 12_000_000
"""Bytes of all shipped weights together."""


def main() -> None:
    """Copy, write the cards and tables, and check the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="of the student")
    parser.add_argument("--classifiers", metavar="STAGE=NAME", nargs="*", default=[], help="ship these of the run too")
    parser.add_argument("--also", metavar="DIR", type=Path, nargs="*", default=[])
    chosen = parser.parse_args()
    folders = [chosen.run, *chosen.also]
    results = [portable(Results.read(folder)) for folder in folders]
    copy(chosen.run, chosen.name, model_card(chosen.name, results))
    recipe = load_recipe(chosen.run / RECIPE_FILE)
    test = Run(recipe, chosen.run, make_fabric("auto", "32-true"), chosen.run / "cache").images("test")
    for stage, name in (pair.split("=") for pair in chosen.classifiers):
        folder = chosen.run / "checkpoints" / stage
        with torch.no_grad():
            right = accuracy(place(load_network(folder), test.images.device), test)
        copy(folder, name, classifier_card(name, stage, results[0], right, len(test)))
    for folder, one in zip(folders, results, strict=True):
        target = RESULTS / chosen.name / folder.name
        one.write(target)
        write_text(target / "tables.md", "\n\n".join([*headline(one), *(table.markdown() for table in all_tables(one))]))
    size = sum(path.stat().st_size for path in ROOT.glob("*/*"))
    print(f"{size / 1e6:.1f} MB of weights and cards")
    if size > LIMIT:
        raise SystemExit(f"that is more than the {LIMIT / 1e6:.0f} MB that may ship")


def portable(results: Results) -> Results:
    """The results without the places that files had on this machine."""
    recipe = changed(parse_recipe(results.recipe), {"data.path": None})
    source = recipe.classifier.source
    if source is not None and ":" not in source:
        recipe = changed(recipe, {"classifier.source": Path(source).name})
    return results.model_copy(update={"recipe": recipe.model_dump(mode="json")})


def copy(source: Path, name: str, card: str) -> None:
    """One network's files and card to its folder in the library."""
    folder = ROOT / name
    folder.mkdir(exist_ok=True)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(source / file, folder / file)
    write_text(folder / "README.md", card)


if __name__ == "__main__":
    main()
