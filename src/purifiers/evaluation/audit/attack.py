"""One defended model under every attack of an audit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from purifiers.attacks import VIEWS, Attack, AutoAttack
from purifiers.attacks.generate import Adversarial
from purifiers.attacks.views import Expectation
from purifiers.classifiers.probes import gradient_at, is_random
from purifiers.console import Stopwatch, detail, duration
from purifiers.data import ImageSet, to_float
from purifiers.errors import AttackError, InputError
from purifiers.evaluation import metrics
from purifiers.evaluation.audit.result import EVERYTHING, LEFT_OUT, ON, RAND, WORST, group_of
from purifiers.evaluation.evaluator import Evaluator, Measured
from purifiers.evaluation.records import AttackWarning, Record
from purifiers.purifier import PurifiedClassifier
from purifiers.recipes.audit_settings import TRANSFER, AuditSettings
from purifiers.seeds import seed_for

PROBE = 4
"""Images that decide whether a model is random, and whether it has a gradient."""


@dataclass(frozen=True)
class Subject:
    """A defended model to audit, with its name and that of its classifier for the records."""

    name: str
    defended: PurifiedClassifier
    classifier_name: str = "classifier"


@dataclass(frozen=True)
class _Planned:
    view: str
    name: str
    attack: Attack
    model: nn.Module
    count: int
    slow: bool


class Composite:
    """The worst case over attacks, image by image: an image counts as right only if it is right under all of them."""

    def __init__(self, data: ImageSet, right: Tensor) -> None:
        self.images = to_float(data.images)  # of each the first version that broke it, or the last that was tried
        self.right = right.clone()  # bool (N,), on the CPU: under every attack, and unattacked
        self.fewest: int | None = None  # the smallest number of images on which an attack was run; None before the first
        self.seconds = 0.0  # of all attacks

    def add(self, places: Tensor, adversarial: Tensor, right: Tensor, of: int, seconds: float = 0.0) -> None:
        """Add an attack, meant for ``of`` images, of which those at ``places``, int64 (M,), were not broken already.

        Of these, ``adversarial`` (M, 3, H, W) are the versions, and ``right``, bool (M,), which the defended model gets right.
        """
        still = self.right[places]
        device = self.images.device
        self.images[places[still].to(device)] = adversarial[still.to(device)]
        self.right[places] = still & right
        self.fewest = of if self.fewest is None else min(self.fewest, of)
        self.seconds += seconds


def positions(within: Tensor, chosen: Tensor) -> Tensor:
    """The places of the sorted indices ``chosen`` among the sorted indices ``within``, which contain them; on the CPU."""
    return torch.searchsorted(within.cpu(), chosen.cpu())


class Auditor:
    """Attacks one defended model, in evaluation mode, and keeps the worst case.

    Args:
        subject, evaluator: the defended model; of its classifier, with the images.
        settings, surrogates: the attacks; models that are attacked in its place under ``transfer``, by name.
    """

    def __init__(
        self, subject: Subject, evaluator: Evaluator, settings: AuditSettings, surrogates: Mapping[str, nn.Module]
    ) -> None:
        self.subject, self.evaluator, self.settings, self.surrogates = subject, evaluator, settings, surrogates
        few = to_float(evaluator.data.images[:PROBE])
        self.random = is_random(subject.defended, few)  # it draws random numbers
        self.differentiable = bool(gradient_at(subject.defended, few).nan_to_num(1).any())  # its gradient is not zero
        self._drawn = self._subset(settings.limit_of("", subject.name))
        self._data = evaluator.data.subset(self._drawn)
        self.records: list[Record] = []
        self.warnings: list[AttackWarning] = []
        self._composites: dict[tuple[str, str], Composite] = {}  # by norm and group
        self._tried: list[tuple[_Planned, Tensor, Tensor]] = []  # with places, and which were right there

    def run(self) -> None:
        """Run everything, and fill ``records`` and ``warnings``."""
        record, right = self.evaluator.measure(self.subject.name, self.subject.defended, self._data)
        self.records.append(record)
        # Slow attacks come last: a cascade spares them the images that quick ones break.
        for planned in sorted(self._plan(), key=lambda planned: planned.slow):
            for group in (EVERYTHING, group_of(planned.view)):
                if (planned.attack.norm, group) not in self._composites:
                    self._composites[planned.attack.norm, group] = Composite(self._data, right)
            self._attack(planned)
        for (norm, group), composite in self._composites.items():
            fewest = self._composites[norm, EVERYTHING].fewest
            if composite.fewest is not None and fewest is not None:
                radius = self.settings.epsilon if norm == "linf" else self.settings.epsilon_l2
                places = self._places(fewest)
                self.records.append(self._combined(composite, places, WORST, group, (norm, radius), composite.seconds))

    def known(self) -> dict[str, Tensor]:
        """For the trust checks: of the images that all attacks in the L-inf ball share, which are right, bool, by attack."""
        total = self._composites.get(("linf", EVERYTHING))
        if total is None or total.fewest is None:
            return {}
        common = self._places(total.fewest)
        found = {
            group: composite.right[common]
            for (norm, group), composite in self._composites.items()
            if norm == "linf" and group in ("white-box", "black-box", "transfer") and composite.fewest is not None
        }
        # Attacks of a cascade are not made on the same images.
        for key, kind in () if self.settings.cascade else (("one-step", "fgsm"), ("iterative", "pgd")):
            for planned, places, right in self._tried:
                if (planned.view, planned.attack.kind, planned.attack.norm) == ("full", kind, "linf"):
                    found.setdefault(key, right[positions(places, common)])
        return found

    def reported(self, count: int) -> Tensor | None:
        """For the trust checks, of their ``count`` images: which are right under all white-box attacks in the L-inf ball, bool
        (count,); False where not all of these were run. None if there was no such attack."""
        white = self._composites.get(("linf", "white-box"))
        if white is None or white.fewest is None:
            return None
        images = self._subset(count)
        shared = self._subset(min(count, white.fewest))
        right = torch.zeros(count, dtype=torch.bool)
        right[positions(images, shared)] = white.right[positions(self._drawn, shared)]
        return right

    @property
    def averaged(self) -> bool:
        """Whether an attack averaged over the model's random numbers."""
        return any(planned.view == "eot" or getattr(planned.attack, "version", "") == "rand" for planned, _, _ in self._tried)

    def _plan(self) -> Iterator[_Planned]:
        settings, defended = self.settings, self.subject.defended
        for view in settings.views:
            names = settings.views.get(view, ())
            if view != TRANSFER and VIEWS[view].random_only and not self.random:
                continue
            if view == "bpda" and not self.differentiable:
                names = tuple(dict.fromkeys((*settings.views.get("full", ()), *names)))
            if view == TRANSFER:
                models = {ON + name: model for name, model in self.surrogates.items()}
            elif view == "eot":
                models = {"": Expectation(defended if self.differentiable else VIEWS["bpda"](defended), settings.draws)}
            else:
                models = {"": VIEWS[view](defended)}
            for chosen in names:
                attack, shown = settings.attacks[chosen], chosen
                if self.random and view in ("full", "bpda") and isinstance(attack, AutoAttack):
                    attack, shown = attack.model_copy(update={"version": "rand"}), chosen + RAND
                count = min(len(self._data), settings.limit_of(chosen, self.subject.name))
                for suffix, model in models.items():
                    yield _Planned(view, shown + suffix, attack, model, count, slow=chosen in settings.limits)

    def _attack(self, planned: _Planned) -> None:
        view, name, attack, watch = planned.view, planned.name, planned.attack, Stopwatch()
        total, group = (self._composites[attack.norm, key] for key in (EVERYTHING, group_of(view)))
        ball = (attack.norm, attack.epsilon)
        subset = self._places(planned.count)
        places = subset[group.right[subset]] if self.settings.cascade else subset
        found = Adversarial(to_float(self._data.images[:0]), {}, 0, 0.0)
        if len(places):
            try:
                found, noted = self.evaluator.attack(self.subject.name, view, planned.model, name, attack, self._at(places))
            except (AttackError, InputError) as error:
                message = f"{self.subject.name}: {LEFT_OUT}: {error}"
                self.warnings.append(AttackWarning(view=view, attack=name, message=message))
                return
            self.warnings += [one.model_copy(update={"message": f"{self.subject.name}: {one.message}"}) for one in noted]
            record, right = self._measure(places, found, view, name, ball)
        else:
            record, right = self._combined(group, subset, view, name, ball, 0.0), group.right[places]
        self._tried.append((planned, places, right))
        for composite in (total, group):
            composite.add(places, found.images, right, planned.count, found.seconds)
        if self.settings.cascade:
            record = _counted(record, group.right[subset]).model_copy(update={"attacked": len(places)})
        self.records.append(record)
        result = f"{record.accuracy:.1%} of {record.n:,} images, {duration(watch.seconds)}"
        detail(f"{self.subject.name}: {name} ({view}): {result}")

    def _combined(
        self, composite: Composite, places: Tensor, view: str, attack: str, ball: tuple[str, float | None], seconds: float
    ) -> Record:
        images = composite.images[places.to(composite.images.device)]
        record, _ = self._measure(places, Adversarial(images, {}, 0, seconds), view, attack, ball)
        return _counted(record, composite.right[places])

    def _measure(self, places: Tensor, found: Adversarial, view: str, attack: str, ball: tuple[str, float | None]) -> Measured:
        # Of a random purifier an image gets one draw under all attacks.
        among = (self._data, places) if self.random else None
        subject, data = self.subject, self._at(places)
        return self.evaluator.measure(subject.name, subject.defended, data, view, attack, ball, found, among)

    def _subset(self, count: int) -> Tensor:
        return self.evaluator.data.drawn(count, seed_for(self.evaluator.seed, "limit"))

    def _places(self, count: int) -> Tensor:
        return positions(self._drawn, self._subset(count))

    def _at(self, places: Tensor) -> ImageSet:
        return self._data.subset(places.to(self._data.images.device))


def _counted(record: Record, right: Tensor) -> Record:
    """``record`` with the accuracy over the images that ``right``, bool (N,), is about."""
    n, count = len(right), int(right.sum())
    return record.model_copy(update={"n": n, "accuracy": count / n, "ci95": metrics.wilson_interval(count, n)})
