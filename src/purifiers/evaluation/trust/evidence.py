"""What the trust checks look at: one measurement of a defended model, a number for each image; nothing is judged here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from purifiers.attacks.base import frozen
from purifiers.attacks.views import bpda
from purifiers.cache import Cache
from purifiers.classifiers.probes import are_probabilities, relative_difference
from purifiers.data import ImageSet, slices, to_float
from purifiers.device import memory_for
from purifiers.errors import DeviceMemoryError
from purifiers.evaluation.metrics import classes
from purifiers.forecast import current
from purifiers.gradient_steps import Norm, pgd, random_start
from purifiers.purifier import PurifiedClassifier
from purifiers.seeds import generator_for, reproducible, seed_for

Advance = Callable[[float], None]
Loss = Callable[[Tensor, Tensor], Tensor]
cross_entropy: Loss = partial(F.cross_entropy, reduction="none")
"""What the attack climbs, (N,)."""

LONG = 50
"""Steps of the attack."""
SHORT = LONG // 2
"""Steps of the other attacks, which are compared with the first half of the long one, or with each other."""
STEP = 0.1
"""A step's length as a share of epsilon: 25 of them cross the ball, from side to side, and small ones show the loss."""
STARTS = 3
"""Random starts, that of the long attack among them."""
FACTORS = (0.5, 2.0, 4.0)
"""Other epsilons, as multiples."""
UNBOUNDED_STEPS = 100
"""Steps of the attack that may change everything; of 1/50 of the range, so that every pixel can cross it twice."""
PROBES = tuple(1 / 1020 / 4**shorter for shorter in range(6))
"""Lengths at which the loss is compared with its gradient, in [0,1] units: from a quarter of a grey level down to a 4,096th. A
true gradient is right about one of them, whatever curvature (at the longest) and rounding (at the shortest) do: `cifar10`
bends so much that half of its gradients are right only below a 64th. A purifier that rounds does not move at any of them."""
_ATTACKS = (LONG, LONG, 1, UNBOUNDED_STEPS, *[SHORT] * (STARTS - 1 + len(FACTORS) + 1))
PASSES = 2 + 2 + 2 * len(PROBES) + sum(steps + 1 for steps in _ATTACKS)
"""What the evidence costs: passes of all images, forward and mostly backward too."""


@dataclass(frozen=True)
class Evidence:
    """One entry for each of N images, along the last dimension."""

    difference: Tensor  # (N,), largest difference between the logits of two passes, relative to the largest logit
    probabilities: Tensor  # (N,), the outputs lie in [0,1] and their sum is 1
    saturated: Tensor  # (N,), the true class's probability rounds to 1 in float32
    gradient_finite: Tensor  # (N,), the gradient of the cross-entropy is finite
    gradient_length: Tensor  # (N,), its length: L1 for attacks in L-inf, which go by its sign; L2 for attacks in L2
    predicted: Tensor  # (len(PROBES), N), the change of the margin between two near images on both sides, by its gradient
    observed: Tensor  # (len(PROBES), N), the change that there is
    cosine: Tensor  # (N,), between the margin's gradients at the image and a quarter of a grey level beside it
    losses: Tensor  # (LONG + 1, N), the cross-entropy along the long attack
    right: Tensor  # (LONG + 1, N), is the image classified correctly there?
    starts: Tensor  # (STARTS, N), the same after SHORT steps from each random start; the first is that of the long attack
    epsilons: Tensor  # (len(FACTORS), N), the same after SHORT steps with other epsilons
    margin: Tensor  # (N,), the same after SHORT steps that climb the margin instead of the cross-entropy
    bpda: Tensor  # (N,), the same after LONG steps that take the identity's gradient for the purifier's
    same: Tensor  # (N,), the first steps of both attacks go to the same loss: the purifier passes on the identity's gradient
    one_step: Tensor  # (N,), the same after one step of length epsilon
    unbounded: Tensor  # (N,), the same after an attack that may change everything


def gather(
    model: PurifiedClassifier,
    data: ImageSet,
    epsilon: float,
    norm: Norm,
    seed: int,
    batch_size: int,
    cache: Cache,
    advance: Advance,
) -> Evidence | None:
    """Measure everything, batch by batch, but what is in the cache; None if a batch is left to another process. ``advance`` is
    called before each pass, with numbers that add up to ``len(data)``."""
    parts: list[Evidence] = []
    batches, device = slices(len(data), batch_size), data.images.device
    first = cache.shard.begin(len(batches))
    with frozen(model), torch.autocast(device.type, enabled=False):
        for number, batch in enumerate(batches, first):
            images, labels, own_seed = data.images[batch], data.labels[batch], seed_for(seed, "trust", batch.start)
            key = cache.key(model, images, labels, epsilon, norm, own_seed)
            found = cache.load("evidence", key, lambda state: Evidence(**{name: one.to(device) for name, one in state.items()}))
            if found is None and (plan := current()):
                pace = plan.passes(model, to_float(images[:1]), batch_size, gradient=True)
                if cache.shard.takes(number):
                    plan.note(pace.seconds(len(images), 1, PASSES), len(data))
            elif found is not None or cache.left("evidence", key, number):
                advance(len(images))
            else:
                found = _measured(_Batch(model, to_float(images), labels, epsilon, norm, own_seed, advance))
                cache.save("evidence", key, vars(found))
            parts += [] if found is None else [found]
    return _joined(parts) if len(parts) == len(batches) else None


def _joined(parts: Sequence[Evidence]) -> Evidence:
    return Evidence(**{name: torch.cat([getattr(part, name) for part in parts], dim=-1) for name in vars(parts[0])})


def _measured(batch: "_Batch") -> Evidence:
    """Its evidence; where the memory is too small for it, that of its halves."""
    count = len(batch.images)
    try:
        with memory_for("an image in the trust checks: leave them out, with audit.check_images=0"):
            return batch.evidence()
    except DeviceMemoryError:
        if count < 2:
            raise
    halves = (slice(0, count // 2), slice(count // 2, count))
    return _joined([_measured(replace(batch, images=batch.images[half], labels=batch.labels[half])) for half in halves])


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the best wrong class leads the true one, (N,): has no exponential that could underflow."""
    true = labels[:, None]
    wrong = logits.scatter(1, true, -torch.inf).amax(1)
    return wrong - logits.gather(1, true).squeeze(1)


@dataclass(frozen=True)
class _Batch:
    model: PurifiedClassifier
    images: Tensor
    labels: Tensor
    epsilon: float
    norm: Norm
    seed: int
    advance: Advance

    def evidence(self) -> Evidence:
        with torch.no_grad():
            logits, again = self._logits(self.images), self._logits(self.images, draw="another")
        rest = (logits.softmax(1) * (1 - F.one_hot(self.labels, logits.shape[1]))).sum(1)
        epsilon = self.epsilon
        losses, right = self._climb(cross_entropy, epsilon, LONG, start=0)
        starts = [right[SHORT]] + [self._climb(cross_entropy, epsilon, SHORT, start)[1][-1] for start in range(1, STARTS)]
        epsilons = [self._climb(cross_entropy, factor * epsilon, SHORT, start=0)[1][-1] for factor in FACTORS]
        losses_bpda, right_bpda = self._climb(cross_entropy, epsilon, LONG, start=0, identity=True)
        first, other = losses[:3], losses_bpda[:3]  # later ones grow apart from the last digit on
        everything = 1.0 if self.norm == "linf" else self.images[0].numel() ** 0.5
        return Evidence(
            difference=relative_difference(logits, again),
            probabilities=are_probabilities(logits),
            saturated=rest < torch.finfo(torch.float32).eps / 2,
            losses=losses,
            right=right,
            starts=torch.stack(starts),
            epsilons=torch.stack(epsilons),
            margin=self._climb(margin, epsilon, SHORT, start=0)[1][-1],
            bpda=right_bpda[-1],
            same=((first - other).abs() <= 1e-4 * first.abs()).all(0),
            one_step=self._climb(cross_entropy, epsilon, 1, None, step=epsilon)[1][-1],
            unbounded=self._climb(cross_entropy, everything, UNBOUNDED_STEPS, None, everything / 50)[1][-1],
            **self._gradients(),
        )

    def _logits(self, images: Tensor, *, draw: str = "one", identity: bool = False) -> Tensor:
        """By the same draw of a random model in every pass (Carlini et al., "Verify that attacks succeed if randomness is
        fixed"): the checks are of its gradient and of attacks on it."""
        self.advance(len(images) / PASSES)
        with reproducible(seed_for(self.seed, draw, "draw"), images.device):
            return (bpda(self.model) if identity else self.model)(images)

    def _climb(
        self, loss: Loss, epsilon: float, num_steps: int, start: int | None, step: float | None = None, identity: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Loss and correctness at every step of PGD, the start first: each (num_steps + 1, N); ``identity`` takes the
        identity's gradient for the purifier's."""
        losses, right = [], []

        def note(logits: Tensor) -> Tensor:
            values = loss(logits, self.labels)
            losses.append(values.detach())
            right.append(classes(logits) == self.labels)
            return values

        def objective(candidate: Tensor) -> Tensor:
            # An attacker would not stop at a gradient that is missing or not finite: such pixels stay where they are.
            candidate.register_hook(lambda gradient: gradient.nan_to_num(0, 0, 0))
            return _with_gradient(note(self._logits(candidate, identity=identity)), candidate)

        generator = generator_for(self.seed, "start", start or 0, device=self.images.device)
        adversarial = pgd(
            objective,
            self.images,
            epsilon=epsilon,
            step_size=STEP * epsilon if step is None else step,
            num_steps=num_steps,
            norm=self.norm,
            start=None if start is None else random_start(self.images, epsilon, self.norm, generator),
        )
        with torch.no_grad():
            note(self._logits(adversarial))
        return torch.stack(losses), torch.stack(right)

    def _gradients(self) -> dict[str, Tensor]:
        def gradients_at(images: Tensor, *losses: Loss) -> list[Tensor]:
            images = images.clone().requires_grad_(True)
            logits = self._logits(images.view_as(images))
            values = [_with_gradient(loss(logits, self.labels), images) for loss in losses]
            return [torch.autograd.grad(value, images, retain_graph=value is not values[-1])[0] for value in values]

        attackers, gradient = gradients_at(self.images, cross_entropy, margin)
        signs = torch.randint(2, self.images.shape, generator=generator_for(self.seed, "beside")).to(self.images) * 2 - 1
        (beside,) = gradients_at((self.images + PROBES[0] * signs).clamp(0, 1), margin)
        predicted, observed = [], []
        for probe in PROBES:
            ahead, behind = ((self.images + side * probe * gradient.sign()).nan_to_num(0).clamp(0, 1) for side in (1, -1))
            predicted.append(((ahead - behind) * gradient).flatten(1).sum(1))
            with torch.no_grad():
                observed.append(margin(self._logits(ahead), self.labels) - margin(self._logits(behind), self.labels))
        return {
            "gradient_finite": attackers.isfinite().flatten(1).all(1),
            "gradient_length": attackers.flatten(1).norm(p=1 if self.norm == "linf" else 2, dim=1),
            "predicted": torch.stack(predicted),
            "observed": torch.stack(observed),
            "cosine": F.cosine_similarity(gradient.flatten(1), beside.flatten(1)),
        }


def _with_gradient(values: Tensor, images: Tensor) -> Tensor:
    """The sum of ``values``, with a gradient of zero where the model passes none to its images."""
    return values.sum() + 0 * images.sum()
