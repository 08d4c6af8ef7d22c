"""CERTIFY and PREDICT, where the answer is known: bounds by hand, and a linear classifier, whose exact radius is its margin."""

import math
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from purifiers import PurifiedClassifier, Purifier
from purifiers.baselines import Nothing
from purifiers.cache import Cache
from purifiers.data import ImageSet, to_float
from purifiers.errors import InputError, Unfinished
from purifiers.evaluation.certify import (
    ABSTAIN,
    ImageCertificate,
    Smoothing,
    certify,
    certify_run,
    lower_bound,
    predict,
    summarised,
)
from purifiers.runs import Run
from purifiers.shards import Shard
from purifiers.storage import save_state
from tests.conftest import Linear

SHAPE = (3, 4, 4)
SIGMA = 0.05
"""So small that noise around mid-grey is never clipped: the edges are nearly ten standard deviations away."""


def margins(model: Linear, images: Tensor) -> Tensor:
    """|w.x + b| / ||w||: the exact distance to the boundary of two classes, (N,)."""
    with torch.no_grad():
        logits, gap = model(images), (model.weight[0] - model.weight[1]).norm()
    return (logits[:, 0] - logits[:, 1]).abs() / gap


def problem(count: int, away: float = 0.0) -> tuple[Linear, ImageSet]:
    """A linear classifier, and near-grey images, labelled as it says, whose boundary is ``away`` from the grey image."""
    model = Linear(2, SHAPE)
    images = torch.randint(124, 132, (count, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        grey = model(torch.full((1, *SHAPE), 0.5))[0]
        model.bias -= grey
        model.bias[0] += away * (model.weight[0] - model.weight[1]).norm()
    return model, ImageSet("grey", images, model(to_float(images)).argmax(1), ("a", "b"))


def grey(count: int = 1) -> ImageSet:
    """Images exactly on the boundary of :class:`Sign`."""
    return ImageSet(
        "grey", torch.full((count, *SHAPE), 128, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64), ("a", "b")
    )


class Sign(nn.Module):
    """Class 1 where the first pixel is above the grey of level 128."""

    def forward(self, images: Tensor) -> Tensor:
        first = images.flatten(1)[:, 0] - 128 / 255
        return torch.stack([-first, first], 1)


SEEN: list[Tensor] = []
"""The noisy copies that :class:`Always` saw, kept outside of it: an attribute is a part of what a model is."""


class Always(nn.Module):
    """One class whatever comes."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which
        SEEN.clear()

    def forward(self, images: Tensor) -> Tensor:
        SEEN.append(images.clone())
        return torch.nn.functional.one_hot(torch.full((len(images),), self.which), 3).float()


def test_the_bound_of_clopper_and_pearson_by_hand() -> None:
    # All of n: P(n successes) = p^n = alpha. One of n: 1 - (1 - p)^n = alpha. None: nothing is known.
    assert lower_bound(100, 100, 0.001) == pytest.approx(0.001 ** (1 / 100), rel=1e-12)
    assert lower_bound(1, 50, 0.05) == pytest.approx(1 - 0.95 ** (1 / 50), rel=1e-9)
    assert lower_bound(0, 50, 0.05) == 0.0
    # 2 of 2 or 1 of 2 at alpha 0.19: p^2 = 0.19; 1 - (1 - p)^2 = 0.19, so p = 0.1.
    assert lower_bound(1, 2, 0.19) == pytest.approx(0.1, rel=1e-12)


@given(st.integers(1, 400), st.integers(0, 400), st.floats(1e-4, 0.4))
def test_the_bound_is_scipy_s_exact_test_turned_round(count: int, successes: int, alpha: float) -> None:
    successes = min(successes, count)
    expected = stats.binomtest(successes, count, alternative="greater").proportion_ci(1 - alpha, "exact").low
    assert lower_bound(successes, count, alpha) == pytest.approx(expected, abs=1e-7)


def test_one_class_whatever_comes_has_the_largest_radius_that_n_allows() -> None:
    smoothing = Smoothing(sigma=0.5, n0=3, n=100, alpha=0.001)
    (found,) = certify(Always(2), grey(), smoothing)
    assert (found.predicted, found.majority, found.votes) == (2, 2, 100)
    assert found.radius == pytest.approx(0.5 * NormalDist().inv_cdf(0.001 ** (1 / 100)), rel=1e-12)
    assert found.radius == smoothing.largest_radius


def test_certified_radii_stay_below_the_exact_ones_of_a_linear_classifier() -> None:
    """With probability 1 - alpha for each; the smoothed classifier is the classifier."""
    model, data = problem(40, away=0.03)
    exact = margins(model, to_float(data.images))
    found = certify(model, data, Smoothing(SIGMA, n=400), seed=5)
    assert all(image.radius <= limit for image, limit in zip(found, exact.tolist(), strict=True))
    assert all(image.predicted in (None, image.label) for image in found)
    assert sum(image.radius > 0 for image in found) > 10


def test_certified_radii_near_the_exact_ones_as_copies_grow() -> None:
    model, data = problem(4, away=0.05)  # one sigma from the boundary: no number of copies here is its limit
    exact = margins(model, to_float(data.images))
    shares = []
    for n in (100, 1000, 40_000):
        found = certify(model, data, Smoothing(SIGMA, n=n), batch_size=5000)
        radii = torch.tensor([image.radius for image in found])
        assert (radii <= exact).all()
        shares.append((radii / exact).mean().item())
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1, abs=0.04)


def test_on_the_boundary_it_abstains() -> None:
    """There the probability of both classes is one half: no bound is above it but by chance, of alpha for each image."""
    found = certify(Sign(), grey(50), Smoothing(SIGMA, n=500))
    assert [image.predicted for image in found] == [None] * 50
    assert {image.radius for image in found} == {0.0}
    assert [image.majority for image in found] == [None] * 50
    assert predict(Sign(), to_float(grey(50).images), Smoothing(SIGMA, n=500)).tolist() == [ABSTAIN] * 50


class Fails(nn.Module):
    """Class 1, and nothing finite for a share of each batch."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.tensor([[0.0, 1.0]]).repeat(len(images), 1)
        if len(images) > 2:  # the probe is answered
            logits[: round(self.share * len(images))] = math.nan
        return logits


def test_copies_without_a_class_are_votes_for_none() -> None:
    smoothing = Smoothing(SIGMA, n0=10, n=100)
    (few,) = certify(Fails(0.2), grey(), smoothing, batch_size=10)
    assert (few.predicted, few.majority, few.votes) == (1, 1, 80)
    assert few.radius == smoothing.radius(lower_bound(80, 100, smoothing.alpha))
    (most,) = certify(Fails(0.9), grey(), smoothing, batch_size=10)
    assert (most.predicted, most.majority, most.votes, most.radius) == (None, None, 10, 0.0)
    (every,) = certify(Fails(1), grey(), smoothing, batch_size=10)
    assert (every.predicted, every.majority, every.votes) == (None, None, 0)
    assert predict(Fails(1), to_float(grey().images), smoothing, batch_size=10).tolist() == [ABSTAIN]
    assert predict(Fails(0.2), to_float(grey().images), smoothing, batch_size=10).tolist() == [1]


def test_selection_and_estimation_are_different_draws() -> None:
    """A class selected by a lucky draw is bounded by new ones: near the boundary half of the selected classes lose."""
    found = certify(Sign(), grey(50), Smoothing(SIGMA, n0=1, n=101))
    lost = sum(image.votes < 51 for image in found)
    assert 10 < lost < 40


def test_the_prediction_is_that_of_the_linear_classifier() -> None:
    model, data = problem(20, away=0.1)
    found = predict(model, to_float(data.images), Smoothing(SIGMA, n=200))
    assert torch.equal(found, data.labels)
    assert predict(model, to_float(data.images[:0]), Smoothing(SIGMA)).shape == (0,)


def test_noise_has_its_sigma_and_is_clipped_to_what_purifiers_take() -> None:
    certify(Always(0), grey(), Smoothing(SIGMA, n0=1, n=2000))
    noise = torch.cat(SEEN[2:]) - 128 / 255  # after a look at the model, and the selection
    assert noise.std().item() == pytest.approx(SIGMA, rel=0.01)
    assert noise.mean().item() == pytest.approx(0, abs=0.001)
    wide = PurifiedClassifier(Purifier(Nothing()), Always(0))  # a Purifier checks the range
    certify(wide, grey(), Smoothing(1.0, n=100))
    assert (torch.cat(SEEN).min(), torch.cat(SEEN).max()) == (0, 1)


def test_the_seed_decides_and_the_model_is_left_as_it_was() -> None:
    model, data = problem(10, away=0.03)
    model.train()

    def votes(seed: int) -> list[int]:
        return [image.votes for image in certify(model, data, Smoothing(SIGMA, n=200), seed=seed)]

    state = torch.get_rng_state()
    assert votes(0) == votes(0)
    assert votes(0) != votes(1)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def copies() -> int:
    """How many noisy copies were drawn since the last call, but for looks at the model, of one or two images each."""
    count = sum(len(images) for images in SEEN if len(images) > 2)
    SEEN.clear()
    return count


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    smoothing, model = Smoothing(SIGMA, n0=10, n=100), Always(1)
    first = certify(model, grey(2), smoothing, cache=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert (copies(), len(files)) == (220, 2)
    advanced: list[int] = []
    more = certify(model, grey(3), smoothing, cache=tmp_path, advance=advanced.append)
    assert more[:2] == first
    assert copies() == 110  # the third image alone
    assert sum(advanced) == 330
    # Counts are kept, not judgements: another alpha needs no new noise.
    other = certify(model, grey(3), Smoothing(SIGMA, n0=10, n=100, alpha=0.1), cache=tmp_path)
    assert other[0].radius > first[0].radius
    assert copies() == 0
    save_state(files[0], {"selection": [0, 9]})
    save_state(files[1], {"selection": [0, 9, 0, 0], "estimation": [0, 100, 0, 0], "seconds": 1.0})  # one copy is missing
    assert [image.votes for image in certify(model, grey(2), smoothing, cache=tmp_path)] == [100, 100]
    assert copies() == 220


def test_whatever_decides_the_counts_has_counts_of_its_own(tmp_path: Path) -> None:
    smoothing, model, other = Smoothing(SIGMA, n0=10, n=100), Always(1), grey(2)
    other.images[:] = 129  # to this model all images are the same
    certify(model, grey(2), smoothing, cache=tmp_path)
    copies()
    for data, numbers, options in (
        (other, smoothing, {}),
        (grey(2), smoothing, {"seed": 1}),
        (grey(2), smoothing, {"batch_size": 7}),
        (grey(2), Smoothing(0.06, n0=10, n=100), {}),
        (grey(2), Smoothing(SIGMA, n0=11, n=100), {}),
        (grey(2), Smoothing(SIGMA, n0=10, n=101), {}),
    ):
        for drawn in (2 * (numbers.n0 + numbers.n), 0):  # once, and then it is kept too
            certify(model, data, numbers, cache=tmp_path, **options)  # type: ignore[arg-type]
            # Batches of seven end in one of two or less, which is not counted.
            assert copies() == pytest.approx(drawn, abs=12 if "batch_size" in options else 0)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"sigma": -0.25}, "sigma must be above 0"),
        ({"sigma": math.nan}, "sigma must be above 0"),
        ({"sigma": math.inf}, "sigma must be above 0"),
        ({"sigma": 64.0}, "at most 1"),
        ({"n0": 0}, "n0, .* must be at least 1; got 0"),
        ({"n": 0}, "n, .* must be at least 1; got 0"),
        ({"alpha": 0.0}, "alpha, .* between 0 and 1; got 0"),
        ({"alpha": 1.0}, "alpha, .* between 0 and 1; got 1"),
        ({"alpha": -0.1}, "alpha"),
        ({"n": 9}, "n = 9 can certify nothing at alpha = 0.001: n must be at least 10"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Smoothing(**{"sigma": 0.25, **numbers})  # type: ignore[arg-type]
    assert Smoothing(0.25, n=10).largest_radius > 0


def test_models_and_images_that_do_not_go_together_are_refused() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 3), math.nan)

    smoothing, other = (
        Smoothing(SIGMA),
        ImageSet("x", torch.zeros(1, 3, 5, 5, dtype=torch.uint8), torch.tensor([0]), ("a", "b")),
    )
    for model, data, said in [
        (Linear(2, SHAPE), other, r"the model fails on images of shape \(1, 3, 5, 5\)"),
        (Nothing(), grey(), r"at least 2 classes.* returns shape \(1, 3, 4, 4\)"),
        (Linear(1, SHAPE), grey(), "at least 2 classes"),
        (Broken(), grey(), "NaN or infinite"),
    ]:
        with pytest.raises(InputError, match=said):
            certify(model, data, smoothing)
    with pytest.raises(InputError, match=r"in \[0,1\]"):
        predict(Linear(2, SHAPE), torch.full((1, *SHAPE), 2.0), smoothing)


def test_the_summary_by_hand() -> None:
    def image(label: int, predicted: int | None, radius: float, majority: int | None) -> ImageCertificate:
        return ImageCertificate(label=label, predicted=predicted, radius=radius, votes=9, majority=majority, seconds=2.0)

    images = [image(0, 0, 0.3, 0), image(1, 1, 0.1, 1), image(1, 0, 0.7, 0), image(1, None, 0.0, 1), image(0, None, 0.0, None)]
    found = summarised("purified", images, [0.0, 0.1, 0.2, 0.3, 0.4])
    assert [level.accuracy for level in found.certified_accuracy] == [0.4, 0.4, 0.2, 0.2, 0.0]
    assert (found.natural_accuracy, found.abstention, found.seconds) == (0.6, 0.4, 10.0)
    assert found.average_radius == pytest.approx(0.4 / 5)
    low, high = found.certified_accuracy[0].ci95
    assert low < 0.4 < high


def test_a_run_is_certified_with_and_without_its_purifier(tiny_run: Run, tmp_path: Path) -> None:
    run = Run(tiny_run.recipe, tmp_path, tiny_run.device, tmp_path / "cache")
    run.classifiers, run.purifiers = tiny_run.classifiers, tiny_run.purifiers
    found = certify_run(run, "mine", Smoothing(0.1, n0=5, n=50), images=3)
    assert (found.purifier, found.dataset, found.n_images, found.sigma, found.n) == ("mine", "digits", 3, 0.1, 50)
    assert [model.name for model in found.models] == ["purified", "classifier alone"]
    for model in found.models:
        assert len(model.images) == 3
        assert [level.radius for level in model.certified_accuracy] == [0.0, 0.05, 0.1]
    assert [image.label for image in found.models[0].images] == [image.label for image in found.models[1].images]
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_shards_of_python_complete_in_the_end(tmp_path: Path) -> None:
    smoothing, model = Smoothing(SIGMA, n0=10, n=100), Always(1)
    one, other = (Cache(tmp_path, Shard(index, 2)) for index in range(2))
    with pytest.raises(Unfinished):
        certify(model, grey(4), smoothing, cache=one)
    whole = certify(model, grey(4), smoothing, cache=other)
    assert len(whole) == 4
    assert certify(model, grey(4), smoothing, cache=one) == whole  # what was missing is there now
