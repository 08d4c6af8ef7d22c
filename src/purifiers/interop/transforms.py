"""A purifier as a step of any ``Compose``: a callable from an image to an image."""

from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from purifiers.data import to_float, to_uint8
from purifiers.data.files import decoded
from purifiers.errors import InputError
from purifiers.purifier import Purifier

Picture = TypeVar("Picture", Image.Image, Tensor)


class PurifyTransform:
    """Purify one image, for example as a transform of a torchvision data set, before whatever normalises it.

    No gradient passes. It can be pickled, and so used in the workers of a DataLoader; there the purifier should be on the CPU,
    as processes that are forked cannot use a GPU that their parent has used.

    Args:
        purifier: on its device, where it computes.
    """

    def __init__(self, purifier: Purifier) -> None:
        self.purifier = purifier

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.purifier.network).__name__})"

    def __call__(self, image: Picture) -> Picture:
        """The purified image, of the sort and, if a tensor, on the device of ``image``.

        Args:
            image: one image: PIL, which is seen as :func:`purifiers.data.files.read_rgb` has it; or a tensor (C, H, W), float32
                in [0,1] or uint8.

        Raises:
            InputError: it is none of these, or see :class:`purifiers.Purifier`.
            DataError: a grey image of which nothing tells what is white.
        """
        if isinstance(image, Image.Image):
            pixels = torch.from_numpy(np.array(decoded(image).over_white())).permute(2, 0, 1)
            return Image.fromarray(self(pixels).permute(1, 2, 0).numpy())
        if not isinstance(image, Tensor) or image.ndim != 3:
            got = f"a tensor {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
            raise InputError(f"this transform takes one image, PIL or a tensor (C, H, W); got {got}")
        whole = image.dtype == torch.uint8
        weight = next(self.purifier.parameters(), image)
        batch = image.unsqueeze(0).to(weight.device)
        with torch.no_grad():
            purified = self.purifier(to_float(batch) if whole else batch)
        return (to_uint8(purified) if whole else purified)[0].to(image.device)
