"""Draw docs/photographs.png: scikit-image's photographs, free to redistribute, under an attack on a classifier of 224 pixels,
and purified by the shipped purifier of photographs.

    python tools/picture_of_photographs.py my_module:my_function --classes names.txt
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from purifiers import Purifier, load_classifier
from purifiers.app.samples import samples_for
from purifiers.attacks import PGD
from purifiers.data import to_float
from purifiers.data.labels import read_classes
from purifiers.evaluation.evaluate import Examples, Row
from purifiers.evaluation.metrics import psnr
from purifiers.recipes.load import load_recipe
from purifiers.reports.figures import examples_figure, save_figure

PICTURE = Path(__file__).parents[1] / "docs" / "photographs.png"


def main() -> None:
    """Attack, purify and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", help="a function that returns one, as for --classifier of the command line")
    parser.add_argument("--classes", type=Path, help="a file of its classes' names, one a line")
    chosen = parser.parse_args()
    classifier, purifier = load_classifier(chosen.classifier), Purifier.from_pretrained("photos")
    names = read_classes(chosen.classes) if chosen.classes else None
    images = to_float(samples_for(load_recipe("photos-cpu")).images)
    labels = classifier(images).argmax(dim=1)
    attacked = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=20)(classifier, images, labels)

    def row(shown: Tensor, original: bool = False) -> Row:
        classes = classifier(shown).argmax(dim=1)
        titles = [names[one] if names else f"class {one}" for one in classes.tolist()]
        return Row(shown, titles, (classes == labels).tolist(), None if original else psnr(shown, images).tolist())

    with torch.no_grad():
        examples = Examples("PGD-20, 8/255", True, row(images, original=True), row(attacked), row(purifier(attacked)))
    save_figure(examples_figure(examples), PICTURE)


if __name__ == "__main__":
    main()
