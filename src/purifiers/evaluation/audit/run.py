"""The audit: a defended model under every threat model, and the worst case over all attacks, image by image.

The module that the attacker differentiates is the threat model (:mod:`purifiers.attacks.views`); for ``transfer`` another one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from purifiers import weights
from purifiers.attacks.base import frozen
from purifiers.cache import Cache
from purifiers.classifiers.load import load_classifier, watch
from purifiers.classifiers.probes import logits_of
from purifiers.console import Stopwatch, say
from purifiers.data import ImageSet, to_float
from purifiers.device import repeatable
from purifiers.errors import ConfigError, InputError, nearest
from purifiers.evaluation.audit.attack import Auditor, Subject
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.evaluator import LOOK, Evaluator, check_defended, prepared
from purifiers.evaluation.records import AttackWarning, Record, not_finite, provenance
from purifiers.evaluation.trust.checks import Check
from purifiers.forecast import limited_by
from purifiers.kinds import faults
from purifiers.purifier import PurifiedClassifier, Purifier
from purifiers.recipes.audit_settings import AuditSettings, surrogate_parts
from purifiers.recipes.load import set_value
from purifiers.registry import CONFIG_FILE, fingerprint
from purifiers.runs import CACHE, Run, is_run, open_defended, own_classifier, prepare_baselines
from purifiers.seeds import seed_for
from purifiers.shards import Shard


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
    cache: Cache | Path | str | None = None,
) -> Audit:
    """Audit any purifier in front of any classifier.

    Args:
        purifier, classifier, images, labels: see :func:`purifiers.evaluate`.
        settings: the attacks, their threat models, and on how many images each is run; None takes the standard ones, within
            8/255 (L-inf) and 128/255 (L2). Hours on two cores for 1,000 images of 32 by 32 pixels; ``{"images": 20}`` gives a
            first impression. Keys may be dotted: ``{"attacks.PGD.num_steps": 50}``.
        surrogates: further models, images -> logits, by name: an attacker without access attacks these instead.
        purifier_name, classifier_name, seed, batch_size, cache: see :func:`purifiers.evaluate`.

    Returns:
        All records, among them the worst case (view ``worst``), and the trust checks; ``print`` shows the records as a table.

    Raises:
        InputError, ConfigError: see :func:`purifiers.evaluate`; or settings or a surrogate are not as above.
        Unfinished: see :func:`purifiers.evaluate`.
    """
    with prepared(purifier, classifier, images, labels, purifier_name, classifier_name) as (defended, data):
        subject = Subject(purifier_name, defended, classifier_name)
        return audit_all([subject], data, settings, surrogates, seed=seed, batch_size=batch_size, cache=cache)


@repeatable()
@limited_by("--limit {}")
def audit_all(
    subjects: Sequence[Subject],
    data: ImageSet,
    settings: AuditSettings | Mapping[str, Any] | None = None,
    surrogates: Mapping[str, nn.Module] | None = None,
    *,
    seed: int = 0,
    batch_size: int = 250,
    cache: Cache | Path | str | None = None,
) -> Audit:
    """Audit several defended models, of different names, on the same images, into one :class:`Audit`; see :func:`audit`."""
    nested: dict[str, Any] = {}
    for key, value in settings.items() if isinstance(settings, Mapping) else ():
        set_value(nested, key, value)
    try:
        chosen = AuditSettings.model_validate(nested if isinstance(settings, Mapping | None) else settings)
    except ValidationError as error:
        raise InputError("\n  ".join(["the settings of the audit are not valid:", *faults(error, "audit")])) from error
    known = {*chosen.attacks, *(subject.name for subject in subjects)}
    # A recipe also has limits of purifiers that are not audited now.
    if isinstance(settings, Mapping) and (unknown := chosen.limits.keys() - known):
        raise InputError(f"limits: no attack or purifier is called '{min(unknown)}'{nearest(min(unknown), known)}")
    for idle in sorted(chosen.attacks.keys() - {name for names in chosen.views.values() for name in names}):
        say(f"warning: the attack '{idle}' is in none of the audit's views, and is not run")
    surrogates = surrogates or {}
    if not (isinstance(surrogates, Mapping) and all(isinstance(one, nn.Module) for one in surrogates.values())):
        raise InputError(f"surrogates is a mapping of names to torch.nn.Modules; got {surrogates!r}")
    if len({subject.name for subject in subjects}) < len(subjects) or not subjects:
        raise InputError(f"an audit needs defended models of different names; got {[subject.name for subject in subjects]}")
    unchanged = watch({f"the classifier behind {one.name}": one.defended.classifier for one in subjects})
    stopwatch, kept = Stopwatch(), cache if isinstance(cache, Cache) else Cache(cache)
    records: list[Record] = []
    warnings: list[AttackWarning] = []
    checks: dict[str, list[Check]] = {}
    random: list[str] = []
    with frozen(*(subject.defended for subject in subjects), *surrogates.values()):
        for title, surrogate in surrogates.items():
            with torch.no_grad():
                classes = logits_of(f"the surrogate '{title}'", surrogate, to_float(data.images[:LOOK])).shape[1]
            if classes != len(data.classes):
                raise InputError(f"the surrogate '{title}' has {classes} classes, the images have {len(data.classes)}")
        for subject in subjects:
            check_defended(subject.name, subject.defended, data)
            evaluator = Evaluator(subject.defended.classifier, subject.classifier_name, data, seed, batch_size, kept)
            auditor = Auditor(subject, evaluator, chosen, surrogates)
            auditor.run()
            records += auditor.records
            warnings += auditor.warnings
            random += [subject.name] if auditor.random else []
            if chosen.check_images:
                checks[subject.name] = auditor.checks()
    unchanged()
    kept.shard.check()
    return Audit(
        settings=chosen.resolved(),
        **provenance(seed, data.images.device),
        seconds=stopwatch.seconds,
        random=random,
        records=records,
        checks=checks,
        warnings=warnings + not_finite(records),
    )


def audit_by_name(
    whats: Sequence[str],
    overrides: Sequence[str | tuple[str, Any]],
    folder: Path,
    *,
    recipe: str | None = None,
    device: str = "auto",
    baselines: Literal["all", "ready", "none"] = "none",
    shard: Shard | None = None,
) -> Audit:
    """Audit purifiers together, each in front of its run's classifier, SOAP in front of its own.

    Args:
        whats: folders of runs or saved purifiers, or shipped names; the first one's images, settings and baselines count.
        overrides, recipe, device: see :func:`purifiers.runs.open_defended`; ``recipe`` is for those that are no runs.
        folder: where finished work is kept, and baselines of a purifier that is no run are trained.
        baselines: audit these too: all, trained first where necessary, or those that are ready.
        shard: the share of the work to do here; whoever finds the others' finished completes it.

    Raises:
        ConfigError: other images than the first's, or another classifier where that predicts the labels; the same purifier or
            title of a surrogate twice; or see the parts.
        MissingFileError, CheckpointError: see :func:`purifiers.runs.open_defended`.
        InputError: see :func:`audit`.
    """
    if len({weights.locate(what).resolve() for what in whats}) < len(whats):
        raise ConfigError(f"duplicate purifier: {', '.join(whats)}")
    runs = {what: open_defended(what, overrides, folder, None if is_run(what) else recipe, device) for what in whats}
    run, names = runs[whats[0]], _names(whats)
    for what, one in runs.items():
        if _images_of(one) != _images_of(run):
            raise ConfigError(
                f"{what} uses other images ({one.recipe.data.name}) than {whats[0]} ({run.recipe.data.name}): audit them apart"
            )
        if run.images("test").labels_predicted and fingerprint(one.classifier) != fingerprint(run.classifier):
            advice = "give one --classifier for all, labels, or audit them apart"
            raise ConfigError(f"labels are predicted by the classifier of {whats[0]}, and {what} has another: {advice}")
    settings = run.recipe.audit
    known = {*names.values(), *run.recipe.baselines, *settings.attacks}
    if unknown := [f"'{name}'" for name in settings.limits if name not in known]:
        say(f"warning: audit.limits: no attack or purifier is called {', '.join(unknown)}")
    surrogates = _surrogates(run)
    if not surrogates and settings.views.get("transfer"):
        say("transfer is left out: no companions, and no audit.surrogates")
    audited = [(names[what], one.purifiers["student"], one) for what, one in runs.items()]
    if baselines != "none":
        prepare_baselines(run, train=baselines == "all")
        audited += [(title, purifier, run) for title, purifier in run.baselines.items()]
    subjects = []
    for name, purifier, one in audited:
        classifier, title = own_classifier(name, purifier) or (one.classifier, one.classifier_name)
        subjects.append(Subject(name, PurifiedClassifier(purifier, classifier), title))
    seed, size = seed_for(run.recipe.seed, "evaluation"), run.recipe.evaluation.batch_size
    cache = Cache(folder / CACHE, shard)
    work = partial(audit_all, subjects, run.images("test"), settings, surrogates, seed=seed, batch_size=size, cache=cache)
    return cache.shard.finish(work)


def _names(whats: Sequence[str]) -> dict[str, str]:
    """Short names for the table: the last part of each folder, if these differ."""
    last = {what: Path(what).resolve().name if what not in weights.NAMES else what for what in whats}
    return last if len(set(last.values())) == len(last) else {what: what for what in whats}


def _title(source: str) -> str:
    return Path(source).name.removesuffix(".safetensors")


def _images_of(run: Run) -> tuple[Any, ...]:
    # CIFAR-10 is the same in every folder.
    data = run.recipe.data
    return data.name, data.size, data.source() if data.name == "folder" else None


def _surrogates(run: Run) -> dict[str, nn.Module]:
    """The recipe's companions, if they are trained or ship, and those that ``audit.surrogates`` names."""
    found: list[tuple[str, nn.Module]] = []
    for stage, config in run.recipe.classifiers().items():
        trained = run.checkpoint(stage)
        ready = str(trained) if (trained / CONFIG_FILE).is_file() else None
        source = config.source or ready or run.recipe.weights.get(stage)
        if stage != "classifier" and source is not None:
            model = load_classifier(source, run.images("test"), **config.options())
            found.append((stage if source == ready else _title(source), model))
    for text in run.recipe.audit.surrogates:
        *purifier, source = surrogate_parts(text)
        if len(purifier) > 1 or not all((*purifier, source)):
            raise ConfigError(f"audit.surrogates: a classifier, or PURIFIER+CLASSIFIER; got '{text}'")
        model = load_classifier(source, run.images("test"), **run.recipe.classifier.behind(source).options())
        if purifier:
            model = PurifiedClassifier(Purifier.from_pretrained(purifier[0]).placed(run.device), model)
        found.append(("+".join(map(_title, (*purifier, source))), model))
    for title, count in Counter(title for title, _ in found).items():
        if count > 1:
            raise ConfigError(f"two surrogates, of companions and audit.surrogates, are called '{title}': rename or drop one")
    return dict(found)
