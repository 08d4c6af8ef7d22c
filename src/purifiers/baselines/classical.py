"""Classical input transformations: no training, no parameters. A learned purifier should beat them.

Modules like any purifier's network: images (N, C, H, W), float, in [0,1] -> the same. Their gradient is that of the identity
(BPDA, Athalye et al. 2018): their own is zero almost everywhere, which protects nobody.
"""

import io
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from purifiers.errors import InputError, require
from purifiers.networks.network import Network
from purifiers.registry import NETWORKS


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
        if not isinstance(size, int) or size < 2:
            raise InputError(f"the median of a square needs a side of at least 2 whole pixels; got {size}")
        self.size = size

    def transform(self, images: Tensor) -> Tensor:
        median_filter = require("scipy.ndimage").median_filter
        return torch.from_numpy(median_filter(images.float().cpu().numpy(), size=(1, 1, self.size, self.size)))


@NETWORKS.register("total_variation")
class TotalVariation(Transformation):
    """Total-variation minimisation by Chambolle's algorithm, from scikit-image (Guo et al. 2018 drop pixels first; this
    does not).

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
