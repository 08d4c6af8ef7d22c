"""Where images come from. Every data set gives an :class:`ImageSet`."""

from purifiers.data.datasets import DATASETS, DataSet, load_images, noise, placeholder
from purifiers.data.images import ImageSet, as_image_set, augmented, check_images, shuffled_batches, slices, to_float, to_uint8

__all__ = ["DATASETS", "DataSet", "ImageSet", "as_image_set", "augmented", "check_images", "load_images", "noise"]
__all__ += ["placeholder", "shuffled_batches", "slices", "to_float", "to_uint8"]
