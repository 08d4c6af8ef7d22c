"""The quality of purified images, for the classifier (equation 7) and as images; the cost of networks: parameters, arithmetic
and time; and the peak of a device, to compare arithmetic with."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from purifiers.console import Stopwatch
from purifiers.data import slices, to_float
from purifiers.device import in_parts
from purifiers.evaluation.records import Cost
from purifiers.forecast import current

PSNR_CAP = 100.0
"""In dB, for identical images, whose infinite PSNR would make every mean infinite."""
LEAST_SECONDS = 0.2
"""A rate is measured for at least so long."""
SIZE = {"cuda": 8192, "cpu": 2048}
"""Side of the square matrices whose product is the peak."""
REPEATS = 5
PRODUCT_SECONDS = 2.0
"""As long as a product may take: a processor without bf16 needs a minute for one of full size."""


def classes(logits: Tensor) -> Tensor:
    """The class of each row of ``logits`` (N, classes), int64 (N,); -1, which is no image's, where one is not finite."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


def predict(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """The class of each of ``images`` (N, C, H, W), uint8 or float32 in [0,1], as :func:`classes` gives it."""
    with torch.no_grad():
        batches = (images[batch] for batch in slices(len(images), batch_size))
        # The model may change what it gets.
        own = (to_float(batch) if batch.dtype == torch.uint8 else batch.clone() for batch in batches)
        return classes(torch.cat([in_parts(model, batch) for batch in own]))


def matches(predictions: Tensor, targets: Tensor) -> int:
    """Equation 7's c_target: how many of ``predictions`` (N,) equal ``targets`` (N,); -1 matches nothing."""
    return int(((predictions == targets) & (targets >= 0)).sum().item())


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927), as (low, high) in [0,1]; sound at 0 and 1 too.

    Raises:
        ValueError: count is not positive, or successes are not within it.
    """
    from scipy.stats import binomtest  # takes a second to import

    interval = binomtest(successes, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (N,), capped at 100; images (N, C, H, W) in [0,1]. One that is not finite
    has 0, as black instead of white has."""
    ratio = peak_signal_noise_ratio(images, originals, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return ratio.clamp(max=PSNR_CAP).nan_to_num(nan=0.0, neginf=0.0)


def ssim(images: Tensor, originals: Tensor) -> Tensor | None:
    """Structural similarity (Wang et al. 2004) of each image, (N,), 0 of one that is not finite; None where images are under
    its 11-pixel window."""
    if min(images.shape[-2:]) < 11:
        return None
    value = structural_similarity_index_measure(images, originals, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return torch.atleast_1d(value).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def count_parameters(module: nn.Module) -> int:
    """The number of ``module``'s parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def measure_cost(module: nn.Module, images: Tensor) -> Cost:
    """Count and time ``module`` on ``images`` (N, C, H, W); a first pass does not count, unless it takes long.

    Arithmetic is counted on one image: matrix products and convolutions, a multiplication and an addition are two; of a
    purifier that takes gradients at test time, those too.
    """
    with torch.no_grad():
        if plan := current():
            plan.note(plan.passes(module, images[:1], 1).seconds(len(images), 1), len(images), "speed")
            return Cost(parameters=0, flops=0, images_per_second=1, batch_size=len(images))
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
    in_parts(module, images).sum().item()  # waits for the device
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
