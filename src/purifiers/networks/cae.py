"""The purifier's convolutional autoencoder (Koo et al. 2023, section 3.1 and figure 1)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purifiers.errors import InputError
from purifiers.networks.network import Network
from purifiers.registry import NETWORKS


@NETWORKS.register("cae")
class CAE(Network):
    """A convolutional autoencoder with symmetric skips: images in [0,1] -> images in [0,1], any height and width.

    The encoder is ``sum(blocks)`` blocks Conv-BN-ReLU, the decoder its mirror, as many blocks
    ConvTranspose-BN-ReLU; the last block ends in Tanh. Inside, images are scaled to [-1,1]. Every stage after the
    first halves height and width in its first block; images are padded to a multiple of that and cropped back.

    The paper draws BN and ReLU in the last block too. Tanh after ReLU could not give a pixel darker than mid-grey, so
    here the last block is ConvTranspose (with bias) and Tanh alone.

    Args:
        widths: channels of each stage, outermost first.
        blocks: blocks of each stage on each side; the paper has 15 in all (it does not say how they are divided).
        skip_every: the output of every k-th encoder block is added to the decoder's at the same depth; 0 for none, so
            that everything in the output has passed through the latent.
        residual: the output is ``clamp(x + tanh(...))`` instead of ``tanh(...)``; starts as the identity.
        channels: image channels.

    Raises:
        InputError: the arguments do not describe a network.
    """

    trainable = True

    def __init__(
        self,
        widths: Sequence[int] = (24, 48, 96),
        blocks: Sequence[int] = (3, 5, 7),
        skip_every: int = 2,
        residual: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths or min(*widths, *blocks, channels) < 1 or skip_every < 0:
            raise InputError(
                "a CAE needs as many widths as blocks, all at least 1, and skip_every of at least 0; "
                f"got widths={list(widths)}, blocks={list(blocks)}, channels={channels}, skip_every={skip_every}"
            )
        self.residual = residual
        self.channels = channels
        self.stride = 2 ** (len(widths) - 1)
        # Every block reaches one step of the finer of its two resolutions, on either side of the latent.
        steps_down = (2 ** (stage - 1) + (count - 1) * 2**stage for stage, count in enumerate(blocks) if stage)
        self.reach = 2 * (blocks[0] + sum(steps_down))
        # Channels between blocks, and the blocks that halve the resolution; the decoder walks both lists backwards.
        flow = [channels] + [width for width, count in zip(widths, blocks, strict=True) for _ in range(count)]
        halving = {sum(blocks[:stage]) for stage in range(1, len(blocks))}
        steps = [(fan_in, fan_out, 2 if i in halving else 1) for i, (fan_in, fan_out) in enumerate(pairwise(flow))]
        self.encoder = nn.ModuleList(_encoder_block(*step) for step in steps)
        self.decoder = nn.ModuleList(
            _decoder_block(fan_out, fan_in, stride, last=i == 0)
            for i, (fan_in, fan_out, stride) in reversed(list(enumerate(steps)))
        )
        # Number of encoder blocks passed -> that output is kept for the decoder. The latent itself needs no skip.
        depth = len(steps)
        self.skips = frozenset(range(skip_every, depth, skip_every)) if skip_every else frozenset()
        self.redraws = not residual and not self.skips
        if residual:
            for parameter in self.decoder[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Purify ``images`` (N, channels, H, W), float, in [0,1]; same shape, dtype and range."""
        height, width = images.shape[-2:]
        padded = self._padded(images)
        features, kept = self._encode(padded)
        for passed, block in zip(range(len(self.decoder) - 1, -1, -1), self.decoder, strict=True):
            features = block(features)
            if passed in self.skips:
                features = features + kept[passed]
        output = torch.tanh(features)
        if self.residual:
            output = (padded + output).clamp(-1, 1)
        # In the default layout, as a classifier may want to flatten it with view(). Always a copy: a data-dependent branch
        # would fix the input size on export.
        return ((output + 1) / 2)[..., :height, :width].clone(memory_format=torch.contiguous_format)

    def latent(self, images: Tensor) -> Tensor:
        """The latent of ``images``, (N, widths[-1], H / stride, W / stride), H and W padded to multiples of the stride."""
        return self._encode(self._padded(images))[0]

    def _padded(self, images: Tensor) -> Tensor:
        # Written so that a tracer of sizes sees that the padded ones are multiples of the stride.
        down, right = ((size + self.stride - 1) // self.stride * self.stride - size for size in images.shape[-2:])
        return F.pad(images * 2 - 1, (0, right, 0, down), mode="replicate")

    def _encode(self, features: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The latent, and the outputs that are added in the decoder, by the number of encoder blocks passed."""
        kept: dict[int, Tensor] = {}
        for passed, block in enumerate(self.encoder, start=1):
            features = block(features)
            if passed in self.skips:
                kept[passed] = features
        return features, kept


def _encoder_block(fan_in: int, fan_out: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()
    )


def _decoder_block(fan_in: int, fan_out: int, stride: int, last: bool) -> nn.Module:
    up = nn.ConvTranspose2d(fan_in, fan_out, 3, stride=stride, padding=1, output_padding=stride - 1, bias=last)
    return up if last else nn.Sequential(up, nn.BatchNorm2d(fan_out), nn.ReLU())
