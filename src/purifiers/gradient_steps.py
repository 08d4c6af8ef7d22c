"""Projected gradient steps (Madry et al. 2018): attacks climb with them, purifiers that optimise at test time descend."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]


def pgd(
    objective: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    epsilon: float,
    step_size: float,
    num_steps: int,
    norm: Norm = "linf",
    start: Tensor | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """Climb ``objective`` within a ball around ``images``.

    Each step goes by ``step_size`` along the gradient's sign (L-inf) or direction (L2), is projected to the ball and
    clipped to [0,1]. The graph of a step is freed with the step. No early stop: every image gets every step.

    Args:
        objective: images -> a scalar, differentiable, a sum over images that do not depend on each other.
        images: float32 (N, C, H, W), in [0,1].
        epsilon, step_size: in [0,1] units of ``norm``.
        num_steps: number of gradients taken.
        start: the shape of ``images``, in the ball around them; None starts at the images.
        momentum: 0 follows the gradient; else the sum of gradients, each divided by its L1 norm, of which every step
            keeps this share (equation 6 of Dong et al.).
    """
    adversarial = (images if start is None else start).clone()
    gathered = torch.zeros_like(images)
    for _ in range(num_steps):
        adversarial.requires_grad_(True)
        with torch.enable_grad():
            loss = objective(adversarial.view_as(adversarial))  # torch's FLOP counter fails on modules that are given a leaf
        (gradient,) = torch.autograd.grad(loss, adversarial)
        if momentum:
            gathered = momentum * gathered + gradient / gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
            gradient = gathered
        direction = gradient.sign() if norm == "linf" else gradient * (1 / _l2(gradient))
        adversarial = project(adversarial.detach() + step_size * direction, images, epsilon, norm)
    return adversarial


def project(candidate: Tensor, images: Tensor, epsilon: float, norm: Norm = "linf") -> Tensor:
    """``candidate`` brought into the ball of ``epsilon`` around ``images``, and into [0,1]."""
    difference = candidate - images
    if norm == "linf":
        difference = difference.clamp_(-epsilon, epsilon)
    else:
        difference = difference * (epsilon / _l2(difference)).clamp_max(1)
    return difference.add_(images).clamp_(0, 1)


def random_start(images: Tensor, epsilon: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """For each of ``images`` a random point in the ball of ``epsilon`` around it, and in [0,1]."""
    # Drawn in the default memory layout, so that the same seed means the same numbers whatever layout the images have.
    if norm == "linf":
        uniform = torch.rand(images.shape, generator=generator, device=images.device)
        return project(images + (2 * uniform - 1) * epsilon, images, epsilon, norm)
    direction = torch.randn(images.shape, generator=generator, device=images.device)
    radius = torch.rand(len(images), generator=generator, device=images.device) ** (1 / images[0].numel())
    return project(images + direction / _l2(direction) * radius.view(-1, 1, 1, 1) * epsilon, images, epsilon, norm)


def _l2(batch: Tensor) -> Tensor:
    """Length of each image's vector, (N, 1, 1, 1), never 0 so that it can be divided by."""
    return batch.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
