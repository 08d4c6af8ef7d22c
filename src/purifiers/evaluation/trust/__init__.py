"""Trust checks: can the robust accuracy of a defended model be believed, or did the attack fail?

A robust accuracy is an upper bound, which a broken attack makes worthless. The checks look for the marks that broken attacks
leave. Passing them proves nothing; failing one means that the number is not to be believed as it stands.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from purifiers.data import ImageSet
from purifiers.errors import InputError
from purifiers.evaluation.trust.check import Check, believable
from purifiers.evaluation.trust.checks import KNOWN, judge
from purifiers.evaluation.trust.evidence import PASSES, gather
from purifiers.naming import nearest
from purifiers.purifier import PurifiedClassifier

__all__ = ["PASSES", "Check", "believable", "trust_checks"]


def trust_checks(
    defended: PurifiedClassifier,
    data: ImageSet,
    *,
    epsilon: float,
    norm: Literal["linf", "l2"] = "linf",
    seed: int = 0,
    batch_size: int = 100,
    known: Mapping[str, float] | None = None,
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
        known: robust accuracies in [0,1] that were measured already on such images: ``white-box``, ``black-box``,
            ``transfer``, ``iterative``, ``one-step``; of those that are missing, what is cheap is measured.
        eot: the attack in question averaged over the model's randomness.
        advance: called after each pass, with numbers of images that add up to ``len(data)``.

    Raises:
        InputError: an epsilon that is not in reach, an unknown name in ``known``, or one that is no share.
    """
    known = {} if known is None else known
    if not 0 < epsilon < float("inf") or (norm == "linf" and epsilon > 1):
        raise InputError(f"trust checks need an epsilon above 0, in [0,1] units; got {epsilon:g}; write 8/255, not 8")
    for name, accuracy in known.items():
        if name not in KNOWN:
            raise InputError(f"there is no robust accuracy '{name}' that the trust checks could use{nearest(name, KNOWN)}")
        if not 0 <= accuracy <= 1:
            raise InputError(f"the robust accuracy '{name}' must be a share in [0,1]; got {accuracy:g}; divide percent by 100")
    evidence = gather(defended, data, epsilon=epsilon, norm=norm, seed=seed, batch_size=batch_size, advance=advance)
    return judge(evidence, norm, known, eot)
