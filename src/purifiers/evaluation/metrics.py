"""How good the purified images are: for the classifier (equation 7), and as images."""

import math
from statistics import NormalDist

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

PSNR_CAP = 100.0
"""Identical images have an infinite PSNR, which no mean survives; they count as this many dB."""
SSIM_WINDOW = 11


def classes(logits: Tensor) -> Tensor:
    """The class of each row of ``logits`` (N, classes), int64 (N,); -1, which is no image's, where one is not finite."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


def matches(predictions: Tensor, targets: Tensor) -> int:
    """Equation 7's c_target: how many of ``predictions`` (N,) equal ``targets`` (N,); a target of no class has none."""
    return int(((predictions == targets) & (targets >= 0)).sum().item())


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927), as (low, high) in [0,1]; sound at 0 and 1 too.

    Raises:
        ValueError: count is not positive, or successes are not within it.
    """
    if count <= 0 or not 0 <= successes <= count:
        raise ValueError(f"cannot give an interval of {successes} successes in {count}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / count
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def sign_test(successes: int, count: int) -> float:
    """Chance of at least ``successes`` heads in ``count`` throws of a fair coin: the one-sided p-value of the sign test.

    Raises:
        ValueError: successes are not within count.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"cannot test {successes} successes in {count}")
    return sum(math.comb(count, heads) for heads in range(successes, count + 1)) / 2**count


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (N,), capped at 100; images (N, C, H, W) in [0,1]."""
    ratio = peak_signal_noise_ratio(images, originals, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return ratio.clamp(max=PSNR_CAP)


def ssim(images: Tensor, originals: Tensor) -> Tensor | None:
    """Structural similarity (Wang et al. 2004) of each image, (N,); None where images are under its 11-pixel window."""
    if min(images.shape[-2:]) < SSIM_WINDOW:
        return None
    value = structural_similarity_index_measure(images, originals, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return torch.atleast_1d(value)
