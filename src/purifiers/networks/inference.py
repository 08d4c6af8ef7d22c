"""Networks for inference: the same function, in less time."""

import copy
import time
import warnings
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from purifiers.errors import require
from purifiers.networks.network import Network, channels_of
from purifiers.registry import NETWORKS, place

TOLERANCE = 1e-4
"""How far an output may be from the original's, in [0,1] units."""
PIECE = 2**14
"""Pixels that are processed at once on a CPU, 16 images of 32 x 32: features of more do not fit into its caches."""
TURNS = 3


class Optimised(Network):
    """A network for inference: (N, C, H, W), float, in [0,1] -> the same, as of the network that it was made from.

    Batch normalisations are part of the convolutions before them, and transposed convolutions of stride 1 are convolutions.
    On a CPU OpenVINO computes what is float32 and needs no gradient, if it is installed and can run the network.
    All this is of registered networks; any other is run as it is, as code that is traced or copied may do something else.

    Args:
        network: its copy is made, if it is registered.
        images: a typical batch, (N, C, H, W): the fastest way on it is taken. None: OpenVINO where it can be used.
    """

    def __init__(self, network: nn.Module, images: Tensor | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "config", None)  # weights are saved as they were trained
        weight = next(network.parameters(), torch.empty(0))
        batch = example(channels_of(network) or 3) if images is None else images
        known = type(network) in NETWORKS.values()
        self.network = place(fused(network, batch.to(weight)), weight.device) if known else network
        self.channels, self.stride = channels_of(network), getattr(network, "stride", 1)
        self.reach, self.redraws = getattr(network, "reach", None), getattr(network, "redraws", False)
        self.runtime: Any = None
        if known and weight.is_cpu and weight.dtype == torch.float32 and find_spec("openvino"):
            self.runtime = _openvino(self.network, batch)
        if self.runtime and images is not None and self._seconds(batch) > self._seconds(batch, own=True):
            self.runtime = None

    def forward(self, images: Tensor) -> Tensor:
        if not images.is_cpu or (images.requires_grad and torch.is_grad_enabled()):
            return self.network(images)
        if self.runtime and images.dtype == torch.float32:
            return torch.from_numpy(self.runtime(images.detach().numpy())[0])
        pieces = images.split(max(1, PIECE // (images.shape[2] * images.shape[3])))
        return self.network(images) if len(pieces) == 1 else torch.cat([self.network(piece) for piece in pieces])

    @torch.no_grad()
    def _seconds(self, images: Tensor, own: bool = False) -> float:
        """The least seconds of a few passes, of PyTorch's if ``own``."""
        runtime, self.runtime = self.runtime, None if own else self.runtime
        spent = []
        for _ in range(TURNS):
            begun = time.perf_counter()
            self(images)
            spent.append(time.perf_counter() - begun)
        self.runtime = runtime
        return min(spent)


def fused(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy in evaluation mode, its parameters without gradients, in which each normalisation in a ``Sequential`` is part of
    the convolution before it, and each transposed convolution of stride 1 is a convolution.

    A plain copy where that changes the output for ``images``, (N, C, H, W), in [0,1].
    """
    plain = copy.deepcopy(network).eval().requires_grad_(False)
    changed = copy.deepcopy(plain)
    for part in [*changed.modules()]:
        for name, layer in list(part.named_children()):
            part.register_module(name, _convolution(layer))
        layers = [*part._modules.items()] if isinstance(part, nn.Sequential) else []
        for (name, first), (after, second) in pairwise(layers):
            if type(first) in (nn.Conv2d, nn.ConvTranspose2d) and type(second) is nn.BatchNorm2d and second.track_running_stats:
                transposed = type(first) is nn.ConvTranspose2d
                part.register_module(name, fuse_conv_bn_eval(cast(nn.Conv2d, first), second, transpose=transposed))
                part.register_module(after, nn.Identity())  # whoever takes layers by their number finds them
    return changed.requires_grad_(False) if _same(plain, changed, images) else plain


def _convolution(layer: nn.Module) -> nn.Module:
    """A transposed convolution of stride 1 as a convolution, which more programs compute fast; any other layer as it is."""
    if type(layer) is not nn.ConvTranspose2d or (layer.stride, layer.dilation, layer.groups) != ((1, 1), (1, 1), 1):
        return layer
    fan_in, fan_out, size = layer.in_channels, layer.out_channels, layer.kernel_size
    padding = [one - 1 - edge for one, edge in zip(size, cast(tuple[int, ...], layer.padding), strict=True)]
    if min(padding) < 0 or any(layer.output_padding):
        return layer
    pair = cast(tuple[int, int], size), cast(tuple[int, int], tuple(padding))
    made = nn.utils.skip_init(nn.Conv2d, fan_in, fan_out, pair[0], padding=pair[1], bias=layer.bias is not None)
    made = made.to(layer.weight).eval()
    made.weight.data = layer.weight.data.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    made.bias = layer.bias
    return made


def example(channels: int, height: int = 32, width: int = 32) -> Tensor:
    """Two images of noise, float32 in [0,1]: always the same, and nobody else's random numbers change."""
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def _openvino(network: nn.Module, images: Tensor) -> Any:
    """``network`` compiled by OpenVINO for any batch, height and width; None if it cannot be, or computes something else."""
    if any(getattr(part, "not_exportable", None) for part in network.modules()):
        return None
    openvino = require("openvino")
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    free = openvino.PartialShape([-1, images.shape[1], -1, -1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that are traced as constants: the results are compared
            model = openvino.convert_model(network, example_input=images[:2], input=[free])
        compiled = openvino.compile_model(model, "CPU", settings)
    except Exception:  # of any type: the network may be the user's code
        return None
    return compiled if _same(network, lambda batch: torch.from_numpy(compiled(batch.numpy())[0]), images) else None


@torch.no_grad()
def _same(network: nn.Module, other: Any, images: Tensor) -> bool:
    """Whether both have the same output, for ``images`` and for one of another size, as far as ``network`` takes them."""
    compared = []
    for batch in (images[:2], nn.functional.pad(images[:1], (0, 6, 0, 13), mode="replicate")):
        with suppress(Exception):  # of any type: the network may be the user's code, and of one size only
            expected = network(batch.clone())
            compared.append(False)
            found = other(batch.clone())
            compared[-1] = found.shape == expected.shape and bool((found - expected).abs().max() <= TOLERANCE)
    return bool(compared) and all(compared)
