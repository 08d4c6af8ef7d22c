import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from purifiers.evaluation.metrics import matches, psnr, sign_test, ssim, wilson_interval


def test_equation_7_counts_matches() -> None:
    assert matches(torch.tensor([1, 2, 3, 0]), torch.tensor([1, 0, 3, 1])) == 2
    assert matches(torch.tensor([-1, -1, 3]), torch.tensor([-1, 0, 3])) == 1  # no class agrees with none


@given(count=st.integers(1, 2000), share=st.floats(0, 1))
def test_intervals_are_scipys(count: int, share: float) -> None:
    successes = round(share * count)
    expected = binomtest(successes, count).proportion_ci(0.95, "wilson")
    low, high = wilson_interval(successes, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert low - 1e-12 <= successes / count <= high + 1e-12


@given(count=st.integers(1, 500), share=st.floats(0, 1))
def test_sign_tests_are_scipys(count: int, share: float) -> None:
    successes = round(share * count)
    expected = binomtest(successes, count, alternative="greater").pvalue
    assert sign_test(successes, count) == pytest.approx(expected, rel=1e-9)


def test_nothing_to_compare_is_no_evidence() -> None:
    assert sign_test(0, 0) == 1
    with pytest.raises(ValueError, match="cannot test"):
        sign_test(3, 2)


@pytest.mark.parametrize(("successes", "count"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes: int, count: int) -> None:
    with pytest.raises(ValueError, match="cannot give an interval"):
        wilson_interval(successes, count)


def test_psnr_is_that_of_each_image() -> None:
    originals = torch.full((3, 3, 8, 8), 0.5)
    images = originals.clone()
    images[0] += 0.1
    images[1, 0] += 0.1  # a third of the pixels
    expected = [20.0, 20.0 + 10 * math.log10(3), 100.0]
    assert psnr(images, originals).tolist() == pytest.approx(expected, rel=1e-5)


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
    assert ssim(images[..., :10], originals[..., :10]) is None
