"""The measure that a training's arithmetic is held against."""

import time

import torch

SIZE = {"cuda": 8192, "cpu": 2048}
"""Side of the square matrices whose product sets the measure."""
REPEATS = 5
SECONDS = 2.0
"""As long as a product may take: a processor without bf16 needs a minute for one of full size."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product on ``device``: the best of a few, measured now."""
    size = 256
    _product(size, device, dtype)  # the libraries' start is not the device's speed
    seconds = _product(size, device, dtype)
    while size < SIZE.get(device.type, 1024) and 8 * seconds < SECONDS:
        size *= 2
        seconds = _product(size, device, dtype)
    return 2 * size**3 / min(seconds, *(_product(size, device, dtype) for _ in range(REPEATS - 1)))


def _product(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of one product."""
    left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    _wait(device)
    begun = time.perf_counter()
    left @ right
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
