"""What each network of the method minimises, as functions for the loop: (network, float batch, labels) -> losses.

Where a stage needs adversarial examples, the batch holds image and adversarial example stacked along the channels.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from purifiers.recipes.schema import Student, TeacherAT
from purifiers.training import losses
from purifiers.training.loop import Losses

StageLosses = Callable[[nn.Module, Tensor, Tensor], Losses]


def classifier_losses(classifier: nn.Module, images: Tensor, labels: Tensor) -> Losses:
    """Cross-entropy."""
    return {"loss": F.cross_entropy(classifier(images), labels)}


def nt_losses(teacher: nn.Module, images: Tensor, labels: Tensor) -> Losses:
    """Teacher NT restores clean images: equation 3."""
    return {"loss": losses.reconstruction_loss(teacher(images), images)}


def at_losses(config: TeacherAT, classifier: nn.Module, fabric: Fabric) -> StageLosses:
    """Teacher AT purifies adversarial images so that the frozen classifier is right again: equation 2."""

    def compute(teacher: nn.Module, pairs: Tensor, labels: Tensor) -> Losses:
        images, adversarial = _split(pairs)
        purified = teacher(adversarial)
        with fabric.autocast():
            purified_logits = classifier(purified)
            with torch.no_grad():
                adversarial_logits = classifier(adversarial)
        reconstruction, guidance = losses.at_teacher_loss(
            purified, images, purified_logits.float(), adversarial_logits.float(), labels, config.adversarial_weight
        )
        return {"loss": reconstruction + guidance, "mse": reconstruction, "adversarial": guidance}

    return compute


def student_losses(config: Student, teachers: Mapping[str, nn.Module], fabric: Fabric) -> StageLosses:
    """The student purifies adversarial images and imitates its teachers: equations 4 to 6.

    Args:
        config: weights of the terms, and what teacher NT is shown.
        teachers: ``AT``, ``NT`` or both.
        fabric: for its precision.
    """

    def compute(student: nn.Module, pairs: Tensor, labels: Tensor) -> Losses:
        images, adversarial = _split(pairs)
        purified = student(adversarial)
        with torch.no_grad(), fabric.autocast():
            outputs = [
                teacher(images if name == "NT" and config.nt_teacher_input == "clean" else adversarial).float()
                for name, teacher in teachers.items()
            ]
        reconstruction = losses.reconstruction_loss(purified, images)
        distillation = losses.distillation_loss(purified, outputs)
        total = losses.student_loss(reconstruction, distillation, config.beta, config.gamma)
        return {"loss": total, "mse": reconstruction, "distillation": distillation}

    return compute


def _split(pairs: Tensor) -> tuple[Tensor, Tensor]:
    images, adversarial = (half.contiguous() for half in pairs.chunk(2, dim=1))
    return images, adversarial
