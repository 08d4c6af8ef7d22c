"""Speed of a training step in bfloat16, and compiled, relative to eager float32.

    python benchmarks/precision.py [--batch-size 128] [--repeats 5] [--compiled] [--device cpu]

One line for each network: images/s of forward and backward in eager float32, and the speed-up of each other variant, the
median over interleaved repeats.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from purifiers.registry import build_network, place

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "CAE 24/48/96": ("cae", {"residual": True}),
    "ResNet-20": ("resnet", {"depth": 20}),
    "ResNet-20, width 32": ("resnet", {"depth": 20, "width": 32}),
    "ResNet-56": ("resnet", {"depth": 56}),
}


def step_of(network: nn.Module, images: torch.Tensor, half: bool) -> Callable[[], None]:
    """One forward and backward pass."""

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            loss = network(images).float().square().mean()
        network.zero_grad()
        loss.backward()
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)

    return step


def seconds(step: Callable[[], None]) -> float:
    """Wall-clock seconds of one step."""
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--compiled", action="store_true", help="also compiled steps (compiling takes about a minute for each network)"
    )
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    images = torch.rand(chosen.batch_size, 3, 32, 32, device=chosen.device)
    for title, (name, arguments) in NETWORKS.items():
        torch.manual_seed(0)
        network = place(build_network(name, arguments), chosen.device).train()
        ways = {"float32": step_of(network, images, half=False), "bfloat16": step_of(network, images, half=True)}
        if chosen.compiled:
            ways["bfloat16 compiled"] = step_of(torch.compile(network), images, half=True)  # type: ignore[arg-type]
        for step in ways.values():
            seconds(step)
            seconds(step)
        turns = [{way: seconds(step) for way, step in ways.items()} for _ in range(chosen.repeats)]
        rate = chosen.batch_size / statistics.median(turn["float32"] for turn in turns)
        ratios = [
            f"{way} {statistics.median(turn['float32'] / turn[way] for turn in turns):.2f}x" for way in ways if way != "float32"
        ]
        print(f"{title:<20} float32 {rate:,.0f} images/s; {', '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
