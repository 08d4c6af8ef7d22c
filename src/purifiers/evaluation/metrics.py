"""The quality of purified images: for the classifier (equation 7), and as images."""

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from purifiers.data import slices, to_float

PSNR_CAP = 100.0
"""In dB, for identical images, whose infinite PSNR would make every mean infinite."""
SSIM_WINDOW = 11


def classes(logits: Tensor) -> Tensor:
    """The class of each row of ``logits`` (N, classes), int64 (N,); -1, which is no image's, where one is not finite."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


def predict(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """The class of each of ``images`` (N, C, H, W), uint8 or float32 in [0,1], as :func:`classes` gives it."""
    with torch.no_grad():
        batches = [images[batch] for batch in slices(len(images), batch_size)]
        # The model may change what it gets.
        batches = [to_float(batch) if batch.dtype == torch.uint8 else batch.clone() for batch in batches]
        return classes(torch.cat([model(batch) for batch in batches]))


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
