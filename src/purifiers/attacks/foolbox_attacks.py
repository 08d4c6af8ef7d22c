"""Attacks by foolbox: Carlini and Wagner's L2 attack (2017), PGD (Madry et al. 2018), a second, independent code for what
:mod:`purifiers.attacks.gradient` does, and HopSkipJump (Chen, Jordan and Wainwright 2020), which queries labels alone."""

import warnings
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from purifiers.attacks.base import ATTACKS, Attack, Length, Targeting, distances, import_foolbox, share_of_epsilon
from purifiers.errors import AttackError
from purifiers.seeds import reproducible

DIRECTIONS = 50
"""Noise images that are tried as starting points."""
BLENDS = 50
"""Steps between the image and its starting point."""
BEYOND = 1.001
"""How much longer than found a perturbation is made, where that stays within epsilon and breaks the image still."""


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
        foolbox, wrapped = _wrapped(model, images)
        numbers = {"steps": self.num_steps, "stepsize": self.learning_rate, "initial_const": self.constant}
        attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=1, abort_early=False, **numbers)
        # foolbox keeps a black image where it found nothing, and calls that a success if black is another class.
        criteria = foolbox.criteria
        goal = criteria.TargetedMisclassification(labels) if self.targeted else criteria.Misclassification(labels)
        _, adversarial, _ = attack(wrapped, images, goal, epsilons=None)
        found = adversarial.flatten(1).any(1).view(-1, 1, 1, 1)
        return torch.where(found, adversarial, images).clamp(0, 1)


@ATTACKS.register("foolbox_pgd")
class FoolboxPGD(Attack):
    """Many small steps from a random point of the ball, as foolbox takes them."""

    shown_as = "foolbox PGD"

    epsilon: Length = 8 / 255
    step_size: Length = share_of_epsilon(4)
    num_steps: int = Field(default=20, ge=1)

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        foolbox, wrapped = _wrapped(model, images)
        attacks = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
        attack = attacks[self.norm](abs_stepsize=self.step_size, steps=self.num_steps, random_start=True)
        with reproducible(seed, images.device):
            adversarial: Tensor = attack.run(wrapped, images, labels, epsilon=self.epsilon)
        return adversarial.clamp(0, 1)


@ATTACKS.register("hop_skip_jump")
class HopSkipJump(Attack):
    """Walks along the boundary of the class towards the image, in the direction that random queries around it suggest.

    It minimises the distance and knows no epsilon: what it finds beyond ``epsilon`` is no success, and the image comes back
    unchanged, as it does where nothing is found.

    A model that draws random numbers is attacked with one draw fixed, as this attack never ends where the same query gets
    different answers. What it finds is then measured at other draws.

    ``num_steps``: 64 in foolbox.
    ``num_evaluations``: queries to estimate the first direction; step i takes the square root of i times as many. Queries of
    each image in all: about ``num_evaluations * (2/3) * num_steps**1.5``, and some 30 a step to find the boundary again.
    """

    needs_gradients = False

    epsilon: Length = 8 / 255
    num_steps: int = Field(default=20, ge=1)
    num_evaluations: int = Field(default=100, ge=1)

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        fixed = _Fixed(model, seed)
        foolbox, wrapped = _wrapped(fixed, images)
        with torch.no_grad():
            answers = fixed(images)
            if not torch.equal(answers, fixed(images)):
                raise AttackError(
                    "hop_skip_jump needs a model that returns the same logits for the same images, or draws its random numbers "
                    "from torch's generator, which can be fixed; this one does neither"
                )
        with reproducible(seed, images.device), torch.no_grad():
            chosen, starts = _startable(foolbox, wrapped, images, labels)
            result = images.clone()
            if len(chosen):
                attack = foolbox.attacks.HopSkipJumpAttack(
                    steps=self.num_steps, initial_gradient_eval_steps=self.num_evaluations, constraint=self.norm
                )
                batch, own = images[chosen], labels[chosen]
                reached = attack.run(wrapped, batch, own, starting_points=starts).clamp(0, 1)
                # It stops at the boundary itself, on whose other side the rounding of another batch size may put it.
                scale = ((1 - 1e-6) * self.epsilon / distances(batch, reached, self.norm).clamp_min(1e-12)).clamp(1, BEYOND)
                further = (batch + scale.view(-1, 1, 1, 1) * (reached - batch)).clamp(0, 1)
                wrong = fixed(further).argmax(1) != own
                result[chosen] = torch.where(wrong.view(-1, 1, 1, 1), further, reached)
        within = distances(images, result, self.norm) <= self.epsilon
        return torch.where(within.view(-1, 1, 1, 1), result, images)


def _wrapped(model: nn.Module, images: Tensor) -> tuple[Any, Any]:
    """foolbox, and ``model`` as it takes it."""
    foolbox = import_foolbox()
    return foolbox, foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)


class _Fixed(nn.Module):
    """A model whose random numbers are the same in every pass."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        with reproducible(self.seed, images.device):
            return self.model(images)


def _startable(foolbox: Any, wrapped: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images that are right and have a starting point, int64 (M,), and these, (M, C, H, W)."""
    chosen = torch.arange(len(images), device=images.device)
    starts = images[:0]
    while len(chosen):
        # With a fixed draw an image's numbers depend on its batch, so the smaller batch is tried again.
        batch, own = images[chosen], labels[chosen]
        good = wrapped(batch).argmax(1) == own
        if good.all():
            starts, good = _starting_points(foolbox, wrapped, batch, own)
            if good.all():
                break
        chosen = chosen[good]
    return chosen, starts[: len(chosen)]


def _starting_points(foolbox: Any, wrapped: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """For each image one of another class, and whether there is one: the image blended with noise, or another of the batch."""
    attack = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(directions=DIRECTIONS, steps=BLENDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no noise was of another class: there are other images
        starts = attack.run(wrapped, images, foolbox.criteria.Misclassification(labels))
    found = wrapped(starts).argmax(1) != labels
    # All noise may be of one class; images of that class start from other images.
    for shift in range(1, len(images)):
        if found.all():
            break
        others = torch.where(found.view(-1, 1, 1, 1), starts, images.roll(shift, 0))
        starts, found = others, wrapped(others).argmax(1) != labels
    return starts, found
