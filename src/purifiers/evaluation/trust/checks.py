"""The trust checks: each reads the evidence and says passed, failed or not applicable, with one sentence and its figures.

Most are in "On Evaluating Adversarial Robustness" (Carlini et al. 2019, arXiv 1902.06705), named here by the heading they
stand under, or among the six indicators I1 to I6 of "Indicators of Attack Failure" (Pintor et al. 2022).
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

from torch import Tensor

from purifiers.classifiers.probes import RANDOM
from purifiers.evaluation.trust.check import SIGNIFICANT, Check, decided, exceeds, not_applicable, of, share, weaker
from purifiers.evaluation.trust.evidence import FACTORS, LONG, SHORT, STARTS, UNBOUNDED_STEPS, Evidence

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


def judge(evidence: Evidence, norm: Literal["linf", "l2"], known: Mapping[str, Tensor], eot: bool) -> list[Check]:
    """All checks, in the order in which a report shows them: the model, its gradient, the attack, attacks side by side."""
    return [
        _outputs_are_logits(evidence),
        _deterministic(evidence, eot),
        _gradients_exist(evidence, norm),
        _gradients_are_true(evidence),
        _gradients_are_steady(evidence),
        _own_gradient_beats_the_identitys(evidence),
        _another_loss_changes_little(evidence),
        _loss_rises(evidence),
        _keeps_what_it_finds(evidence),
        _more_steps_do_not_hurt(evidence),
        _has_converged(evidence),
        _restarts_change_little(evidence),
        _larger_epsilons_are_stronger(evidence),
        _unbounded_breaks_all(evidence),
        _iterative_beats_one_step(evidence, known),
        _white_box_beats("black-box", evidence, known),
        _white_box_beats("transfer", evidence, known),
    ]


def _outputs_are_logits(evidence: Evidence) -> Check:
    """AutoAttack's checks.py: probabilities hide the gradient behind one more softmax."""
    bad = bool(evidence.probabilities.all())
    said = (
        "All outputs lie in [0,1] and sum to 1: they are probabilities, whose gradient vanishes; attack the logits."
        if bad
        else "The outputs are logits, not probabilities."
    )
    return decided("outputs are logits", not bad, said, probabilities=share(evidence.probabilities))


def _deterministic(evidence: Evidence, eot: bool) -> Check:
    """Carlini et al., "Properly ensemble over randomness"; AutoAttack's checks.py."""
    largest = evidence.difference.nan_to_num(0).max().item()
    random = largest > RANDOM
    if not random:
        said = "Two passes of the same images agree."
    elif eot:
        said = f"Two passes of the same images differ by {largest:.2g} of the largest logit, and the attack averaged (EOT)."
    else:
        said = (
            f"Two passes of the same images differ by {largest:.2g} of the largest logit: the model is random, and an attack "
            "that averages over its randomness (EOT) may break what this one could not."
        )
    return decided("deterministic, or EOT used", eot or not random, said, difference=largest)


def _gradients_exist(evidence: Evidence, norm: str) -> Check:
    """Pintor et al., I1; Carlini et al., "Approximate non-differentiable layers"; AutoAttack's checks.py."""
    broken = ~evidence.gradient_finite
    absent = evidence.gradient_finite & (evidence.gradient_length <= SMALLEST[norm])
    bad = exceeds((broken | absent).sum(), evidence.images, NO_GRADIENT)
    said = f"The loss has a gradient on {of(~(broken | absent))} images."
    if bad:
        said = (
            f"The loss has a gradient of zero on {of(absent)} images and one that is not finite on {int(broken.sum())}: "
            "attacks by gradients cannot see what to do there; attack by queries and transfer."
        )
    return decided("gradients exist", not bad, said, zero=share(absent), not_finite=share(broken))


def _gradients_are_true(evidence: Evidence) -> Check:
    """For small steps the loss must rise by what the gradient says; one that is made up (BPDA, straight-through, detached
    parts) does not tell what the model does (Athalye et al. 2018, obfuscated gradients)."""
    name = "gradients are true"
    has = evidence.predicted.isfinite().all(0) & (evidence.predicted.abs().amin(0) > 0)
    if not has.any():
        return not_applicable(name, "There is no gradient that could be true or false.")
    ratios = evidence.observed[:, has] / evidence.predicted[:, has]
    error, nearest = (ratios - 1).abs().nan_to_num(1, posinf=1e6).min(0)
    wrong = error > TRUE_WITHIN
    ratio = ratios.gather(0, nearest[None]).nan_to_num(0).median().item()
    bad = exceeds(wrong.sum(), len(wrong), FALSE)
    said = f"Small steps along the gradient change the loss by what the gradient says on {of(~wrong)} images."
    if bad:
        said = (
            f"The gradient is not that of the model: small steps along it change the loss by {ratio:.2g} of what it says, in "
            "the median. A part of the model rounds, is detached or passes on another gradient (BPDA), or the loss bends "
            "within thousandths of a grey level, so what attacks by this gradient leave is an upper bound on robustness; "
            "attack by queries and transfer too."
        )
    return decided(name, not bad, said, false=share(wrong), ratio=ratio)


def _gradients_are_steady(evidence: Evidence) -> Check:
    """Shattered gradients (Athalye et al. 2018): true at a point and worthless beside it; Pintor et al., I2."""
    name = "gradients are steady"
    has = evidence.predicted.isfinite().all(0) & (evidence.predicted.abs().amin(0) > 0)
    if not has.any():
        return not_applicable(name, "There is no gradient that could be steady.")
    cosine = evidence.cosine[has].nan_to_num(0).median().item()
    bad = cosine < STEADY
    said = f"Gradients a quarter of a grey level apart have a cosine of {cosine:.2g}, in the median."
    if bad:
        said += " They are noise to an attack that takes steps; attack a smoothed loss, or by queries and transfer."
    return decided(name, not bad, said, cosine=cosine)


def _another_loss_changes_little(evidence: Evidence) -> Check:
    """Croce and Hein 2020: cross-entropy underflows where logits are large, and may lead elsewhere than to another class; the
    margin of the logits does neither."""
    missed = evidence.starts[0] & ~evidence.margin
    bad = exceeds(missed.sum(), evidence.images, LITTLE)
    said = f"The margin of the logits as a loss breaks {of(missed)} images that the cross-entropy leaves."
    if bad:
        flat = missed & evidence.saturated
        said += f" Of {of(flat)} the true class has a probability that rounds to 1, where the cross-entropy is flat."
        said += " Attack the margin (CW, DLR)."
    figures = {"saturated": share(evidence.saturated), "missed": share(missed)}
    return decided("another loss changes little", not bad, said, **figures)


def _loss_rises(evidence: Evidence) -> Check:
    """Pintor et al. in their first version (arXiv 2106.09947v1), "increasing loss": who climbs noise finds things by chance."""
    steps = evidence.losses.nan_to_num(0).diff(dim=0)
    rises, falls = steps.clamp_min(0).sum(0), (-steps).clamp_min(0).sum(0)
    still = rises == 0
    lost = (falls / rises.clamp_min(1e-30)).clamp_max(1).nan_to_num(1).where(~still, 1).median().item()
    bad = lost > FALLS
    said = f"Along the attack the loss falls by {lost:.2g} of what it rises, in the median image."
    if bad:
        said = (
            f"The loss does not rise along the attack on {of(still)} images, and falls by {lost:.2g} of what it rises in the "
            "median one: the attack does not climb; smooth the loss or take other step sizes."
        )
    return decided("the loss rises along the attack", not bad, said, lost=lost, still=share(still))


def _own_gradient_beats_the_identitys(evidence: Evidence) -> Check:
    """Athalye et al. 2018 (BPDA); Carlini et al., "Approximate non-differentiable layers": a purifier's output is close to its
    input, so whoever takes it for the identity on the way back has a poor gradient; only a hidden one is poorer."""
    name = "the purifier's gradient beats the identity's"
    if evidence.same.all():
        return not_applicable(name, "What the purifier passes on is the identity's gradient: both attacks are one.")
    missed = evidence.right[LONG] & ~evidence.bpda
    bad = exceeds(missed.sum(), evidence.images, LITTLE)
    said = f"The identity's gradient in place of the purifier's (BPDA) breaks {of(missed)} images more."
    if bad:
        said += " The purifier's own gradient vanishes or misleads; believe the attack that breaks more."
    return decided(name, not bad, said, missed=share(missed))


def _keeps_what_it_finds(evidence: Evidence) -> Check:
    """Pintor et al., I3, "silent success": the last step is what counts, though an earlier one broke the image."""
    lost = evidence.right[-1] & ~evidence.right.all(0)
    bad = exceeds(lost.sum(), evidence.images, LITTLE)
    said = f"{of(lost)} images were broken along the attack and are right again at its end."
    if bad:
        said += " Count an image as broken if any step breaks it."
    return decided("the attack keeps what it finds", not bad, said, lost=share(lost))


def _more_steps_do_not_hurt(evidence: Evidence) -> Check:
    """Carlini et al., "Verify attack convergence": on the same images, from the same start."""
    return _stronger("more steps do not hurt", evidence.right[SHORT], evidence.right[LONG], f"{SHORT} steps", f"{LONG} steps")


def _has_converged(evidence: Evidence) -> Check:
    """Carlini et al., "Ensure doubling attack iterations does not increase attack success rate"; Pintor et al., I4."""
    late = evidence.right[SHORT] & ~evidence.right[LONG]
    bad = exceeds(late.sum(), evidence.images, LITTLE)
    said = f"Doubling the steps from {SHORT} to {LONG} breaks {of(late)} images more."
    if bad:
        said += " The attack has not finished; give it more steps."
    return decided("more steps no longer help", not bad, said, late=share(late))


def _restarts_change_little(evidence: Evidence) -> Check:
    """Carlini et al., "Start search from random offsets"."""
    one, all_starts = evidence.starts.float().mean().item(), share(evidence.starts.all(0))
    bad = exceeds(round((one - all_starts) * evidence.images), evidence.images, LITTLE)
    said = f"One random start leaves {one:.1%} robust accuracy, the worst of {STARTS} starts {all_starts:.1%}."
    if bad:
        said += " What an attack finds depends on where it starts, a mark of hidden gradients; use many restarts."
    return decided("random restarts change little", not bad, said, one=one, worst=all_starts)


def _larger_epsilons_are_stronger(evidence: Evidence) -> Check:
    """Carlini et al., "Perform basic sanity tests": more room can only help."""
    curve = dict(zip(FACTORS, evidence.epsilons, strict=True)) | {1.0: evidence.starts[0]}
    factors = sorted(curve)
    pairs = pairwise(factors)
    bad = [(small, large) for small, large in pairs if weaker(curve[large], curve[small]) < SIGNIFICANT]
    told = ", ".join(f"{share(curve[factor]):.1%} at {factor:g}" for factor in factors)
    said = f"Robust accuracy by multiples of epsilon: {told}."
    if bad:
        small, large = bad[0]
        said += f" It rises from {small:g} to {large:g}, where the attacker may do more: the attack gets lost."
    figures = {f"epsilon x {factor:g}": share(curve[factor]) for factor in factors}
    return decided("larger epsilons are stronger", not bad, said, **figures)


def _unbounded_breaks_all(evidence: Evidence) -> Check:
    """Carlini et al., "Perform basic sanity tests"; Pintor et al., I6: who may change everything can turn any image."""
    bad = exceeds(evidence.unbounded.sum(), evidence.images, UNBOUNDED)
    said = f"{of(evidence.unbounded)} images withstand {UNBOUNDED_STEPS} steps that may change every pixel to any value."
    if bad:
        said += " Nothing can withstand that, so the attack is led astray, and robust accuracy is not what it says."
    return decided("an unbounded attack reaches 0 %", not bad, said, robust_accuracy=share(evidence.unbounded))


def _iterative_beats_one_step(evidence: Evidence, known: Mapping[str, Tensor]) -> Check:
    """Carlini et al., "Perform basic sanity tests"; single steps are better only where gradients mislead."""
    name = "iterative beats one-step"
    if "iterative" in known and "one-step" in known:
        return _stronger(name, known["one-step"], known["iterative"], "the one-step attack", "the iterative attack")
    return _stronger(name, evidence.one_step, evidence.right[LONG], "one step", f"{LONG} steps")


def _white_box_beats(other: str, evidence: Evidence, known: Mapping[str, Tensor]) -> Check:
    """Carlini et al., "Apply gradient-free attacks", "Perform a transferability analysis": who knows more breaks more."""
    name = f"white-box beats {other}"
    if other not in known:
        return not_applicable(name, f"No {other} attack was measured.")
    white = known.get("white-box", evidence.right[LONG].cpu())
    if len(white) != len(known[other]):
        return not_applicable(name, f"No white-box attack was measured on the images of the {other} attack.")
    return _stronger(name, known[other], white, f"the {other} attack", "the white-box attack")


def _stronger(name: str, weak: Tensor, strong: Tensor, weak_name: str, strong_name: str) -> Check:
    """Two attacks on the same images, (N,) each; the second must not be weaker beyond chance."""
    chance = weaker(strong, weak)
    bad = chance < SIGNIFICANT
    said = f"Robust accuracy is {share(weak):.1%} after {weak_name}, {share(strong):.1%} after {strong_name}."
    if bad:
        said += " The second knows or does more and breaks fewer: it is misled, and its number is too high."
    return decided(name, not bad, said, weaker=share(weak), stronger=share(strong), chance=chance)
