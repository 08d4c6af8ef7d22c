"""An ablation of adversarial training: what each ingredient brings to the encoder of a robust purifier, at an equal budget.

    python experiments/encoders.py --output runs/encoders

Every row trains an encoder as a classifier (``latent.encoder`` of the recipe ``robust-cpu``, of which ``BARE`` takes the
ingredients away) on fewer images, with one ingredient, or with those of ``--together``, and measures it on test images: clean,
and under PGD-10 of 8/255. Run a stopped command again to resume it. Writes ``encoders.md`` and ``.json`` to the output folder;
other settings need another one.
"""

import argparse
import json
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from purifiers.attacks import PGD, Attack
from purifiers.data import ImageSet, to_float
from purifiers.device import Precision
from purifiers.recipes.load import changed, load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.reports.render import Table
from purifiers.runs import LATENT, Run
from purifiers.storage import write_text
from purifiers.training.latent import train_encoder

DEVICE = torch.device("cpu")
JUDGE = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
BATCH = 250

BARE: dict[str, Any] = {
    "purifier": {"network": "cae", "widths": [16, 48, 96], "blocks": [2, 5, 8], "skip_every": 0},
    "latent.encoder.attack": {"kind": "pgd", "epsilon": "8/255", "step_size": "10/255", "num_steps": 1},
    "latent.encoder.label_smoothing": 0.0,
    "latent.encoder.ema": 0.0,
    "latent.encoder.held_out": None,
}
"""Wong, Rice and Kolter (2020): one step from a random start, and nothing else."""
INGREDIENTS: dict[str, dict[str, Any]] = {
    "none": {},
    "N-FGSM": {"latent.encoder.attack": {"kind": "nfgsm"}},
    "moving average, 0.995": {"latent.encoder.ema": 0.995},
    "label smoothing, 0.1": {"latent.encoder.label_smoothing": 0.1},
    "TRADES, 6": {"latent.encoder.trades": 6.0},
    "weight perturbation, 0.005": {"latent.encoder.weight_perturbation": 0.005},
    "SiLU": {"purifier.activation": "silu"},
    "shortcuts": {"purifier.shortcuts": 2},
    "early stopping": {"latent.encoder.held_out": {"images": 500, "attack": JUDGE.model_dump()}},
}
"""Changes of that, each alone."""


def settings(arguments: argparse.Namespace, names: list[str]) -> Recipe:
    """The recipe with these ingredients, at the size of the experiment."""
    size = {"data.limit": arguments.images, "data.test_limit": arguments.test_images}
    changes: dict[str, Any] = BARE | {"latent.encoder.epochs": arguments.epochs, "precision": arguments.precision, **size}
    for name in names:
        changes |= INGREDIENTS[name]
    return changed(load_recipe("robust-cpu"), changes)


def accuracy(model: nn.Module, data: ImageSet, attack: Attack | None = None) -> float:
    """In percent, on images as they are or attacked."""
    right = 0
    for images, labels in zip(data.images.split(BATCH), data.labels.split(BATCH), strict=True):
        seen: Tensor = to_float(images)
        seen = seen if attack is None else attack(model, seen, labels)
        with torch.no_grad():
            right += int((model(seen).argmax(1) == labels).sum())
    return 100 * right / len(data)


def measured(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Train an encoder in ``folder``, if it is not there, and attack it."""
    run = Run(recipe, folder, DEVICE, folder / "cache")
    encoder = train_encoder(run).eval()
    history, data = run.histories[LATENT[0]], run.images("test")
    seconds = sum(epoch["seconds"] for epoch in history) / len(history)
    return {"clean": accuracy(encoder, data), "PGD-10": accuracy(encoder, data, JUDGE), "seconds an epoch": seconds}


def main() -> None:
    """Train and measure one row after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/encoders"))
    parser.add_argument("--images", type=int, default=10000, help="to train on")
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--precision", choices=get_args(Precision), default="32-true")
    parser.add_argument("--only", nargs="+", choices=INGREDIENTS, default=list(INGREDIENTS), metavar="NAME")
    parser.add_argument("--together", nargs="+", choices=INGREDIENTS, default=[], metavar="NAME", help="one more row of these")
    arguments = parser.parse_args()
    chosen = {name: [name] for name in arguments.only}
    if arguments.together:
        chosen[" + ".join(arguments.together)] = arguments.together
    path = arguments.output / "encoders.json"
    rows: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for title, names in chosen.items():
        folder = arguments.output / "".join(letter if letter.isalnum() else "-" for letter in title.lower())
        rows[title] = measured(settings(arguments, names), folder)
        write_text(path, json.dumps(rows, indent=1) + "\n")
        size = f"{arguments.epochs} epochs of {arguments.images:,} training images, {arguments.precision}"
        caption = f"Accuracy in % on {arguments.test_images:,} test images, after {size}."
        table = Table.of_numbers("encoders", caption, "encoder", rows)
        table.show()
        write_text(arguments.output / "encoders.md", table.markdown())


if __name__ == "__main__":
    main()
