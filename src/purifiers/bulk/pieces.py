"""Purifying images in bounded memory: in small batches, and large images piece by piece."""

import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from purifiers.data import to_float, to_uint8
from purifiers.data.files import Picture
from purifiers.device import in_parts
from purifiers.errors import ConfigError, InputError
from purifiers.networks.network import channels_of
from purifiers.purifier import Purifier

BATCH_PIXELS = 2**18
"""Pixels of a batch: 256 images of 32 x 32. More is no faster and takes more memory."""
WINDOW = 1024
"""Images of more pixels than a square of this edge are purified in overlapping windows of about that size."""
SMALLEST_STEP = 256


def refuse_other_channels(purifier: Purifier) -> None:
    """Raise ConfigError for a purifier that does not take RGB, as which files are read."""
    channels = channels_of(purifier.network)
    if channels not in (None, 3):
        raise ConfigError(f"this purifier takes images of {channels} channels; files are read as RGB, which has 3")


def as_png(image: Image.Image, **about: Any) -> bytes:
    """An image as the content of a PNG file, with what Pillow takes ``about`` it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **about)
    return buffer.getvalue()


def saved_with(picture: Picture) -> dict[str, Any]:
    """What Pillow keeps of ``picture`` in a PNG or JPEG file: its colour profile, EXIF and resolution."""
    about = {"icc_profile": picture.icc, "exif": picture.exif, "dpi": picture.dpi}
    return {key: value for key, value in about.items() if value is not None}


def png_texts(texts: Mapping[str, str]) -> PngInfo:
    """The texts of a PNG file."""
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    return info


def results_of(function: Callable[[Tensor], Any], images: dict[int, np.ndarray]) -> dict[int, Any]:
    """What ``function`` returns for images, those of one size together; where it fails on one alone, the exception."""
    sizes: dict[tuple[int, ...], dict[int, np.ndarray]] = defaultdict(dict)
    for number, image in images.items():
        sizes[image.shape][number] = image
    results: dict[int, Any] = {}
    for group in sizes.values():
        results |= zip(group, _together(function, list(group.values())), strict=True)
    return results


def _together(function: Callable[[Tensor], Any], images: list[np.ndarray]) -> list[Any]:
    try:
        return list(function(torch.from_numpy(np.stack(images))))
    except Exception as error:  # of any type: networks may be the user's code
        return [error] if len(images) == 1 else [result for one in images for result in _together(function, [one])]


def purify_pixels(purifier: Purifier, images: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Purify any number of images of one size, of any size, in bounded memory.

    An image that is too large for one pass is cut into windows that overlap by the network's ``reach``, so that the result
    is that of the whole image except for the rounding of float32.

    Args:
        images: uint8 (N, 3, H, W), on the CPU.
        dtype: of the result, of the same shape on the CPU: uint8 0..255, or float32 [0,1].

    Raises:
        InputError: the images are too large for one pass, and the network's reach is not known.
    """
    height, width = images.shape[-2:]
    device = next(purifier.parameters(), images).device

    def purified(part: Tensor) -> Tensor:
        output = in_parts(purifier, to_float(part.to(device)))
        return (to_uint8(output) if dtype == torch.uint8 else output).cpu()

    with torch.no_grad():
        if height * width <= WINDOW**2:
            return torch.cat([purified(part) for part in images.split(max(1, BATCH_PIXELS // (height * width)))])
        reach, stride = getattr(purifier.network, "reach", None), getattr(purifier.network, "stride", 1)
        if reach is None:
            most = f"more than {WINDOW**2:,} pixels would take too much memory; scale it down"
            raise InputError(f"{width} x {height} is too large: this purifier needs the whole image at once, and {most}")
        result = torch.empty(images.shape, dtype=dtype)
        for rows, kept_rows, inner_rows in _windows(height, reach, stride):
            for columns, kept_columns, inner_columns in _windows(width, reach, stride):
                for image, into in zip(images.split(1), result.split(1), strict=True):
                    window = purified(image[..., rows, columns])
                    into[..., kept_rows, kept_columns] = window[..., inner_rows, inner_columns]
    return result


def purify_pictures(purifier: Purifier, pictures: Sequence[Picture | Exception]) -> list[Any]:
    """The purified pixels of each picture, uint8 (H, W, 3), or the exception that it is or that the purifier raised."""
    images = {place: np.asarray(one.colours) for place, one in enumerate(pictures) if isinstance(one, Picture)}
    purified = results_of(lambda part: purify_pixels(purifier, part.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy(), images)
    return [purified.get(place, one) for place, one in enumerate(pictures)]


def _windows(length: int, reach: int, stride: int) -> Iterator[tuple[slice, slice, slice]]:
    """Along one side: the window, the part of the image that is kept of it, and that part within the window. Windows start
    at multiples of ``stride``, as the whole does."""
    margin = -(-reach // stride) * stride
    step = max(WINDOW - 2 * margin, SMALLEST_STEP) // stride * stride
    for start in range(0, length, step):
        end, first = min(start + step, length), max(0, start - margin)
        yield slice(first, min(length, end + margin)), slice(start, end), slice(start - first, end - first)
