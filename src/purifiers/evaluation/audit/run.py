"""The audit: a defended model under every threat model, and the worst case over all attacks, image by image.

Which module the attacker has decides the threat model (:mod:`purifiers.attacks.views`); under ``transfer`` it is another model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from purifiers.attacks.base import frozen
from purifiers.attacks.generate import identity
from purifiers.console import Stopwatch, detail, duration, progress
from purifiers.data import ImageSet, to_float, to_uint8
from purifiers.data.images import check_images
from purifiers.errors import InputError
from purifiers.evaluation.audit.attack import Auditor, Subject
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.evaluator import Evaluator
from purifiers.evaluation.records import AttackWarning, Record, hardware, versions
from purifiers.evaluation.trust import Check, trust_checks
from purifiers.purifier import PurifiedClassifier
from purifiers.recipes.audit_settings import AuditSettings
from purifiers.recipes.load import faults
from purifiers.storage import digest, write_text


def audit(
    purifier: nn.Module,
    classifier: nn.Module,
    images: ImageSet | Tensor,
    labels: Tensor | None = None,
    *,
    settings: AuditSettings | Mapping[str, Any] | None = None,
    surrogates: Mapping[str, nn.Module] | None = None,
    name: str = "purifier",
    seed: int = 0,
    batch_size: int = 250,
    cache: Path | None = None,
) -> Audit:
    """Audit any purifier in front of any classifier.

    Args:
        purifier: images (N, 3, H, W), float32, in [0,1] -> the same; a :class:`purifiers.Purifier` or any module.
        classifier: images in [0,1] -> logits (N, classes).
        images: what is attacked: an :class:`ImageSet`, or (N, 3, H, W), uint8 or float32 in [0,1], which is rounded to the 8
            bits that image files have.
        labels: int64 (N,), the true classes; only beside a tensor of images.
        settings: the attacks, their threat models, and on how many images each is run; None takes the standard ones, within
            8/255 (L-inf) and 128/255 (L2). Hours on two cores for 1,000 images of 32 by 32 pixels; ``{"images": 20}`` gives a
            first impression.
        surrogates: further models, images -> logits, by name: what an attacker without access attacks instead.
        name: the purifier's, for the records.
        seed: decides every random choice.
        batch_size: images at once.
        cache: a folder where finished attacks and measurements are kept, so that a stopped audit goes on; None keeps nothing.

    Returns:
        All records, among them the worst case (view ``worst``), and the trust checks.

    Raises:
        InputError: images, labels, settings, a model's outputs or a surrogate are not as above.
        DataError: images that are not of 3 channels, or none.
    """
    defended = PurifiedClassifier(purifier, classifier)
    data = _as_data(defended, images, labels)
    subject = Subject(name, defended)
    return audit_all([subject], data, settings, surrogates or {}, seed=seed, batch_size=batch_size, cache=cache)


def audit_all(
    subjects: Sequence[Subject],
    data: ImageSet,
    settings: AuditSettings | Mapping[str, Any] | None = None,
    surrogates: Mapping[str, nn.Module] | None = None,
    *,
    seed: int = 0,
    batch_size: int = 250,
    cache: Path | None = None,
) -> Audit:
    """Audit several defended models on the same images, into one :class:`Audit`; arguments and errors as of :func:`audit`.

    Args:
        subjects: of different names, on the device of ``data``.
    """
    settings = _as_settings(settings)
    surrogates = surrogates or {}
    if len({subject.name for subject in subjects}) < len(subjects) or not subjects:
        raise InputError(f"an audit needs defended models of different names; got {[subject.name for subject in subjects]}")
    watch = Stopwatch()
    records: list[Record] = []
    warnings: list[AttackWarning] = []
    checks: dict[str, list[Check]] = {}
    random = []
    for subject in subjects:
        _check_models(subject, surrogates, data)
        evaluator = Evaluator(
            subject.defended.classifier, subject.classifier_name, data, seed=seed, batch_size=batch_size, cache=cache
        )
        one = Auditor(subject, evaluator, settings, surrogates)
        one.run()
        records += one.records
        warnings += one.warnings
        random += [subject.name] if one.random else []
        if settings.check_images:
            few = evaluator.limited(min(settings.check_images, settings.limit_of("", subject.name)))
            checks[subject.name] = _checked(subject, few, one, settings.epsilon, seed, batch_size, cache)
    return Audit(
        settings=settings.resolved(),
        seed=seed,
        versions=versions(),
        hardware=hardware(data.images.device),
        seconds=watch.seconds,
        random=random,
        records=records,
        checks=checks,
        warnings=warnings,
    )


def _checked(
    subject: Subject, few: ImageSet, audited: Auditor, epsilon: float, seed: int, batch_size: int, cache: Path | None
) -> list[Check]:
    """The trust checks of one, from the cache where they are finished."""
    known = audited.known() or {}
    path = None
    if cache is not None:
        known_by, _ = identity(subject.defended, to_float(few.images[:2]), seed)
        key = digest(known_by, few.images, few.labels, epsilon, seed, batch_size, known, audited.averaged)
        path = cache / f"checks-{key[:32]}.json"
    if path is not None and path.is_file():
        try:
            return _CHECKS.validate_json(path.read_text())
        except ValidationError:
            pass  # damaged, or of another version: made again, and replaced
    watch = Stopwatch()
    with progress(f"{subject.name}: trust checks", len(few)) as advance:
        found = trust_checks(
            subject.defended,
            few,
            epsilon=epsilon,
            seed=seed,
            batch_size=min(batch_size, len(few)),
            known=known,
            eot=audited.averaged,
            advance=advance,
        )
    detail(f"{subject.name}: {len(found)} trust checks, {duration(watch.seconds)}")
    if path is not None:
        write_text(path, _CHECKS.dump_json(found).decode())
    return found


_CHECKS = TypeAdapter(list[Check])


def _as_settings(settings: AuditSettings | Mapping[str, Any] | None) -> AuditSettings:
    try:
        return AuditSettings.model_validate({} if settings is None else settings)
    except ValidationError as error:
        raise InputError("\n  ".join(["these are no settings of an audit:", *faults(error, "audit")])) from error


def _as_data(defended: PurifiedClassifier, images: ImageSet | Tensor, labels: Tensor | None) -> ImageSet:
    device = next((parameter.device for parameter in defended.parameters()), torch.device("cpu"))
    if isinstance(images, ImageSet):
        if labels is not None:
            raise InputError("an ImageSet has its labels: leave out labels")
        return images.to(device)
    if labels is None:
        raise InputError("images need labels: audit(purifier, classifier, images, labels)")
    if not isinstance(labels, Tensor):
        raise InputError(f"labels must be a torch.Tensor, int64 (N,); got {type(labels).__name__}")
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        check_images(images)
        images = to_uint8(images.float())
    data = ImageSet("images", images, labels, ()).to(device)
    with torch.no_grad():
        classes = defended(to_float(data.images[:1])).shape[-1]
    return replace(data, classes=tuple(map(str, range(classes))))


def _check_models(subject: Subject, surrogates: Mapping[str, nn.Module], data: ImageSet) -> None:
    images = to_float(data.images[:2])
    with torch.no_grad(), frozen(subject.defended):
        purified = subject.defended.purifier(images)
        if (made := tuple(purified.shape)) != tuple(images.shape):
            raise InputError(f"{subject.name} makes images of shape {made} of {tuple(images.shape)}; a purifier keeps it")
        logits = subject.defended.classifier(purified)
    for what, given in (("images", purified), ("logits", logits)):
        if not given.isfinite().all():
            raise InputError(
                f"{subject.name} gives {what} that are not finite for the first images: there is nothing to attack"
            )
    shape = tuple(logits.shape)
    for name, surrogate in surrogates.items():
        with torch.no_grad(), frozen(surrogate):
            if (other := tuple(surrogate(images).shape)) != shape:
                raise InputError(f"the surrogate '{name}' gives logits of shape {other}, {subject.name} of {shape}")
    if len(shape) != 2 or int(data.labels.max()) >= shape[1] or int(data.labels.min()) < 0:
        low, high = int(data.labels.min()), int(data.labels.max())
        raise InputError(f"labels go from {low} to {high}, {subject.name} gives outputs of shape {shape}")
