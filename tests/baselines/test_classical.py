"""Each transformation against an answer known without it; none is compared with its own output."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from purifiers import Purifier
from purifiers.baselines import JPEG, BitDepth, Median, Noisy, Nothing, Shrink, TotalVariation
from purifiers.errors import InputError

ALL: dict[str, Callable[[], nn.Module]] = {
    "jpeg": JPEG,
    "bit depth": BitDepth,
    "median": Median,
    "total variation": TotalVariation,
    "shrink": Shrink,
    "noise": lambda: Noisy(Nothing()),
}


@pytest.mark.parametrize("build", ALL.values(), ids=ALL)
@pytest.mark.parametrize("size", [(32, 32), (17, 9)])
def test_images_stay_images(build: Callable[[], nn.Module], size: tuple[int, int]) -> None:
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    given = images.clone()
    changed = Purifier(build())(images)
    assert changed.shape == images.shape and changed.dtype == images.dtype
    assert changed.min() >= 0 and changed.max() <= 1
    assert torch.equal(images, given), "the input was changed"
    assert not torch.equal(changed, images)


@pytest.mark.parametrize("build", [build for name, build in ALL.items() if name != "shrink"])
def test_an_attacker_gets_the_identitys_gradient(build: Callable[[], nn.Module]) -> None:
    """A gradient of zero would protect nobody and flatter the number."""
    images = torch.full((2, 3, 16, 16), 0.5, requires_grad=True)  # far from where noise is clipped
    weights = torch.randn(2, 3, 16, 16)
    (Purifier(build())(images) * weights).sum().backward()
    torch.testing.assert_close(images.grad, weights)


def test_jpeg_is_pillows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=40)
        expected = np.asarray(Image.open(file))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    changed = JPEG(40)(images)[0].permute(1, 2, 0) * 255
    np.testing.assert_allclose(changed.numpy(), expected, atol=1e-4)


def test_shrinking_is_pillows() -> None:
    """But for the way back, which Pillow does with another kernel."""
    pixels = np.random.default_rng(0).random((12, 20), dtype=np.float32)
    small = Image.fromarray(pixels).resize((10, 6), Image.Resampling.BICUBIC)
    expected = F.interpolate(torch.from_numpy(np.array(small))[None, None], (12, 20), mode="bicubic").clamp(0, 1)
    torch.testing.assert_close(Shrink()(torch.from_numpy(pixels)[None, None]), expected, atol=1e-5, rtol=0)


def test_shrinking_loses_single_pixels_and_keeps_plain_areas() -> None:
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2.0
    assert (Shrink()(board[None, None])[..., 4:-4, 4:-4] - 0.5).abs().max() < 0.05
    plain = torch.full((1, 3, 15, 9), 0.25)
    torch.testing.assert_close(Shrink(4)(plain), plain)


def test_one_bit_is_black_or_white() -> None:
    images = torch.tensor([0.0, 0.2, 0.49, 0.51, 0.9, 1.0]).view(1, 1, 2, 3)
    assert BitDepth(1)(images).flatten().tolist() == [0, 0, 0, 1, 1, 1]
    # Two bits: thirds.
    torch.testing.assert_close(BitDepth(2)(images).flatten(), torch.tensor([0, 1, 1, 2, 3, 3]) / 3)


def test_a_median_removes_one_wrong_pixel_of_each_channel_alone() -> None:
    images = torch.full((1, 3, 7, 7), 0.25)
    images[0, 0, 3, 3] = 1.0
    images[0, 1] = 0.75
    changed = Median(3)(images)
    assert torch.equal(changed[0, 0], torch.full((7, 7), 0.25)) and torch.equal(changed[0, 1], torch.full((7, 7), 0.75))


def test_total_variation_falls_and_flat_stays_flat() -> None:
    def variation(images: torch.Tensor) -> float:
        return float(images.diff(dim=2).abs().sum() + images.diff(dim=3).abs().sum())

    noisy = (0.5 + 0.1 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    once, more = TotalVariation(0.05)(noisy), TotalVariation(0.3)(noisy)
    assert variation(more) < variation(once) < variation(noisy)
    torch.testing.assert_close(once.mean(), noisy.mean(), atol=1e-3, rtol=0)
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(TotalVariation()(flat), flat)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: JPEG(0), "1 to 95"),
        (lambda: BitDepth(9), "1 to 8"),
        (lambda: Median(1), "side of 2 to"),
        (lambda: Median(99999), "side of 2 to"),
        (lambda: TotalVariation(0), "above 0"),
        (lambda: JPEG(75.5), "a whole number from 1 to 95"),  # type: ignore[arg-type]
        (lambda: BitDepth(4.5), "a whole number"),  # type: ignore[arg-type]
        (lambda: Median(2.5), "whole pixels"),  # type: ignore[arg-type]
        (lambda: TotalVariation(float("nan")), "above 0"),
        (lambda: Noisy(Nothing(), sigma=-1), "above 0"),
        (lambda: Noisy(Nothing(), sigma=float("inf")), "above 0"),
        (lambda: JPEG()(torch.rand(1, 1, 8, 8)), "3 channels"),
    ],
)
def test_what_makes_no_sense_is_refused(build: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build()
