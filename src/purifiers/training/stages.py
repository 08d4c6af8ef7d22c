"""What each network of the method minimises, as functions for the loop: (network, float batch, labels, generator) -> losses.

Where a stage needs adversarial examples, the batch holds image and adversarial example stacked along the channels.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from purifiers.recipes.schema import OnAttacked, Student, TeacherAT
from purifiers.training import losses
from purifiers.training.loop import Losses

StageLosses = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Losses]


def classifier_losses(classifier: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
    """Cross-entropy."""
    return {"loss": F.cross_entropy(classifier(images), labels)}


def nt_losses(teacher: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
    """Teacher NT restores clean images: equation 3."""
    return {"loss": losses.reconstruction_loss(teacher(images), images)}


def at_losses(config: TeacherAT, classifier: nn.Module, fabric: Fabric) -> StageLosses:
    """Teacher AT purifies adversarial images so that the frozen classifier is right again: equation 2."""

    def compute(teacher: nn.Module, pairs: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        images, adversarial = attacked(pairs, config, generator)
        purified = teacher(adversarial)
        logits = _logits(classifier, purified, fabric)
        with torch.no_grad():
            adversarial_logits = _logits(classifier, adversarial, fabric)
        reconstruction, adversarial_term = losses.at_teacher_loss(
            purified, images, logits, adversarial_logits, labels, config.adversarial_weight
        )
        parts = {"mse": reconstruction, "adversarial": adversarial_term}
        total = config.reconstruction_weight * reconstruction + adversarial_term
        return _guided(total, parts, config, classifier, fabric, images, logits, labels)

    return compute


def student_losses(config: Student, teachers: Mapping[str, nn.Module], classifier: nn.Module, fabric: Fabric) -> StageLosses:
    """The student purifies adversarial images and imitates its teachers: equations 4 to 6.

    Args:
        config: weights of the terms, and what teacher NT is shown.
        teachers: ``AT``, ``NT`` or both.
        classifier: frozen; asked only where the configuration has guidance by it.
        fabric: for its precision.
    """

    def compute(student: nn.Module, pairs: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        images, adversarial = attacked(pairs, config, generator)
        purified = student(adversarial)
        with torch.no_grad(), fabric.autocast():
            outputs = [
                teacher(images if name == "NT" and config.nt_teacher_input == "clean" else adversarial).float()
                for name, teacher in teachers.items()
            ]
        reconstruction = losses.reconstruction_loss(purified, images)
        distillation = losses.distillation_loss(purified, outputs)
        parts = {"mse": reconstruction, "distillation": distillation}
        total = losses.student_loss(reconstruction, distillation, config.beta, config.gamma)
        guided = config.classification_weight or config.logits_weight
        logits = _logits(classifier, purified, fabric) if guided else None
        return _guided(total, parts, config, classifier, fabric, images, logits, labels)

    return compute


def attacked(pairs: Tensor, config: OnAttacked, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split a batch of stacked pairs into images and adversarial examples of the strengths that ``config`` asks for.

    Args:
        pairs: float (N, 2C, H, W): an image and its adversarial example, along the channels.
        config: the range of strengths, and the share of images that come without perturbation.
        generator: draws both, for each image; on the pairs' device.
    """
    images, adversarial = (half.contiguous() for half in pairs.chunk(2, dim=1))
    low, high, clean_share = config.strength_low, config.strength_high, config.clean_share
    if (low, high, clean_share) == (1, 1, 0):
        return images, adversarial
    strength, draw = torch.rand(2, len(images), 1, 1, 1, generator=generator, device=images.device)
    strength = (low + (high - low) * strength) * (draw >= clean_share)
    return images, (images + strength * (adversarial - images)).clamp_(0, 1)


def _logits(classifier: nn.Module, images: Tensor, fabric: Fabric) -> Tensor:
    with fabric.autocast():
        logits: Tensor = classifier(images)
    return logits.float()


def _guided(
    total: Tensor,
    parts: Losses,
    config: OnAttacked,
    classifier: nn.Module,
    fabric: Fabric,
    images: Tensor,
    logits: Tensor | None,
    labels: Tensor,
) -> Losses:
    """The losses of a stage with the classifier's guidance, where there is any, added to the total."""
    if logits is not None and config.classification_weight:
        parts["classification"] = losses.classification_guidance(logits, labels)
        total = total + config.classification_weight * parts["classification"]
    if logits is not None and config.logits_weight:
        with torch.no_grad():
            clean_logits = _logits(classifier, images, fabric)
        parts["logits"] = losses.logits_guidance(logits, clean_logits)
        total = total + config.logits_weight * parts["logits"]
    return {"loss": total, **parts}
