"""Certified robustness by randomised smoothing: CERTIFY and PREDICT of Cohen, Rosenfeld and Kolter (2019, section 3.2).

The smoothed classifier returns the class that the base classifier gives most often to an image with Gaussian noise. The base
classifier here is a frozen classifier behind a purifier that removes noise: denoised smoothing (Salman et al. 2020).

Noisy images are clipped to [0,1], the range of purifiers. Clipping is a fixed function of the noisy image and counts as the
base classifier's first step: the theorem's noise is still Gaussian, and certificates hold.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.attacks.base import frozen
from purifiers.cache import Cache
from purifiers.classifiers.probes import logits_of
from purifiers.console import Stopwatch, progress
from purifiers.data import ImageSet, slices, to_float
from purifiers.data.images import check_images
from purifiers.device import in_parts, repeatable
from purifiers.errors import InputError, Unfinished
from purifiers.evaluation.evaluator import LOOK
from purifiers.evaluation.metrics import classes, wilson_interval
from purifiers.evaluation.records import Result, ResultFile, provenance
from purifiers.forecast import current, limited_by
from purifiers.purifier import PurifiedClassifier
from purifiers.runs import Run
from purifiers.seeds import generator_for, reproducible, seed_for

Advance = Callable[[int], None]
ABSTAIN = -1
"""The class in :func:`predict` of an image that is not certain enough."""


@dataclass(frozen=True)
class Smoothing:
    """The numbers of a smoothed classifier; an InputError if one is out of range, or ``n`` too small to certify anything.

    Attributes:
        sigma: standard deviation of the noise, in [0,1] units; at most 1.
        n0: noisy copies of an image from which a class is selected.
        n: noisy copies from which that class's probability is bounded; 100,000 in the paper.
        alpha: probability, at most, with which an image's answer is wrong.
    """

    sigma: float
    n0: int = 100
    n: int = 1000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 1:
            raise InputError(f"sigma must be above 0 and at most 1, in [0,1] units: 0.25 or 64/255, not 64; got {self.sigma:g}")
        for name, count in {"n0": self.n0, "n": self.n}.items():
            if count < 1:
                raise InputError(f"{name}, a number of noisy copies of each image, must be at least 1; got {count}")
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha, a probability of error such as 0.001, must lie between 0 and 1; got {self.alpha:g}")
        if lower_bound(self.n, self.n, self.alpha) <= 0.5:
            least = math.floor(math.log(self.alpha, 0.5)) + 1
            raise InputError(f"n = {self.n} can certify nothing at alpha = {self.alpha:g}: n must be at least {least}")

    @property
    def largest_radius(self) -> float:
        """The radius where all n copies are of one class."""
        return self.radius(lower_bound(self.n, self.n, self.alpha))

    def radius(self, probability: float) -> float:
        """sigma * Phi^-1(probability), in [0,1] units: theorem 1 with 1 - probability for all other classes."""
        return self.sigma * NormalDist().inv_cdf(probability)


class ImageCertificate(Result):
    """The certificate of one image."""

    label: int  # the true class
    predicted: int | None  # CERTIFY's class; None where it abstains
    radius: float  # no perturbation shorter than this (L2, [0,1] units) changes that class; 0 where it abstains
    votes: int  # how many of the n noisy copies are of the selected class, which bounds its probability
    majority: int | None  # PREDICT's class by the same copies; None where it abstains
    seconds: float  # time that the noisy copies took


class Level(Result):
    """Certified accuracy at one radius: the share of images that are right and certified up to it, with its Wilson interval."""

    radius: float
    accuracy: float
    ci95: tuple[float, float]


class SmoothedModel(Result):
    """One smoothed classifier on all images."""

    name: str  # ``purified`` or ``classifier alone``
    certified_accuracy: list[Level]  # by radius, from 0 up
    natural_accuracy: float  # share of images that PREDICT gets right, without any perturbation
    abstention: float  # share of images on which CERTIFY abstains
    average_radius: float  # mean over all images; those that are wrong or abstained count as 0 (Zhai et al. 2020)
    seconds: float  # time that all noisy copies took, also where they came from the cache now
    images: list[ImageCertificate]  # in the data's order


class Certificate(ResultFile):
    """Everything that a certification found; ``sigma``, ``n0``, ``n`` and ``alpha`` as in :class:`Smoothing`."""

    filename = "certificate.json"
    command = "certify"

    dataset: str
    classifier: str
    purifier: str
    labels_predicted: bool = False  # the true classes are the classifier's own predictions on clean images
    n_images: int
    sigma: float
    n0: int
    n: int
    alpha: float
    largest_radius: float  # of n copies of one class: none can be larger
    recipe: dict[str, Any]  # resolved; the data set and the classifier are of it
    models: list[SmoothedModel]  # the purifier with the classifier, and the classifier alone


def lower_bound(successes: int, count: int, alpha: float) -> float:
    """LOWERCONFBOUND: the one-sided (1 - alpha) lower bound of a probability (Clopper and Pearson 1934)."""
    from scipy import stats

    return float(stats.beta.ppf(alpha, successes, count - successes + 1)) if successes else 0.0


@repeatable()
def certify(
    model: nn.Module,
    data: ImageSet,
    smoothing: Smoothing,
    *,
    seed: int = 0,
    batch_size: int = 250,
    cache: Cache | Path | str | None = None,
    advance: Advance = lambda copies: None,
) -> list[ImageCertificate]:
    """CERTIFY every image of ``data``.

    Args:
        model: the base classifier: images in [0,1] -> logits, each image's of that image alone; in evaluation mode meanwhile.
        data: the images, on the model's device.
        seed: decides the noise, together with an image's place in the data.
        batch_size: noisy copies at once.
        cache: where the counts of finished images are kept, or its folder; None keeps nothing.
        advance: called with the number of noisy copies after each batch.

    Returns:
        Of each image its certificate.

    Raises:
        InputError: the model does not give finite logits of at least two classes for such images.
        Unfinished: the share of the cache's shard is done, and those of others are not.
    """
    device, found = data.images.device, []
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    with torch.no_grad(), frozen(model):
        with reproducible(seed, device):
            logits_of("the model", model, to_float(data.images[:LOOK]))
        first, plan = cache.shard.begin(len(data)), current()
        unknown = plan is not None and not cache.has("certified")
        for place, label in enumerate(data.labels.tolist()):
            image = data.images[place : place + 1]
            # Alpha judges the counts and does not change them.
            key = (
                "" if unknown else cache.key(model, image, smoothing.sigma, smoothing.n0, smoothing.n, seed, place, batch_size)
            )
            certificate = cache.load("certified", key, lambda state: _certificate(label, smoothing, **state))  # noqa: B023
            if certificate is None and plan:
                copies = smoothing.n0 + smoothing.n
                pace = plan.passes(model, to_float(image), batch_size)
                if cache.shard.takes(first + place):
                    plan.note(pace.seconds(copies, copies / batch_size), len(data))
                certificate = _certificate(label, smoothing, [smoothing.n0, 0], [smoothing.n, 0], 0.0)
            elif certificate is None and cache.left("certified", key, first + place):
                advance(smoothing.n0 + smoothing.n)
                continue
            if certificate is None:
                watch, own = Stopwatch(), seed_for(seed, "certify", place)
                generator = generator_for(own, "noise", device=device)
                sample = partial(_sample, model, to_float(image), smoothing.sigma, batch_size, generator, advance)
                with reproducible(own, device):  # for models that draw random numbers
                    state = {"selection": sample(smoothing.n0), "estimation": sample(smoothing.n), "seconds": watch.seconds}
                certificate = _certificate(label, smoothing, **cache.save("certified", key, state))
            else:
                advance(smoothing.n0 + smoothing.n)
            found.append(certificate)
    cache.shard.check()
    return found


@repeatable()
def predict(model: nn.Module, images: Tensor, smoothing: Smoothing, *, seed: int = 0, batch_size: int = 250) -> Tensor:
    """PREDICT: the smoothed classifier's class of each image, int64 (N,), by ``smoothing.n`` noisy copies of it.

    With probability 1 - alpha an answer is the smoothed classifier's, or ``ABSTAIN``.

    Args:
        images: float32 (N, C, H, W), in [0,1].
        model, smoothing, seed, batch_size: see :func:`certify`; ``n0`` is not used.

    Raises:
        InputError: ``images`` are not as above, or see :func:`certify`.
    """
    check_images(images)
    found = []
    with torch.no_grad(), frozen(model), reproducible(seed, images.device):
        if len(images):
            logits_of("the model", model, images[:LOOK])
        for place in range(len(images)):
            generator, one = generator_for(seed, "predict", place, device=images.device), images[place : place + 1]
            votes = _sample(model, one, smoothing.sigma, batch_size, generator, lambda copies: None, smoothing.n)
            top = _majority(votes, smoothing.alpha)
            found.append(ABSTAIN if top is None else top)
    return torch.tensor(found, dtype=torch.int64, device=images.device)


@limited_by("--limit {}")
def certify_run(run: Run, purifier: str, smoothing: Smoothing, images: int | None = None) -> Certificate:
    """Certify a run's student in front of its classifier, and beside it the classifier alone, under the same noise.

    ``purifier`` is its name in the record; ``images``: on how many random test images, None for all that the recipe takes.
    """
    seed = seed_for(run.recipe.seed, "certification")
    data = run.images("test").limited(images, seed)
    models = {"purified": PurifiedClassifier(run.purifiers["student"], run.classifier), "classifier alone": run.classifier}
    step, found = smoothing.sigma / 2, {}
    radii = [step * i for i in range(math.floor(smoothing.largest_radius / step) + 1)]
    options: dict[str, Any] = {
        "seed": seed,
        "batch_size": run.recipe.evaluation.batch_size,
        "cache": Cache(run.cache, run.shard),
    }
    for name, model in models.items():
        copies = len(data) * (smoothing.n0 + smoothing.n)
        # A share of one model may be done before that of the other.
        with suppress(Unfinished), progress(f"certifying: {name}", copies) as advance:
            found[name] = certify(model, data, smoothing, **options, advance=advance)
    run.shard.check()
    names = {"dataset": data.name, "classifier": run.classifier_name, "purifier": purifier}
    numbers = {"n_images": len(data), **asdict(smoothing), "largest_radius": smoothing.largest_radius}
    numbers["labels_predicted"] = data.labels_predicted
    recipe, summaries = run.recipe.model_dump(mode="json"), [summarised(name, found[name], radii) for name in models]
    return Certificate(**names, **numbers, **provenance(run.recipe.seed, run.device), recipe=recipe, models=summaries)


def summarised(name: str, images: Sequence[ImageCertificate], radii: Sequence[float]) -> SmoothedModel:
    """The counts over ``images``, with certified accuracy at each of ``radii``."""
    n = len(images)
    certified = [image.radius for image in images if image.predicted == image.label]
    right = {radius: sum(found >= radius for found in certified) for radius in radii}
    levels = [Level(radius=radius, accuracy=count / n, ci95=wilson_interval(count, n)) for radius, count in right.items()]
    return SmoothedModel(
        name=name,
        certified_accuracy=levels,
        natural_accuracy=sum(image.majority == image.label for image in images) / n,
        abstention=sum(image.predicted is None for image in images) / n,
        average_radius=sum(certified) / n,
        seconds=sum(image.seconds for image in images),
        images=list(images),
    )


def _sample(
    model: nn.Module, image: Tensor, sigma: float, batch_size: int, generator: torch.Generator, advance: Advance, count: int
) -> list[int]:
    """SAMPLEUNDERNOISE: of ``count`` noisy copies of ``image`` (1, C, H, W), how many are of each class and, last, of none."""
    votes = []
    for batch in slices(count, batch_size):
        noise = torch.randn((batch.stop - batch.start, *image.shape[1:]), generator=generator, device=image.device)
        logits = in_parts(model, noise.mul_(sigma).add_(image).clamp_(0, 1))
        found, without = classes(logits), logits.shape[1]
        votes.append(torch.bincount(torch.where(found < 0, without, found), minlength=without + 1))
        advance(len(noise))
    return torch.stack(votes).sum(0).tolist()


def _certificate(
    label: int, smoothing: Smoothing, selection: list[int], estimation: list[int], seconds: float
) -> ImageCertificate:
    """CERTIFY, once the copies are counted; a ValueError if some are missing."""
    if (sum(selection), sum(estimation)) != (smoothing.n0, smoothing.n):
        raise ValueError("copies are missing")
    selected = selection.index(max(selection[:-1]))
    probability = lower_bound(estimation[selected], smoothing.n, smoothing.alpha)
    certain = probability > 0.5
    return ImageCertificate(
        label=label,
        predicted=selected if certain else None,
        radius=smoothing.radius(probability) if certain else 0.0,
        votes=estimation[selected],
        majority=_majority(estimation, smoothing.alpha),
        seconds=seconds,
    )


def _majority(votes: list[int], alpha: float) -> int | None:
    """PREDICT, once the copies are counted: the class of most; None if it leads by chance, or if most have no class."""
    from scipy import stats

    first, second = sorted(votes, reverse=True)[:2]
    if stats.binomtest(first, first + second, 0.5).pvalue > alpha or first == votes[-1]:
        return None
    return votes.index(first)
