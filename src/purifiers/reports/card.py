"""Model cards: what a trained purifier is, how it was made, what was measured, and what it is not."""

from collections.abc import Sequence

from purifiers.attacks import show_fraction
from purifiers.console import duration
from purifiers.evaluation.records import CLEAN, Results
from purifiers.reports.tables import percent, select

CARD_FILE = "card.md"

_HEAD = """---
license: apache-2.0
library_name: purifiers
tags: [adversarial-purification, adversarial-robustness, image-classification]
datasets: [{dataset}]
---

# {name}

A purifier: a convolutional autoencoder ({parameters:,} parameters) that takes a possibly attacked image in [0,1] and
gives a clean one, so that an image classifier behind it is right again. Distilled from two teachers by the method of Koo,
Chae and Lee (Appl. Sci. 2023, 13, 11313), with the changes that its recipe names.

```python
from purifiers import PurifiedClassifier, Purifier

defended = PurifiedClassifier(Purifier.from_pretrained("{name}"), classifier)
```
"""

_LIMITS = """## Limits

- It withstands attackers who know the classifier and **not** the purifier. One who differentiates through both breaks it; the
  rows `full` above, where there are any, say how far. Do not use it where the attacker may know of it.
- It was trained on {dataset} images of their own size, against {classifiers}, with {attacks}. Other
  images, other kinds of perturbation (patches, rotations, noise) and other classifiers are untested unless a table above
  says so.
- It changes clean images too: the row `clean images` is what that costs.
"""


def model_card(name: str, results: Sequence[Results]) -> str:
    """The card, in Markdown with the front matter of the Hugging Face hub.

    Args:
        name: what the purifier is called, or the folder that it lies in.
        results: of the run that trained it, then of any others that measured the same purifier.
    """
    first = results[0]
    parts = [_HEAD.format(name=name, parameters=first.parameters, dataset=first.recipe["data"]["name"])]
    parts.append("## How it was made\n\n" + "\n".join(f"- {line}" for line in _making(first)))
    parts.append("## What was measured\n\n" + "\n\n".join(_measured(one) for one in results))
    recipe = first.recipe
    classifiers = [recipe["classifier"], *recipe["companions"]]
    names = " and ".join(
        one["source"] or f"{one['network']['network']}{one['network'].get('depth', '')}" for one in classifiers
    )
    attacks = ", ".join(recipe["training_attacks"])
    parts.append(_LIMITS.format(dataset=recipe["data"]["name"], classifiers=names, attacks=attacks))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def classifier_card(name: str, stage: str, results: Results, accuracy: float, count: int) -> str:
    """The card of a classifier that a run trained.

    Args:
        name: what it is called.
        stage: ``classifier``, or ``companion_1`` and so on.
        results: of that run.
        accuracy: share of the test images that it classifies correctly.
        count: number of test images.
    """
    recipe, data = results.recipe, results.recipe["data"]["name"]
    config = recipe["classifier"] if stage == "classifier" else recipe["companions"][int(stage.removeprefix("companion_")) - 1]
    network = config["network"]
    trained = next(line for line in _making(results) if line.startswith(f"{stage}:"))
    return f"""---
license: apache-2.0
library_name: purifiers
tags: [image-classification]
datasets: [{data}]
---

# {name}

A CIFAR ResNet-{network["depth"]} that the purifier of the recipe `{results.recipe["name"]}` was trained
against: images in [0,1] to logits, normalisation inside. It has no defence of its own.

- accuracy on {count:,} {data} test images: {percent(accuracy)} %
- {trained}, {config["training"]["optimizer"]}, seed {results.seed}, {results.recipe["precision"]}
- measured at commit {results.versions.get("commit", "unknown")}

```python
from purifiers.networks import load_network
from purifiers.weights import locate

classifier = load_network(locate("{name}"))
```
"""


def _making(results: Results) -> list[str]:
    machine, recipe = results.hardware, results.recipe
    limit = recipe["data"]["limit"]
    lines = [
        f"recipe `{recipe['name']}`, seed {results.seed}: `purifiers train --recipe {recipe['name']}`",
        f"measured at commit {results.versions.get('commit', 'unknown')}",
        f"data: {recipe['data']['name']}, {'all' if limit is None else f'{limit:,}'} training images",
    ]
    for stage, history in results.training.items():
        lines.append(f"{stage}: {len(history)} epochs in {duration(sum(record['seconds'] for record in history))}")
    where = "a GPU" if machine["device"] == "cuda" else "CPU cores, without a GPU"
    lines.append(f"machine: {machine['name']}, {machine['threads']} threads ({where}), torch {results.versions['torch']}")
    return lines


def _measured(results: Results) -> str:
    blind, full = select(results), select(results, view="full")
    full.pop(CLEAN, None)
    classifier = next(iter(blind.values())).classifier
    lines = [
        f"In front of {classifier}, accuracy in %; the attacker knows the classifier (view blind) or both (view full):",
        "",
        "| attack | view | epsilon | images | undefended | purified | PSNR (dB) | SSIM |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for record in [*blind.values(), *full.values()]:
        attack, view = ("clean images", "-") if record.attack == CLEAN else (record.attack, record.view)
        ssim = "-" if record.ssim is None else f"{record.ssim:.3f}"
        undefended = percent(record.accuracy_undefended) if record.view != "full" else "-"
        lines.append(
            f"| {attack} | {view} | {show_fraction(record.epsilon)} | {record.n:,} | {undefended} | "
            f"{percent(record.accuracy)} | {record.psnr:.1f} | {ssim} |"
        )
    return "\n".join(lines)
