"""The base class of every network that is built, saved and loaded by name."""

import inspect
from typing import Any, ClassVar, Literal, Self

from torch import nn


class Network(nn.Module):
    """A network that can be built again from its constructor's arguments, which it keeps in ``config``.

    A purifier's network maps images (N, C, H, W), float, in [0,1], to the same; a classifier's maps them to logits (N,
    classes). Arguments must be JSON-able, or networks themselves. Register it to give it a short name
    (``@purifiers.registry.NETWORKS.register("mine")``); without one it is saved as ``module:Name``, and its module must be
    importable where it is loaded.

    Attributes:
        output: of a purifier ``images``, of a classifier ``logits``.
        config: the constructor's arguments, with defaults.
        channels: of the images; None for any.
        stride: shifting the input by so many pixels shifts the output by as many.
        reach: how far a pixel of the input changes the output, in pixels; None where that is the whole image or not known.
            Large images are purified in windows that overlap by this much.
        redraws: the output is made of a latent alone, so details are lost.
        trainable: ``purifiers train`` can train it as a purifier.
        not_exportable: why it cannot be exported as a graph of tensors; None where it can.
    """

    output: ClassVar[Literal["images", "logits"]] = "images"
    trainable: ClassVar[bool] = False
    not_exportable: ClassVar[str | None] = None
    config: dict[str, Any]
    channels: int | None = None
    stride: int = 1
    reach: int | None = None
    redraws: bool = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        network = super().__new__(cls)
        try:
            given = inspect.signature(cls.__init__).bind(network, *args, **kwargs)
        except TypeError:  # which the constructor raises in a moment; a copy is made without arguments
            return network
        given.apply_defaults()
        _, *arguments = given.arguments.items()
        object.__setattr__(network, "config", {key: list(v) if isinstance(v, tuple) else v for key, v in arguments})
        return network


def channels_of(network: nn.Module) -> int | None:
    """The number of channels that ``network`` takes; None where that is not known."""
    return network.channels if isinstance(network, Network) else None
