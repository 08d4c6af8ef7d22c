"""The trust checks: each reads the evidence and passes, fails or does not apply, with a sentence and its figures.

Most are in "On Evaluating Adversarial Robustness" (Carlini et al. 2019, arXiv 1902.06705), named here by the heading they
stand under, or among the six indicators I1 to I6 of "Indicators of Attack Failure" (Pintor et al. 2022).
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor

from purifiers.cache import Cache
from purifiers.classifiers.probes import RANDOM
from purifiers.data import ImageSet
from purifiers.errors import InputError, nearest
from purifiers.evaluation.metrics import wilson_interval
from purifiers.evaluation.records import Result
from purifiers.evaluation.trust.evidence import FACTORS, LONG, SHORT, STARTS, UNBOUNDED_STEPS, Evidence, gather
from purifiers.gradient_steps import Norm
from purifiers.purifier import PurifiedClassifier

SIGNIFICANT = 0.01
"""A stronger attack counts as weaker than a weaker one if, of the images on which the two differ, so many more fall to the
weaker one that a fair coin would do that less often than this. With 18 checks a sound model rarely fails one by chance."""
LITTLE = 0.05
"""Share of images that may change between two attacks that should agree: random starts, twice the steps, another loss.
Pintor et al. give the loss of a finished attack the same 5 %."""
UNBOUNDED = 0.02
"""Share of images that may withstand an attack without a bound. It should be none; a fixed number of steps may miss one."""
NO_GRADIENT = 0.01
"""Share of images that may have no gradient. AutoAttack warns of one; one in a hundred cannot move a result."""
SMALLEST = {"linf": 0.0, "l2": 1e-12}
"""Below this length there is no gradient: in L-inf its sign counts, however small; in L2 no step is scaled by more."""
TRUE_WITHIN = 0.1
"""The loss must change by what its gradient says, up to this share. Trained networks stay within 0.03; the identity's gradient
in place of that of a 3x3 median or mean is off by 0.4 and more."""
FALSE = 0.1
"""Share of images that may have a false gradient: they may lie at a kink."""
STEADY = 0.5
"""The least median cosine of the gradients at two images a quarter of a grey level apart. Trained networks have 0.9 and
more, independent gradients 0."""
FALLS = 0.5
"""Of what the loss rises along an attack, the share that may be lost again by falls, in the median image. Trained networks lose
less than 0.1; on a shattered loss nearly all is lost."""
KNOWN = ("white-box", "black-box", "transfer", "iterative", "one-step")
"""Attacks whose results may be known already."""


class Check(Result):
    """The result of one check: its name and status, a sentence, and the figures that it rests on."""

    name: str
    status: Literal["passed", "failed", "not applicable"]
    sentence: str
    figures: dict[str, FiniteFloat] = Field(default_factory=dict)


def trust_checks(
    defended: PurifiedClassifier,
    data: ImageSet,
    *,
    epsilon: float,
    norm: Norm = "linf",
    seed: int = 0,
    batch_size: int = 100,
    known: Mapping[str, Tensor] | None = None,
    reported: Tensor | None = None,
    eot: bool = False,
    cache: Cache | None = None,
    advance: Callable[[float], None] = lambda images: None,
) -> list[Check]:
    """Run all checks, at the cost of ``PASSES`` forward and backward passes of the data.

    Args:
        defended: the model whose robust accuracy is in question, attacked with full knowledge (view ``full``).
        data: images on its device, about a hundred; few images show only gross failures.
        epsilon, norm: of the attack whose result is in question, in [0,1] units.
        seed, batch_size: decides every random choice; images at once.
        known: results of attacks by ``white-box``, ``black-box``, ``transfer``, ``iterative`` or ``one-step``: which images are
            right after it, bool (M,), the same M for all, on the CPU; without ``white-box``, those of ``data``.
        reported: which of ``data`` the attack in question leaves right, bool (N,), on the CPU; False where it was not run.
        eot: whether the attack in question averaged over the model's randomness.
        cache: where finished measurements are kept.
        advance: called before each pass, with numbers, not whole, that add up to ``len(data)``.

    Returns:
        The checks; none if the cache's shard leaves a measurement to another process.

    Raises:
        InputError: an epsilon out of range, an unknown name in ``known``, or other results than M booleans.
    """
    known = known or {}
    if not 0 < epsilon < float("inf") or (norm == "linf" and epsilon > 1):
        raise InputError(f"trust checks need an epsilon above 0, in [0,1] units; got {epsilon:g}; write 8/255, not 8")
    for name, right in known.items():
        if name not in KNOWN:
            raise InputError(f"the trust checks compare no attack '{name}'{nearest(name, KNOWN)}")
        if not isinstance(right, Tensor) or right.dtype != torch.bool or right.ndim != 1:
            raise InputError(f"known '{name}' must hold for each image whether it is right, bool (M,)")
    if len({len(right) for right in known.values()}) > 1:
        raise InputError(f"known results must be of the same images; got { ({name: len(known[name]) for name in known}) }")
    cache = cache or Cache(None)
    evidence = gather(defended, data, epsilon, norm, seed, batch_size, cache, advance)
    return [] if evidence is None or cache.shard.missing else judge(evidence, norm, known, eot, reported)


def judge(
    evidence: Evidence, norm: Norm, known: Mapping[str, Tensor], eot: bool, reported: Tensor | None = None
) -> list[Check]:
    """All checks, in the order in which a report shows them: the model, its gradient, the attack, attacks side by side."""
    return [
        *_of_the_model(evidence, eot),
        *_of_its_gradient(evidence, norm),
        *_of_the_attack(evidence),
        *_side_by_side(evidence, known, reported),
    ]


def share(images: Tensor) -> float:
    """The share of images for which ``images``, bool (..., N), is true."""
    return images.float().mean().item()


def exceeds(images: Tensor, limit: float) -> bool:
    """Whether :func:`share` of ``images`` is above ``limit``, at the low end of its 95 % interval."""
    return wilson_interval(int(images.sum()), len(images))[0] > limit


def weaker(strong: Tensor, weak: Tensor) -> float:
    """The chance that two equal attacks differ so much against ``strong``, by a sign test; both bool (N,): right after it."""
    from scipy.stats import binomtest  # takes a second to import

    against, favour = int((strong & ~weak).sum()), int((~strong & weak).sum())
    return float(binomtest(against, against + favour, alternative="greater").pvalue) if against + favour else 1.0


def _check(
    name: str, bad: bool | Tensor | None, sentence: str, advice: str = "", *, limit: float = LITTLE, **figures: float
) -> Check:
    """A check that failed if ``bad``, or if it, bool (N,), is true for more than a share of ``limit``; then ``advice`` follows
    the sentence. None: it does not apply."""
    bad = exceeds(bad, limit) if isinstance(bad, Tensor) else bad
    status: Literal["passed", "failed", "not applicable"] = "failed" if bad else "passed" if bad is False else "not applicable"
    return Check(name=name, status=status, sentence=f"{sentence} {advice}" if bad and advice else sentence, figures=figures)


def _stronger(name: str, weak: Tensor, strong: Tensor, weak_name: str, strong_name: str) -> Check:
    """Two attacks on the same images, (N,) each; the second must not be weaker beyond chance."""
    chance = weaker(strong, weak)
    sentence = f"Robust accuracy is {share(weak):.1%} after {weak_name}, {share(strong):.1%} after {strong_name}."
    advice = "The second knows or does more and breaks fewer: it is misled, and its number is too high."
    figures = {"weaker": share(weak), "stronger": share(strong), "chance": chance}
    return _check(name, chance < SIGNIFICANT, sentence, advice, **figures)


def _of(images: Tensor) -> str:
    return f"{int(images.sum())} of {len(images)}"


def _of_the_model(evidence: Evidence, eot: bool) -> Iterator[Check]:
    # AutoAttack's checks.py: probabilities hide the gradient behind one more softmax.
    sentence = "The outputs are logits, not probabilities."
    if bad := bool(evidence.probabilities.all()):
        sentence = "All outputs lie in [0,1] and sum to 1: they are probabilities, whose gradient vanishes; attack the logits."
    yield _check("outputs are logits", bad, sentence, probabilities=share(evidence.probabilities))

    # Carlini et al., "Properly ensemble over randomness"; AutoAttack's checks.py.
    largest = evidence.difference.nan_to_num(0).max().item()
    advice = ": the model is random, and an attack that averages over its randomness (EOT) may break more."
    sentence = "Two passes of the same images agree."
    if random := largest > RANDOM:
        sentence = f"Two passes of the same images differ by {largest:.2g} of the largest logit"
        sentence += ", and the attack averaged (EOT)." if eot else advice
    yield _check("deterministic, or EOT used", random and not eot, sentence, difference=largest)


def _of_its_gradient(evidence: Evidence, norm: Norm) -> Iterator[Check]:
    # Pintor et al., I1; Carlini et al., "Approximate non-differentiable layers"; AutoAttack's checks.py.
    broken = ~evidence.gradient_finite
    absent = evidence.gradient_finite & (evidence.gradient_length <= SMALLEST[norm])
    sentence = f"The loss has a gradient on {_of(~(broken | absent))} images."
    if bad := exceeds(broken | absent, NO_GRADIENT):
        sentence = (
            f"The loss has a gradient of zero on {_of(absent)} images and one that is not finite on {int(broken.sum())}: "
            "attacks by gradients are blind there; attack by queries and transfer."
        )
    yield _check("gradients exist", bad, sentence, zero=share(absent), not_finite=share(broken))

    has = evidence.predicted.isfinite().all(0) & (evidence.predicted.abs().amin(0) > 0)  # a direction that can be judged
    if has.any():
        # For small steps the loss must rise by what the gradient says; one that is made up (BPDA, straight-through, detached
        # parts) does not show what the model does (Athalye et al. 2018, obfuscated gradients).
        ratios = evidence.observed[:, has] / evidence.predicted[:, has]
        error, closest = (ratios - 1).abs().nan_to_num(1, posinf=1e6).min(0)
        wrong = error > TRUE_WITHIN
        ratio = ratios.gather(0, closest[None]).nan_to_num(0).median().item()
        sentence = f"Small steps along the gradient change the loss by what the gradient says on {_of(~wrong)} images."
        if bad := exceeds(wrong, FALSE):
            sentence = (
                f"The gradient is not that of the model: small steps along it change the loss by {ratio:.2g} of what it says, "
                "in the median. A part of the model rounds, is detached or passes on another gradient (BPDA), or the loss "
                "bends within thousandths of a grey level, so robust accuracy under attacks by this gradient is an upper "
                "bound; attack by queries and transfer too."
            )
        yield _check("gradients are true", bad, sentence, false=share(wrong), ratio=ratio)

        # Shattered gradients (Athalye et al. 2018): true at a point and worthless beside it; Pintor et al., I2.
        cosine = evidence.cosine[has].nan_to_num(0).median().item()
        sentence = f"Gradients a quarter of a grey level apart have a cosine of {cosine:.2g}, in the median."
        advice = "They are noise to an attack that takes steps; attack a smoothed loss, or by queries and transfer."
        yield _check("gradients are steady", cosine < STEADY, sentence, advice, cosine=cosine)
    else:
        yield _check("gradients are true", None, "There is no gradient that could be true or false.")
        yield _check("gradients are steady", None, "There is no gradient that could be steady.")

    # Athalye et al. 2018 (BPDA); Carlini et al., "Approximate non-differentiable layers": a purifier's output is close to its
    # input, so the identity's gradient is a poor one; only a hidden gradient is poorer.
    name = "the purifier's gradient beats the identity's"
    missed = evidence.right[LONG] & ~evidence.bpda
    sentence = f"The identity's gradient in place of the purifier's (BPDA) breaks {_of(missed)} images more."
    advice = "The purifier's own gradient vanishes or misleads; believe the attack that breaks more."
    if evidence.same.all():
        yield _check(name, None, "The purifier passes on the identity's gradient: both attacks are one.")
    else:
        yield _check(name, missed, sentence, advice, missed=share(missed))

    # Croce and Hein 2020: cross-entropy underflows where logits are large, and may lead elsewhere than to another class; the
    # margin of the logits does neither.
    missed = evidence.starts[0] & ~evidence.margin
    sentence = f"The margin of the logits as a loss breaks {_of(missed)} images that the cross-entropy does not."
    flat = _of(missed & evidence.saturated)
    advice = f"Of {flat} the true class has a probability that rounds to 1, where the cross-entropy is flat. "
    advice += "Attack the margin (CW, DLR)."
    figures = {"saturated": share(evidence.saturated), "missed": share(missed)}
    yield _check("another loss changes little", missed, sentence, advice, **figures)


def _of_the_attack(evidence: Evidence) -> Iterator[Check]:
    # Pintor et al. in their first version (arXiv 2106.09947v1), "increasing loss": an attack on noise succeeds by chance.
    steps = evidence.losses.nan_to_num(0).diff(dim=0)
    rises, falls = steps.clamp_min(0).sum(0), (-steps).clamp_min(0).sum(0)
    still = rises == 0
    lost = (falls / rises.clamp_min(1e-30)).clamp_max(1).nan_to_num(1).where(~still, 1).median().item()
    sentence = f"Along the attack the loss falls by {lost:.2g} of what it rises, in the median image."
    advice = f"On {_of(still)} images it does not rise: the attack does not climb; smooth the loss or take other step sizes."
    yield _check("the loss rises along the attack", lost > FALLS, sentence, advice, lost=lost, still=share(still))

    # Pintor et al., I3, "silent success": the last step counts, though an earlier one broke the image.
    again = evidence.right[-1] & ~evidence.right.all(0)
    sentence = f"{_of(again)} images were broken along the attack and are right again at its end."
    advice = "Count an image as broken if any step breaks it."
    yield _check("the attack keeps what it finds", again, sentence, advice, lost=share(again))

    # Carlini et al., "Verify attack convergence": on the same images, from the same start.
    short, long = evidence.right[SHORT], evidence.right[LONG]
    yield _stronger("more steps do not hurt", short, long, f"{SHORT} steps", f"{LONG} steps")

    # Carlini et al., "Ensure doubling attack iterations does not increase attack success rate"; Pintor et al., I4.
    late = short & ~long
    sentence = f"Doubling the steps from {SHORT} to {LONG} breaks {_of(late)} images more."
    advice = "The attack has not converged; give it more steps."
    yield _check("more steps no longer help", late, sentence, advice, late=share(late))

    # Carlini et al., "Start search from random offsets".
    one, worst = share(evidence.starts), share(evidence.starts.all(0))
    count = len(evidence.difference)
    bad = wilson_interval(round((one - worst) * count), count)[0] > LITTLE
    sentence = f"Robust accuracy is {one:.1%} with one random start, {worst:.1%} with the worst of {STARTS}."
    advice = "The result depends on the start, a sign of hidden gradients; use many restarts."
    yield _check("random restarts change little", bad, sentence, advice, one=one, worst=worst)


def _side_by_side(evidence: Evidence, known: Mapping[str, Tensor], reported: Tensor | None) -> Iterator[Check]:
    # Carlini et al., "Perform basic sanity tests": more room can only help.
    curve = dict(zip(FACTORS, evidence.epsilons, strict=True)) | {1.0: evidence.starts[0]}
    factors = sorted(curve)
    rising = [pair for pair in pairwise(factors) if weaker(curve[pair[1]], curve[pair[0]]) < SIGNIFICANT]
    shares = ", ".join(f"{share(curve[factor]):.1%} at {factor:g}" for factor in factors)
    advice = "".join(f"It rises from {small:g} to {large:g}: more room misleads the attack." for small, large in rising[:1])
    figures = {f"epsilon x {factor:g}": share(curve[factor]) for factor in factors}
    sentence = f"Robust accuracy by multiples of epsilon: {shares}."
    yield _check("larger epsilons are stronger", bool(rising), sentence, advice, **figures)

    # Carlini et al., "Perform basic sanity tests"; Pintor et al., I6: an attacker without a bound can turn any image.
    whole = evidence.unbounded
    sentence = f"{_of(whole)} images withstand {UNBOUNDED_STEPS} steps that may change every pixel to any value."
    advice = "Nothing can withstand that: the attack is misled, and robust accuracy is too high."
    yield _check("an unbounded attack reaches 0 %", whole, sentence, advice, limit=UNBOUNDED, robust_accuracy=share(whole))

    # Carlini et al., "Perform basic sanity tests"; single steps are better only where gradients mislead.
    pair = (evidence.one_step, evidence.right[LONG], "one step", f"{LONG} steps")
    if "iterative" in known and "one-step" in known:
        pair = (known["one-step"], known["iterative"], "the one-step attack", "the iterative attack")
    yield _stronger("iterative beats one-step", *pair)

    # Carlini et al., "Apply gradient-free attacks", "Perform a transferability analysis": more knowledge breaks more.
    white = known.get("white-box", evidence.right[LONG].cpu())
    for other in ("black-box", "transfer"):
        name = f"white-box beats {other}"
        if other not in known:
            yield _check(name, None, f"No {other} attack was measured.")
        elif len(white) != len(known[other]):
            yield _check(name, None, f"No white-box attack was measured on the images of the {other} attack.")
        else:
            yield _stronger(name, known[other], white, f"the {other} attack", "the white-box attack")

    # Carlini et al., "Report the strongest attack": a reported attack must not leave what the checks' own attack breaks.
    name = "the reported attack is the strongest"
    if reported is None or evidence.difference.nan_to_num(0).max() > RANDOM:  # one draw, held still, is easier to break
        yield _check(name, None, "No white-box attack on a deterministic model was reported.")
    else:
        missed = reported & ~evidence.right[LONG].cpu()
        sentence = f"{LONG} steps of the checks' own attack break {_of(missed)} images that the reported attacks do not."
        advice = "Report a stronger attack: more steps, larger ones, or AutoAttack."
        yield _check(name, missed, sentence, advice, missed=share(missed))
