"""One defended model under every attack of an audit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from purifiers.attacks import VIEWS, Attack, AutoAttack
from purifiers.attacks.base import frozen
from purifiers.attacks.generate import Adversarial
from purifiers.attacks.views import Expectation
from purifiers.classifiers.probes import gradient_at, is_random
from purifiers.console import Stopwatch, detail, duration
from purifiers.data import ImageSet, to_float
from purifiers.errors import AttackError, InputError
from purifiers.evaluation import metrics
from purifiers.evaluation.audit.result import EVERYTHING, LEFT_OUT, WORST, group_of
from purifiers.evaluation.audit.worst import Composite, positions
from purifiers.evaluation.evaluator import Among, Evaluator
from purifiers.evaluation.records import AttackWarning, Record
from purifiers.purifier import PurifiedClassifier
from purifiers.recipes.audit_settings import TRANSFER, AuditSettings
from purifiers.seeds import seed_for

PROBE = 4
"""Images on which it is found out whether a model is random."""


@dataclass(frozen=True)
class Subject:
    """A defended model to audit: its name and that of its classifier, for the records, and the model."""

    name: str
    defended: PurifiedClassifier
    classifier_name: str = "classifier"


@dataclass(frozen=True)
class _Planned:
    """One attack to run: on which model, under which name, on how many images."""

    view: str
    name: str
    attack: Attack
    model: nn.Module
    count: int
    slow: bool


class Auditor:
    """Attacks one defended model, and keeps the worst case.

    Args:
        subject: the defended model.
        evaluator: of its classifier, with the images.
        settings: what to attack it with.
        surrogates: models that are attacked in its place under ``transfer``, by name.

    Attributes:
        random: does it draw random numbers?
        differentiable: does it pass a gradient to its images that is not zero?
        records, warnings: filled by :meth:`run`.
    """

    def __init__(
        self, subject: Subject, evaluator: Evaluator, settings: AuditSettings, surrogates: Mapping[str, nn.Module]
    ) -> None:
        self.subject, self.evaluator, self.settings, self.surrogates = subject, evaluator, settings, surrogates
        data = evaluator.data
        self.random = is_random(subject.defended, to_float(data.images[:PROBE]))
        with frozen(subject.defended):
            self.differentiable = bool(gradient_at(subject.defended, to_float(data.images[:PROBE])).nan_to_num(1).any())
        self._drawn = self._subset(settings.limit_of("", subject.name))
        self._data = data.subset(self._drawn)
        self.records: list[Record] = []
        self.warnings: list[AttackWarning] = []
        self._composites: dict[tuple[str, str], Composite] = {}  # by norm and group
        self._tried: list[tuple[_Planned, Tensor, Tensor]] = []  # with places, and what was right there

    def run(self) -> None:
        """Run everything, and fill ``records`` and ``warnings``."""
        record, right = self.evaluator.measure(self.subject.name, self.subject.defended, self._data)
        self.records.append(record)
        # Slow attacks come last, so that a cascade spares them what quick ones break.
        for planned in sorted(self._plan(), key=lambda planned: planned.slow):
            keys = [(planned.attack.norm, name) for name in (EVERYTHING, group_of(planned.view))]
            for key in keys:
                if key not in self._composites:
                    self._composites[key] = Composite(self._data, right)
            self._attack(planned, *(self._composites[key] for key in keys))
        for (norm, name), composite in self._composites.items():
            self._worst(norm, name, composite)

    def known(self) -> dict[str, Tensor] | None:
        """For the trust checks: of the images that all attacks in the L-inf ball share, which are right, bool, by attack."""
        total = self._composites.get(("linf", EVERYTHING))
        if total is None or total.fewest is None:
            return None
        common = positions(self._drawn, self._subset(total.fewest))
        found = {
            group: composite.right[common]
            for (norm, group), composite in self._composites.items()
            if norm == "linf" and group in ("white-box", "black-box", "transfer") and composite.attacks
        }
        # Attacks of a cascade are not made on the same images.
        for key, kind in () if self.settings.cascade else (("one-step", "fgsm"), ("iterative", "pgd")):
            for planned, places, right in self._tried:
                if (planned.view, planned.attack.kind, planned.attack.norm) == ("full", kind, "linf"):
                    found.setdefault(key, right[positions(places, common)])
        return found

    @property
    def averaged(self) -> bool:
        """Did an attack average over the model's random numbers?"""
        return any(planned.view == "eot" or getattr(planned.attack, "version", "") == "rand" for planned, _, _ in self._tried)

    def _plan(self) -> Iterator[_Planned]:
        settings, defended = self.settings, self.subject.defended
        for view in settings.views:
            names = settings.views.get(view, ())
            if view != TRANSFER and VIEWS[view].random_only and not self.random:
                continue
            if view == "bpda" and not self.differentiable:
                names = tuple(dict.fromkeys((*settings.views.get("full", ()), *names)))
            if view == "transfer":
                models = {f" on {name}": model for name, model in self.surrogates.items()}
            elif view == "eot":
                models = {"": Expectation(defended if self.differentiable else VIEWS["bpda"](defended), settings.draws)}
            else:
                models = {"": VIEWS[view](defended)}
            for chosen in names:
                attack, shown = settings.attacks[chosen], chosen
                if self.random and view in ("full", "bpda") and isinstance(attack, AutoAttack):
                    attack, shown = attack.model_copy(update={"version": "rand"}), f"{chosen}, rand"
                count = min(len(self._data), settings.limit_of(chosen, self.subject.name))
                for suffix, model in models.items():
                    yield _Planned(view, shown + suffix, attack, model, count, slow=chosen in settings.limits)

    def _attack(self, planned: _Planned, total: Composite, group: Composite) -> None:
        evaluator, defended, name = self.evaluator, self.subject.defended, self.subject.name
        watch = Stopwatch()
        subset = positions(self._drawn, self._subset(planned.count))
        places = subset[group.right[subset]] if self.settings.cascade else subset
        found = Adversarial(to_float(self._data.images[:0]), {}, 0, 0.0)
        noted: list[AttackWarning] = []
        data = self._at(places) if len(places) else None
        try:
            if data is not None:
                found, noted = evaluator.attack(name, planned.view, planned.model, planned.name, planned.attack, data)
        except (AttackError, InputError) as error:
            self.warnings.append(AttackWarning(view=planned.view, attack=planned.name, message=f"{name}: {LEFT_OUT}: {error}"))
            return
        self.warnings += [note.model_copy(update={"message": f"{name}: {note.message}"}) for note in noted]
        ball = (planned.attack.norm, planned.attack.epsilon)
        if data is not None:
            record, right = evaluator.measure(
                name, defended, data, planned.view, planned.name, ball, found, self._among(places)
            )
            self._tried.append((planned, places, right))
            for composite in (total, group):
                composite.add(places, found.images, right, planned.count, found.seconds)
        else:
            self._tried.append((planned, places, group.right[places]))
            for composite in (total, group):
                composite.add(places, found.images, composite.right[places], planned.count)
            record = self._record_of(group, subset, planned.view, planned.name, ball, found.seconds)
        if self.settings.cascade:
            record = _counted(record, group.right[subset]).model_copy(update={"attacked": len(places)})
        self.records.append(record)
        detail(
            f"{name}: {planned.name} ({planned.view}): {record.accuracy:.1%} of {record.n:,} images, {duration(watch.seconds)}"
        )

    def _worst(self, norm: str, group: str, composite: Composite) -> None:
        shared = self._composites[norm, EVERYTHING].fewest
        if not composite.attacks or shared is None:
            return
        ball = (norm, self.settings.epsilon if norm == "linf" else self.settings.epsilon_l2)
        places = positions(self._drawn, self._subset(shared))
        self.records.append(self._record_of(composite, places, WORST, group, ball, composite.seconds))

    def _record_of(
        self,
        composite: Composite,
        places: Tensor,
        view: str,
        attack: str,
        ball: tuple[str, float | None],
        seconds: float,
    ) -> Record:
        attacked_images = Adversarial(composite.images[places.to(composite.images.device)], {}, 0, seconds)
        record, _ = self.evaluator.measure(
            self.subject.name,
            self.subject.defended,
            self._at(places),
            view,
            attack,
            ball,
            attacked_images,
            self._among(places),
        )
        return _counted(record, composite.right[places])

    def _among(self, places: Tensor) -> Among | None:
        """For a random purifier, so that an image has one draw under all attacks."""
        return (self._data, places) if self.random else None

    def _subset(self, count: int) -> Tensor:
        data = self.evaluator.data
        return data.drawn(count, seed_for(self.evaluator.seed, "limit"))

    def _at(self, places: Tensor) -> ImageSet:
        return self._data.subset(places.to(self._data.images.device))


def _counted(record: Record, right: Tensor) -> Record:
    """``record`` with the accuracy over these images, of which ``right``, bool (N,), has withstood everything."""
    n, count = len(right), int(right.sum())
    return record.model_copy(update={"n": n, "accuracy": count / n, "ci95": metrics.wilson_interval(count, n)})
