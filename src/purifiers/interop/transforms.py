"""A purifier as a transform of images, for any ``Compose``."""

from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from purifiers.bulk.pieces import purify_pixels
from purifiers.data.files import decoded
from purifiers.errors import InputError
from purifiers.purifier import Purifier

Picture = TypeVar("Picture", Image.Image, Tensor)


class PurifyTransform:
    """Purify one image, for example as a transform of a torchvision data set, before its normalisation.

    Not differentiable. It computes on the purifier's device, and can be pickled for the workers of a DataLoader; the purifier
    should then be on the CPU, as forked processes cannot use a GPU that their parent has used.
    """

    def __init__(self, purifier: Purifier) -> None:
        self.purifier = purifier

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.purifier.network).__name__})"

    def __call__(self, image: Picture) -> Picture:
        """The purified image, of the type (and device) of ``image``.

        Args:
            image: PIL, decoded as :func:`purifiers.data.files.read_rgb` does; or a tensor (C, H, W), float32 in [0,1] or uint8.

        Raises:
            InputError: it is neither; or see :class:`purifiers.Purifier`.
            DataError: a grey image whose white level is not known.
        """
        if isinstance(image, Image.Image):
            pixels = torch.from_numpy(np.array(decoded(image).over_white())).permute(2, 0, 1)
            return Image.fromarray(self(pixels).permute(1, 2, 0).numpy())
        if not isinstance(image, Tensor) or image.ndim != 3:
            got = f"a tensor {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
            raise InputError(f"this transform takes one image, PIL or a tensor (C, H, W); got {got}")
        if image.dtype == torch.uint8:
            return purify_pixels(self.purifier, image[None].cpu())[0].to(image.device)
        with torch.no_grad():
            return self.purifier(image[None].to(next(self.purifier.parameters(), image).device))[0].to(image.device)
