"""SOAP, self-supervised online adversarial purification (Shi, Holtz and Mishne, ICLR 2021, arXiv 2101.09387).

A classifier is trained together with an auxiliary task that needs no labels. At test time an image is moved, within a small
ball, to where the auxiliary loss is low: attacks on the class leave that loss high.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purifiers.errors import InputError
from purifiers.gradient_steps import project
from purifiers.networks import Network, ResNet
from purifiers.registry import NETWORKS

Task = Literal["reconstruction", "rotation", "consistency"]
"""Data reconstruction, rotation prediction, label consistency (section 3.3 of the paper)."""
ROUNDING = 1e-6
"""How much larger than an epsilon a distance may seem by rounding."""
TURNS = 4
"""Rotations by a quarter turn, from none to three."""
SMALLEST = 24 / 32
"""The smallest part of an image that a view of label consistency shows, in each direction."""


def rotation_error(logits: Tensor, turns: Tensor) -> Tensor:
    """At test time: mean squared error of the softmax to the one-hot turn, (N,), of ``logits`` (N, 4), ``turns`` (N,)."""
    return (logits.softmax(1) - F.one_hot(turns, TURNS)).square().mean(1)


def reconstruction_error(restored: Tensor, images: Tensor) -> Tensor:
    """Mean squared error of each image, (N,), of two batches (N, C, H, W)."""
    return (restored - images).square().flatten(1).mean(1)


def consistency_error(logits: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference of the logits (N, classes) of two views of each image, (N,)."""
    return (logits - others).square().mean(1)


@NETWORKS.register("soap")
class SOAP(Network):
    """Purifies images with the auxiliary task of its own classifier: (N, 3, H, W), float, in [0,1] -> the same.

    For each epsilon of ``0, epsilon_step, 2 * epsilon_step, ...`` an image descends its auxiliary error from where it is;
    of the results, each image keeps the one of the lowest error (the paper chooses so; its code chooses once a batch).
    The gradient of the output is that of the identity, a first guess of an attacker's (BPDA).

    Attributes:
        classifier: protected and attacked; it was trained with the task, and no other can replace it.

    Args:
        classifier: a CIFAR ResNet.
        task: which auxiliary task.
        num_steps, step_size: of each descent; 5 steps of 4/255 in the paper.
        epsilon_step, num_epsilons: the epsilons to choose from; 10 of 4/255 and their multiples, besides 0, in the paper.
        mirrored: the views of ``consistency`` are mirror images too (not where left and right mean something).
        held: at test time the other view of ``consistency`` is a constant in each step (ours; as published, both move).
    """

    channels = 3
    not_exportable = "it follows gradients of its own"

    def __init__(
        self,
        classifier: nn.Module,
        task: Task = "consistency",
        num_steps: int = 5,
        step_size: float = 4 / 255,
        epsilon_step: float = 4 / 255,
        num_epsilons: int = 10,
        mirrored: bool = True,
        held: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(classifier, ResNet):
            raise InputError(f"SOAP is built around a 'resnet', whose features its task uses; got {type(classifier).__name__}")
        if task not in get_args(Task):
            raise InputError(f"SOAP has the tasks {', '.join(get_args(Task))}; got '{task}'")
        if min(num_steps, num_epsilons) < 1 or min(step_size, epsilon_step) <= 0:
            got = f"num_steps={num_steps}, num_epsilons={num_epsilons}, step_size={step_size}, epsilon_step={epsilon_step}"
            raise InputError(f"SOAP needs at least one step and one epsilon, both above 0; got {got}")
        self.classifier = classifier
        self.task: Task = task
        self.num_steps, self.step_size, self.epsilon_step = num_steps, step_size, epsilon_step
        self.mirrored, self.held = mirrored, held
        # A descent never moves further than this: larger epsilons would all give the same.
        reach = math.ceil(num_steps * step_size / epsilon_step - ROUNDING)
        self.levels = min(num_epsilons, reach)
        width = classifier.linear.in_features
        self.head: nn.Module = nn.Identity()
        if task == "rotation":
            self.head = nn.Linear(width, TURNS)
        elif task == "reconstruction":
            self.head = nn.Sequential(
                nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(width // 2, width // 4, 4, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(width // 4, 3, 3, padding=1),
                nn.Sigmoid(),
            )

    def auxiliary(self, images: Tensor) -> Tensor:
        """The task's output for ``images``: logits of the turn (N, 4), restored images, or logits of the class."""
        return self.answer(self.classifier.features(images), images.shape[-2:])

    def answer(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """The same from the classifier's feature map of images of ``size``, height and width."""
        if self.task == "rotation":
            return self.head(features.mean(dim=(2, 3)))
        if self.task == "reconstruction":
            height, width = size
            return self.head(features)[..., :height, :width]
        return self.classifier.logits(features)

    def error(self, images: Tensor) -> Tensor:
        """The auxiliary error of each image at test time, (N,); lower is cleaner."""
        if self.task == "rotation":
            turns = torch.arange(TURNS, device=images.device)[:, None].expand(-1, len(images))
            errors = [rotation_error(self.auxiliary(images.rot90(i, (2, 3))), turn) for i, turn in enumerate(turns)]
            return torch.stack(errors).mean(0)
        if self.task == "reconstruction":
            return reconstruction_error(self.auxiliary(images), images)
        others = self.auxiliary(self.view(images))
        return consistency_error(self.auxiliary(images), others.detach() if self.held else others)

    def view(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A view of label consistency: a part of the image, from 24 of 32 pixels on, zoomed to the whole, and mirrored.

        For training, ``generator`` draws for each image how large a part, which and whether mirrored. Without one it is the
        middle 24 of 32, mirrored, as in the authors' code: the view that an image is compared with at test time.
        """
        count, device = len(images), images.device
        if generator is None:
            share, across, down = images.new_full((count,), SMALLEST), images.new_zeros(count), images.new_zeros(count)
            sign = images.new_full((count,), -1.0 if self.mirrored else 1.0)
        else:
            drawn = torch.rand(4, count, generator=generator, device=device)
            share = SMALLEST + (1 - SMALLEST) * drawn[0]
            across, down = ((2 * place - 1) * (1 - share) for place in drawn[1:3])
            sign = torch.where((drawn[3] < 0.5) & self.mirrored, -1.0, 1.0)
        zero = torch.zeros_like(share)
        rows = torch.stack([sign * share, zero, across]), torch.stack([zero, share, down])
        grid = F.affine_grid(torch.stack(rows).permute(2, 0, 1), list(images.shape), align_corners=False)
        # Nearest pixels, as theirs: smoothing would remove a part of the perturbation beforehand.
        return F.grid_sample(images, grid, mode="nearest", padding_mode="border", align_corners=False)

    def forward(self, images: Tensor) -> Tensor:
        measured = torch.no_grad()(self.error)
        # Gradients are needed whatever the caller's mode.
        with torch.inference_mode(False), torch.enable_grad():
            best = images.detach().clone()
            lowest = measured(best)
            for candidate in self._descents(best):
                error = measured(candidate)
                better = error < lowest
                best = torch.where(better.view(-1, 1, 1, 1), candidate, best)
                lowest = torch.where(better, error, lowest)
        return best + (images - images.detach())

    def _descents(self, start: Tensor) -> list[Tensor]:
        """Where the descents of all epsilons above 0 end.

        They share gradients until the ball of one is too small: 11 passes instead of 25.
        """
        epsilons = [level * self.epsilon_step for level in range(1, self.levels + 1)]
        together, apart = start, dict[int, Tensor]()  # by the number of the epsilon
        for step in range(1, self.num_steps + 1):
            points = torch.cat([together, *apart.values()]).requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.error(points).sum(), points)
            moved = (points.detach() - self.step_size * gradient.sign()).split(len(start))
            for i, point in zip(list(apart), moved[1:], strict=True):
                apart[i] = project(point, start, epsilons[i])
            for i, epsilon in enumerate(epsilons):
                if i not in apart and epsilon < step * self.step_size - ROUNDING:
                    apart[i] = project(moved[0], start, epsilon)
            together = project(moved[0], start, epsilons[-1])
        return [apart.get(i, together) for i in range(len(epsilons))]
