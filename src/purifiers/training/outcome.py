"""Which weights a training returns: the last ones, their moving average, or those of the best epoch."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.attacks import Attack
from purifiers.console import say
from purifiers.data import to_float
from purifiers.training.distributed import first_only

SCORED = 250
"""Images that are attacked at once."""
COLLAPSED = 0.5
"""Below this share of the best robust accuracy a training has overfitted to its own attacks."""

Score = Callable[[nn.Module], float]


@dataclass(frozen=True)
class RobustAccuracy:
    """The share of images that a network classifies correctly under an attack on it and what is behind it."""

    attack: Attack
    images: Tensor  # uint8 (N, 3, H, W)
    labels: Tensor  # int64 (N,)
    behind: nn.Module  # from the network's outputs to logits
    seed: int = 0

    def __call__(self, network: nn.Module, count: int | None = None) -> float:
        """Of the first ``count`` images, by default all."""
        model, right = nn.Sequential(network, self.behind), 0
        images, labels = self.images[:count], self.labels[:count]
        for part, own in zip(images.split(SCORED), labels.split(SCORED), strict=True):
            adversarial = self.attack(model, to_float(part), own, seed=self.seed)
            with torch.no_grad():
                right += int((model(adversarial).argmax(1) == own).sum())
        return right / len(images)


class Outcome:
    """The weights that the training of ``network`` returns, followed step by step.

    Args:
        ema: decay of the moving average in each step; 0 for none.
        score: of a network in evaluation mode; the weights of the epoch in which it was largest are returned. None: the last.
    """

    def __init__(self, network: nn.Module, ema: float, score: Score | None) -> None:
        self.network, self.ema, self.score = network, ema, score
        self.average = deepcopy(network).requires_grad_(False) if ema else None
        self.steps = 0  # that the average has followed
        self.best: dict[str, Tensor] = {}
        self.best_score = -1.0

    @property
    def current(self) -> nn.Module:
        """The network as the training would return it now, were there no better epoch."""
        return self.network if self.average is None else self.average

    @torch.no_grad()
    def after_step(self) -> None:
        """Follow the weights. The decay grows to ``ema`` with the steps, so short trainings forget the first weights too."""
        if self.average is None:
            return
        decay = min(self.ema, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        # Each tensor once, where modules share one.
        followed, weights = (
            {name: one.detach() for name, one in chain(network.named_parameters(), network.named_buffers())}
            for network in (self.average, self.network)
        )
        floating = [name for name, value in weights.items() if value.is_floating_point()]
        torch._foreach_lerp_([followed[name] for name in floating], [weights[name] for name in floating], 1 - decay)
        for name in weights.keys() - set(floating):
            followed[name].copy_(weights[name])

    def after_epoch(self, name: str) -> dict[str, float]:
        """Score the epoch: the numbers for its record."""
        if self.score is None:
            return {}
        measure = self.score
        score = first_only(lambda: measure(self.current.eval()))
        if score >= self.best_score:
            self.best = {key: value.clone() for key, value in self.current.state_dict().items()}
            self.best_score = score
        elif score < COLLAPSED * self.best_score:
            fell = f"robust accuracy on held-out images fell from {self.best_score:.1%} to {score:.1%}"
            say(f"warning: {name}: catastrophic overfitting? {fell}; the weights of the best epoch are kept")
        return {"robust_accuracy": score}

    def load_best(self) -> None:
        """Put the weights to return into the network."""
        self.network.load_state_dict(self.best or self.current.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        average = None if self.average is None else self.average.state_dict()
        return {"average": average, "steps": self.steps, "best": self.best, "best_score": self.best_score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.steps, self.best, self.best_score = state["steps"], state["best"], state["best_score"]
