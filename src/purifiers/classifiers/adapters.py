"""Small differentiable modules between images in [0,1] and a classifier that takes them in another form."""

from collections.abc import Sequence, Sized
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purifiers.errors import ConfigError, InputError

LUMA = (0.299, 0.587, 0.114)
"""Red, green and blue in a grey image (ITU-R 601, as Pillow has it). The three add up to 1: a grey image that is stored as RGB
becomes what it was, and no perturbation grows in L-inf."""


def check_normalization(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Refuse, with ConfigError, a normalisation that cannot be of images in [0,1]; both None: there is none."""
    if mean is None or std is None:
        if mean is std:
            return
        raise ConfigError("mean and std go together: one of them is missing")
    if not all(isinstance(one, Sized) and len(one) in (1, 3) for one in (mean, std)) or len(mean) != len(std):
        raise ConfigError(f"mean and std are lists of three numbers each, or one each; got {mean} and {std}")
    if not (all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std)):
        raise ConfigError(f"mean and std are in [0,1] units (divide by 255), and std is above 0; got {[*mean]} and {[*std]}")


class Normalized(nn.Module):
    """A classifier behind a normalisation: images (N, C, H, W) in [0,1] -> ``network((images - mean) / std)``, both in [0,1]
    units, a number for each channel or one for all; else InputError."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.mean.shape[1] not in (1, images.shape[1]):
            raise InputError(f"mean and std have {self.mean.shape[1]} numbers, the images {images.shape[1]} channel(s)")
        return self.network((images - self.mean) / self.std)


class Grey(nn.Module):
    """A classifier of grey images: images (N, 3, H, W) in [0,1] -> ``network`` of their luma, (N, 1, H, W)."""

    luma: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images * self.luma).sum(dim=1, keepdim=True))


class Resized(nn.Module):
    """A classifier of images of one size: images (N, C, H, W) -> ``network`` of them at ``size`` (height, width), bilinear with
    antialiasing, the whole image and no crop; images of that size pass as they are."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def extra_repr(self) -> str:
        return f"size={self.size}"  # a part of the fingerprint that cached adversarial examples are found by

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True, align_corners=False)
        return self.network(images)


class Fixed(nn.Module):
    """A ``network`` of one mode, such as an exported program, which refuses ``eval()`` and ``train()``."""

    def __init__(self, network: nn.Module, about: str = "") -> None:
        super().__init__()
        self.network = network
        self.about = about  # a part of the fingerprint, to distinguish it from others of the same weights

    def extra_repr(self) -> str:
        return self.about

    def train(self, mode: bool = True) -> Self:
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)
