"""Baselines without training: classical input transformations, which a learned purifier should beat, and wrappers around any
purifier, with gradient steps or noise before the pass, or a share of the input after it.

Modules like any purifier's network: images (N, C, H, W), float, in [0,1] -> the same. A transformation has the gradient of
the identity (BPDA, Athalye et al. 2018): its own is zero almost everywhere, which protects nobody.
"""

import io
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from purifiers.errors import InputError, require
from purifiers.gradient_steps import pgd
from purifiers.networks.network import Network, channels_of
from purifiers.registry import NETWORKS

LARGEST_MEDIAN = 31
"""Pixels of a side."""


class Transformation(Network, ABC):
    """Base: a transformation of values, outside of autograd; ready without training."""

    @abstractmethod
    def transform(self, images: Tensor) -> Tensor:
        """The transformed images, no gradient."""

    def forward(self, images: Tensor) -> Tensor:
        """Transform ``images`` (N, C, H, W), float, in [0,1]; same shape, dtype, device and range."""
        with torch.no_grad():
            changed = self.transform(images.detach()).to(images)
        return changed.clamp(0, 1) + (images - images.detach())


@NETWORKS.register("jpeg")
class JPEG(Transformation):
    """Compression and decompression with Pillow's JPEG (Dziugaite et al. 2016; Guo et al. 2018: quality 75).

    Args:
        quality: 1 to 95.
    """

    channels = 3
    not_exportable = "it compresses with Pillow"

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        if not isinstance(quality, int) or not 1 <= quality <= 95:
            raise InputError(f"the quality of a JPEG is a whole number from 1 to 95; got {quality}")
        self.quality = quality

    def transform(self, images: Tensor) -> Tensor:
        if images.shape[1] != 3:
            raise InputError(f"JPEG takes images of 3 channels; got {images.shape[1]}")
        pixels = images.float().mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return torch.from_numpy(np.stack([self._through(one) for one in pixels])).permute(0, 3, 1, 2).float() / 255

    def _through(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
            return np.asarray(Image.open(file))


@NETWORKS.register("bit_depth")
class BitDepth(Transformation):
    """Fewer grey levels (Xu, Evans and Qi 2018: feature squeezing).

    Args:
        bits: 1 to 8 for each channel.
    """

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        if not isinstance(bits, int) or not 1 <= bits <= 8:
            raise InputError(f"a channel has 1 to 8 bits, a whole number; got {bits}")
        self.levels = 2**bits - 1

    def transform(self, images: Tensor) -> Tensor:
        return (images * self.levels).round() / self.levels


@NETWORKS.register("median")
class Median(Transformation):
    """The median of a square around each pixel, each channel by itself (Xu, Evans and Qi 2018), by SciPy.

    Args:
        size: side of the square in pixels.
    """

    not_exportable = "it computes with SciPy"

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        if not isinstance(size, int) or not 2 <= size <= LARGEST_MEDIAN:  # the time grows with its square
            raise InputError(f"the median of a square needs a side of 2 to {LARGEST_MEDIAN} whole pixels; got {size}")
        self.size = size

    def transform(self, images: Tensor) -> Tensor:
        median_filter = require("scipy.ndimage").median_filter
        return torch.from_numpy(median_filter(images.float().cpu().numpy(), size=(1, 1, self.size, self.size)))


@NETWORKS.register("total_variation")
class TotalVariation(Transformation):
    """Total-variation minimisation by Chambolle's algorithm, from scikit-image (Guo et al. 2018 also drop pixels first).

    Args:
        weight: how smooth; 0.1 is scikit-image's own.
    """

    not_exportable = "it computes with scikit-image"

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        if not 0 < weight < math.inf:
            raise InputError(f"total-variation minimisation needs a weight above 0; got {weight}")
        self.weight = weight

    def transform(self, images: Tensor) -> Tensor:
        denoise_tv_chambolle = require("skimage.restoration").denoise_tv_chambolle
        pixels = images.float().cpu().numpy()
        return torch.from_numpy(np.stack([denoise_tv_chambolle(one, weight=self.weight, channel_axis=0) for one in pixels]))


@NETWORKS.register("shrink")
class Shrink(Network):
    """Images at a lower resolution and back, bicubic: what losing detail alone does. Unlike the others it has its own gradient.

    Args:
        factor: by which height and width are divided, rounded up.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if not isinstance(factor, int) or factor < 2:
            raise InputError(f"images are shrunk by a whole factor of at least 2; got {factor}")
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        """Lose the detail of ``images`` (N, C, H, W), float, in [0,1]; same shape, dtype and range."""
        height, width = images.shape[-2:]
        small = (-(-height // self.factor), -(-width // self.factor))
        shrunk = F.interpolate(images, small, mode="bicubic", antialias=True)
        return F.interpolate(shrunk, (height, width), mode="bicubic").clamp(0, 1)


@NETWORKS.register("nothing")
class Nothing(Network):
    """Images as they are: the network inside of noise alone."""

    def forward(self, images: Tensor) -> Tensor:
        """``images`` themselves."""
        return images


class Wrapper(Network):
    """Base of wrappers around the network of a purifier: images (N, C, H, W), float, in [0,1] -> the same."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.channels = channels_of(base)
        self.redraws = getattr(base, "redraws", False)


@NETWORKS.register("adaptive")
class Adaptive(Wrapper):
    """Move an image to where the purifier changes it little, then purify it (Kalaria, Hazra and Chakrabarti, arXiv 2208.13838).

    An autoencoder reconstructs clean images well and attacked ones badly: a few signed gradient steps down the
    reconstruction error ||f(x) - x||^2, within a ball around the image, come before the pass. The gradient of the output
    is that of the last pass (the steps count as a constant).

    Args:
        base: a purifier's network.
        num_steps, step_size: of the descent, in [0,1] units.
        epsilon: the ball, L-inf, in [0,1] units.
    """

    not_exportable = "it follows gradients of its own"

    def __init__(self, base: nn.Module, num_steps: int = 4, step_size: float = 2 / 255, epsilon: float = 8 / 255) -> None:
        super().__init__(base)
        if not isinstance(num_steps, int) or num_steps < 1 or not (0 < step_size < math.inf and 0 < epsilon < math.inf):
            raise InputError(
                "adaptive use needs at least one whole step, and a step_size and an epsilon above 0; got "
                f"num_steps={num_steps}, step_size={step_size}, epsilon={epsilon}"
            )
        self.num_steps, self.step_size, self.epsilon = num_steps, step_size, epsilon

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            moved = pgd(
                lambda candidate: -(self.base(candidate) - candidate).square().flatten(1).mean(1).sum(),
                images.detach().clone(),
                epsilon=self.epsilon,
                step_size=self.step_size,
                num_steps=self.num_steps,
            )
        return self.base(moved + (images - images.detach()))


@NETWORKS.register("noisy")
class Noisy(Wrapper):
    """Add Gaussian noise, project into a ball around the image, clip to [0,1], then purify: NRP's dynamic inference (Naseer
    et al. 2020, section 3.5), so that an attacker does not know what the purifier will see.

    Noise comes from torch's global source of randomness.

    Args:
        base: a purifier's network; :class:`purifiers.baselines.Nothing` makes it the baseline of noise alone.
        sigma: standard deviation, in [0,1] units; 0.05 in NRP.
        epsilon: the ball, L-inf, in [0,1] units; 16/255 in NRP.
    """

    not_exportable = "it draws random numbers, so that its file could not be checked; export its base"

    def __init__(self, base: nn.Module, sigma: float = 0.05, epsilon: float = 16 / 255) -> None:
        super().__init__(base)
        if not (0 < sigma < math.inf and 0 < epsilon < math.inf):
            raise InputError(f"noise needs a sigma and an epsilon above 0; got sigma={sigma}, epsilon={epsilon}")
        self.sigma, self.epsilon = sigma, epsilon

    def forward(self, images: Tensor) -> Tensor:
        noise = (self.sigma * torch.randn_like(images)).clamp_(-self.epsilon, self.epsilon)
        return self.base((images + noise).clamp(0, 1))


@NETWORKS.register("blend")
class Blend(Wrapper):
    """Let a share of the input pass around the purifier: ``share * x + (1 - share) * f(x)``.

    A purifier that redraws the image is robust against an attacker who knows it because nothing passes around its latent. The
    share trades that for similarity to the input: 0 is the purifier, 1 the input.

    Args:
        base: a purifier's network.
        share: in [0,1].
    """

    def __init__(self, base: nn.Module, share: float) -> None:
        super().__init__(base)
        if not 0 <= share <= 1:
            raise InputError(f"the share of the input is in [0,1]; got {share}")
        self.share = share
        self.reach = getattr(base, "reach", None)
        self.stride = getattr(base, "stride", 1)
        self.redraws = self.redraws and not share

    def forward(self, images: Tensor) -> Tensor:
        return torch.lerp(self.base(images), images, self.share)
