"""A purifier for batches of other libraries: Ray Data, Spark, Hugging Face datasets."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from purifiers.bulk.pieces import as_png, png_texts, purify_pictures, refuse_other_channels, saved_with
from purifiers.data.files import MAX_PIXELS, Picture, decoded, read_image
from purifiers.device import find_device
from purifiers.errors import DataError, InputError
from purifiers.purifier import Purifier

THREADS = 4  # that decode and encode a batch


class PurifyBatch:
    """Purify the images in one column of a batch, with Ray Data, Hugging Face datasets or Spark:

    - ``rows.map_batches(PurifyBatch, fn_constructor_args=("cifar10",), batch_size=256, concurrency=2)``
    - ``dataset.map(PurifyBatch("cifar10"), batched=True)``
    - ``pandas_udf(purified, "binary")``, where ``purified(images: pd.Series) -> pd.Series`` returns
      ``pd.Series(PurifyBatch("cifar10")(images.to_numpy()))``; Spark's ``predict_batch_udf`` returns no binary columns

    An image is encoded, as bytes or in a mapping as ``bytes``; or PIL's; or uint8 (H, W, 3). It comes back in the same form,
    encoded ones as PNG. Sizes may be mixed. The object can be pickled; a purifier by name is loaded where it is used.

    Args:
        purifier: a Purifier, or the name or folder of one, as ``Purifier.from_pretrained`` takes it.
        column: of the images.
        device: see :func:`purifiers.device.find_device`.
        max_pixels: of an image; larger ones are refused before they are decoded.
    """

    def __init__(
        self, purifier: Purifier | str, column: str = "image", device: str = "auto", max_pixels: int = MAX_PIXELS
    ) -> None:
        self.purifier, self.column, self.device, self.max_pixels = purifier, column, device, max_pixels

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_loaded"}

    @cached_property
    def _loaded(self) -> Purifier:
        purifier = Purifier.from_pretrained(self.purifier) if isinstance(self.purifier, str) else self.purifier
        refuse_other_channels(purifier)
        return purifier.to(find_device(self.device))

    def __call__(self, batch: Any) -> Any:
        """A mapping from columns to sequences, with purified images; or, of a sequence of images alone, an array of them.

        Raises:
            InputError: there is no such column, or an image is in no form as above.
            DataError: an image cannot be decoded.
        """
        if not isinstance(batch, Mapping):
            return self({self.column: batch})[self.column]
        if self.column not in batch:
            raise InputError(f"the batch has no column '{self.column}'; it has {', '.join(batch)}")
        images = batch[self.column]
        results: Any = self.results(images)
        if failed := next((one for one in results if isinstance(one, Exception)), None):
            raise failed
        if isinstance(images, np.ndarray):
            # A dtype of bytes, "S100", would cut off a PNG that is longer than each image that came.
            column = np.empty_like(images, None if images.dtype == np.uint8 else object)
            column[:] = results
            results = column
        return {**batch, self.column: results}

    def results(self, images: Sequence[Any]) -> list[Any]:
        """The purified images, with an exception in place of each that failed or was one."""
        with ThreadPoolExecutor(THREADS) as pool:
            pictures = list(pool.map(self._picture, images))
            return list(pool.map(_as_it_came, images, pictures, purify_pictures(self._loaded, pictures)))

    def _picture(self, image: Any) -> Picture | Exception:
        content = image.get("bytes") if isinstance(image, Mapping) else image
        try:
            if isinstance(content, bytes):
                return read_image(content, max_pixels=self.max_pixels)
            if isinstance(content, Image.Image):
                return decoded(content)
            if isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.shape[2:] == (3,):
                return Picture(Image.fromarray(content))
        except (DataError, OSError, MemoryError) as error:
            return error
        form = f"an image is encoded bytes, PIL's, or uint8 (H, W, 3); got {type(content).__name__}"
        return content if isinstance(content, Exception) else InputError(form)


def _as_it_came(image: Any, picture: Any, pixels: Any) -> Any:
    if isinstance(pixels, Exception) or isinstance(image, np.ndarray):
        return pixels
    purified = Image.fromarray(pixels)
    if picture.alpha is not None:
        purified.putalpha(picture.alpha)
    if isinstance(image, Image.Image):
        return purified
    png = as_png(purified, pnginfo=png_texts(picture.text), **saved_with(picture))
    return {**image, "bytes": png} if isinstance(image, Mapping) else png
