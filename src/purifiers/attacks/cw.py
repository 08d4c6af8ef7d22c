"""Carlini and Wagner's L2 attack (2017), by foolbox."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from purifiers.attacks.base import ATTACKS, Attack, Targeting, import_foolbox


@ATTACKS.register("cw")
class CW(Attack):
    """Minimises the L2 distance + ``constant`` * margin, by Adam, with a fixed constant; no epsilon.

    The paper gives 40 iterations at learning rate 0.01 and no search over the constant: the form with a fixed one.
    Images for which no adversarial example was found are returned unchanged. ``targeted``: as of PGD.
    """

    norm: Literal["l2"] = "l2"
    epsilon: None = None
    targeted: Targeting | bool = False
    num_steps: int = Field(default=40, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)
    constant: float = Field(default=1.0, gt=0)

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        foolbox = import_foolbox()
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=1,
            steps=self.num_steps,
            stepsize=self.learning_rate,
            initial_const=self.constant,
            abort_early=False,
        )
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        # foolbox keeps a black image where it found nothing, and calls that a success if black is another class.
        criteria = foolbox.criteria
        goal = criteria.TargetedMisclassification(labels) if self.targeted else criteria.Misclassification(labels)
        _, adversarial, _ = attack(wrapped, images, goal, epsilons=None)
        found = adversarial.flatten(1).any(1).view(-1, 1, 1, 1)
        return torch.where(found, adversarial, images).clamp(0, 1)
