"""The measure that a training's arithmetic is held against."""

import time

import torch

SIZE = {"cuda": 8192, "cpu": 2048}
"""Side of the square matrices whose product sets the measure."""
REPEATS = 5


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product on ``device``: the best of a few, measured now."""
    size = SIZE.get(device.type, 1024)
    left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(REPEATS):
        _wait(device)
        begun = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
