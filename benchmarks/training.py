"""How fast each stage trains, beside the limit of the machine."""

from pathlib import Path
from typing import Any

import torch

import purifiers
from benchmarks.measure import Benchmark, Table, digits, interleaved, limit_works, limits
from purifiers.console import console
from purifiers.data import ImageSet
from purifiers.recipes.load import changed, load_recipe
from purifiers.runs import STATE_FILE, Run
from purifiers.storage import load_state
from purifiers.training.pipeline import train_classifier

STAGES = ("classifier", "teacher_nt", "teacher_at", "student")
LARGE, SMALL = 64, 4
"""Sizes of a batch; what a step takes beside its images is where a line through both meets none."""


def training(quick: bool, folder: Path) -> Table:
    """An epoch of every stage with each size of a batch, in turns."""
    small, large = (1, 2) if quick else (SMALL, LARGE)
    turns = 1 if quick else 2
    found: dict[int, dict[str, list[tuple[float, int]]]] = {size: {stage: [] for stage in STAGES} for size in (small, large)}
    for turn in range(turns):
        for size in (small, large):
            for stage, history in _trained(size, 2 if quick else 4, folder / f"{turn}-{size}").items():
                found[size][stage].append((1 / history["images_per_second"], int(history["flops_per_image"])))
    rate, _ = limits(interleaved(limit_works(), quick))
    rows = []
    for stage in STAGES:
        (least, _), (each, flops) = (min(found[size][stage]) for size in (small, large))
        # Seconds of a step are host + image * size.
        host = max(0.0, (least - each) / (1 / small - 1 / large))
        rows.append(
            [
                stage,
                digits(1 / each),
                digits(flops / 1e6),
                f"{flops / each / rate:.0%}",
                digits(1000 * host),
                f"{host / (each * large):.0%}",
            ]
        )
    columns = ["stage", "images/s", "MFLOP an image", "of the matrix rate", "host, ms a step", "of a step"]
    return Table(
        columns, rows, notes=[f"Batches of {large}; what a step takes beside its images comes from batches of {small}."]
    )


def _trained(batch_size: int, steps: int, folder: Path) -> dict[str, dict[str, float]]:
    """The last epoch of each stage, of so many steps; before it libraries prepare."""
    config = {"epochs": 2, "batch_size": batch_size}
    stages = {f"{stage}.{key}": value for stage in STAGES[1:] for key, value in config.items()}
    attacks = {"PGD": {"kind": "pgd", "num_steps": 1}}
    settings: dict[str, Any] = {"precision": "32-true", "companions": [], "training_attacks": attacks, **stages}
    count = batch_size * steps
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ImageSet("noise", images, torch.arange(count) % 10, tuple("abcdefghij"))
    with console.capture():
        recipe = changed(
            load_recipe("strong-cpu"),
            {"precision": "32-true"} | {f"classifier.training.{key}": value for key, value in config.items()},
        )
        run = Run(recipe, folder / "classifier", torch.device("cpu"), folder / "cache")
        run.take(data, "train")
        classifier = train_classifier(run, "classifier")
        purifiers.train(classifier, data, output=folder / "purifier", recipe="strong-cpu", settings=settings)
    checkpoints = folder / "purifier" / "checkpoints"
    histories = {stage: load_state(checkpoints / stage / STATE_FILE)["history"] for stage in STAGES[1:]}
    return {stage: history[-1] for stage, history in (run.histories | histories).items()}


BENCHMARKS = {
    "training": Benchmark(
        "Training",
        "The stages of the recipe `strong-cpu`, in float32, without companions, in front of a ResNet-56; by the wall clock.",
        training,
    )
}
