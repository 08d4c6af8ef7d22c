"""One image, one attack: what a classifier says before and after, and with the purifier in front."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from purifiers.attacks import BIM, FGSM, MIFGSM, PGD, VIEWS, Attack
from purifiers.attacks.base import frozen
from purifiers.purifier import PurifiedClassifier
from purifiers.seeds import reproducible

ATTACKS: dict[str, Callable[[float], Attack]] = {
    "PGD": lambda epsilon: PGD(epsilon=epsilon, step_size=epsilon / 4, num_steps=20),
    "BIM": lambda epsilon: BIM(epsilon=epsilon, step_size=epsilon / 4, num_steps=20),
    "MI-FGSM": lambda epsilon: MIFGSM(epsilon=epsilon, step_size=epsilon / 10, num_steps=10),
    "FGSM": lambda epsilon: FGSM(epsilon=epsilon),
}
"""What takes a second on one image: name -> the attack within epsilon (L-inf, in [0,1] units). At 8/255 PGD and BIM are the
paper's."""
KNOWN = {
    "blind": "knew the classifier, and nothing of the purifier",
    "full": "knew the classifier and the purifier, and took the gradient through both",
}
"""What the attacker knew, by view."""


@dataclass(frozen=True)
class Seen:
    """An image, float32 (C, H, W) in [0,1], and what the classifier makes of it: probabilities, float32 (classes,)."""

    image: Tensor
    scores: Tensor

    @property
    def top(self) -> int:
        """The class with the highest score."""
        return int(self.scores.argmax())


@dataclass(frozen=True)
class Trial:
    """An attack on one image, and what became of it.

    Attributes:
        view: what the attacker knew, a key of ``KNOWN``.
        original: the image.
        attacked: its adversarial version, as the classifier sees it without a purifier.
        purified: that, purified, as the classifier behind the purifier sees it.
        unattacked: the original image, purified: what the purifier does when nobody attacks.
    """

    view: str
    original: Seen
    attacked: Seen
    purified: Seen
    unattacked: Seen

    def amplified(self) -> tuple[Tensor, int]:
        """The perturbation, made visible: float32 (C, H, W) in [0,1], in which mid-grey is no change, and the whole number
        by which it is multiplied, the largest that cuts nothing off."""
        difference = self.attacked.image - self.original.image
        largest = difference.abs().max().item()
        factor = max(1, int(0.5 / largest + 1e-4)) if largest else 1  # a touch more, as 0.1 is none of float32's numbers
        return (0.5 + factor * difference).clamp(0, 1), factor


def attack_image(defended: PurifiedClassifier, image: Tensor, attack: Attack, view: str, seed: int = 0) -> Trial:
    """Attack an image away from the class that the classifier gives it, and purify what comes out.

    Args:
        defended: the purifier and the classifier behind it, on one device.
        image: float32 (C, H, W), in [0,1], on that device.
        attack: see ``ATTACKS`` for those that are fast enough to wait for.
        view: a key of :data:`purifiers.attacks.VIEWS`.
        seed: decides every random choice, of the attack and of a purifier that makes some.

    Raises:
        InputError: the image is not as above.
        AttackError: the model passes no gradient to its images, or the attack left its ball.
    """
    images = image[None]

    def seen(shown: Tensor) -> Seen:
        return Seen(shown[0], defended.classifier(shown)[0].softmax(0))

    with reproducible(seed, image.device), frozen(defended):
        with torch.no_grad():
            original = seen(images)
        adversarial = attack(VIEWS[view](defended), images, torch.tensor([original.top], device=image.device), seed)
        with torch.no_grad():
            purified, unattacked = seen(defended.purifier(adversarial)), seen(defended.purifier(images))
            return Trial(view, original, seen(adversarial), purified, unattacked)


def told(trial: Trial, classes: Sequence[str]) -> list[str]:
    """What happened, in sentences that say no more than one image shows; the first says what the attacker knew."""
    was, alone, behind = (classes[one.top] for one in (trial.original, trial.attacked, trial.purified))
    sentences = [f"The attacker {KNOWN[trial.view]} (view {trial.view})."]
    if alone == was:
        sentences.append(f"The classifier alone still says {was}: this attack did not fool it.")
    else:
        sentences.append(f"The classifier alone says {alone} instead of {was}.")
    if behind == was:
        sentences.append(f"Behind the purifier it says {was}, as before the attack.")
    else:
        sentences.append(f"Behind the purifier it says {behind}, and not {was}: the purifier did not help.")
    if (calm := classes[trial.unattacked.top]) != was:
        sentences.append(f"Purified without any attack it is {calm} to the classifier: the purifier changes clean images too.")
    if behind == was and trial.view == "blind":
        sentences.append("That says nothing of an attacker who knows the purifier: try that one too.")
    return sentences
