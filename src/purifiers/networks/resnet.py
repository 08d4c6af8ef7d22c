"""Residual networks for small images (He et al. 2016, section 4.2): ResNet-20, 32, 44, 56, 110."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purifiers.errors import InputError
from purifiers.networks.network import Network
from purifiers.registry import NETWORKS


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A: every second pixel, zeros for new channels)."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.stride = stride
        self.new_channels = fan_out - fan_in

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride != 1 or self.new_channels:
            half = self.new_channels // 2
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_channels - half))
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


@NETWORKS.register("resnet")
class ResNet(Network):
    """A CIFAR ResNet: images (N, 3, H, W), float, in [0,1] -> logits (N, num_classes).

    Normalisation lives in here, as buffers that are not part of the weights, so that weights of the same network trained
    elsewhere load unchanged (keys conv1, bn1, layer1..3, linear) and nobody can feed normalised images by mistake.

    Args:
        depth: 6n + 2 with n blocks in each stage; 20, 32, 44, 56 or 110 in He et al.
        num_classes: number of classes.
        width: channels of the first stage, doubled in each later one; 16 in He et al.
        mean, std: per-channel normalisation, in [0,1] units.

    Raises:
        InputError: another depth, fewer than 2 classes, or a mean and std not of three channels.
    """

    output = "logits"
    channels = 3
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        depth: int = 56,
        num_classes: int = 10,
        width: int = 16,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"a classifier needs at least 2 classes; got {num_classes}")
        if depth < 8 or depth % 6 != 2 or width < 1:
            depths = "6n + 2, such as 20 or 56"
            raise InputError(f"a CIFAR ResNet has a width of at least 1, and depth {depths}; got width {width}, depth {depth}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError(f"mean and std need three channels each and std above 0; got {list(mean)} and {list(std)}")
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        count = (depth - 2) // 6
        self.layer1 = _layer(width, width, count, stride=1)
        self.layer2 = _layer(width, 2 * width, count, stride=2)
        self.layer3 = _layer(2 * width, 4 * width, count, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of ``images`` in [0,1]."""
        return self.logits(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """The last feature map, (N, 4 * width, H / 4, W / 4), of ``images`` in [0,1]."""
        x = (images - self.mean) / self.std
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes) of a feature map."""
        return self.linear(features.mean(dim=(2, 3)))


def _layer(fan_in: int, fan_out: int, count: int, stride: int) -> nn.Sequential:
    blocks = [BasicBlock(fan_in, fan_out, stride)] + [BasicBlock(fan_out, fan_out, 1) for _ in range(count - 1)]
    return nn.Sequential(*blocks)
