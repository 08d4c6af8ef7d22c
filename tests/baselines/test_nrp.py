"""NRP: sizes as published, losses worked out by hand in float64."""

import math

import pytest
import torch

from purifiers.baselines import NRP
from purifiers.baselines.nrp import Critic, relativistic_loss
from purifiers.errors import InputError


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        assert round(parameters(NRP()) / 1e6, 2) == 16.55
        assert round(parameters(NRP(block="residual")) / 1e6, 2) == 1.70


def test_the_relativistic_average_loss_by_hand() -> None:
    leading, trailing = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.tensor([1.0, -3.0], dtype=torch.float64)
    # Means: 1 and -1. Leading against -1: 3 and 1; trailing against 1: 0 and -4.
    above = (math.log1p(math.exp(-3)) + math.log1p(math.exp(-1))) / 2
    below = (math.log1p(math.exp(0)) + math.log1p(math.exp(-4))) / 2
    assert relativistic_loss(leading, trailing).item() == pytest.approx((above + below) / 2, abs=1e-12)
    # Nothing to tell apart: a coin.
    same = torch.zeros(3, dtype=torch.float64)
    assert relativistic_loss(same, same).item() == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("block", ["dense", "residual"])
def test_images_stay_images_and_training_is_not_clipped(block: str) -> None:
    torch.manual_seed(0)
    network = NRP(block=block, blocks=2, features=8, growth=4)  # type: ignore[arg-type]
    images = torch.rand(2, 3, 17, 9)
    network.train()
    raw = network(images)
    network.eval()
    assert raw.shape == images.shape and (raw.min() < 0 or raw.max() > 1)
    assert torch.equal(network(images), raw.clamp(0, 1))


def test_the_critic_gives_a_score_for_each_image_of_any_size() -> None:
    assert Critic(4)(torch.rand(5, 3, 20, 12)).shape == (5,)


@pytest.mark.parametrize("arguments", [{"block": "sparse"}, {"blocks": 0}, {"growth": -1}])
def test_what_makes_no_sense_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InputError, match="NRP has dense or residual blocks"):
        NRP(**arguments)  # type: ignore[arg-type]
