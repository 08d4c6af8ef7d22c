"""Our training loop against the bare network: forward and backward on one random batch in memory.

    python benchmarks/training.py [--images 2048] [--size 32] [--repeats 3] [--device cpu]

Both compute teacher NT's loss (equation 3, the paper recipe's CAE). The loop adds shuffling, augmentation, conversion from
uint8, the optimiser, loss records and a checkpoint for each epoch. Prints images/s of both and the ratio of medians.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from purifiers.console import console, say
from purifiers.device import find_device
from purifiers.networks import CAE
from purifiers.recipes.load import load_recipe
from purifiers.registry import place
from purifiers.training.loop import Stage, fit, make_fabric
from purifiers.training.objectives import nt_losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    recipe = load_recipe("paper", ["teacher_nt.epochs=1", "teacher_nt.flip=true", "teacher_nt.crop=4"])
    fabric = make_fabric(find_device(options.device), recipe.precision)
    batch_size = recipe.teacher_nt.batch_size
    count = options.images - options.images % batch_size
    shape = (count, 3, options.size, options.size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=fabric.device)
    labels = torch.zeros(count, dtype=torch.int64, device=fabric.device)

    generator = torch.Generator(fabric.device)

    def network() -> CAE:
        torch.manual_seed(0)
        return place(CAE(**recipe.purifier.arguments), fabric.device)

    def bare(model: CAE, batch: torch.Tensor) -> float:
        begun = time.perf_counter()
        for _ in range(count // batch_size):
            model.zero_grad()
            nt_losses(model, batch, labels, generator)["loss"].backward()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def ours() -> float:
        stage = Stage("benchmark", network(), images, labels, nt_losses, recipe.teacher_nt)
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            fit(stage, fabric, Path(folder) / "state.safetensors")
            return time.perf_counter() - begun

    model = network().train()
    batch = torch.rand(batch_size, *shape[1:], device=fabric.device)
    times: dict[str, list[float]] = {"bare": [], "loop": []}
    for _ in range(
        options.repeats + 1
    ):  # interleaved, so that a drift of the machine's speed affects both; the first is a warm-up
        times["bare"].append(bare(model, batch))
        with console.capture():  # the loop's own output
            times["loop"].append(ours())
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, median in medians.items():
        say(f"{name:<6} {count / median:8.1f} images/s  (teacher NT, {options.size} pixels, median of {options.repeats})")
    say(f"ratio  {medians['bare'] / medians['loop']:8.2f} x")


if __name__ == "__main__":
    main()
