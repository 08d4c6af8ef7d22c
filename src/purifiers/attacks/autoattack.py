"""AutoAttack (Croce and Hein 2020) and its Square (Andriushchenko et al. 2020), by pyautoattack: the reference code."""

import logging
import sys
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from purifiers.attacks.base import ATTACKS, Attack, Length
from purifiers.errors import AttackError, InputError, require

LOGGER = "auto-attack"
"""pyautoattack logs suspicions about a defence here; :mod:`purifiers.attacks.generate` keeps the warnings."""


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

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        classes = number_of_classes(model, images)
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
            if self.norm == "l2" and not fits_square(images):
                reference.attacks_to_run.remove("square")
                warn("images of %d by %d: Square left out (not the standard version)", *images.shape[2:])
            if classes < 10:
                reference.apgd_targeted.n_target_classes = reference.fab.n_target_classes = classes - 1
                warn("%d classes: %d targets instead of 9", classes, classes - 1)
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

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        number_of_classes(model, images)
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


def number_of_classes(model: nn.Module, images: Tensor) -> int:
    """The number of ``model``'s classes; raises InputError for fewer than 2."""
    with torch.no_grad():
        classes = model(images[:1]).shape[-1]
    if classes < 2:
        raise InputError(f"AutoAttack needs a classifier of at least 2 classes; this one has {classes}")
    return classes


def make_reference(attack: Attack, model: nn.Module, images: Tensor, seed: int, attacks: str | list[str]) -> Any:
    """pyautoattack's object for ``attack``'s ball: a version by its name, or a list of its attacks."""
    reference = require("pyautoattack").AutoAttack
    norm = {"linf": "Linf", "l2": "L2"}[attack.norm]
    chosen = {"version": attacks} if isinstance(attacks, str) else {"version": "custom", "attacks": attacks}
    return reference(model, norm=norm, eps=attack.epsilon, seed=seed, device=images.device, **chosen)


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
