"""Draw docs/photographs.png: scikit-image's photographs, free to redistribute, under an attack on a classifier of 224 pixels,
and purified by the shipped purifier of photographs.

    python tools/picture_of_photographs.py my_module:build --classes names.txt
"""

import argparse
from pathlib import Path

from purifiers import Purifier, load_classifier
from purifiers.app.samples import samples_for
from purifiers.attacks import PGD
from purifiers.cache import Cache
from purifiers.classifiers.load import completed
from purifiers.evaluation.evaluate import find_examples
from purifiers.evaluation.evaluator import Evaluator
from purifiers.recipes.load import load_recipe
from purifiers.reports.figures import examples_figure, save_figure

PICTURE = Path(__file__).parents[1] / "docs" / "photographs.png"


def main() -> None:
    """Attack, purify and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", help="a function that returns one, as for --classifier of the command line")
    parser.add_argument("--classes", type=Path, required=True, help="a file of its classes' names, one a line")
    chosen = parser.parse_args()
    classifier, recipe = load_classifier(chosen.classifier), load_recipe("photos-cpu", [("data.classes", str(chosen.classes))])
    data = completed(samples_for(recipe), classifier)
    evaluator = Evaluator(classifier, chosen.classifier, data, 0, len(data), Cache(None))
    attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=20)
    save_figure(examples_figure(find_examples(evaluator, Purifier.from_pretrained("photos"), attack)), PICTURE)


if __name__ == "__main__":
    main()
