"""Which weights a training gives: the last ones, their moving average, or those of the epoch that withstood an attack best."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from purifiers.console import say
from purifiers.data import to_float
from purifiers.recipes.schema import HeldOut

SCORED = 250
"""Images that are attacked at once."""
COLLAPSED = 0.5
"""Below this share of the best score a network has forgotten what it withstood."""

Score = Callable[[nn.Module], float]


def withstands(held_out: HeldOut, images: Tensor, labels: Tensor, behind: nn.Module, seed: int) -> Score:
    """The share of ``images``, uint8 (N, 3, H, W), that a network with ``behind`` behind it classifies as in ``labels`` under
    the attack on both."""

    def score(network: nn.Module) -> float:
        model, right = nn.Sequential(network, behind), 0
        for part, own in zip(images.split(SCORED), labels.split(SCORED), strict=True):
            adversarial = held_out.attack(model, to_float(part), own, seed=seed)
            with torch.no_grad():
                right += int((model(adversarial).argmax(1) == own).sum())
        return right / len(images)

    return score


class Outcome:
    """The weights that the training of ``network`` gives, followed while it goes on.

    Args:
        ema: decay of the moving average in each step; 0 for none.
        score: of a network in evaluation mode; the weights of the epoch in which it was largest are given. None: the last.
    """

    def __init__(self, network: nn.Module, ema: float, score: Score | None) -> None:
        self.network, self.score = network, score
        average = get_ema_multi_avg_fn(ema)
        self.average = AveragedModel(network, multi_avg_fn=average, use_buffers=True) if ema else None
        self.best: dict[str, Tensor] = {}
        self.best_score = -1.0

    @property
    def current(self) -> nn.Module:
        """The network as the training would give it now, were there no better epoch."""
        return self.network if self.average is None else self.average.module

    def after_step(self) -> None:
        """Follow the weights."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def after_epoch(self, name: str) -> dict[str, float]:
        """Score the epoch: the numbers for its record."""
        if self.score is None:
            return {}
        score = self.score(self.current.eval())
        if score > self.best_score:
            self.best_score = score
            self.best = {key: value.clone() for key, value in self.current.state_dict().items()}
        elif score < COLLAPSED * self.best_score:
            lost = (
                f"withstands the attack on {score:.1%} of the held-out images, after {self.best_score:.1%} in an earlier epoch"
            )
            say(f"warning: {name} {lost}, which is kept: see one-step attacks in docs/method.md")
        return {"withstood": score}

    def give(self) -> None:
        """Put the weights into the network."""
        self.network.load_state_dict(self.best or self.current.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        average = None if self.average is None else self.average.state_dict()
        return {"average": average, "best": self.best, "best_score": self.best_score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best, self.best_score = state["best"], state["best_score"]
