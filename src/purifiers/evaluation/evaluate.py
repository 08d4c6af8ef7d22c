"""Evaluate everything that a run trained."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from purifiers.attacks import Attack
from purifiers.attacks.generate import SHARD
from purifiers.classifiers.load import watch
from purifiers.console import Stopwatch
from purifiers.data import to_float
from purifiers.evaluation.cost import measure_cost
from purifiers.evaluation.evaluator import Evaluator
from purifiers.evaluation.examples import Examples, find_examples
from purifiers.evaluation.records import BASELINE, VARIANT, AttackWarning, Record, Results, hardware, versions
from purifiers.evaluation.throughput import peak_flops
from purifiers.recipes.schema import Evaluation
from purifiers.registry import fingerprint
from purifiers.runs import STATE_FILE, STUDENTS, Run, own_classifier
from purifiers.seeds import seed_for
from purifiers.storage import load_state

COST_BATCH = 100
"""Images on which purifiers are timed: few, as some take a tenth of a second for each."""


def evaluate_run(run: Run) -> tuple[Results, Examples]:
    """Measure what the run trained on the recipe's test images and attacks; the student under every view, baselines blind.

    Args:
        run: with a classifier and trained purifiers.
    """
    stopwatch = Stopwatch()
    unchanged = watch({"the classifier": run.classifier})
    config = run.recipe.evaluation
    evaluator = Evaluator(
        classifier=run.classifier,
        classifier_name=run.classifier_name,
        data=run.images("test"),
        seed=seed_for(run.recipe.seed, "evaluation"),
        batch_size=config.batch_size,
        cache=run.cache,
    )
    records: list[Record] = []
    warnings: list[AttackWarning] = []
    # Teachers and the other students are for Table 2, which takes all of them.
    measured = run.purifiers if run.purifiers.keys() >= STUDENTS.keys() else {"student": run.purifiers["student"]}
    for name, purifier in measured.items():
        views = config.views if name == "student" else ("blind",)
        found, noted = evaluator.evaluate(name, purifier, config.attacks_under, views, config.limit_of)
        records += found
        warnings += [warning for warning in noted if warning not in warnings]
    for title, purifier in run.baselines.items():
        classifier = own_classifier(title, purifier)
        own = evaluator if classifier is None else replace(evaluator, classifier=classifier[0], classifier_name=classifier[1])
        found, noted = own.evaluate(
            BASELINE + title,
            purifier,
            config.attacks_under,
            ("blind",),
            config.limit_of,
            run.recipe.baselines[title].test_limit,
        )
        records += found
        if own is not evaluator:  # of others' attacks on the same classifier ours has them
            warnings += [note.model_copy(update={"message": f"of {own.classifier_name}: {note.message}"}) for note in noted]
    # Blind attacks on the first images are in the cache already, in shards.
    data = evaluator.data
    few = replace(evaluator, data=data.subset(torch.arange(min(SHARD, len(data)), device=data.images.device)))
    for title, purifier in run.variants.items():
        records += few.evaluate(VARIANT + title, purifier, lambda view: quick_attacks(config))[0]
    student = run.purifiers["student"]
    sample = to_float(data.images[:COST_BATCH])
    costs = {"classifier": measure_cost(run.classifier, sample), "student": measure_cost(student, sample)}
    costs |= {BASELINE + title: measure_cost(purifier, sample) for title, purifier in run.baselines.items()}
    attack_name, attack = next(iter(config.attacks.items()))
    examples = find_examples(few, student, attack_name, attack)
    unchanged()
    results = Results(
        recipe=run.recipe.model_dump(mode="json"),
        trained=None if run.trained in (None, run.recipe) else run.trained.model_dump(mode="json"),
        seed=run.recipe.seed,
        versions=versions(),
        hardware=hardware(run.device),
        seconds={
            "training": sum(record["seconds"] for history in run.histories.values() for record in history),
            "evaluation": stopwatch.seconds,
        },
        training=run.histories,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        peak_flops=_peak(run),
        costs=costs,
        classifier_sha256=fingerprint(run.classifier),
        records=records,
        warnings=warnings,
    )
    return results, examples


def _peak(run: Run) -> float | None:
    """What the training's arithmetic is held against; None where that had another kind of device, or other threads."""
    files = [run.checkpoint(stage) / STATE_FILE for stage in run.histories]
    states = [load_state(file) for file in files if file.is_file()]
    here = run.device.type
    if any(state.get("device", here) != here for state in states):
        return None
    if here == "cpu" and any(state.get("threads") != torch.get_num_threads() for state in states):
        return None
    return peak_flops(run.device, torch.float32 if run.recipe.precision == "32-true" else torch.bfloat16)


def quick_attacks(config: Evaluation) -> Mapping[str, Attack]:
    """The attacks on the first images: those that are run on all, and the first of all, which the picture shows."""
    first = next(iter(config.attacks))
    return {name: attack for name, attack in config.attacks.items() if name == first or name not in config.limits}
