"""Trust checks: can the robust accuracy of a defended model be believed, or did the attack fail?

A robust accuracy is an upper bound, which a broken attack makes worthless. The checks look for the marks that broken attacks
leave. Passing them proves nothing; failing one means that the number is not to be believed as it stands.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from purifiers.data import ImageSet
from purifiers.errors import InputError, nearest
from purifiers.evaluation.trust.check import Check
from purifiers.evaluation.trust.checks import KNOWN, judge
from purifiers.evaluation.trust.evidence import PASSES, gather
from purifiers.purifier import PurifiedClassifier

__all__ = ["PASSES", "Check", "trust_checks"]


def trust_checks(
    defended: PurifiedClassifier,
    data: ImageSet,
    *,
    epsilon: float,
    norm: Literal["linf", "l2"] = "linf",
    seed: int = 0,
    batch_size: int = 100,
    known: Mapping[str, Tensor] | None = None,
    eot: bool = False,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Check]:
    """Run all checks, at the cost of ``PASSES`` forward and backward passes of the data.

    Args:
        defended: the model whose robust accuracy is in question, attacked by somebody who knows all of it (view ``full``).
        data: images on its device, about a hundred; few images show only gross failures.
        epsilon, norm: of the attack whose result is in question, in [0,1] units.
        seed: decides every random choice.
        batch_size: images at once.
        known: what was attacked already, by ``white-box``, ``black-box``, ``transfer``, ``iterative`` or ``one-step``: which
            images are right after it, bool (M,), the same M images for all, on the CPU; where ``white-box`` is missing, those
            of ``data``. Of what is missing, what is cheap is measured.
        eot: the attack in question averaged over the model's randomness.
        advance: called after each pass, with numbers of images that add up to ``len(data)``.

    Raises:
        InputError: an epsilon that is not in reach, an unknown name in ``known``, or something else than M booleans.
    """
    known = {} if known is None else known
    if not 0 < epsilon < float("inf") or (norm == "linf" and epsilon > 1):
        raise InputError(f"trust checks need an epsilon above 0, in [0,1] units; got {epsilon:g}; write 8/255, not 8")
    for name, right in known.items():
        if name not in KNOWN:
            raise InputError(f"there is no attack '{name}' that the trust checks could compare{nearest(name, KNOWN)}")
        if not isinstance(right, Tensor) or right.dtype != torch.bool or right.ndim != 1:
            raise InputError(f"known '{name}' must say of each image whether it is right, bool (M,)")
    if len({len(right) for right in known.values()}) > 1:
        raise InputError(f"known results must be of the same images; got { ({name: len(known[name]) for name in known}) }")
    evidence = gather(defended, data, epsilon=epsilon, norm=norm, seed=seed, batch_size=batch_size, advance=advance)
    return judge(evidence, norm, known, eot)
