"""Put the weights of a finished run into the library, each with its model card.

    python tools/ship_weights.py runs/strong-cpu cifar10 --classifier cifar10-resnet20 --also runs/strong-cpu/unseen

The run must have been evaluated. `--also` names folders of further results of the same purifier, for its card.
"""

import argparse
import shutil
from pathlib import Path

import purifiers.weights
from purifiers.evaluation.records import CLEAN, Results
from purifiers.files import write_text
from purifiers.networks import CONFIG_FILE, WEIGHTS_FILE
from purifiers.reports.card import classifier_card, model_card
from purifiers.reports.tables import select

ROOT = Path(purifiers.weights.__file__).parent
LIMIT = 12_000_000
"""Bytes of all shipped weights together."""


def main() -> None:
    """Copy, write the cards, and check the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="of the student")
    parser.add_argument("--classifier", metavar="NAME", help="ship the run's classifier too, by this name")
    parser.add_argument("--also", metavar="DIR", type=Path, nargs="*", default=[])
    chosen = parser.parse_args()
    results = [Results.read(folder) for folder in (chosen.run, *chosen.also)]
    copy(chosen.run, chosen.name, model_card(chosen.name, results))
    if chosen.classifier:
        clean = select(results[0])[CLEAN]
        card = classifier_card(chosen.classifier, results[0], clean.accuracy_undefended, clean.n)
        copy(chosen.run / "checkpoints" / "classifier", chosen.classifier, card)
    size = sum(path.stat().st_size for path in ROOT.glob("*/*"))
    print(f"{size / 1e6:.1f} MB of weights and cards")
    if size > LIMIT:
        raise SystemExit(f"that is more than the {LIMIT / 1e6:.0f} MB that may ship")


def copy(source: Path, name: str, card: str) -> None:
    """One network's files and card to its folder in the library."""
    folder = ROOT / name
    folder.mkdir(exist_ok=True)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(source / file, folder / file)
    write_text(folder / "README.md", card)


if __name__ == "__main__":
    main()
