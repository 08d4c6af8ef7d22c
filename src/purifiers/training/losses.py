"""Equations 2 to 6 of Koo, Chae and Lee 2023, one pure function each, and guidance by the frozen classifier.

Images are float (N, C, H, W) in [0,1]; logits are (N, classes); every loss is a scalar, the mean over the batch.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from purifiers.recipes.training_settings import Outputs, SoftmaxOver

Losses = dict[str, Tensor]
"""Scalars by name; training minimises the one called ``loss``, the others are recorded."""


def at_teacher_loss(
    purified: Tensor,
    images: Tensor,
    purified_logits: Tensor,
    adversarial_logits: Tensor,
    labels: Tensor,
    adversarial_weight: float = 1.0,
    outputs: Outputs = "true_class",
) -> tuple[Tensor, Tensor]:
    """Equation 2: MSE(f_AT(x'), x) - w * log sigmoid(p_out - adv_out), as its two terms.

    The paper does not say what the classifier's "outputs" are, on the purified (``p_out``) and on the adversarial image
    (``adv_out``). ``outputs`` is the logit of the true class; the largest logit; all logits, or all probabilities, where the
    term is the mean over classes. Only the first needs ``labels``.

    Returns:
        The reconstruction term and the weighted adversarial term; their sum is the loss.
    """
    p_out, adv_out = (_outputs(logits, labels, outputs) for logits in (purified_logits, adversarial_logits))
    return reconstruction_loss(purified, images), -adversarial_weight * F.logsigmoid(p_out - adv_out).mean()


def _outputs(logits: Tensor, labels: Tensor, outputs: Outputs) -> Tensor:
    match outputs:
        case "true_class":
            return logits.gather(1, labels.unsqueeze(1))
        case "largest":
            return logits.amax(dim=1)
        case "all":
            return logits
        case "probabilities":
            return logits.softmax(dim=1)


def reconstruction_loss(restored: Tensor, images: Tensor) -> Tensor:
    """Equations 3 and 4: the mean squared error over pixels, of the NT teacher on x and of the student on x'."""
    return F.mse_loss(restored, images)


def distillation_loss(student: Tensor, teachers: Sequence[Tensor], softmax_over: SoftmaxOver = "all") -> Tensor:
    """Equation 5: the mean over teachers of KL(g(teacher) || g(student)) + MSE(teacher, student).

    Args:
        student: the student's output images.
        teachers: each teacher's output images.
        softmax_over: ``g`` is the softmax over ``all`` C*H*W values of an image, or over the C ``colours`` of each pixel, whose
            divergences are summed. KL is the mean over the batch.
    """
    if softmax_over == "all":
        student, teachers = student.flatten(1), [teacher.flatten(1) for teacher in teachers]
    log_student = F.log_softmax(student, dim=1)
    total = student.new_zeros(())
    for teacher in teachers:
        log_teacher = F.log_softmax(teacher, dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        total = total + divergence + F.mse_loss(student, teacher)
    return total / len(teachers)


def student_loss(reconstruction: Tensor, distillation: Tensor, beta: float = 0.5, gamma: float = 0.5) -> Tensor:
    """Equation 6: beta * L_s + gamma * L_kd."""
    return beta * reconstruction + gamma * distillation


def classification_loss(
    adversarial_logits: Tensor,
    labels: Tensor,
    clean_logits: Tensor | None = None,
    trades: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy on adversarial images, for a purifier of the frozen classifier on purified ones (Liao et al. 2018,
    class-label guidance); or, with ``clean_logits``, of the unattacked images, TRADES (Zhang et al. 2019, equation 5):
    cross-entropy on these + trades * KL(clean || adversarial)."""
    if clean_logits is None:
        return F.cross_entropy(adversarial_logits, labels, label_smoothing=label_smoothing)
    attacked, clean = adversarial_logits.log_softmax(dim=1), clean_logits.log_softmax(dim=1)
    divergence = F.kl_div(attacked, clean, reduction="batchmean", log_target=True)
    return F.cross_entropy(clean_logits, labels, label_smoothing=label_smoothing) + trades * divergence


def output_guidance(purified_outputs: Tensor, clean_outputs: Tensor) -> Tensor:
    """Mean absolute difference of the frozen classifier's logits, or features, on purified and original images (Liao et al.
    2018; equation 4 of NRP)."""
    return F.l1_loss(purified_outputs, clean_outputs)
