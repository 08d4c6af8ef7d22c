"""Example images for the report's picture (the paper's figure 5)."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from purifiers.attacks import Attack
from purifiers.attacks.generate import generate
from purifiers.data import to_float
from purifiers.evaluation import metrics
from purifiers.evaluation.evaluator import Evaluator
from purifiers.purifier import PurifiedClassifier, Purifier


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


def find_examples(evaluator: Evaluator, purifier: Purifier, name: str, attack: Attack, count: int = 10) -> Examples:
    """Choose images of which the attack, made on the classifier alone, changes the class: the first of each class first.

    The choice does not depend on the purified images, so that the picture shows failures as often as they are. All of the
    evaluator's images are attacked: pass one with a few.
    """
    defended, data = PurifiedClassifier(purifier, evaluator.classifier), evaluator.data
    size, labels = evaluator.batch_size, data.labels
    attacked = generate(attack, evaluator.classifier, data, seed=evaluator.seed, batch_size=size, cache=evaluator.cache)
    with torch.no_grad():
        classes, attacked_classes = (
            metrics.predict(evaluator.classifier, images, size) for images in (data.images, attacked.images)
        )
        right = classes == labels
        changed = right & (attacked_classes != labels)
        chosen = _spread(labels, changed if changed.any() else right, count)
        images, labels, adversarial = to_float(data.images[chosen]), labels[chosen], attacked.images[chosen]
        purified = defended.purifier(adversarial)

        def row(shown: Tensor) -> Row:
            predicted = metrics.classes(defended.classifier(shown.clone()))
            psnr = None if shown is images else metrics.psnr(shown, images).tolist()
            names = [data.classes[i] if i >= 0 else "none" for i in predicted.tolist()]
            return Row(shown.cpu(), names, (predicted == labels).tolist(), psnr)

        return Examples(attack.title, bool(changed.any()), row(images), row(adversarial), row(purified))


def _spread(labels: Tensor, wanted: Tensor, count: int) -> Tensor:
    """Indices of up to ``count`` wanted images: the first of every class, then the second of every class, ..."""
    indices = wanted.nonzero().flatten().tolist() or list(range(len(labels)))
    seen, order = Counter[int](), []
    for index in indices:
        seen[label := int(labels[index])] += 1
        order.append((seen[label], label, index))
    return torch.tensor([index for _, _, index in sorted(order)[:count]], device=labels.device)
