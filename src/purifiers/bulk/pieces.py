"""Purifying pixels without ever filling the memory: batches that are small enough, and large images piece by piece."""

from collections.abc import Iterator

import torch
from torch import Tensor

from purifiers.data import to_float, to_uint8
from purifiers.errors import ConfigError, InputError
from purifiers.purifier import Purifier

BATCH_PIXELS = 2**18
"""Pixels of a batch: 256 images of 32 x 32. More is no faster and takes more memory."""
WINDOW = 1024
"""Images of more pixels than a square of this edge are purified in windows of about that size, which overlap."""
SMALLEST_STEP = 256


def refuse_other_channels(purifier: Purifier) -> None:
    """Refuse a purifier that does not take RGB, which files are read as.

    Raises:
        ConfigError: so it is.
    """
    channels = getattr(purifier.network, "config", {}).get("channels", 3)
    if channels != 3:
        raise ConfigError(f"this purifier takes images of {channels} channels; files are read as RGB, which has 3")


def purify_pixels(purifier: Purifier, images: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Purify images of one size, of any number and any size, in bounded memory.

    An image that is too large for one pass is cut into windows that overlap by as much as a pixel acts (``reach`` of the
    CAE), so that what is kept of each is what the whole image would have given, but for the rounding of float32.

    Args:
        purifier: on its device.
        images: uint8 (N, 3, H, W), on the CPU.
        dtype: of the result: uint8 0..255, or float32 [0,1].

    Returns:
        The same shape, on the CPU.

    Raises:
        InputError: images too large for one pass, and a network of which it is not known how far a pixel acts.
    """
    height, width = images.shape[-2:]
    weight = next(purifier.parameters(), None)
    device = weight.device if weight is not None else torch.device("cpu")
    result = torch.empty(images.shape, dtype=dtype)
    with torch.no_grad():
        if height * width <= WINDOW**2:
            size = max(1, BATCH_PIXELS // (height * width))
            for part, into in zip(images.split(size), result.split(size), strict=True):
                into.copy_(_purified(purifier, part.to(device), dtype))
            return result
        reach = getattr(purifier.network, "reach", None)
        if reach is None:
            raise InputError(
                f"{width} x {height} is too large: this purifier looks at an image as a whole, and more than "
                f"{WINDOW**2 / 1e6:.1f} megapixels at once would take too much memory; scale it down"
            )
        stride = getattr(purifier.network, "stride", 1)
        for rows, kept_rows in _windows(height, reach, stride):
            for columns, kept_columns in _windows(width, reach, stride):
                for image, into in zip(images.split(1), result.split(1), strict=True):
                    piece = _purified(purifier, image[..., rows, columns].to(device), dtype)
                    top, left = kept_rows.start - rows.start, kept_columns.start - columns.start
                    inner = piece[..., top : top + _length(kept_rows), left : left + _length(kept_columns)]
                    into[..., kept_rows, kept_columns] = inner
    return result


def _purified(purifier: Purifier, images: Tensor, dtype: torch.dtype) -> Tensor:
    purified = purifier(to_float(images))
    return (to_uint8(purified) if dtype == torch.uint8 else purified).cpu()


def _windows(length: int, reach: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Along one side: what the network sees, and what is kept of it. Starts are multiples of ``stride``, as in the whole."""
    margin = -(-reach // stride) * stride
    step = max(WINDOW - 2 * margin, SMALLEST_STEP) // stride * stride
    for start in range(0, length, step):
        end = min(start + step, length)
        yield slice(max(0, start - margin), min(length, end + margin)), slice(start, end)


def _length(part: slice) -> int:
    return int(part.stop - part.start)
