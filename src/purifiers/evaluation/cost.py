"""What a purifier costs: parameters, arithmetic and time, all purifiers on the same images in one run."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from purifiers.console import Stopwatch
from purifiers.evaluation.records import Cost

LEAST_SECONDS = 0.5
"""A rate is measured for at least so long."""


def measure_cost(module: nn.Module, images: Tensor) -> Cost:
    """Count and time ``module`` on ``images`` (N, C, H, W); a first pass does not count, unless it takes long.

    Arithmetic is counted on one image: matrix products and convolutions, a multiplication and an addition are two; of a
    purifier that takes gradients at test time, those too.
    """
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            module(images[:1])
        seconds, passes = _time(module, images), 1
        if seconds < LEAST_SECONDS:  # what is short is warmed up, and repeated
            seconds, passes = 0.0, 0
            while seconds < LEAST_SECONDS:
                seconds, passes = seconds + _time(module, images), passes + 1
    return Cost(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        flops=counter.get_total_flops(),
        images_per_second=passes * len(images) / seconds,
        batch_size=len(images),
    )


def _time(module: nn.Module, images: Tensor) -> float:
    watch = Stopwatch()
    module(images).sum().item()  # waits for the device
    return watch.seconds
