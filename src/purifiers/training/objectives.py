"""The loss of each stage, as a function for the loop: (network, float batch, labels, generator) -> losses.

Where a stage needs adversarial examples that were made before, the batch holds image and adversarial examples stacked along
the channels. Of several processes each computes the loss of its own images of the batch.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from purifiers.attacks.views import Features
from purifiers.data.images import blurred, shifted
from purifiers.device import Precision, autocast, in_parts
from purifiers.recipes.parts import OnPerturbed
from purifiers.recipes.training_settings import OnAttacked, Student, Supervised, TeacherAT
from purifiers.training import losses
from purifiers.training.adversarial_data import Panel
from purifiers.training.distributed import mine, rank
from purifiers.training.losses import Losses

StageLosses = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Losses]
Model = Callable[[Tensor], Tensor]  # a network, or the same with other weights


def nt_losses(teacher: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
    """Teacher NT restores clean images: equation 3."""
    images = mine(images)
    return {"loss": losses.reconstruction_loss(teacher(images), images)}


def at_losses(config: TeacherAT, panel: Panel, labeller: nn.Module | None = None) -> StageLosses:
    """Teacher AT purifies adversarial images so that the frozen classifiers recognise them: equation 2. With a ``labeller`` the
    targets are its predictions on the adversarial images instead of the labels."""

    def compute(teacher: nn.Module, pairs: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        shown = _showing(config, len(pairs), generator)
        images, adversarial, labels = _adversarial(teacher, pairs, labels, config, panel, generator)
        with torch.no_grad():
            if labeller is not None:
                labels = labeller(adversarial).argmax(1)
            before = panel(shown(adversarial)) if config.adversarial_weight else None

        def parts(teacher: Model) -> Losses:
            purified = teacher(adversarial)
            logits = panel(shown(purified))
            counted = logits if config.adversarial_weight else logits.detach()
            adversarial_logits = counted if before is None else before
            reconstruction, adversarial_term = losses.at_teacher_loss(
                purified, images, counted, adversarial_logits, labels, config.adversarial_weight, config.adversarial_outputs
            )
            total = config.reconstruction_weight * reconstruction + adversarial_term
            own = {"mse": reconstruction, "adversarial": adversarial_term}
            return _guided(total, own, config, panel, shown, teacher, images, purified, labels, logits)

        return parts(_adversarial_weights(teacher, parts, config.weight_perturbation, panel.precision))

    return compute


def student_losses(config: Student, teachers: Mapping[str, nn.Module], panel: Panel) -> StageLosses:
    """The student purifies adversarial images and imitates its ``teachers``, ``AT``, ``NT`` or both: equations 4 to 6."""

    def compute(student: nn.Module, pairs: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        shown = _showing(config, len(pairs), generator)
        images, adversarial, labels = _adversarial(student, pairs, labels, config, panel, generator)
        adversarial, *known = (part.contiguous() for part in adversarial.split(3, dim=1))
        few = max(len(panel.classifiers), round(config.guided_share * len(images)))
        with torch.no_grad(), autocast(images.device, panel.precision):
            outputs = [
                known[0]
                if known and name == "AT"
                else in_parts(teacher, images if name == "NT" and config.nt_teacher_input == "clean" else adversarial).float()
                for name, teacher in teachers.items()
            ]

        def parts(student: Model) -> Losses:
            purified = student(adversarial)
            reconstruction = losses.reconstruction_loss(purified, images)
            distillation = losses.distillation_loss(purified, outputs, config.softmax_over)
            total = losses.student_loss(reconstruction, distillation, config.beta, config.gamma)
            own = {"mse": reconstruction, "distillation": distillation}
            return _guided(total, own, config, panel, shown, student, images, purified, labels, few=few)

        return parts(_adversarial_weights(student, parts, config.weight_perturbation, panel.precision))

    return compute


def classifier_losses(config: Supervised, precision: Precision = "32-true") -> StageLosses:
    """Cross-entropy of a classifier, with an attack on adversarial images of its own (Madry et al. 2018)."""

    def compute(classifier: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        images, labels = mine(images), mine(labels)
        inputs = images
        if config.attack is not None:
            inputs = config.attack(_attackable(classifier, precision), images, labels, seed=_draw(generator))

        def parts(classifier: Model) -> Losses:
            return {"loss": _classification(config, classifier, images, classifier(inputs).float(), labels)}

        return parts(_adversarial_weights(classifier, parts, config.weight_perturbation, precision))

    return compute


def _classification(config: Supervised, model: Model, images: Tensor, adversarial_logits: Tensor, labels: Tensor) -> Tensor:
    clean_logits = model(images).float() if config.trades else None
    return losses.classification_loss(adversarial_logits, labels, clean_logits, config.trades, config.label_smoothing)


def _adversarial_weights(network: nn.Module, parts: Callable[[Model], Losses], share: float, precision: Precision) -> Model:
    """``network``; or, with a ``share``, the same where each of its layers has moved by this share of its norm towards a higher
    loss of ``parts``. Gradients are those of the network's own weights (Wu et al. 2020, equations 8 to 10)."""
    if not share:
        return network
    plain = _attackable(network, precision)
    weights = {name: weight for name, weight in plain.named_parameters() if weight.requires_grad}
    # This pass is no step: it leaves the statistics of batch normalisation alone.
    apart = {name: buffer.clone() for name, buffer in plain.named_buffers()}
    loss = parts(lambda images: functional_call(plain, weights | apart, (images,)))["loss"]
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    moved = {
        name: weight + share * weight.detach().norm() / gradient.norm().clamp_min(1e-12) * gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        if gradient is not None and weight.ndim > 1  # not those of normalisation, nor biases
    }
    return lambda images: functional_call(plain, moved, (images,))


def _attackable(network: nn.Module, precision: Precision) -> nn.Module:
    """A network in training as an attacker sees it: without the loop's wrappers, whose outputs only the loop may
    differentiate, and in the training's precision."""
    for wrapper in ("_orig_mod", "module"):  # of torch.compile and of Fabric
        network = getattr(network, wrapper, network)
    return Panel([network.module if isinstance(network, DistributedDataParallel) else network], precision)


def _draw(generator: torch.Generator) -> int:
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    return seed + rank()  # processes whose images start from the same noise would see less of it


def _adversarial(
    purifier: nn.Module, batch: Tensor, labels: Tensor, config: OnAttacked, panel: Panel, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """This process's images, their adversarial examples (from the batch, or made on the purifier now), and labels. With
    ``teacher_once`` the teacher's outputs follow the adversarial examples along the channels."""
    each = 1 + getattr(config, "teacher_once", False)
    if config.attack is not None:
        batch = batch[:, :3].repeat(1, 2, 1, 1)
        images, adversarial = mine(batch).split(3, dim=1)
        target = nn.Sequential(_attackable(purifier, panel.precision), panel)
        adversarial.copy_(config.attack(target, images.contiguous(), mine(labels), seed=_draw(generator)))
    images, adversarial = attacked(batch, config, generator, each)
    return mine(images), mine(adversarial), mine(labels)


def attacked(pairs: Tensor, config: OnPerturbed, generator: torch.Generator, each: int = 1) -> tuple[Tensor, Tensor]:
    """Split ``pairs``, float (N, 3 + 3 * each * rounds, H, W), into images and adversarial examples of the strengths in
    ``config``; of a round there are ``each`` images, the others made from the adversarial ones and scaled alike."""
    images, *rounds = (part.contiguous() for part in pairs.tensor_split([*range(3, pairs.shape[1], 3 * each)], dim=1))
    adversarial = rounds[0] if rounds else images.repeat(1, each, 1, 1)
    if len(rounds) > 1:
        turn = torch.randint(len(rounds), (len(images),), generator=generator, device=images.device)
        adversarial = torch.stack(rounds)[turn, torch.arange(len(images), device=images.device)]
    low, high, clean_share = config.strength_low, config.strength_high, config.clean_share
    if (low, high, clean_share) != (1, 1, 0):
        strength, draw = torch.rand(2, len(images), 1, 1, 1, generator=generator, device=images.device)
        strength = (low + (high - low) * strength) * (draw >= clean_share)
        whole = images.repeat(1, each, 1, 1)
        adversarial = (whole + strength * (adversarial - whole)).clamp_(0, 1)
    if config.noise:
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        adversarial = (adversarial + config.noise * noise).clamp_(0, 1)
    return images, adversarial


def _showing(config: OnAttacked, count: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """How the guiding classifiers are shown images in one step; drawn for the ``count`` images of the whole batch."""
    device, blur, shift = generator.device, config.guide_blur, config.guide_shift
    strengths = torch.rand(count, 1, 1, 1, generator=generator, device=device) if blur else None
    shifts = torch.randint(2 * shift + 1, (count, 2), generator=generator, device=device) if shift else None

    def shown(images: Tensor) -> Tensor:
        if strengths is not None:
            images = blurred(images, blur * mine(strengths)[: len(images)], math.ceil(3 * blur))
        return images if shifts is None else shifted(images, mine(shifts)[: len(images)], shift)

    return shown


def _guided(
    total: Tensor,
    parts: Losses,
    config: OnAttacked,
    panel: Panel,
    shown: Model,
    purifier: Model,
    images: Tensor,
    purified: Tensor,
    labels: Tensor,
    logits: Tensor | None = None,
    few: int | None = None,
) -> Losses:
    """The losses of a stage with the classifiers' guidance, where there is any, added to the total. ``logits`` of ``purified``
    where they are known. The classifiers are given ``few`` images, by default all, as they are ``shown`` to them."""
    images, purified, labels = images[:few], purified[:few], labels[:few]
    if logits is None and (config.classification_weight or config.logits_weight):
        logits = panel(shown(purified))
    if logits is not None and config.classification_weight:
        parts["classification"] = _classification(config, lambda x: panel(shown(purifier(x))), images, logits, labels)
        total = total + config.classification_weight * parts["classification"]
    if logits is not None and config.logits_weight:
        with torch.no_grad():
            clean = panel(shown(images))
        parts["logits"] = losses.output_guidance(logits, clean)
        total = total + config.logits_weight * parts["logits"]
    if config.features_weight:
        features = Panel([Features(one, config.feature_layer) for one in panel.classifiers], panel.precision)
        with torch.no_grad():
            clean = features(shown(images))
        parts["features"] = losses.output_guidance(features(shown(purified)), clean)
        total = total + config.features_weight * parts["features"]
    return {"loss": total, **parts}
