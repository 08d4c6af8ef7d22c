"""Accuracy against time: students of several sizes, distilled alike from the shipped purifier ``cifar10``.

    python experiments/students.py --output runs/students
    python experiments/students.py --output runs/students --images 500 --sizes tiny small

Each is the recipe ``tiny-cpu`` with another ``student.network``, trained on shared adversarial examples and measured on the
attacks of the recipe. Run a stopped command again to resume it. ``students.json``, ``students.md`` and ``students.svg`` in the
output folder have the accuracies, and the time of each as a share of the ResNet-56's, measured in turns in one run, with the
threads that OMP_NUM_THREADS gives.
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

from purifiers.console import say
from purifiers.evaluation.evaluate import evaluate_run
from purifiers.evaluation.metrics import measure_cost
from purifiers.recipes.load import changed, load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.reports.figures import BLUE, GREY, ORANGE, save_figure
from purifiers.reports.render import Table
from purifiers.runs import prepare_baselines
from purifiers.storage import write_text
from purifiers.training.pipeline import train_recipe

SIZES: dict[str, dict[str, Any]] = {
    "large": {"widths": [64, 96], "blocks": [2, 3]},
    "tiny": {},
    "small": {"widths": [24, 32], "blocks": [2, 2]},
    "smallest": {"widths": [16, 24], "blocks": [1, 1]},
}
"""The students, as changes of the recipe's ``student.network``."""
TEACHER = "cifar10"
REPEATS = 7


def settings(size: str, images: int | None = None, **others: Any) -> Recipe:
    """The recipe of one of SIZES, with the teacher beside it, and ``images`` test images under each attack (None: all)."""
    base = load_recipe("tiny-cpu")
    network = {f"student.network.{key}": value for key, value in SIZES[size].items()}
    limits = {} if images is None else dict.fromkeys(base.evaluation.attacks, images)
    beside = {"baselines": {TEACHER: {"kind": "pretrained", "source": TEACHER}}}
    return changed(base, {"evaluation.views": ["blind"], "evaluation.limits": limits} | beside | network | others)


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


def table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """All numbers, a row for each purifier."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[title, *(f"{row[column]:.1f}" if column in row else "-" for column in columns)] for title, row in rows.items()]
    return Table("students", "Accuracy in %, time in % of the ResNet-56's.", ["purifier", *columns], cells)


def curve(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Accuracy on clean images and under the worst attack against time."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    points = sorted(rows.items(), key=lambda pair: pair[1]["time"])
    for column, colour in (("clean", GREY), ("worst", BLUE)):
        axes.plot([row["time"] for _, row in points], [row[column] for _, row in points], "o-", color=colour, label=column)
    for title, row in points:
        axes.annotate(title, (row["time"], row["worst"]), xytext=(4, -12), textcoords="offset points", fontsize=8)
    axes.axvline(10, color=ORANGE, linestyle=":", label="a tenth of the ResNet-56")
    axes.set(xscale="log", xlabel="time, % of the ResNet-56's", ylabel="accuracy, %")
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/students"))
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--images", type=int, help="test images under each attack, by default all")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    modules: dict[str, nn.Module] = {}
    cache = arguments.output / "cache"
    for size in arguments.sizes:
        run = train_recipe(settings(size, arguments.images), arguments.output / size, device="cpu", cache=cache)
        prepare_baselines(run)
        records = evaluate_run(run)[0].records
        purifiers = {size: run.purifiers["student"], TEACHER: run.baselines[TEACHER]}
        for title, name in ((size, "student"), (TEACHER, f"baseline: {TEACHER}")):
            found = {one.attack: 100 * one.accuracy for one in records if one.purifier == name}
            rows[title] = {"clean": found.pop("none"), "worst": min(found.values()), **found}
            rows[title]["MFLOP"] = (measure_cost(purifiers[title], run.images("test").images[:2] / 255).flops or 0) / 1e6
            modules[title] = purifiers[title].network
        modules["classifier"] = run.classifier
    taken = shares(modules, torch.rand(256, 3, 32, 32), "classifier")
    for title, row in rows.items():
        row["time"] = 100 * taken[title]
    say(table(rows).markdown())
    write_text(arguments.output / "students.json", json.dumps(rows, indent=1))
    write_text(arguments.output / "students.md", table(rows).markdown())
    save_figure(curve(rows), arguments.output / "students.svg")


if __name__ == "__main__":
    main()
