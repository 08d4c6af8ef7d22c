"""The cost of a network: parameters, arithmetic and time; and the peak of a device, to compare arithmetic with."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from purifiers.console import Stopwatch
from purifiers.evaluation.records import Cost

LEAST_SECONDS = 0.5
"""A rate is measured for at least so long."""
SIZE = {"cuda": 8192, "cpu": 2048}
"""Side of the square matrices whose product is the peak."""
REPEATS = 5
PRODUCT_SECONDS = 2.0
"""As long as a product may take: a processor without bf16 needs a minute for one of full size."""


def count_parameters(module: nn.Module) -> int:
    """The number of ``module``'s parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def measure_cost(module: nn.Module, images: Tensor) -> Cost:
    """Count and time ``module`` on ``images`` (N, C, H, W); a first pass does not count, unless it takes long.

    Arithmetic is counted on one image: matrix products and convolutions, a multiplication and an addition are two; of a
    purifier that takes gradients at test time, those too.
    """
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            module(images[:1].clone())
        seconds, passes = _time(module, images), 1
        if seconds < LEAST_SECONDS:  # a short pass is warmed up and repeated
            seconds, passes = 0.0, 0
        while seconds < LEAST_SECONDS:
            seconds, passes = seconds + _time(module, images), passes + 1
    return Cost(
        parameters=count_parameters(module),
        flops=counter.get_total_flops(),
        images_per_second=passes * len(images) / seconds,
        batch_size=len(images),
    )


def _time(module: nn.Module, images: Tensor) -> float:
    images = images.clone()  # which the module may change in place
    watch = Stopwatch()
    module(images).sum().item()  # waits for the device
    return watch.seconds


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product on ``device``: the best of a few, measured now."""
    size = 256
    _product(size, device, dtype)  # the start of libraries does not count
    seconds = _product(size, device, dtype)
    while size < SIZE.get(device.type, 1024) and 8 * seconds < PRODUCT_SECONDS:
        size *= 2
        seconds = _product(size, device, dtype)
    return 2 * size**3 / min(seconds, *(_product(size, device, dtype) for _ in range(REPEATS - 1)))


def _product(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of one product."""
    left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    watch = Stopwatch()
    left @ right
    wait(device)
    return watch.seconds
