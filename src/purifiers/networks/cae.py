"""The purifier's convolutional autoencoder (Koo et al. 2023, section 3.1 and figure 1)."""

from collections.abc import Container, Mapping, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purifiers.errors import InputError
from purifiers.networks.network import Network
from purifiers.registry import NETWORKS

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "softplus": nn.Softplus}
LARGEST_STRIDE = 256
"""Of the latent. A stranger's config.json could otherwise pad a small image to one that fills the memory."""


@NETWORKS.register("cae")
class CAE(Network):
    """A convolutional autoencoder with symmetric skips: images in [0,1] -> images in [0,1], any height and width.

    The encoder is ``sum(blocks)`` blocks Conv-BN-ReLU, the decoder its mirror, as many blocks
    ConvTranspose-BN-ReLU; the last block ends in Tanh. Every stage after the first halves height and width in its first
    block; images are padded to a multiple of that and of ``unshuffle``, and cropped back.

    Args:
        widths: channels of each stage, outermost first.
        blocks: blocks of each stage on each side; the paper has 15 in all (it does not say how they are divided).
        skip_every: the output of every k-th encoder block is added to the decoder's at the same depth; 0 for none, so
            that everything in the output has passed through the latent.
        skips_from: the first stage, counted from 0, whose outputs are added: 1 leaves out those of full resolution.
        shortcuts: on either side, the input of every k blocks that keep their shape is added to their output, as in a
            ResNet; 0 for none.
        last_block: ``tanh``: images are scaled to [-1,1] inside, and the last block is ConvTranspose (with bias) and Tanh;
            ``relu_tanh``: they stay in [0,1], and it is ConvTranspose-BN-ReLU-Tanh, as the paper draws it.
        residual: the output is ``clamp(x + tanh(...))`` instead of ``tanh(...)``; starts as the identity.
        channels: image channels.
        activation: after every block but the last; smooth ones help against attackers who differentiate (Xie et al. 2020).
        classes: the decoder is conditioned on the class of the whole image: a linear layer on the mean of the latent predicts
            the probabilities of so many classes, and another adds them to the latent. 0: it is not.
        unshuffle: before the first block every ``unshuffle`` x ``unshuffle`` pixels become the channels of one, and after the
            last block they come apart again. Large images cost less so: 4 divides the number of positions by 16.

    Raises:
        InputError: the arguments do not describe a network.
    """

    trainable = True

    def __init__(
        self,
        widths: Sequence[int] = (24, 48, 96),
        blocks: Sequence[int] = (3, 5, 7),
        skip_every: int = 2,
        skips_from: int = 0,
        shortcuts: int = 0,
        last_block: Literal["tanh", "relu_tanh"] = "tanh",
        residual: bool = False,
        channels: int = 3,
        unshuffle: int = 1,
        activation: Literal["relu", "silu", "gelu", "softplus"] = "relu",
        classes: int = 0,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths or min(*widths, *blocks, channels, unshuffle) < 1:
            got = f"got widths={list(widths)}, blocks={list(blocks)}, channels={channels}, unshuffle={unshuffle}"
            raise InputError(f"a CAE needs as many widths as blocks, channels and unshuffle, all at least 1; {got}")
        if min(skip_every, skips_from, shortcuts, classes) < 0:
            got = f"got {skip_every}, {skips_from}, {shortcuts} and {classes}"
            raise InputError(f"a CAE needs skip_every, skips_from, shortcuts and classes of at least 0; {got}")
        if last_block not in ("tanh", "relu_tanh") or (residual and last_block != "tanh"):
            got = f"got {last_block}, residual={residual}"
            raise InputError(f"a CAE needs last_block tanh or, without residual, relu_tanh; {got}")
        if activation not in ACTIVATIONS:
            raise InputError(f"a CAE needs an activation of {', '.join(ACTIVATIONS)}; got {activation}")
        self.residual = residual
        # Inside, images are in [low, 1].
        self.low = -1 if last_block == "tanh" else 0
        self.channels = channels
        self.unshuffle = unshuffle
        self.stride = unshuffle * 2 ** (len(widths) - 1)
        if self.stride > LARGEST_STRIDE:  # images are padded to its multiples
            raise InputError(f"a CAE's latent may have 1/{LARGEST_STRIDE} of the image's side at least; got 1/{self.stride}")
        # Every block reaches one step of the finer of its two resolutions, on either side of the latent.
        steps_down = (2 ** (stage - 1) + (count - 1) * 2**stage for stage, count in enumerate(blocks) if stage)
        self.reach = None if classes else unshuffle * 2 * (blocks[0] + sum(steps_down)) + unshuffle - 1
        # Channels between blocks, and the blocks that halve the resolution; the decoder walks both lists backwards.
        flow = [channels * unshuffle**2] + [width for width, count in zip(widths, blocks, strict=True) for _ in range(count)]
        halving = {sum(blocks[:stage]) for stage in range(1, len(blocks))}
        steps = [(fan_in, fan_out, 2 if i in halving else 1) for i, (fan_in, fan_out) in enumerate(pairwise(flow))]
        same = [fan_in == fan_out and stride == 1 for fan_in, fan_out, stride in steps]
        self.encoder = nn.ModuleList(_encoder_block(*step, ACTIVATIONS[activation]) for step in steps)
        # Made in the order in which they run, which decides the random weights of a seed.
        self.decoder = nn.ModuleList(
            _decoder_block(
                fan_out, fan_in, stride, ACTIVATIONS[activation if i else "relu"], bare=i == 0 and last_block == "tanh"
            )
            for i, (fan_in, fan_out, stride) in reversed(list(enumerate(steps)))
        )
        self.verdict = Verdict(widths[-1], classes) if classes else None
        self.shortcuts = _shortcuts(same, shortcuts), _shortcuts(same[::-1], shortcuts)
        # Number of encoder blocks passed -> that output is kept for the decoder. The latent itself needs no skip.
        first = sum(blocks[:skips_from])
        skips = range(skip_every, len(steps), skip_every) if skip_every else ()
        self.skips = frozenset(passed for passed in skips if passed > first)
        self.redraws = not residual and not self.skips
        if residual:
            for parameter in self.decoder[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Purify ``images`` (N, channels, H, W), float, in [0,1]; same shape, dtype and range."""
        height, width = images.shape[-2:]
        padded = self._padded(images)
        latent, kept = _through(self.encoder, self.shortcuts[0], self._unshuffled(padded), {}, self.skips)
        latent = latent if self.verdict is None else self.verdict(latent)
        skips = {len(self.decoder) - passed: features for passed, features in kept.items()}
        output = _through(self.decoder, self.shortcuts[1], latent, skips, ())[0]
        output = torch.tanh(output if self.unshuffle == 1 else F.pixel_shuffle(output, self.unshuffle))
        if self.residual:
            output = (padded + output).clamp(-1, 1)
        # In the default layout, as a classifier may want to flatten it with view(). Always a copy: a data-dependent branch
        # would fix the input size on export.
        return ((output - self.low) / (1 - self.low))[..., :height, :width].clone(memory_format=torch.contiguous_format)

    def latent(self, images: Tensor) -> Tensor:
        """The encoder's output for ``images``, (N, widths[-1], H / stride, W / stride), H and W padded to multiples of the
        stride."""
        return _through(self.encoder, self.shortcuts[0], self._unshuffled(self._padded(images)), {}, ())[0]

    def _unshuffled(self, images: Tensor) -> Tensor:
        return images if self.unshuffle == 1 else F.pixel_unshuffle(images, self.unshuffle)

    def _padded(self, images: Tensor) -> Tensor:
        # Written so that a tracer of sizes sees that the padded ones are multiples of the stride.
        down, right = ((size + self.stride - 1) // self.stride * self.stride - size for size in images.shape[-2:])
        return F.pad(images * (1 - self.low) + self.low, (0, right, 0, down), mode="replicate")


class Verdict(nn.Module):
    """Adds to a latent, (N, width, H, W), a vector for the class that it shows: the mean of one for each of ``classes``,
    weighed by their probabilities, which a linear layer gives of the latent's mean."""

    SHARPNESS = 3.0
    """Of the probabilities: what the logits are multiplied with. An adversarially trained classifier is never sure of a class,
    and the decoder is to draw one."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)
        self.vectors = nn.Linear(classes, width, bias=False)
        nn.init.normal_(self.vectors.weight)  # as large as features after normalisation

    def forward(self, latent: Tensor) -> Tensor:
        """A tensor of the same shape."""
        return latent + self.vectors((self.SHARPNESS * self.logits(latent)).softmax(1))[:, :, None, None]

    def logits(self, latent: Tensor) -> Tensor:
        """Of the classes, (N, classes)."""
        return cast(Tensor, self.head(latent.mean((2, 3))))


def _shortcuts(same: Sequence[bool], every: int) -> dict[int, int]:
    """Around every ``every`` blocks in a row that keep the shape: the number of the last one -> that of the one before them."""
    ends: dict[int, int] = {}
    count = 0
    for done, keeps_shape in enumerate(same, start=1):
        count = count + 1 if keeps_shape else 0
        if every and count == every:
            ends[done] = done - every
            count = 0
    return ends


def _through(
    blocks: nn.ModuleList, shortcuts: Mapping[int, int], features: Tensor, skips: Mapping[int, Tensor], keep: Container[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """``features`` after all blocks, and those to ``keep``; they and the ``skips`` to add go by the number of blocks done."""
    starts, kept = dict.fromkeys(shortcuts.values(), features), {}
    for done, block in enumerate(blocks, start=1):
        features = block(features)
        if done in shortcuts:
            features = features + starts[shortcuts[done]]
        if done in skips:
            features = features + skips[done]
        if done in starts:
            starts[done] = features
        if done in keep:
            kept[done] = features
    return features, kept


def _encoder_block(fan_in: int, fan_out: int, stride: int, activation: type[nn.Module]) -> nn.Module:
    down = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(down, nn.BatchNorm2d(fan_out), activation())


def _decoder_block(fan_in: int, fan_out: int, stride: int, activation: type[nn.Module], bare: bool) -> nn.Module:
    up = nn.ConvTranspose2d(fan_in, fan_out, 3, stride=stride, padding=1, output_padding=stride - 1, bias=bare)
    return up if bare else nn.Sequential(up, nn.BatchNorm2d(fan_out), activation())
