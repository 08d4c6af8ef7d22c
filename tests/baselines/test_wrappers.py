"""Adaptive use and noise around a base whose right answer is known."""

import pytest
import torch
from torch import Tensor, nn

from purifiers import Purifier
from purifiers.baselines import Adaptive, BitDepth, Blend, Noisy, Nothing
from purifiers.errors import InputError


class Half(nn.Module):
    """Brings each pixel half way to mid-grey: the reconstruction error is ((x - 0.5) / 2)^2, lowest at mid-grey."""

    def forward(self, images: Tensor) -> Tensor:
        return images + (0.5 - images) / 2


def test_adaptive_steps_descend_the_reconstruction_error_by_hand() -> None:
    images = torch.tensor([0.9, 0.1, 0.55]).view(3, 1, 1, 1).expand(3, 3, 4, 4).contiguous()
    # Three steps of 0.04 towards mid-grey within 0.1: 0.9 -> 0.8; 0.1 -> 0.2; 0.55 -> 0.51, 0.47, 0.51. Then half way.
    expected = torch.tensor([0.65, 0.35, 0.505]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    changed = Adaptive(Half(), num_steps=3, step_size=0.04, epsilon=0.1)(images)
    torch.testing.assert_close(changed, expected)


def test_adaptive_works_where_gradients_are_off_and_gives_the_last_passes() -> None:
    images = torch.rand(2, 3, 8, 8)
    network = Adaptive(Half())
    with torch.no_grad():
        first = network(images)
    with torch.inference_mode():
        second = network(images)
    assert torch.equal(first, second)
    images.requires_grad_(True)
    network(images).sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 0.5))


def test_adaptive_is_an_option_of_any_purifier() -> None:
    images = torch.rand(2, 3, 8, 8)
    base = Purifier(BitDepth(2))
    # Its gradient is the identity's, so that the error has none: nothing moves.
    assert torch.equal(Purifier(Adaptive(base.network))(images), base(images))


def test_noise_has_its_size_and_its_ball() -> None:
    images = torch.full((4, 3, 64, 64), 0.5)
    torch.manual_seed(0)
    noise = Noisy(Nothing(), sigma=0.05, epsilon=1)(images) - images
    assert noise.std().item() == pytest.approx(0.05, rel=0.02) and abs(noise.mean().item()) < 1e-3
    clipped = Noisy(Nothing(), sigma=0.05, epsilon=0.02)(images) - images
    assert clipped.abs().max().item() == pytest.approx(0.02, abs=1e-6)
    assert not torch.equal(Noisy(Nothing())(images), Noisy(Nothing())(images))


@pytest.mark.parametrize("numbers", [{"num_steps": 0}, {"num_steps": 2.5}, {"step_size": 0.0}, {"epsilon": -1.0}])
def test_steps_that_make_no_sense_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(InputError, match="at least one whole step"):
        Adaptive(Half(), **numbers)  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.7), (0.25, 0.75), (1.0, 0.9)])
def test_a_blend_is_the_weighted_mean_of_input_and_output(share: float, expected: float) -> None:
    images = torch.full((2, 3, 4, 4), 0.9)
    torch.testing.assert_close(Purifier(Blend(Half(), share))(images), torch.full_like(images, expected))


def test_a_share_outside_the_whole_is_refused() -> None:
    with pytest.raises(InputError, match=r"in \[0,1\]; got 1.5"):
        Blend(Half(), 1.5)
