"""NRP, the neural representation purifier (Naseer et al., CVPR 2020, arXiv 2006.04924): its networks and its losses.

Trained on self-supervised perturbations (:class:`purifiers.attacks.SSP`), which need no labels, to bring the features of a
frozen classifier back to those of the clean image, with a critic that tells purified from clean images.
"""

from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purifiers.errors import InputError
from purifiers.networks.network import Network
from purifiers.registry import NETWORKS

SCALE = 0.2
"""What a residual is multiplied by before it is added."""
SLOPE = 0.2
"""Of the leaky rectifier."""

Block = Literal["dense", "residual"]


def relativistic_loss(leading: Tensor, trailing: Tensor) -> Tensor:
    """The relativistic average loss (Jolicoeur-Martineau 2019; equation 2 of NRP): ``leading`` should score above
    ``trailing``, each against the other's mean.

    Of scores, (N,): the critic's loss is ``relativistic_loss(of clean, of purified)``, the purifier's the other way round.
    """
    above = F.softplus(-(leading - trailing.mean())).mean()
    below = F.softplus(trailing - leading.mean()).mean()
    return (above + below) / 2


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees all before it (Wang et al. 2018: ESRGAN)."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        outs = [growth] * 4 + [features]
        self.convs = nn.ModuleList(nn.Conv2d(features + i * growth, out, 3, padding=1) for i, out in enumerate(outs))

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.convs[:-1]:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), SLOPE)], dim=1)
        return x + SCALE * self.convs[-1](seen)


class _Residual(nn.Sequential):
    """Three dense blocks, or two convolutions: on the residual."""

    def __init__(self, block: Block, features: int, growth: int) -> None:
        if block == "dense":
            super().__init__(*(_DenseBlock(features, growth) for _ in range(3)))
        else:
            first, second = (nn.Conv2d(features, features, 3, padding=1) for _ in range(2))
            super().__init__(first, nn.LeakyReLU(SLOPE), second)

    def forward(self, x: Tensor) -> Tensor:
        return x + SCALE * super().forward(x)  # type: ignore[no-untyped-call]


@NETWORKS.register("nrp")
class NRP(Network):
    """NRP's purifier: images (N, 3, H, W), float, in [0,1] -> the same; clipped to [0,1] in evaluation mode only, so that
    training has a gradient everywhere.

    A convolution, the blocks, a convolution, at full resolution; no normalisation, no way around the blocks.

    Args:
        block: ``dense`` for residual-in-residual dense blocks, ``residual`` for the small variant.
        blocks: how many; 23 in both of the original.
        features: channels between blocks; 64.
        growth: channels that each convolution of a dense block adds; 32.
    """

    channels = 3

    def __init__(self, block: Block = "dense", blocks: int = 23, features: int = 64, growth: int = 32) -> None:
        super().__init__()
        if block not in get_args(Block) or min(blocks, features, growth) < 1:
            got = f"got block='{block}', blocks={blocks}, features={features}, growth={growth}"
            raise InputError(f"NRP has {' or '.join(get_args(Block))} blocks, and sizes of at least 1; {got}")
        self.first = nn.Conv2d(3, features, 3, padding=1)
        self.blocks = nn.Sequential(*(_Residual(block, features, growth) for _ in range(blocks)))
        self.last = nn.Conv2d(features, 3, 3, padding=1)
        for module in self.blocks.modules():
            if isinstance(module, nn.Conv2d):  # small residuals at the start, as in ESRGAN
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                module.weight.data.mul_(0.1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        output = self.last(self.blocks(self.first(images)))
        return output if self.training else output.clamp(0, 1)


class Critic(nn.Module):
    """Tells clean from purified images: (N, 3, H, W) -> scores (N,), higher for clean.

    Args:
        width: channels of the first of four convolutions; later ones halve the resolution and have up to four times as many.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        convs = [nn.Conv2d(*sizes, 3, stride=1 + (i > 0), padding=1) for i, sizes in enumerate(pairwise(widths))]
        self.layers = nn.Sequential(*(nn.Sequential(conv, nn.LeakyReLU(SLOPE)) for conv in convs))
        self.last = nn.Linear(widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.layers(images).mean(dim=(2, 3))).squeeze(1)
