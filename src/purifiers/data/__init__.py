"""Where images come from. Every data set gives an :class:`ImageSet`."""

from purifiers.data.datasets import DATASETS, DataSet, load_images, placeholder
from purifiers.data.images import ImageSet, augmented, check_images, shuffled_batches, slices, to_float, to_uint8
from purifiers.data.memory import as_image_set

__all__ = [
    "DATASETS",
    "DataSet",
    "ImageSet",
    "as_image_set",
    "augmented",
    "check_images",
    "load_images",
    "placeholder",
    "shuffled_batches",
    "slices",
    "to_float",
    "to_uint8",
]
