"""One defended model under every attack of an audit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.attacks import VIEWS, Attack, AutoAttack
from purifiers.attacks.generate import Adversarial, withstood_by
from purifiers.attacks.views import Expectation
from purifiers.classifiers.probes import gradient_at, is_random
from purifiers.console import Stopwatch, detail, duration, progress
from purifiers.data import ImageSet, to_float
from purifiers.errors import AttackError, InputError
from purifiers.evaluation import metrics
from purifiers.evaluation.audit.result import EVERYTHING, ON, RAND, WORST, group_of
from purifiers.evaluation.evaluator import Evaluator, Measured
from purifiers.evaluation.records import AttackWarning, Record
from purifiers.evaluation.trust.checks import KNOWN, Check, trust_checks
from purifiers.forecast import current
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
        self.fewest = len(data)  # the smallest number of images on which an attack was run
        self.seconds = 0.0  # of all attacks

    def add(self, attacked: Tensor, adversarial: Tensor, right: Tensor, of: int, seconds: float = 0.0) -> None:
        """Add an attack, meant for ``of`` images, of which ``attacked``, bool (N,), are those that were not broken already.

        Of these M images, ``adversarial`` (M, 3, H, W) are the versions, and ``right``, bool (M,), those classified correctly.
        """
        device, still = self.images.device, self.right[attacked]
        self.images[(attacked & self.right).to(device)] = adversarial[still.to(device)]
        self.right[attacked] = still & right
        self.fewest = min(self.fewest, of)
        self.seconds += seconds


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
        self._seed = seed_for(evaluator.seed, "limit")
        self._drawn = evaluator.data.drawn(settings.limit_of("", subject.name), self._seed)
        self._data = evaluator.data.subset(self._drawn)
        self.records: list[Record] = []
        self.warnings: list[AttackWarning] = []
        self._composites: dict[tuple[str, str], Composite] = {}  # by norm and group, of attacks that could be run
        self._left = torch.zeros(len(self._data), dtype=torch.bool)  # images of a cascade that are left to other processes
        self._tried: list[tuple[_Planned, Tensor]] = []  # with which images are right; False where it was not run

    def run(self) -> None:
        """Run everything, and fill ``records`` and ``warnings``."""
        record, right = self.evaluator.measure(self.subject.name, self.subject.defended, self._data)
        self.records.append(record)
        # Slow attacks come last: a cascade spares them the images that quick ones break.
        for planned in sorted(self._plan(), key=lambda planned: planned.slow):
            self._attack(planned, right)
        if self.evaluator.cache.shard.missing:  # the worst case is of whoever finds all
            return
        for (norm, group), composite in self._composites.items():
            images = self._within(self._composites[norm, EVERYTHING].fewest)
            radius = self.settings.epsilon if norm == "linf" else self.settings.epsilon_l2
            about = {"view": WORST, "attack": group, "norm": norm, "epsilon": radius}
            self.records.append(self._combined(composite, images, composite.seconds, **about))

    def checks(self) -> list[Check]:
        """The trust checks on the first images; none if anything is left to another process."""
        name, watch = self.subject.name, Stopwatch()
        few = self.evaluator.limited(min(self.settings.check_images, len(self._data)))
        white = self._composites.get(("linf", "white-box"))
        with progress(f"{name}: trust checks", len(few)) as advance:
            found = trust_checks(
                self.subject.defended,
                few,
                epsilon=self.settings.epsilon,
                seed=self.evaluator.seed,
                batch_size=min(self.evaluator.batch_size, len(few)),
                known=self._known(),
                reported=None if white is None else (white.right & self._within(white.fewest))[self._within(len(few))],
                eot=any(one.view == "eot" or getattr(one.attack, "version", "") == "rand" for one, _ in self._tried),
                cache=self.evaluator.cache,
                advance=advance,
            )
        if found:
            detail(f"{name}: {len(found)} trust checks, {duration(watch.seconds)}")
        return found

    def _known(self) -> dict[str, Tensor]:
        """Of the images that all attacks in the L-inf ball share, which are right, bool, by attack."""
        found = {group: composite.right for (norm, group), composite in self._composites.items() if norm == "linf"}
        if not found:
            return {}
        # Attacks of a cascade are not made on the same images.
        for key, kind in () if self.settings.cascade else (("one-step", "fgsm"), ("iterative", "pgd")):
            for planned, right in self._tried:
                if (planned.view, planned.attack.kind, planned.attack.norm) == ("full", kind, "linf"):
                    found.setdefault(key, right)
        common = self._within(self._composites["linf", EVERYTHING].fewest)
        return {name: right[common] for name, right in found.items() if name in KNOWN}

    def _plan(self) -> Iterator[_Planned]:
        settings, defended = self.settings, self.subject.defended
        for view, names in settings.views.items():
            if view != TRANSFER and VIEWS[view].random_only and not self.random:
                continue
            if view == "bpda" and not self.differentiable:
                names = tuple(dict.fromkeys((*settings.views.get("full", ()), *names)))
            if view == TRANSFER:
                models = {f"{ON}{name}": model for name, model in self.surrogates.items()}
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

    def _attack(self, planned: _Planned, unattacked: Tensor) -> None:
        view, name, attack, watch = planned.view, planned.name, planned.attack, Stopwatch()
        about = {"view": view, "attack": name, "norm": attack.norm, "epsilon": attack.epsilon}
        keys = [(attack.norm, key) for key in (EVERYTHING, group_of(view))]
        total, group = (self._composites.get(key) or Composite(self._data, unattacked) for key in keys)
        meant = self._within(planned.count)
        # Later attacks skip images that another process still works on: it may break them first.
        attacked = meant & group.right & ~self._left if self.settings.cascade else meant
        found = Adversarial(to_float(self._data.images[:0]))
        if attacked.any():
            # In a cascade all attacks on an image are of one process, as each needs the results of those before it.
            parts = (attacked.nonzero().flatten(), self.evaluator.batch_size) if self.settings.cascade else None
            data, model = self._at(attacked), planned.model
            try:
                found, noted = self.evaluator.attack(self.subject.name, view, model, name, attack, data, parts)
            except (AttackError, InputError) as error:
                warning = AttackWarning(view=view, attack=name, model=self.subject.name, message=str(error), left_out=True)
                self.warnings.append(warning)
                return
            self.warnings += [one.model_copy(update={"model": self.subject.name}) for one in noted]
            if found.left is not None and not self.settings.cascade:
                return
            self._left[attacked] = False if found.left is None else found.left
            record, right = self._measure(attacked, found, **about)
            if plan := current():  # as many as withstand a short attack are left for the next
                share = plan.once(withstood_by(model, attack), lambda: 1.0)
                right = right & (torch.arange(len(right)) < share * len(right))
        else:
            record, right = self._combined(group, meant, 0.0, **about), group.right[attacked]
        self._tried.append((planned, torch.zeros_like(attacked).masked_scatter(attacked, right)))
        for key, composite in zip(keys, (total, group), strict=True):
            composite.add(attacked, found.images, right, planned.count, found.seconds)
            self._composites[key] = composite
        if found.left is not None:
            return
        if self.settings.cascade:
            record = _counted(record, group.right[meant]).model_copy(update={"attacked": int(attacked.sum())})
        self.records.append(record)
        result = f"{record.accuracy:.1%} of {record.n:,} images, {duration(watch.seconds)}"
        detail(f"{self.subject.name}: {name} ({view}): {result}")

    def _combined(self, composite: Composite, images: Tensor, seconds: float, **about: Any) -> Record:
        worst = Adversarial(composite.images[images.to(composite.images.device)], seconds=seconds)
        return _counted(self._measure(images, worst, **about)[0], composite.right[images])

    def _measure(self, images: Tensor, found: Adversarial, **about: Any) -> Measured:
        # Of a random purifier an image gets one draw under all attacks.
        among = (self._data, images) if self.random else None
        return self.evaluator.measure(self.subject.name, self.subject.defended, self._at(images), found, among, **about)

    def _within(self, count: int) -> Tensor:
        """Which of the images are among the first ``count`` that are drawn, bool (N,), on the CPU."""
        return torch.isin(self._drawn, self.evaluator.data.drawn(count, self._seed)).cpu()

    def _at(self, images: Tensor) -> ImageSet:
        return self._data.subset(images.to(self._data.images.device))


def _counted(record: Record, right: Tensor) -> Record:
    """``record`` with the accuracy over the images that ``right``, bool (N,), is about."""
    n, count = len(right), int(right.sum())
    return record.model_copy(update={"n": n, "accuracy": count / n, "ci95": metrics.wilson_interval(count, n)})
