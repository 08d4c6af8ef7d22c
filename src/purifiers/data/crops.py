"""Random crops of images, to train on."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from purifiers.data.images import ImageSet, to_float, to_uint8
from purifiers.data.labels import UNKNOWN
from purifiers.data.large import empty


def random_crops(data: ImageSet, *, size: int, count: int, smallest: float, seed: int, folder: Path | None = None) -> ImageSet:
    """``count`` random squares of each image, next to each other, scaled to ``size`` pixels: the side is between the share
    ``smallest`` of the shorter side and all of it. Many of them lie in a file in ``folder``.

    Labels are the image's; where the classifier predicts them, unknown, as its prediction for a crop may be another.
    """
    generator = torch.Generator().manual_seed(seed)
    *_, height, width = data.images.shape
    shorter, total = min(height, width), len(data) * count
    sides, *places = torch.rand(3, total, generator=generator).double().tolist()
    crops = empty((total, 3, size, size), torch.uint8, folder, device=data.images.device)
    for i, (share, *place) in enumerate(zip(sides, *places, strict=True)):
        side = max(1, round(shorter * (smallest + (1 - smallest) * share)))
        top, left = (int(where * (length - side + 1)) for where, length in zip(place, (height, width), strict=True))
        square = to_float(data.images[i // count, None, :, top : top + side, left : left + side])
        crops[i] = to_uint8(F.interpolate(square, (size, size), mode="bicubic", antialias=True))[0]
    labels = data.labels.repeat_interleave(count)
    return replace(data, images=crops, labels=torch.full_like(labels, UNKNOWN) if data.labels_predicted else labels)
