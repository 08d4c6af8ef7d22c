"""Our BIM against foolbox's on the same ResNet, images and threads: images/s and the median of paired ratios.

    python benchmarks/attack.py [--images 32] [--depth 56] [--repeats 9] [--device cpu]

Measured twice: on a model as built, and on one whose parameters require no gradient. Ours never computes gradients of
parameters, foolbox does if they are required; the second pair shows the difference without them. Weights and images are
random: the cost of an attack does not depend on them.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

from purifiers.attacks import BIM
from purifiers.console import say
from purifiers.networks import ResNet
from purifiers.registry import place

EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 20


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of one call, until the device has finished."""
    begun = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--depth", type=int, default=56, help="of the ResNet")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox

    torch.manual_seed(0)
    model = place(ResNet(options.depth), options.device).eval()
    images = torch.rand(options.images, 3, 32, 32, device=options.device)
    labels = torch.randint(10, (options.images,), device=options.device)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=options.device)
    attack = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=STEP, steps=STEPS, random_start=False)
    ours = BIM(epsilon=EPSILON, step_size=STEP, num_steps=STEPS)

    def run_ours() -> object:
        return ours(model, images, labels)

    def run_theirs() -> object:
        return attack(wrapped, images, labels, epsilons=EPSILON)

    for title, gradients in (("as built", True), ("parameters frozen", False)):
        model.requires_grad_(gradients)
        times: dict[str, list[float]] = {"purifiers": [], "foolbox": []}
        run_ours(), run_theirs()  # warm up
        for repeat in range(
            options.repeats
        ):  # interleaved, in alternating order, so that a drift of the machine's speed affects both
            for name, work in [("purifiers", run_ours), ("foolbox", run_theirs)][:: 1 if repeat % 2 else -1]:
                times[name].append(seconds(work, options.device))
        for name, values in times.items():
            say(f"{title:<18} {name:<10} {options.images / statistics.median(values):8.1f} images/s")
        ratios = [theirs / ours for ours, theirs in zip(times["purifiers"], times["foolbox"], strict=True)]
        say(f"{title:<18} ratio      {statistics.median(ratios):8.2f} x  (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
