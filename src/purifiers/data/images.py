"""The one in-memory form of every data set: uint8 images and labels, resident on the model's device."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purifiers.data.labels import UNKNOWN
from purifiers.errors import InputError
from purifiers.storage import digest
from purifiers.weights import MEMORY

TOLERANCE = 1e-4
"""How far rounding may take a pixel out of [0,1]."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of images, and so of a purifier's weights


def check_images(images: Tensor, *, values: bool = True) -> None:
    """Refuse, with InputError, a tensor that is not a batch of images: float32 (or half), (N, C, H, W), in [0,1]. ``values``:
    check these too (range, NaN, infinity), which waits for the device."""
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a torch.Tensor; got {type(images).__name__}")
    if images.ndim != 4:
        hint = "; add the batch dimension with images.unsqueeze(0)" if images.ndim == 3 else ""
        raise InputError(f"images must have shape (N, C, H, W); got {tuple(images.shape)}{hint}")
    if 0 in images.shape[1:]:
        raise InputError(f"images must have a pixel at least; got shape {tuple(images.shape)}")
    if images.layout is not torch.strided:
        raise InputError(f"images must be a dense tensor; got {images.layout}; convert with .to_dense()")
    if images.dtype not in DTYPES:
        hint = "; divide by 255" if images.dtype == torch.uint8 else "; convert with .float()"
        raise InputError(f"images must be float32 in [0,1]; got {images.dtype}{hint}")
    if values and images.is_meta:
        raise InputError("images are on the device meta, which holds no values")
    if values and images.numel():
        low, high = torch.stack(torch.aminmax(images.detach())).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError("images contain NaN or infinite values")
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            hint = "divide by 255" if low >= 0 and high > 2 else "do not normalise: that belongs inside the classifier"
            raise InputError(f"images must be in [0,1]; got values from {low:.4g} to {high:.4g}; {hint}")


@dataclass(frozen=True)
class ImageSet:
    """A whole split of a data set; raises InputError if it is not as below, with how to mend it.

    Attributes:
        name: the data set, for results.
        images: uint8 (N, 3, H, W), RGB.
        labels: int64 (N,), in 0 .. len(classes) - 1.
        classes: the class names; none where they are not known.
        labels_predicted: the labels are the frozen classifier's own predictions, ``UNKNOWN`` until it has made them.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    labels_predicted: bool = False

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            hint = ""
            if images.ndim == 4 and images.shape[1] == 1:
                hint = "; repeat grey images with .expand(-1, 3, -1, -1)"
            elif images.ndim == 4 and images.shape[3] == 3:
                hint = "; put the channels first with .permute(0, 3, 1, 2)"
            wanted = "have shape (N, 3, H, W)" if images.dtype == torch.uint8 else "be uint8 (N, 3, H, W)"
            raise InputError(f"images must {wanted}; got {images.dtype} {tuple(images.shape)}{hint}")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise InputError(f"labels must be an int64 tensor; got {got}: convert with .long() or torch.tensor(labels)")
        if labels.shape != images.shape[:1]:
            raise InputError(f"labels must have shape ({len(images)},), one for each image; got {tuple(labels.shape)}")
        if not images.numel():
            raise InputError(f"there are no images, or none with a pixel, in the data set '{self.name}'")
        if images.is_meta or labels.is_meta:
            raise InputError("images or labels are on the device meta, which holds no values")

    def __len__(self) -> int:
        return self.images.shape[0]

    def __repr__(self) -> str:
        _, channels, height, width = self.images.shape
        classes = f"{len(self.classes)} classes" if self.classes else "classes not named"
        return f"ImageSet('{self.name}', {len(self):,} images of {channels} x {height} x {width}, {classes})"

    @property
    def unlabelled(self) -> bool:
        """Whether the labels are still to be predicted."""
        return self.labels_predicted and bool((self.labels == UNKNOWN).all())

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same data on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def limited(self, count: int | None, seed: int) -> "ImageSet":
        """A random subset of ``count`` images, drawn by ``seed``; everything if ``count`` is None or larger."""
        return self if count is None or count >= len(self) else self.subset(self.drawn(count, seed))

    def drawn(self, count: int, seed: int) -> Tensor:
        """The indices of :meth:`limited`'s images; see :func:`drawn`."""
        return drawn(len(self), count, seed).to(self.images.device)

    def subset(self, chosen: Tensor) -> "ImageSet":
        """The images at the indices ``chosen``, int64 (M,), in that order, or where it is true, bool (N,)."""
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content."""
        return digest(self.images, self.labels, self.classes)


def drawn(total: int, count: int, seed: int) -> Tensor:
    """``count`` random indices below ``total``, sorted; those of a smaller subset are among those of every larger one."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def as_image_set(
    images: ImageSet | Tensor | Iterable[Any], labels: Tensor | None = None, *, classes: int | None = None
) -> ImageSet:
    """Images and labels as an :class:`ImageSet`; float images are rounded to the 8 bits that image files have.

    Args:
        images: an ImageSet; (N, 3, H, W), uint8 or float32 in [0,1]; or batches of ``(images, labels)``, as of a DataLoader.
        labels: int64 (N,), the true classes; beside a tensor of images, and only there. Without any, ``labels_predicted``.
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
        batches = [one for batch in images for one in _from_batch(batch)]
        if not batches:
            raise InputError("there are no images: the DataLoader yields nothing")
        if len({batch.images.shape[2:] for batch in batches}) > 1:
            raise InputError("the batches have images of several sizes; resize them to one")
        data = ImageSet(MEMORY, torch.cat([one.images for one in batches]), torch.cat([one.labels for one in batches]), ())
    else:
        raise InputError(f"images must be a tensor, a DataLoader or an ImageSet; got {type(images).__name__}")
    count = len(data.classes) or classes
    low, high = int(data.labels.min()), int(data.labels.max())
    if not data.unlabelled and (low < 0 or (count and high >= count)):
        expected = f"from 0 to {count - 1}, as there are {count} classes" if count else "0 or more"
        raise InputError(f"labels must be {expected}; got {low} to {high}")
    return replace(data, classes=tuple(map(str, range(classes)))) if classes and not data.classes else data


def _from_batch(batch: Any) -> list[ImageSet]:
    """The images and labels of a batch; none if it is empty."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list, dict)) else type(batch).__name__
        raise InputError(f"a DataLoader must yield batches of images and labels, (images, labels); got a {got}")
    if isinstance(batch[0], Tensor) and batch[0].ndim == 3:
        raise InputError("these are single images: batch them, with torch.utils.data.DataLoader(data, batch_size=50)")
    return [] if isinstance(batch[0], Tensor) and not len(batch[0]) else [_from_tensors(*batch)]


def _from_tensors(images: Tensor, labels: Tensor | None) -> ImageSet:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        check_images(images)
        images = to_uint8(images)
    known = torch.full((len(images),), UNKNOWN) if labels is None else labels
    return ImageSet(MEMORY, images, known, (), labels_predicted=labels is None).to(images.device)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [0,1], in the default memory layout, which any classifier takes."""
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def to_uint8(images: Tensor) -> Tensor:
    """float [0,1] -> uint8 0..255, to the nearest value; InputError if one is NaN, which would become black, or infinite."""
    if not images.isfinite().all():
        raise InputError("pixels are NaN or infinite; if a purifier made them, its weights are damaged")
    return images.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def shuffled_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Index tensors of one epoch in random order, all of ``batch_size``: the incomplete last batch is left out, as batch
    statistics of a few images would be noise, unless it is the only one."""
    order = torch.randperm(count, generator=generator, device=generator.device)
    yield from order[: max(count - count % batch_size, min(count, batch_size))].split(batch_size)


def slices(count: int, size: int) -> list[slice]:
    """The places of ``count`` items in consecutive batches of ``size``; the last may be shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def augmented(images: Tensor, generator: torch.Generator, *, flip: bool, crop: int) -> Tensor:
    """Randomly mirror images left to right, and shift them by up to ``crop`` pixels over a black border.

    ``images``: uint8 (N, C, H, W), on the device of ``generator``; stack along the channels what moves alike (an image
    and its adversarial example). One gather on the device for the whole batch.
    """
    if not flip and not crop:
        return images
    (count, _, height, width), device = images.shape, images.device

    def draw(high: int) -> Tensor:
        return torch.randint(high, (count, 1), generator=generator, device=device)

    columns = torch.arange(width, device=device).expand(count, width)
    rows = torch.arange(height, device=device).expand(count, height)
    if flip:
        columns = torch.where(draw(2).bool(), columns.flip(1), columns)
    if crop:
        images = F.pad(images, (crop,) * 4)
        columns, rows = columns + draw(2 * crop + 1), rows + draw(2 * crop + 1)
    return _gathered(images, rows, columns)


def shifted(images: Tensor, shifts: Tensor, most: int) -> Tensor:
    """``images``, (N, C, H, W), each shifted over a black border by ``shifts``, int64 (N, 2): rows and columns, from 0 to 2 *
    ``most``, where ``most`` is no shift. Differentiable."""
    height, width = images.shape[2:]
    rows, columns = (
        torch.arange(size, device=images.device) + by for size, by in zip((height, width), shifts.split(1, 1), strict=True)
    )
    return _gathered(F.pad(images, (most,) * 4), rows, columns)


def _gathered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of each image its own ``rows``, (N, H), and ``columns``, (N, W)."""
    which = torch.arange(len(images), device=images.device)[:, None, None]
    # Indexing around the channel slice puts the channels last: (N, H, W, C).
    return images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def blurred(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """``images``, float (N, C, H, W), each with its own Gaussian blur, of the standard deviation ``sigma``, (N, 1, 1, 1), in
    pixels, cut at ``radius``; borders are repeated. Differentiable."""
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = (-0.5 * (offsets / sigma.clamp_min(0.05)).square()).softmax(-1)  # (N, 1, 1, 2 * radius + 1)
    for axis in (2, 3):
        padding = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
        size = images.shape[axis]
        padded = F.pad(images, padding, mode="replicate")
        images = torch.zeros_like(images)
        for i, weight in enumerate(kernels.split(1, dim=-1)):
            images = images + weight * padded.narrow(axis, i, size)
    return images
