"""Model cards: what a trained purifier is, how it was made, what was measured, and what it is not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from purifiers import hub
from purifiers.console import duration
from purifiers.evaluation.audit.result import WORST, Audit
from purifiers.evaluation.records import CLEAN, Record, Results
from purifiers.recipes.baseline_settings import folder_of
from purifiers.recipes.load import NAMES, differences, load_recipe, parse_recipe
from purifiers.recipes.schema import STARTS
from purifiers.reports.tables import ATTACKERS, epsilon_of, interval, percent, select, through_purifier

_HEAD = """
# {name}

A purifier: a convolutional autoencoder ({parameters:,} parameters) that takes a possibly attacked image in [0,1] and
gives {gives}, so that an image classifier behind it is right again. Distilled from two teachers by the method of Koo,
Chae and Lee (Appl. Sci. 2023, 13, 11313){changes}.

```python
from purifiers import PurifiedClassifier, Purifier

defended = PurifiedClassifier(Purifier.from_pretrained("{location}"), classifier)
```
"""

_BLIND = """It withstands attackers who know the classifier and **not** the purifier. One who differentiates through both breaks
  it; the rows `full` above, where there are any, say how far. Do not use it where the attacker may know of it."""
_KNOWN = """It was trained against attackers who know it and differentiate through both: the rows `full` above say what is left
  then, and are upper bounds, as a stronger attack may leave less."""
_REDRAWN = """
- It draws the image anew from its latent, around which nothing passes: PSNR and SSIM above say how far from the original. Where
  they are low, what comes out is a pattern that its classifier reads and in which people see nothing."""
_DENOISER = """It was trained to remove Gaussian noise, for `purifiers certify`, and met no attack in training: what attackers
  leave is above, if it was measured; what is certain is in a certificate."""
_LIMITS = """## Limits

- {attacker}
- It was trained on {dataset} images of {size}, against {classifiers}, with {attacks}. Other
  images, other kinds of perturbation (patches, rotations, noise) and other classifiers are untested unless a table above
  says so.
- It changes clean images too: the row `clean images` is what that costs.
"""


def model_card(name: str, results: Sequence[Results], location: str | None = None, audit: Audit | None = None) -> str:
    """The card, in Markdown with the front matter of the Hugging Face hub.

    Args:
        name: what the purifier is called.
        results: of the run that trained it, then of any others that measured the same purifier.
        location: where ``from_pretrained`` finds it: the name, unless it lies elsewhere.
        audit: of that run alone: its worst cases are rows of the first table, in the norms in which it was attacked white-box.
    """
    first = results[0]
    recipe = first.trained or first.recipe
    data = recipe["data"]
    redrawn = not recipe["purifier"].get("residual") and not recipe["purifier"].get("skip_every", 2)
    gives = "a pattern that its own classifier reads" if redrawn else "a clean one"
    head = {"name": name, "location": location or name, "parameters": first.parameters, "gives": gives}
    parts = [hub.HEAD.format(more=f"datasets: [{data['name']}]\n") + _HEAD.format(**head, changes=_changes(recipe))]
    parts.append("## How it was made\n\n" + "\n".join(f"- {line}" for line in _making(first)))
    parts.append(f"{hub.MEASURED}\n\n" + "\n\n".join(_measured(one, None if i else audit) for i, one in enumerate(results)))
    classifiers = [recipe["classifier"], *recipe["companions"]]
    names = " and ".join(
        one["source"] or f"{one['network']['network']}{one['network'].get('depth', '')}" for one in classifiers
    )
    own, noise = (recipe["student"].get(key) for key in ("attack", "noise"))  # results of earlier versions have no such keys
    met = [
        *recipe["training_attacks"],
        *([f"{own['kind']}{_steps(own)} through both networks"] if own else []),
        *([f"Gaussian noise of {noise:g}"] if noise else []),
    ]
    attacks = ", ".join(met)
    size = "their own size" if data["size"] is None else f"{data['size']} by {data['size']} pixels"
    attacker = _KNOWN if own else _BLIND if recipe["training_attacks"] else _DENOISER
    if redrawn:
        attacker += _REDRAWN
    parts.append(_LIMITS.format(attacker=attacker, dataset=data["name"], size=size, classifiers=names, attacks=attacks))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _steps(attack: Mapping[str, Any]) -> str:
    return f" of {attack['num_steps']} steps" if "num_steps" in attack else ""


def classifier_card(
    name: str,
    stage: str,
    recipe: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    accuracy: float,
    count: int,
    commit: str,
    unseen: bool = False,
) -> str:
    """The card of a classifier that a run trained.

    Args:
        name: what it is called.
        stage: ``classifier``, or ``companion_1`` and so on.
        recipe: of that run.
        history: of its training, epoch by epoch.
        accuracy: share of the test images that it classifies correctly.
        count: number of test images.
        commit: of the source tree that measured.
        unseen: no purifier was trained against it.
    """
    data = recipe["data"]["name"]
    config = recipe["classifier"] if stage == "classifier" else recipe["companions"][int(stage.removeprefix("companion_")) - 1]
    use = (
        "no purifier of this library was trained against,\nto see what one does for a classifier that it never met"
        if unseen
        else f"the purifier of the recipe `{recipe['name']}` was trained against"
    )
    settings = ", ".join(f"{key} {value}" for key, value in config["training"].items() if value and key != "epochs")
    return f"""---
license: apache-2.0
library_name: purifiers
pipeline_tag: image-classification
tags: [image-classification]
datasets: [{data}]
---

# {name}

A CIFAR ResNet-{config["network"]["depth"]} that {use}: images in [0,1] to logits, normalisation inside.
It has no defence of its own.

- accuracy on {count:,} {data} test images: {percent(accuracy)} %
- {stage} of the recipe `{recipe["name"]}`, seed {recipe["seed"]}, {recipe["precision"]}: {_trained(history)}; {settings}
- measured at commit {commit}

```python
from purifiers.registry import load_network
from purifiers.weights import locate

classifier = load_network(locate("{name}"))
```
"""


def _trained(history: Sequence[Mapping[str, float]]) -> str:
    return f"{len(history)} epochs in {duration(sum(record['seconds'] for record in history))}"


def _making(results: Results) -> list[str]:
    machine, recipe = results.hardware, results.trained or results.recipe
    limit = recipe["data"]["limit"]
    lines = [
        f"recipe `{recipe['name']}`, seed {recipe['seed']}{_otherwise(recipe)}",
        f"measured at commit {results.versions.get('commit', 'unknown')}",
        f"data: {recipe['data']['name']}, {'all' if limit is None else f'{limit:,}'} training images",
    ]
    for stage, history in results.training.items():
        if stage.startswith(folder_of("")):
            continue  # a baseline
        start = recipe.get(stage, {}).get("start")
        first = start and (Path(start).name if Path(start).is_absolute() else start)
        begun = f", from {first}" if start not in (None, *STARTS) else ""
        untrained = f"that of {first}" if begun else "the untrained residual network, which is the identity"
        lines.append(f"{stage}: {_trained(history)}{begun}" if history else f"{stage}: {untrained}")
    where = "no GPU" if machine["device"] == "cpu" else machine["device"]
    lines.append(f"measured on: {machine['name']}, {machine['threads']} threads ({where}), torch {results.versions['torch']}")
    return lines


def _otherwise(recipe: Mapping[str, Any]) -> str:
    """What the recipe has otherwise than the shipped one of its name; where that and how it is evaluated do not count."""
    name = str(recipe["name"])
    if name not in NAMES:
        return ""
    # What a stage started from stands beside it.
    started = ("teacher_at.start", "student.start")
    free = ("evaluation", "audit", "baselines", "variants", "weights", "seed", "data.path", "data.test_limit", *started)
    found = differences(load_recipe(name), parse_recipe(recipe))
    listed = [f"{key} {now}" for key, (_, now) in found.items() if not key.startswith(free)]
    return f", otherwise than in the library: {', '.join(listed)}" if listed else f": `purifiers train --recipe {name}`"


def _changes(recipe: Mapping[str, Any]) -> str:
    """In what the training is not the paper's, in words."""
    at, student = recipe["teacher_at"], recipe["student"]
    said = {
        "guidance by the frozen classifiers": student["classification_weight"] or student["logits_weight"],
        "perturbations of many strengths": (student["strength_low"], student["strength_high"]) != (1, 1),
        "clean images among the attacked": student["clean_share"],
        "a residual output": recipe["purifier"].get("residual"),
        "attacks through purifier and classifier": student.get("attack"),
        "a latent that was made robust first": recipe.get("latent"),
        "other weights of the losses": (at["reconstruction_weight"], student["beta"], student["gamma"]) != (1, 0.5, 0.5),
        "no adversarial term in equation 2": not at["adversarial_weight"],
        "teacher NT the identity": not recipe["teacher_nt"]["epochs"],
        "a student that starts from teacher AT": student["start"] == "teacher_at",
        "a student that goes on from an earlier one": student["start"] not in STARTS,
        "several classifiers": recipe["companions"],
    }
    listed = [change for change, there in said.items() if there]
    return f", but with {', '.join(listed)}" if listed else ""


def _measured(results: Results, audit: Audit | None) -> str:
    blind, others = select(results), through_purifier(results)
    classifier = next(iter(blind.values())).classifier
    worst: list[Record | None] = []
    if audit is not None:
        (name,) = audit.purifiers
        worst = [audit.worst(name, norm) for norm in ("linf", "l2") if audit.worst(name, norm, "white-box")]
    shown = {"blind", *(record.view for record in others), *(["full"] if worst else [])}
    views = ", or ".join(f"{does} (view {view})" for view, does in ATTACKERS.items() if view in shown)
    rows = [
        *(("clean images" if record.attack == CLEAN else record.attack, record) for record in blind.values()),
        *((record.attack, record) for record in others),
        *((f"worst of the audit{', L2' * (record.norm == 'l2')}", record) for record in worst if record),
    ]
    lines = [
        f"In front of {classifier}, accuracy in %; the attacker {views}:",
        "",
        "| attack | view | epsilon | images | undefended | purified | 95 % interval | PSNR (dB) | SSIM |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for attack, record in rows:
        view = {CLEAN: "-", WORST: "full"}.get(record.view, record.view)
        ssim = "-" if record.ssim is None else f"{record.ssim:.3f}"
        undefended = percent(record.accuracy_undefended) if view in ("-", "blind") else "-"
        lines.append(
            f"| {attack} | {view} | {epsilon_of(record)} | {record.n:,} | {undefended} | {percent(record.accuracy)} | "
            f"{interval(record)} | {record.psnr:.1f} | {ssim} |"
        )
    return "\n".join(lines)
