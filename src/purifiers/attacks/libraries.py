"""Attacks by other libraries. pyautoattack, the reference code: AutoAttack (Croce and Hein 2020) and its Square (Andriushchenko
et al. 2020). foolbox: Carlini and Wagner's L2 attack (2017), PGD (Madry et al. 2018), a second, independent code for what
:mod:`purifiers.attacks.gradient` does, and HopSkipJump (Chen, Jordan and Wainwright 2020), which queries labels alone."""

import logging
import os
import sys
import warnings
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from purifiers.attacks.base import ATTACKS, LOGGER, Around, Attack, Length, Passes, Targeting, distances, share_of_epsilon
from purifiers.device import in_parts, part_size
from purifiers.errors import AttackError, require
from purifiers.seeds import reproducible

DIRECTIONS = 50  # noise images that are tried as starting points
BLENDS = 50  # steps between the image and its starting point
BEYOND = 1.001  # how much longer than found a perturbation is made, where that stays within epsilon and breaks the image still


@ATTACKS.register("autoattack")
class AutoAttack(Attack):
    """A cascade of attacks without parameters, each run on the survivors of those before.

    ``version``:

    - ``standard``: APGD-CE, targeted APGD and FAB (9 targets each), then Square with 5,000 queries. With 4 to 9 classes there
      are fewer targets; with 2 or 3 the targeted losses do not exist, so that FAB runs untargeted and APGD-T is left out.
    - ``rand``, for models that draw random numbers: APGD-CE and APGD-DLR on gradients averaged over 20 draws. With 2 classes
      there is no DLR loss, and APGD-CE runs alone.

    An attack that is left out is logged as a warning, as the result is then not that version.
    """

    version: Literal["standard", "rand"] = "standard"
    epsilon: Length = 8 / 255
    batch_size: int = 250

    def _words(self) -> list[str]:
        return super()._words() + (["rand"] if self.version == "rand" else [])

    def passes(self, withstanding: float) -> list[Passes]:
        """APGD-CE on all images; on those that are left two times nine targets and Square, or APGD-DLR, each with 20 draws."""
        if self.version == "rand":
            return [(1.0, 2000.0, 1.0), (withstanding, 2000.0, 0.0)]
        return [(1.0, 100.0, 1.0), (withstanding, 1800.0, 5900.0)]

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        warn = logging.getLogger(LOGGER).warning
        if self.version == "rand":
            reference = make_reference(self, model, images, seed, "rand")
            if classes < 3:
                reference.attacks_to_run = ["apgd-ce"]
                warn("%d classes: APGD-DLR left out (not the rand version)", classes)
        elif classes < 4:
            reference = make_reference(self, model, images, seed, ["apgd-ce", "fab", "square"])
            warn("%d classes: APGD-T left out, FAB untargeted (not the standard version)", classes)
        else:
            reference = make_reference(self, model, images, seed, "standard")
            if classes < 10:
                reference.apgd_targeted.n_target_classes = reference.fab.n_target_classes = classes - 1
                warn("%d classes: %d targets instead of 9", classes, classes - 1)
        if self.norm == "l2" and "square" in reference.attacks_to_run and not fits_square(images):
            reference.attacks_to_run.remove("square")
            warn("images of %d by %d: Square left out (not the standard version)", *images.shape[2:])
        return run_reference(reference, images, labels, self.batch_size)


@ATTACKS.register("square")
class Square(Attack):
    """Random search over squares at the surface of the ball, by the margin of the scores; takes no gradient.

    ``num_queries``: of each image at most; 5,000 in AutoAttack.
    """

    needs_gradients = False

    epsilon: Length = 8 / 255
    num_queries: int = Field(default=5000, ge=1)
    batch_size: int = 250

    def _words(self) -> list[str]:
        return [*super()._words(), f"{self.num_queries:,} queries"]

    def passes(self, withstanding: float) -> list[Passes]:
        """All queries for images that withstand them; the others fall to a tenth, about."""
        return [(1.0, 0.0, self.num_queries / 10), (withstanding, 0.0, self.num_queries * 9 / 10)]

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        if self.norm == "l2" and not fits_square(images):
            height, width = images.shape[-2:]
            raise AttackError(f"pyautoattack's Square in L2 does not work on images of {height} by {width}; L-inf does")
        reference = make_reference(self, model, images, seed, ["square"])
        reference.square.n_queries = self.num_queries
        return run_reference(reference, images, labels, self.batch_size)


def fits_square(images: Tensor) -> bool:
    """Whether pyautoattack's Square in L2, which tiles images with squares from an offset, stays within images of this size."""
    height, width = images.shape[-2:]
    side, offset = height // 5, height % 5 // 2
    return side == 1 or (side > 1 and all(offset + length // side * side <= length for length in (height, width)))


def make_reference(attack: Attack, model: nn.Module, images: Tensor, seed: int, attacks: str | list[str]) -> Any:
    """pyautoattack's object for ``attack``'s ball: a version by its name, or a list of its attacks."""
    chosen = {"version": attacks} if isinstance(attacks, str) else {"version": "custom", "attacks": attacks}
    ball = {"norm": {"linf": "Linf", "l2": "L2"}[attack.norm], "eps": attack.epsilon}
    return require("pyautoattack").AutoAttack(model, **ball, **chosen, seed=seed, device=images.device)


def run_reference(reference: Any, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Run pyautoattack's object without traces: torch's randomness and Python's trace function are left as they were."""
    checks = require("pyautoattack.checks")
    # Its check for dynamic defences counts on from what it saw of other models.
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    # That check ends with sys.settrace(None), which would cut off a debugger or coverage.
    tracer = sys.gettrace()
    devices = [images.device] if images.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):  # it seeds torch's own generator, which is not ours to change
            adversarial: Tensor = reference.run_standard_evaluation(images, labels, batch_size=batch_size)[0]
    finally:
        sys.settrace(tracer)
    return adversarial


@ATTACKS.register("cw")
class CW(Attack):
    """Minimises the L2 distance + ``constant`` * margin, by Adam, with a fixed constant; no epsilon.

    The paper gives 40 iterations at learning rate 0.01 and no search over the constant: the form with a fixed one.
    Images for which no adversarial example was found are returned unchanged. ``targeted``: as of PGD.
    """

    draws = False

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
        goal = foolbox.criteria.TargetedMisclassification if self.targeted else foolbox.criteria.Misclassification

        def search(images: Tensor, labels: Tensor) -> Tensor:
            _, adversarial, _ = attack(wrapped, images, goal(labels), epsilons=None)
            # foolbox keeps a black image where it found nothing, and calls that a success if black is another class.
            found = adversarial.flatten(1).any(1).view(-1, 1, 1, 1)
            return torch.where(found, adversarial, images).clamp(0, 1)

        return in_parts(search, images, labels, size=part_size(model, images, gradient=True))


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

    def passes(self, withstanding: float) -> list[Passes]:
        """See the class; the search for a starting point comes first."""
        queries = self.num_evaluations * self.num_steps**1.5 * 2 / 3 + 30 * self.num_steps
        return [(1.0, 0.0, DIRECTIONS + BLENDS + queries)]

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        fixed = _Fixed(model, seed)
        foolbox, wrapped = _wrapped(fixed, images)
        with torch.no_grad():
            if not torch.equal(fixed(images), fixed(images)):
                needed = "returns the same logits for the same images, or draws its random numbers from torch's generator"
                raise AttackError(f"hop_skip_jump needs a model that {needed}; this one does neither")
        with reproducible(seed, images.device), torch.no_grad():
            right = int((fixed(images).argmax(1) == labels).sum())
            chosen, starts = _startable(foolbox, wrapped, images, labels)
            if len(chosen) < right:
                sought = "neither noise nor another image of the batch is of another class"
                logging.getLogger(LOGGER).warning(f"images without a starting point count as withstanding: {sought}")
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
    """foolbox, imported lazily (about 1 s), and ``model`` as it takes it."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # it imports GitPython, which fails without git unless set
    foolbox = require("foolbox")
    return foolbox, foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)


class _Fixed(Around):
    """A model whose random numbers are the same in every pass."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__(model)
        self.seed = seed

    def forward(self, images: Tensor) -> Tensor:
        with reproducible(self.seed, images.device):
            return self.model(images)


def _startable(foolbox: Any, wrapped: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images that are right and have a starting point, int64 (M,), and these, (M, C, H, W)."""
    chosen = torch.arange(len(images), device=images.device)
    while len(chosen):
        # With a fixed draw an image's numbers depend on its batch, so the smaller batch is tried again.
        batch, own = images[chosen], labels[chosen]
        good = wrapped(batch).argmax(1) == own
        if good.all():
            starts, good = _starting_points(foolbox, wrapped, batch, own)
            if good.all():
                return chosen, starts
        chosen = chosen[good]
    return chosen, images[:0]


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
