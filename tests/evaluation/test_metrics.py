import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from purifiers.evaluation.metrics import matches, predict, psnr, ssim, wilson_interval


def test_equation_7_counts_matches() -> None:
    assert matches(torch.tensor([1, 2, 3, 0]), torch.tensor([1, 0, 3, 1])) == 2
    assert matches(torch.tensor([-1, -1, 3]), torch.tensor([-1, 0, 3])) == 1  # no class agrees with none


@given(count=st.integers(1, 2000), share=st.floats(0, 1))
def test_the_interval_solves_wilsons_equation(count: int, share: float) -> None:
    """Its ends are the proportions p from which the share is 1.96 standard deviations away: (share - p)^2 = z^2 p (1 - p) / n."""
    successes = round(share * count)
    found = successes / count
    low, high = wilson_interval(successes, count)
    assert 0 <= low <= found <= high <= 1 and low < high
    for end in (low, high):
        assert (found - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / count, abs=1e-12)


def test_the_classes_of_a_data_set_are_those_of_its_batches() -> None:
    images = torch.randint(256, (7, 3, 2, 2), dtype=torch.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    assert torch.equal(predict(model, images, 3), model(images / 255).argmax(1))
    assert torch.equal(predict(model, images / 255, 3), model(images / 255).argmax(1))
    with torch.no_grad():
        model[1].bias[2] = math.nan
    assert predict(model, images, 3).tolist() == [-1] * 7


@pytest.mark.parametrize(("successes", "count"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes: int, count: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (SciPy's own words)
        wilson_interval(successes, count)


def test_psnr_is_that_of_each_image() -> None:
    originals = torch.full((3, 3, 8, 8), 0.5)
    images = originals.clone()
    images[0] += 0.1
    images[1, 0] += 0.1  # a third of the pixels
    expected = [20.0, 20.0 + 10 * math.log10(3), 100.0]
    assert psnr(images, originals).tolist() == pytest.approx(expected, rel=1e-5)
    for value in (math.nan, math.inf):
        images[1, 0, 0, 0] = value
        assert psnr(images, originals).tolist() == pytest.approx([20.0, 0.0, 100.0], rel=1e-5)


def test_ssim_of_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    originals = torch.rand(2, 3, 16, 16, generator=generator)
    images = originals.clone()
    images[1] = torch.rand(3, 16, 16, generator=generator)
    values = ssim(images, originals)
    assert values is not None
    assert values[0] == pytest.approx(1)
    assert values[1] < 0.3
    assert ssim(images[:1], originals[:1]).shape == (1,)  # type: ignore[union-attr]
    images[1, 0, 0, 0] = math.nan
    assert ssim(images, originals).tolist() == pytest.approx([1, 0])  # type: ignore[union-attr]
    assert ssim(images[..., :10], originals[..., :10]) is None
