"""The audit: a defended model under every threat model, and the worst case over all attacks, image by image.

The module that the attacker differentiates is the threat model (:mod:`purifiers.attacks.views`); for ``transfer`` another one.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from purifiers.attacks.base import frozen
from purifiers.cache import Cache
from purifiers.console import Stopwatch, detail, duration, progress, say
from purifiers.data import ImageSet, to_float
from purifiers.device import repeatable
from purifiers.errors import InputError
from purifiers.evaluation.audit.attack import Auditor, Subject
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.evaluator import Evaluator
from purifiers.evaluation.models import LOOK, as_data, check_defended, check_logits
from purifiers.evaluation.records import AttackWarning, Record, hardware, not_finite, versions
from purifiers.evaluation.trust import Check, trust_checks
from purifiers.kinds import faults
from purifiers.purifier import PurifiedClassifier
from purifiers.recipes.audit_settings import AuditSettings
from purifiers.recipes.load import set_value


def audit(
    purifier: nn.Module,
    classifier: nn.Module,
    images: ImageSet | Tensor | Iterable[Any],
    labels: Tensor | None = None,
    *,
    settings: AuditSettings | Mapping[str, Any] | None = None,
    surrogates: Mapping[str, nn.Module] | None = None,
    purifier_name: str = "purifier",
    classifier_name: str = "classifier",
    seed: int = 0,
    batch_size: int = 250,
    cache: Path | str | None = None,
) -> Audit:
    """Audit any purifier in front of any classifier.

    Args:
        purifier, classifier, images, labels: see :func:`purifiers.evaluate`.
        settings: the attacks, their threat models, and on how many images each is run; None takes the standard ones, within
            8/255 (L-inf) and 128/255 (L2). Hours on two cores for 1,000 images of 32 by 32 pixels; ``{"images": 20}`` gives a
            first impression. Keys may be dotted: ``{"attacks.PGD.num_steps": 50}``.
        surrogates: further models, images -> logits, by name: an attacker without access attacks these instead.
        purifier_name, classifier_name: for the records.
        seed: decides every random choice.
        batch_size: images at once.
        cache: a folder where finished attacks and measurements are kept, so that a stopped audit resumes; None keeps nothing.

    Returns:
        All records, among them the worst case (view ``worst``), and the trust checks; ``print`` shows the records as a table.

    Raises:
        InputError: images, labels, settings, a model's outputs or a surrogate are not as above.
        DataError: images that are not of 3 channels, or none.
    """
    with torch.inference_mode(False):  # whatever the caller has: attacks take gradients
        defended = PurifiedClassifier(purifier, classifier)
        data = as_data(defended, images, labels, batch_size)
        subject = Subject(purifier_name, defended, classifier_name)
        return audit_all([subject], data, settings, surrogates, seed=seed, batch_size=batch_size, cache=cache)


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in settings.items():
        set_value(content, key, deepcopy(value))
    return content


@repeatable()
def audit_all(
    subjects: Sequence[Subject],
    data: ImageSet,
    settings: AuditSettings | Mapping[str, Any] | None = None,
    surrogates: Mapping[str, nn.Module] | None = None,
    *,
    seed: int = 0,
    batch_size: int = 250,
    cache: Path | str | None = None,
) -> Audit:
    """Audit several defended models, of different names, on the same images, into one :class:`Audit`; see :func:`audit`."""
    try:
        chosen = AuditSettings.model_validate(_nested(settings) if isinstance(settings, Mapping) else settings or {})
    except ValidationError as error:
        raise InputError("\n  ".join(["the settings of the audit are not valid:", *faults(error, "audit")])) from error
    for idle in sorted(chosen.attacks.keys() - {name for names in chosen.views.values() for name in names}):
        say(f"warning: the attack '{idle}' is in none of the audit's views, and is not run")
    surrogates = surrogates or {}
    if len({subject.name for subject in subjects}) < len(subjects) or not subjects:
        raise InputError(f"an audit needs defended models of different names; got {[subject.name for subject in subjects]}")
    watch, kept = Stopwatch(), Cache(cache)
    records: list[Record] = []
    warnings: list[AttackWarning] = []
    checks: dict[str, list[Check]] = {}
    random: list[str] = []
    with frozen(*(subject.defended for subject in subjects), *surrogates.values()):
        for subject in subjects:
            classes = check_defended(subject.name, subject.defended, data)
            for title, surrogate in surrogates.items():
                with torch.no_grad():
                    other = check_logits(f"the surrogate '{title}'", surrogate, to_float(data.images[:LOOK])).shape[1]
                if other != classes:
                    behind = f"the classifier behind {subject.name}"
                    raise InputError(f"the surrogate '{title}' has {other} classes, {behind} has {classes}")
            evaluator = Evaluator(subject.defended.classifier, subject.classifier_name, data, seed, batch_size, kept)
            auditor = Auditor(subject, evaluator, chosen, surrogates)
            auditor.run()
            records += auditor.records
            warnings += auditor.warnings
            random += [subject.name] if auditor.random else []
            if chosen.check_images:
                few = evaluator.limited(min(chosen.check_images, chosen.limit_of("", subject.name)))
                checks[subject.name] = _checked(auditor, few, chosen.epsilon)
    return Audit(
        settings=chosen.resolved(),
        seed=seed,
        versions=versions(),
        hardware=hardware(data.images.device),
        seconds=watch.seconds,
        random=random,
        records=records,
        checks=checks,
        warnings=warnings + not_finite(records),
    )


def _checked(auditor: Auditor, few: ImageSet, epsilon: float) -> list[Check]:
    """The trust checks of one model, from the cache if they are finished."""
    subject, evaluator, known, reported = auditor.subject, auditor.evaluator, auditor.known(), auditor.reported(len(few))
    numbers = (few.labels, epsilon, evaluator.seed, evaluator.batch_size, known, reported, auditor.averaged)
    key = evaluator.cache.key(subject.defended, few.images, *numbers)
    found = evaluator.cache.load("checks", key, lambda state: [Check.model_validate(check) for check in state["checks"]])
    if found is None:
        watch = Stopwatch()
        results: dict[str, Any] = {"known": known, "reported": reported, "eot": auditor.averaged}
        options = {"seed": evaluator.seed, "batch_size": min(evaluator.batch_size, len(few)), **results}
        with progress(f"{subject.name}: trust checks", len(few)) as advance:
            found = trust_checks(subject.defended, few, epsilon=epsilon, advance=advance, **options)
        detail(f"{subject.name}: {len(found)} trust checks, {duration(watch.seconds)}")
        evaluator.cache.save("checks", key, {"checks": [check.model_dump() for check in found]})
    return found
