"""One attack on one image: the classes before and after it, with and without the purifier."""

from dataclasses import dataclass

import torch
from torch import Tensor

from purifiers.attacks import BIM, FGSM, MIFGSM, PGD, VIEWS, Attack
from purifiers.attacks.base import frozen
from purifiers.purifier import PurifiedClassifier
from purifiers.seeds import reproducible

ATTACKS: dict[str, type[Attack]] = {"PGD": PGD, "BIM": BIM, "MI-FGSM": MIFGSM, "FGSM": FGSM}
"""By name, attacks that take about a second an image. At an epsilon of 8/255 PGD and BIM are the paper's."""


@dataclass(frozen=True)
class Prediction:
    """An image, float32 (C, H, W) in [0,1], and its probabilities by the classifier, float32 (classes,)."""

    image: Tensor
    scores: Tensor

    @property
    def top(self) -> int:
        """The class with the highest score."""
        return int(self.scores.argmax())


@dataclass(frozen=True)
class Trial:
    """An attack on one image under a view: its adversarial version without a purifier, the same purified, and the original
    purified."""

    view: str
    original: Prediction
    attacked: Prediction
    purified: Prediction
    unattacked: Prediction

    def amplified(self) -> tuple[Tensor, int]:
        """The perturbation around mid-grey, float32 (C, H, W) in [0,1], and the whole number that it is multiplied by: the
        largest that clips nothing."""
        difference = self.attacked.image - self.original.image
        largest = difference.abs().max().item()
        factor = max(1, int(0.5 / largest + 1e-4)) if largest else 1  # float32 has no 0.1
        return (0.5 + factor * difference).clamp(0, 1), factor


def attack_image(defended: PurifiedClassifier, image: Tensor, attack: Attack, view: str, seed: int = 0) -> Trial:
    """Attack an image away from its predicted class, and purify the result.

    Args:
        image: float32 (C, H, W), in [0,1], on the device of ``defended``.
        view: a key of :data:`purifiers.attacks.VIEWS`.
        seed: of every random choice, of the attack and of the purifier.

    Raises:
        AttackError: the model passes no gradient to its images, or the attack left its ball.
    """
    images = image[None]

    def predict(images: Tensor) -> Prediction:
        return Prediction(images[0], defended.classifier(images.clone())[0].softmax(0))

    with reproducible(seed, image.device), frozen(defended):
        with torch.no_grad():
            original = predict(images)
        adversarial = attack(VIEWS[view](defended), images, torch.tensor([original.top], device=image.device), seed)
        with torch.no_grad():
            purified, unattacked = predict(defended.purifier(adversarial)), predict(defended.purifier(images))
            return Trial(view, original, predict(adversarial), purified, unattacked)
