"""The gradient attacks: FGSM (Goodfellow et al. 2015), BIM (Kurakin et al. 2017), PGD (Madry et al. 2018), MI-FGSM (Dong et
al. 2018) and SSP (Naseer et al. 2020). All take the steps of :func:`purifiers.gradient_steps.pgd`."""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from purifiers.attacks.base import ATTACKS, Attack, Length, Targeting, share_of_epsilon
from purifiers.device import in_parts, part_size
from purifiers.gradient_steps import pgd, random_start
from purifiers.seeds import generator_for


class GradientAttack(Attack):
    """Climbs the cross-entropy, or descends that of a target: one step of epsilon, unless a subclass has fields for more.

    ``targeted``: reach a target instead of leaving the true class. How the target is chosen (:data:`Targeting`), or True for
    the targets of the call, at random where it passes none.
    """

    draws = False  # unless it starts at random

    epsilon: Length = 8 / 255
    targeted: Targeting | bool = False

    @property
    def start_radius(self) -> float:
        """How far from the image a random start may be."""
        return self.epsilon

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """What is climbed: images -> a scalar, a sum over images."""
        sign = -1 if self.targeted else 1
        return lambda adversarial: sign * F.cross_entropy(model(adversarial), labels, reduction="sum")

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        options: dict[str, Any] = {
            "epsilon": self.epsilon,
            "step_size": getattr(self, "step_size", self.epsilon),
            "num_steps": getattr(self, "num_steps", 1),
            "norm": self.norm,
            "momentum": getattr(self, "momentum", 0.0),
        }
        start = images
        if self.draws:  # drawn for the whole batch, whatever its parts
            generator = generator_for(seed, "random start", device=images.device)
            start = random_start(images, self.start_radius, self.norm, generator)

        def climb(images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
            return pgd(self.objective(model, images, labels), images, start=start, **options)

        return in_parts(climb, images, labels, start, size=part_size(model, images, gradient=True))


@ATTACKS.register("fgsm")
class FGSM(GradientAttack):
    """The fast gradient sign method: one step of length epsilon from the image."""


@ATTACKS.register("nfgsm")
class NFGSM(FGSM):
    """N-FGSM (de Jorge et al. 2022): FGSM from noise. To train for 8/255 write an epsilon of 24/255: it bounds noise and step.

    ``step_size``: the step, a third of epsilon by default; the noise is uniform in the rest.
    """

    shown_as = "N-FGSM"
    draws = True

    epsilon: Length = 24 / 255
    step_size: Length = share_of_epsilon(3)

    @model_validator(mode="after")
    def _leaves_noise(self) -> Self:
        if self.step_size > self.epsilon:
            raise ValueError(f"step_size {self.step_size:g} is above epsilon {self.epsilon:g}, which bounds noise and step")
        return self

    @property
    def start_radius(self) -> float:
        """The noise is within the rest of the ball."""
        return self.epsilon - self.step_size


@ATTACKS.register("bim")
class BIM(GradientAttack):
    """The basic iterative method: many small steps from the image.

    ``step_size``: a quarter of epsilon by default.
    """

    step_size: Length = share_of_epsilon(4)
    num_steps: int = Field(default=20, ge=1)


@ATTACKS.register("pgd")
class PGD(BIM):
    """Many small steps from a random point of the ball: epsilon 8/255, steps of 2/255, 20 of them in the paper."""

    draws = True


@ATTACKS.register("mifgsm")
class MIFGSM(BIM):
    """BIM with momentum, which transfers better: 10 steps of a tenth of epsilon in its paper.

    Ours, as foolbox's gathers the gradients' signs instead of the gradients.

    ``step_size``: a tenth of epsilon by default.
    """

    shown_as = "MI-FGSM"

    step_size: Length = share_of_epsilon(10)
    num_steps: int = Field(default=10, ge=1)
    momentum: float = Field(default=1.0, ge=0)


@ATTACKS.register("ssp")
class SSP(PGD):
    """Self-supervised perturbation (Naseer et al. 2020, section 3.1): PGD that drives the model's outputs away from those of
    the clean image and needs no label. For a view that gives features, :class:`purifiers.attacks.views.Features`.
    """

    uses_labels = False

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """The squared distance of the outputs to those of the clean images."""
        with torch.no_grad():
            clean = model(images)
        return lambda adversarial: (model(adversarial) - clean).square().flatten(1).mean(1).sum()
