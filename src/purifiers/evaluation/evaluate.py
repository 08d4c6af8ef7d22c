"""Evaluate a purifier in memory, or everything that a run trained."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from purifiers.attacks import BIM, CW, FGSM, PGD, AnyAttack, Attack
from purifiers.attacks.generate import BLOCK, generate
from purifiers.cache import Cache
from purifiers.classifiers.load import watch
from purifiers.console import Stopwatch
from purifiers.data import ImageSet, to_float
from purifiers.device import in_parts, repeatable
from purifiers.errors import InputError, nearest
from purifiers.evaluation import metrics
from purifiers.evaluation.evaluator import Evaluator, check_defended, prepared
from purifiers.evaluation.metrics import count_parameters, measure_cost, peak_flops
from purifiers.evaluation.records import BASELINE, VARIANT, AttackWarning, Record, Results, not_finite, provenance
from purifiers.forecast import current, limited_by
from purifiers.kinds import faults
from purifiers.purifier import Purifier
from purifiers.recipes.audit_settings import refuse_gradients
from purifiers.registry import fingerprint
from purifiers.runs import STATE_FILE, Run, own_classifier, student_configs
from purifiers.seeds import seed_for
from purifiers.storage import load_state

COST_BATCH = 100
"""Images on which purifiers are timed: few, as some take a tenth of a second for each."""


@dataclass(frozen=True)
class Row:
    """One row of the picture."""

    images: Tensor  # (N, 3, H, W), float, in [0,1]
    classes: list[str]  # the classifier's class of each
    correct: list[bool]  # whether that is right
    psnr: list[float] | None = None  # against the original image, in dB; None for the originals


@dataclass(frozen=True)
class Examples:
    """The same N images original, attacked and purified; ``changed``: the attack changed their classes."""

    attack: str
    changed: bool
    original: Row
    adversarial: Row
    purified: Row


@repeatable()
def evaluate(
    purifier: nn.Module,
    classifier: nn.Module,
    images: ImageSet | Tensor | Iterable[Any],
    labels: Tensor | None = None,
    *,
    attacks: Mapping[str, Attack | str] | None = None,
    views: Sequence[str] | str = ("blind",),
    limits: Mapping[str, int] | None = None,
    purifier_name: str = "purifier",
    classifier_name: str = "classifier",
    seed: int = 0,
    batch_size: int = 250,
    cache: Cache | Path | str | None = None,
) -> Results:
    """Measure a purifier in front of a classifier: on clean images, and under attacks.

    Args:
        purifier: images (N, 3, H, W), float32, in [0,1] -> the same; a :class:`purifiers.Purifier` or any module.
        classifier: images in [0,1] -> logits (N, classes).
        images: (N, 3, H, W), uint8 or float32 in [0,1], which is rounded to the 8 bits that image files have; or batches of
            (images, labels), as of a DataLoader; or an :class:`ImageSet`.
        labels: int64 (N,), the true classes; only beside a tensor of images.
        attacks: by the names of the records, an attack or its kind, such as ``"pgd"``; by default PGD (L-inf, 8/255, 20
            steps), FGSM, BIM and CW of the paper.
        views: threat models, names in :data:`purifiers.attacks.VIEWS`: ``blind`` attacks the classifier alone, ``full`` both.
        limits: an attack's name -> on how many random images it is run.
        purifier_name, classifier_name: for the records.
        seed: decides every random choice.
        batch_size: images at once.
        cache: a folder where finished attacks and measurements are kept, so that a stopped evaluation resumes; or a
            :class:`purifiers.cache.Cache` of it with one shard of the work.

    Returns:
        One record for each view and attack, the first on clean images; ``print`` shows them as a table.

    Raises:
        InputError, ConfigError: an argument is not as above, or a model does not return what it should.
        AttackError: an attack left its threat model, or takes a gradient that the purifier does not have.
        Unfinished: this shard is finished, and others are not.
    """
    stopwatch = Stopwatch()
    with prepared(purifier, classifier, images, labels, purifier_name, classifier_name) as (defended, data):
        unchanged = watch({"the classifier": classifier})
        given = {"PGD": PGD(), "FGSM": FGSM(), "BIM": BIM(), "CW": CW()} if attacks is None else attacks
        try:
            chosen = TypeAdapter(dict[str, AnyAttack]).validate_python(given)
        except ValidationError as error:
            raise InputError("\n  ".join(["these attacks cannot be used:", *faults(error, "attacks")])) from error
        views, counts = (views,) if isinstance(views, str) else views, limits or {}
        if not isinstance(views, Sequence):
            raise InputError(f"views is the name of a threat model, or several; got {views!r}")
        for view in views:
            refuse_gradients(view, chosen)
        if not (isinstance(counts, Mapping) and all(isinstance(count, int) and count > 0 for count in counts.values())):
            raise InputError(f"limits is a mapping such as {{'PGD': 100}}, with at least 1 image each; got {counts!r}")
        if unknown := [key for key in counts if key not in chosen]:
            raise InputError(f"limits: there is no attack '{unknown[0]}'{nearest(unknown[0], chosen)}")
        cache = cache if isinstance(cache, Cache) else Cache(cache)
        evaluator = Evaluator(defended.classifier, classifier_name, data, seed, batch_size, cache)
        check_defended(purifier_name, defended, data)
        records, warnings = evaluator.evaluate(
            purifier_name, purifier, lambda view: chosen, views, lambda view, attack: counts.get(attack)
        )
        unchanged()
        cache.shard.check()
        return Results(
            recipe={"evaluation": {"attacks": {key: attack.model_dump(mode="json") for key, attack in chosen.items()}}},
            **provenance(seed, data.images.device),
            seconds={"evaluation": stopwatch.seconds},
            parameters=count_parameters(purifier),
            classifier_sha256=fingerprint(defended.classifier),
            records=records,
            warnings=warnings + not_finite(records),
        )


@repeatable()
@limited_by("--set data.test_limit={}")
def evaluate_run(run: Run) -> tuple[Results, Examples]:
    """Measure what the run trained on the recipe's test images and attacks; the student under every view, baselines blind."""
    stopwatch, unchanged = Stopwatch(), watch({"the classifier": run.classifier})
    config, data, seed = run.recipe.evaluation, run.images("test"), seed_for(run.recipe.seed, "evaluation")
    evaluator = Evaluator(run.classifier, run.classifier_name, data, seed, config.batch_size, Cache(run.cache, run.shard))
    records: list[Record] = []
    warnings: list[AttackWarning] = []
    # Teachers and the other students are for Table 2, which takes all of them.
    students = student_configs(run.recipe, ablation=True).keys()
    measured = (
        run.purifiers if len(students) > 1 and run.purifiers.keys() >= students else {"student": run.purifiers["student"]}
    )
    for name, purifier in measured.items():
        views = config.views if name == "student" else ("blind",)
        found, noted = evaluator.evaluate(name, purifier, config.attacks_under, views, config.limit_of)
        records += found
        warnings += [warning for warning in noted if warning not in warnings]
    for title, purifier in run.baselines.items():
        classifier = own_classifier(title, purifier)
        own = evaluator if classifier is None else replace(evaluator, classifier=classifier[0], classifier_name=classifier[1])
        at_most = run.recipe.baselines[title].test_limit
        found, noted = own.evaluate(BASELINE + title, purifier, config.attacks_under, limit=config.limit_of, at_most=at_most)
        records += found
        if own is not evaluator:  # warnings of attacks on the same classifier are there already
            warnings += [note.model_copy(update={"model": own.classifier_name}) for note in noted]
    first, *_ = config.attacks  # the one that the picture shows
    quick = {name: attack for name, attack in config.attacks.items() if name == first or name not in config.limits}
    for title, purifier in run.variants.items():
        records += evaluator.evaluate(VARIANT + title, purifier, lambda view: quick, limit=config.limit_of, at_most=BLOCK)[0]
    student = run.purifiers["student"]
    # On the images that were attacked blind, so that the attack is in the cache.
    limit = config.limit_of("blind", first)
    examples = find_examples(evaluator, student, config.attacks[first], limit)
    run.shard.check()
    baselines = {BASELINE + title: purifier for title, purifier in run.baselines.items()}
    costed, sample = {"classifier": run.classifier, "student": student, **baselines}, to_float(data.images[:COST_BATCH])
    costs = {name: measure_cost(module, sample) for name, module in costed.items()}
    unchanged()
    training = sum(record["seconds"] for history in run.histories.values() for record in history)
    results = Results(
        recipe=run.recipe.model_dump(mode="json"),
        trained=None if run.trained in (None, run.recipe) else run.trained.model_dump(mode="json"),
        **provenance(run.recipe.seed, run.device),
        seconds={"training": training, "evaluation": stopwatch.seconds},
        training=run.histories,
        parameters=count_parameters(student),
        peak_flops=_peak(run),
        costs=costs,
        classifier_sha256=fingerprint(run.classifier),
        records=records,
        warnings=warnings + not_finite(records),
    )
    return results, examples


def _peak(run: Run) -> float | None:
    """What to compare the training's arithmetic with; None if it ran on another kind of device, or with other threads."""
    if current():
        return None
    files = [run.checkpoint(stage) / STATE_FILE for stage in run.histories]
    here, threads = run.device.type, torch.get_num_threads()
    for state in (load_state(file) for file in files if file.is_file()):
        if state["device"] != here or (here == "cpu" and state.get("threads") != threads):
            return None
    return peak_flops(run.device, torch.float32 if run.precision == "32-true" else torch.bfloat16)


def find_examples(
    evaluator: Evaluator, purifier: Purifier, attack: Attack, limit: int | None = None, count: int = 10
) -> Examples:
    """Choose images, up to ``count``, of which the attack, made on the classifier alone, changes the class: the first of each
    class first. ``limit``: on how many random images the attack is run; None for all.

    The choice does not depend on the purified images, so that the picture shows failures as often as they are.
    """
    data, size = evaluator.limited(limit), evaluator.batch_size
    labels = data.labels
    attacked = generate(attack, evaluator.classifier, data, seed=evaluator.seed, batch_size=size, cache=evaluator.cache)
    if current():
        nothing = Row(data.images[:0], [], [])
        return Examples(attack.title, False, nothing, nothing, nothing)
    with torch.no_grad():
        right, still = (evaluator.predicted(one) == labels for one in (data.images, attacked.images))
        changed = right & ~still
        chosen = _spread(labels, changed if changed.any() else right, count)
        images, labels, adversarial = to_float(data.images[chosen]), labels[chosen], attacked.images[chosen]
        purified = in_parts(purifier, adversarial)

        def row(shown: Tensor) -> Row:
            predicted = metrics.classes(in_parts(evaluator.classifier, shown.clone()))
            psnr = None if shown is images else metrics.psnr(shown, images).tolist()
            names = [data.classes[i] if i >= 0 else "none" for i in predicted.tolist()]
            return Row(shown.cpu(), names, (predicted == labels).tolist(), psnr)

        return Examples(attack.title, bool(changed.any()), row(images), row(adversarial), row(purified))


def _spread(labels: Tensor, wanted: Tensor, count: int) -> Tensor:
    """Indices of up to ``count`` wanted images: the first of every class, then the second of every class, ..."""
    indices = wanted.nonzero().flatten().tolist() or list(range(len(labels)))
    earlier: Counter[int] = Counter()
    order: list[tuple[int, int, int]] = []
    for index, label in zip(indices, labels[indices].tolist(), strict=True):
        order.append((earlier[label], label, index))
        earlier[label] += 1
    return torch.tensor([index for _, _, index in sorted(order)[:count]], device=labels.device)
