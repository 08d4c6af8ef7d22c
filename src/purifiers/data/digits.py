"""Handwritten digits that come with scikit-learn (1,797 images of 8x8 pixels; UCI, Alpaydin and Kaynak 1998)."""

from typing import Literal

import torch
import torch.nn.functional as F

from purifiers.data.datasets import DATASETS
from purifiers.data.images import ImageSet, to_uint8
from purifiers.errors import ConfigError, require

SIZES = (16, 32)
CLASSES = tuple(map(str, range(10)))


@DATASETS.register("digits", classes=CLASSES, size=SIZES[0])
def load_digits(split: Literal["train", "test"], size: int = SIZES[0]) -> ImageSet:
    """The digits, enlarged to 3 x ``size`` x ``size``, 16 or 32; a fixed stratified split into 1,437 and 360 images."""
    # Imported here: scikit-learn takes a second to load, and only this data set needs it.
    sklearn_digits = require("sklearn.datasets").load_digits
    train_test_split = require("sklearn.model_selection").train_test_split
    if size not in SIZES:
        raise ConfigError(f"the digits come in sizes {' and '.join(map(str, SIZES))}; got data.size={size}")
    pixels, labels = sklearn_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=360, stratify=labels, random_state=0)
    chosen_pixels, chosen_labels = parts[split == "test" :: 2]
    grey = torch.tensor(chosen_pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    large = F.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    images = to_uint8(large).expand(-1, 3, -1, -1).contiguous()
    return ImageSet("digits", images, torch.tensor(chosen_labels, dtype=torch.int64), CLASSES)
