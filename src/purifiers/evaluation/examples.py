"""Example images for the report's picture (the paper's figure 5)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from purifiers.attacks import Attack
from purifiers.attacks.generate import generate
from purifiers.data import slices, to_float
from purifiers.evaluation import metrics
from purifiers.evaluation.evaluator import Evaluator
from purifiers.purifier import PurifiedClassifier, Purifier


@dataclass(frozen=True)
class Row:
    """One row of the picture.

    Attributes:
        images: (N, 3, H, W), float, in [0,1].
        classes: the classifier's class of each.
        correct: is that right?
        psnr: against the original image, in dB; None for the originals.
    """

    images: Tensor
    classes: list[str]
    correct: list[bool]
    psnr: list[float] | None = None


@dataclass(frozen=True)
class Examples:
    """The same N images three times, the name of the attack, and whether it changed their class."""

    attack: str
    changed: bool
    original: Row
    adversarial: Row
    purified: Row


def find_examples(evaluator: Evaluator, purifier: Purifier, name: str, attack: Attack, count: int = 10) -> Examples:
    """Choose images of which the attack, made on the classifier alone, changes the class: the first of each class first.

    Nothing is asked of the purified images, so that the picture shows failures as often as they are. All of the
    evaluator's images are attacked: give it a few.
    """
    defended, data = PurifiedClassifier(purifier, evaluator.classifier), evaluator.data
    attacked = generate(
        attack, evaluator.classifier, data, seed=evaluator.seed, batch_size=evaluator.batch_size, cache=evaluator.cache
    )
    labels = data.labels
    with torch.no_grad():
        batches = list(slices(len(labels), evaluator.batch_size))
        classes = torch.cat([metrics.classes(defended.classifier(to_float(data.images[batch]))) for batch in batches])
        attacked_classes = torch.cat([metrics.classes(defended.classifier(attacked.images[batch])) for batch in batches])
        right = classes == labels
        changed = right & (attacked_classes != labels)
        chosen = _spread(labels, changed if changed.any() else right, count)
        images, labels, adversarial = to_float(data.images[chosen]), labels[chosen], attacked.images[chosen]
        purified = defended.purifier(adversarial)

        def row(shown: Tensor) -> Row:
            predicted = metrics.classes(defended.classifier(shown))
            psnr = None if shown is images else metrics.psnr(shown, images).tolist()
            names = [data.classes[i] if i >= 0 else "none" for i in predicted.tolist()]
            return Row(shown.cpu(), names, (predicted == labels).tolist(), psnr)

        return Examples(name, bool(changed.any()), row(images), row(adversarial), row(purified))


def _spread(labels: Tensor, wanted: Tensor, count: int) -> Tensor:
    """Indices of up to ``count`` wanted images: the first of every class, then the second of every class, ..."""
    indices = wanted.nonzero().flatten().tolist() or list(range(len(labels)))
    seen: dict[int, int] = {}
    order = []
    for index in indices:
        label = int(labels[index])
        seen[label] = seen.get(label, 0) + 1
        order.append((seen[label], label, index))
    return torch.tensor([index for _, _, index in sorted(order)[:count]], device=labels.device)
