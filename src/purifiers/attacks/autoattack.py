"""AutoAttack (Croce and Hein 2020), by pyautoattack: the reference code."""

import logging
import sys
from typing import Literal

import torch
from torch import Tensor, nn

from purifiers.attacks.base import Attack, Length
from purifiers.errors import InputError

LOGGER = "auto-attack"
"""pyautoattack logs here what is suspicious about a defence; :mod:`purifiers.attacks.generate` keeps the warnings."""


class AutoAttack(Attack):
    """The standard version: APGD-CE, targeted APGD and FAB (9 targets each), then Square with 5,000 queries.

    Each attack is run on the survivors of those before. With 4 to 9 classes there are fewer targets; with 2 or 3 the
    targeted losses do not exist, so that FAB runs untargeted and APGD-T is left out. Both are logged as warnings, as
    what results is not the standard version.
    """

    kind: Literal["autoattack"] = "autoattack"
    epsilon: Length
    batch_size: int = 250

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        from pyautoattack import AutoAttack as Reference

        with torch.no_grad():
            classes = model(images[:1]).shape[-1]
        if classes < 2:
            raise InputError(f"AutoAttack needs a classifier of at least 2 classes; this one has {classes}")
        norm = {"linf": "Linf", "l2": "L2"}[self.norm]
        common = {"norm": norm, "eps": self.epsilon, "seed": seed, "device": images.device}
        if classes < 4:
            reference = Reference(model, version="custom", attacks=["apgd-ce", "fab", "square"], **common)
            logging.getLogger(LOGGER).warning("%d classes: APGD-T left out, FAB untargeted (not the standard version)", classes)
        else:
            reference = Reference(model, version="standard", **common)
            if classes < 10:
                reference.apgd_targeted.n_target_classes = reference.fab.n_target_classes = classes - 1
                logging.getLogger(LOGGER).warning("%d classes: %d targets instead of 9", classes, classes - 1)
        # Its check for dynamic defences ends with sys.settrace(None), which would cut off a debugger or coverage.
        tracer = sys.gettrace()
        devices = [images.device] if images.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # it seeds torch's own generator, which is not ours to change
                adversarial, _ = reference.run_standard_evaluation(images, labels, batch_size=self.batch_size)
        finally:
            sys.settrace(tracer)
        return adversarial
