"""The worst case over attacks, image by image: an image counts as right only if it is right under all of them."""

import torch
from torch import Tensor

from purifiers.data import ImageSet, to_float


class Composite:
    """The adversarial images of the best attacker so far: of each image the first version that broke it.

    Attributes:
        images: float32 (N, 3, H, W), in [0,1]; of images that nothing broke, the last version that was tried.
        right: bool (N,), on the CPU: right under everything that was tried, unattacked too.
        fewest: the smallest number of images on which an attack was run; None before the first.
        seconds: time that the attacks took.
        attacks: their number.
    """

    def __init__(self, data: ImageSet, right: Tensor) -> None:
        self.images = to_float(data.images)
        self.right = right.clone()
        self.fewest: int | None = None
        self.seconds = 0.0
        self.attacks = 0

    def add(self, places: Tensor, adversarial: Tensor, right: Tensor, of: int, seconds: float = 0.0) -> None:
        """Take in what an attack made.

        Args:
            places: int64 (M,), on the CPU: which of the images were attacked.
            adversarial: (M, 3, H, W), their adversarial versions.
            right: bool (M,), on the CPU: which of them the defended model still gets right.
            of: the number of images that the attack is meant for; more than M where some were broken already.
            seconds: time that it took.
        """
        still = self.right[places]
        device = self.images.device
        self.images[places[still].to(device)] = adversarial[still.to(device)]
        self.right[places] = still & right
        self.fewest = of if self.fewest is None else min(self.fewest, of)
        self.seconds += seconds
        self.attacks += 1


def positions(within: Tensor, chosen: Tensor) -> Tensor:
    """Where the sorted indices ``chosen`` stand among the sorted indices ``within``, which hold all of them; on the CPU."""
    return torch.searchsorted(within.cpu(), chosen.cpu())
