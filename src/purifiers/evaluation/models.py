"""Checks of the models and the images that a user passes to an evaluation, an audit or a certification."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.attacks.base import frozen
from purifiers.data import ImageSet, as_image_set, to_float
from purifiers.errors import InputError, PurifiersError
from purifiers.purifier import PurifiedClassifier

LOOK = 2
"""Images that the models are tried on."""


def as_data(
    defended: PurifiedClassifier, images: ImageSet | Tensor | Iterable[Any], labels: Tensor | None, batch_size: int
) -> ImageSet:
    """The images and labels that a user passed, see :func:`purifiers.data.as_image_set`, on the models' device.

    Raises:
        InputError, DataError: images, labels or ``batch_size`` cannot be used.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1; got {batch_size}")
    device = next((parameter.device for parameter in defended.parameters()), torch.device("cpu"))
    return as_image_set(images, labels).to(device)


def check_defended(name: str, defended: PurifiedClassifier, data: ImageSet) -> int:
    """Try a purifier and its classifier on the first images; returns the number of classes.

    Raises:
        InputError: a model fails, its outputs have the wrong type or shape or are not finite, or labels are out of range.
    """
    images = to_float(data.images[:LOOK])
    with torch.no_grad(), frozen(defended):
        purified = defended.purifier(images)
        if not isinstance(purified, Tensor) or purified.shape != images.shape:
            raise InputError(f"{name} must keep the shape of images, {tuple(images.shape)}; it returns {_described(purified)}")
        if purified.dtype != images.dtype:
            raise InputError(f"{name} returns {purified.dtype} images; expected {images.dtype}: convert them with .float()")
        if not purified.isfinite().all():
            raise InputError(f"{name} returns images that are NaN or infinite for the first images")
        classes = check_logits(f"the classifier behind {name}", defended.classifier, purified).shape[1]
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= classes:
        raise InputError(f"labels go from {low} to {high}, but the classifier behind {name} has {classes} classes")
    return classes


def check_logits(name: str, model: nn.Module, images: Tensor) -> Tensor:
    """The logits (N, classes) of ``images`` (N, C, H, W).

    Raises:
        InputError: the model fails, or returns no finite logits of at least two classes.
    """
    shape = tuple(images.shape)
    try:
        logits = model(images)
    except PurifiersError:
        raise
    except Exception as error:
        other = {parameter.dtype for parameter in model.parameters()} - {images.dtype}
        hint = f"; its parameters are {other.pop()}: convert it with .float()" if other else ""
        raise InputError(f"{name} fails on images of shape {shape}: {type(error).__name__}: {error}{hint}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != shape[0] or logits.shape[1] < 2:
        raise InputError(
            f"{name} must return a tensor of logits (N, at least 2 classes); for images of shape {shape} it returns "
            f"{_described(logits)}"
        )
    if logits.dtype != torch.float32:  # in half precision gradients vanish, and attacks look weak
        raise InputError(f"{name} returns {logits.dtype} logits; attacks need float32: convert them with .float()")
    if not logits.isfinite().all():
        raise InputError(f"{name} returns logits that are NaN or infinite for images of shape {shape}")
    return logits


def _described(output: object) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
