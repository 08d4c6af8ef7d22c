"""Our PGD against foolbox's on the same ResNet-56, images and threads, in turn: images/s and the ratio of medians.

    python benchmarks/attack.py [--images 64] [--repeats 5] [--device cpu]

Random weights and images: the work of an attack does not depend on what the network has learned.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

from purifiers.attacks import BIM
from purifiers.console import say
from purifiers.networks import ResNet, place

EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 20


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of one call, the device's queue drained."""
    begun = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox

    torch.manual_seed(0)
    # Without gradients for its parameters: ours turns them off by itself, and foolbox would pay for them.
    model = place(ResNet(56), options.device).eval().requires_grad_(False)
    images = torch.rand(options.images, 3, 32, 32, device=options.device)
    labels = torch.randint(10, (options.images,), device=options.device)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=options.device)
    theirs = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=STEP, steps=STEPS, random_start=False)
    ours = BIM(epsilon=EPSILON, step_size=STEP, num_steps=STEPS)

    def run_ours() -> object:
        return ours(model, images, labels)

    def run_theirs() -> object:
        return theirs(wrapped, images, labels, epsilons=EPSILON)

    times: dict[str, list[float]] = {"purifiers": [], "foolbox": []}
    for _ in range(options.repeats + 1):  # in turn, so that a drift of the machine's speed meets both; the first warms up
        times["purifiers"].append(seconds(run_ours, options.device))
        times["foolbox"].append(seconds(run_theirs, options.device))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, median in medians.items():
        say(f"{name:<10} {options.images / median:8.1f} images/s  (PGD, {STEPS} steps, ResNet-56, median of {options.repeats})")
    say(f"ratio      {medians['foolbox'] / medians['purifiers']:8.2f} x")


if __name__ == "__main__":
    main()
