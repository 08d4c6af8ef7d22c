"""What a caller in Python passes as images and labels, as an :class:`ImageSet`."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from purifiers.data.datasets import DATASETS
from purifiers.data.images import ImageSet, check_images, to_uint8
from purifiers.errors import DataError, InputError
from purifiers.weights import MEMORY


def as_image_set(
    images: ImageSet | Tensor | Iterable[Any], labels: Tensor | None = None, *, classes: int | None = None
) -> ImageSet:
    """Images and labels as an :class:`ImageSet`; float images are rounded to the 8 bits that image files have.

    Args:
        images: an ImageSet; (N, 3, H, W), uint8 or float32 in [0,1]; or batches of ``(images, labels)``, as of a DataLoader.
        labels: int64 (N,), the true classes; beside a tensor of images, and only there.
        classes: the number of classes, where the ImageSet does not name them; None where it is not known.

    Raises:
        InputError: says which of type, shape, dtype or values is wrong, and how to mend it.
    """
    if isinstance(images, Tensor):
        data = _from_tensors(images, labels)
    elif labels is not None:
        raise InputError(f"labels go with a tensor of images; got a {type(images).__name__}: leave out labels, or convert it")
    elif isinstance(images, ImageSet):
        data = images
    elif isinstance(images, Iterable):
        batches = [_from_tensors(*_pair(batch)) for batch in images]
        if not batches:
            raise InputError("there are no images: the DataLoader yields nothing")
        if len({batch.images.shape[2:] for batch in batches}) > 1:
            raise InputError("the batches have images of several sizes; resize them to one")
        data = ImageSet(MEMORY, torch.cat([one.images for one in batches]), torch.cat([one.labels for one in batches]), ())
    else:
        raise InputError(f"images must be a tensor, a DataLoader or an ImageSet; got {type(images).__name__}")
    count = len(data.classes) or classes
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or (count and high >= count):
        expected = f"from 0 to {count - 1}, as there are {count} classes" if count else "0 or more"
        raise InputError(f"labels must be {expected}; got {low} to {high}")
    return replace(data, classes=tuple(map(str, range(classes)))) if classes and not data.classes else data


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError(f"a DataLoader must yield pairs (images, labels); got a {type(batch).__name__}: are labels missing?")
    return batch[0], batch[1]


def _from_tensors(images: Tensor, labels: Tensor | None) -> ImageSet:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        check_images(images)
        images = to_uint8(images)
    if images.ndim != 4 or images.shape[1] != 3:
        hint = "; repeat grey images with .expand(-1, 3, -1, -1)" if images.ndim == 4 and images.shape[1] == 1 else ""
        raise InputError(f"images must have shape (N, 3, H, W); got {tuple(images.shape)}{hint}")
    if labels is None:
        raise InputError("labels are missing: pass the true classes, int64 (N,), beside the images")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"labels must be an int64 tensor; got {got}: convert with .long() or torch.tensor(labels)")
    if labels.shape != images.shape[:1]:
        raise InputError(f"labels must have shape ({len(images)},), one for each image; got {tuple(labels.shape)}")
    if not len(images):
        raise InputError("there are no images")
    return ImageSet(MEMORY, images, labels.to(images.device), ())


@DATASETS.register(MEMORY)
def load_memory(split: Literal["train", "test"], size: int | None = None) -> ImageSet:
    """The images of a run that was trained from Python.

    Raises:
        DataError: always, as they are not on disk.
    """
    raise DataError(
        f"the {split} images of this run were passed from Python and are not on disk: measure it there, with "
        "purifiers.evaluate(purifier, classifier, images, labels)"
    )
