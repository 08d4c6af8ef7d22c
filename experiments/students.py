"""Accuracy against time: trained students of several sizes beside their teacher, the shipped purifier ``cifar10``.

    purifiers train --recipe tiny-cpu --output runs/tiny
    purifiers train --recipe tiny-cpu --output runs/small --set student.network.widths=[24,32]
    python experiments/students.py runs/tiny runs/small --images 500 --output runs/students

``students.json``, ``students.md`` and ``students.svg`` in the output folder have the accuracy of each under the attacks of
``tiny-cpu``, and its time as a share of the ResNet-56's, as loaded and after ``Purifier.optimize()``, measured in turns in one
run, with the threads that OMP_NUM_THREADS gives. Run a stopped command again to resume it.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import purifiers
from purifiers import Purifier
from purifiers.data import load_images
from purifiers.evaluation.metrics import measure_cost
from purifiers.recipes.load import load_recipe
from purifiers.reports.figures import BLUE, GREY, ORANGE, save_figure
from purifiers.reports.render import Table
from purifiers.seeds import seed_for
from purifiers.storage import write_text

CLASSIFIER, TEACHER = "cifar10-resnet56", "cifar10"
REPEATS = 7


def shares(modules: Mapping[str, nn.Module], images: Tensor, of: str) -> dict[str, float]:
    """The least time of each module on ``images``, of REPEATS in turns, as a share of that of the module named ``of``."""
    least = dict.fromkeys(modules, float("inf"))
    with torch.no_grad():
        for repeat in range(REPEATS + 1):
            for name, module in modules.items():
                begun = time.perf_counter()
                module(images)
                if repeat:  # the first does not count
                    least[name] = min(least[name], time.perf_counter() - begun)
    return {name: seconds / least[of] for name, seconds in least.items()}


def curve(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Accuracy on clean images and under the worst attack against time."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for column, colour in (("clean", GREY), ("worst", BLUE)):
        points = [(row["time"], row[column]) for row in rows.values()]
        axes.plot(*zip(*points, strict=True), "o", color=colour, label=column)
    for title, row in rows.items():
        axes.annotate(title, (row["time"], row["worst"]), xytext=(5, -3), textcoords="offset points", fontsize=8)
    axes.axvline(10, color=ORANGE, linestyle=":", label="a tenth of the ResNet-56")
    axes.set(xscale="log", xlabel="time, % of the ResNet-56's", ylabel="accuracy, %", ylim=(0, 100))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    return figure


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained students")
    parser.add_argument("--output", type=Path, default=Path("runs/students"))
    parser.add_argument("--images", type=int, help="test images under each attack, by default all")
    arguments = parser.parse_args()
    recipe, classifier = load_recipe("tiny-cpu"), purifiers.load_classifier(CLASSIFIER)
    data, seed = load_images("cifar10", "test"), seed_for(recipe.seed, "evaluation")
    data = data.limited(arguments.images, seed_for(seed, "limit"))  # the images and attacks of ``purifiers evaluate``
    settings: dict[str, Any] = {"attacks": recipe.evaluation.attacks, "batch_size": recipe.evaluation.batch_size, "seed": seed}
    sample = torch.rand(256, 3, 32, 32)
    rows: dict[str, dict[str, float]] = {}
    modules: dict[str, nn.Module] = {CLASSIFIER: classifier}
    for title, name in ((TEACHER, TEACHER), *((folder.name, folder) for folder in arguments.runs)):
        purifier = Purifier.from_pretrained(name)
        found = purifiers.evaluate(purifier, classifier, data, cache=arguments.output / "cache", **settings).records
        accuracy = {one.attack: 100 * one.accuracy for one in found}
        rows[title] = {"clean": accuracy.pop("none"), "worst": min(accuracy.values()), **accuracy}
        rows[title]["MFLOP"] = (measure_cost(purifier, sample[:2]).flops or 0) / 1e6
        modules |= {title: purifier, f"{title}, optimised": purifier.optimize(sample)}
    taken = shares(modules, sample, CLASSIFIER)
    for title, row in rows.items():
        row |= {"time, as loaded": 100 * taken[title], "time": 100 * taken[f"{title}, optimised"]}
    table = Table.of_numbers("students", "Accuracy in %, time in % of the ResNet-56's.", "purifier", rows)
    table.show()
    write_text(arguments.output / "students.json", json.dumps(rows, indent=1))
    write_text(arguments.output / "students.md", table.markdown())
    save_figure(curve(rows), arguments.output / "students.svg")


if __name__ == "__main__":
    main()
