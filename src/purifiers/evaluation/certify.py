"""Certified robustness by randomised smoothing: CERTIFY and PREDICT of Cohen, Rosenfeld and Kolter (2019, section 3.2).

The smoothed classifier answers with the class that the base classifier gives most often to an image with Gaussian noise. The
base classifier here is a frozen classifier behind a purifier that removes noise: denoised smoothing (Salman et al. 2020).

Noisy images are clipped to [0,1], which purifiers ask for. Clipping is a fixed function of the noisy image, so it counts as
the base classifier's first step: the noise that the theorem speaks of is Gaussian as it should be, and certificates hold.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.attacks.base import frozen
from purifiers.console import Stopwatch, progress
from purifiers.data import ImageSet, slices, to_float
from purifiers.data.images import check_images
from purifiers.errors import InputError
from purifiers.evaluation import metrics
from purifiers.evaluation.certificate import Certificate, ImageCertificate, summarised
from purifiers.evaluation.records import hardware, versions
from purifiers.purifier import PurifiedClassifier
from purifiers.registry import fingerprint
from purifiers.runs import Run
from purifiers.seeds import generator_for, reproducible, seed_for
from purifiers.storage import digest, write_text

ABSTAIN = -1
"""What :func:`predict` gives for an image whose class is not certain enough."""


@dataclass(frozen=True)
class Smoothing:
    """The numbers of a smoothed classifier.

    Attributes:
        sigma: standard deviation of the noise, in [0,1] units.
        n0: noisy copies of an image from which a class is selected.
        n: noisy copies from which that class's probability is bounded; 100,000 in the paper.
        alpha: probability, at most, with which an image's answer is wrong.

    Raises:
        InputError: a number is out of its range, or ``n`` is so small that nothing could be certified.
    """

    sigma: float
    n0: int = 100
    n: int = 1000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise InputError(f"sigma must be above 0, in [0,1] units such as 0.25; got {self.sigma:g}")
        for name in ("n0", "n"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name}, a number of noisy copies of each image, must be at least 1; got {getattr(self, name)}"
                )
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


def lower_bound(successes: int, count: int, alpha: float) -> float:
    """LOWERCONFBOUND: the one-sided (1 - alpha) lower bound of a probability (Clopper and Pearson 1934)."""
    from scipy import stats

    return float(stats.beta.ppf(alpha, successes, count - successes + 1)) if successes else 0.0


def certify(
    model: nn.Module,
    data: ImageSet,
    smoothing: Smoothing,
    *,
    seed: int = 0,
    batch_size: int = 250,
    cache: Path | None = None,
    advance: Callable[[int], None] = lambda copies: None,
) -> list[ImageCertificate]:
    """CERTIFY every image of ``data``.

    Args:
        model: the base classifier: images in [0,1] -> logits, each image's of that image alone, as in evaluation mode, which
            it is put into meanwhile.
        data: the images, on the model's device.
        smoothing: noise, and how much of it.
        seed: decides the noise, together with an image's place in the data.
        batch_size: noisy copies at once.
        cache: folder of the counts of finished images, found again by weights, the model's outputs on the first images,
            image, noise, seed and torch's version; None keeps nothing.
        advance: called with the number of noisy copies after each batch.

    Raises:
        InputError: the model does not give finite logits of at least two classes for such images.
    """
    device = data.images.device
    found = []
    with torch.no_grad(), frozen(model):
        with reproducible(seed, device):
            outputs = _probe(model, to_float(data.images[:2]))
        drawn = {key: value for key, value in asdict(smoothing).items() if key != "alpha"}
        identity = digest("none last", fingerprint(model), outputs, drawn, seed, batch_size, torch.__version__, device.type)
        for place, label in enumerate(data.labels.tolist()):
            image = data.images[place : place + 1]
            path = None if cache is None else cache / f"certified-{digest(identity, image, place)[:32]}.json"
            votes = _read(path, smoothing)
            if votes is None:
                watch, sample = Stopwatch(), _Sampler(model, to_float(image), smoothing.sigma, batch_size, advance)
                own = seed_for(seed, "certify", place)
                with reproducible(own, device):  # for models that draw random numbers
                    generator = generator_for(own, "noise", device=device)
                    selection, estimation = sample(smoothing.n0, generator), sample(smoothing.n, generator)
                votes = {"selection": selection, "estimation": estimation, "seconds": watch.seconds}
                if path is not None:
                    write_text(path, json.dumps(votes))
            else:
                advance(smoothing.n0 + smoothing.n)
            found.append(_certificate(label, smoothing, **votes))
    return found


def predict(model: nn.Module, images: Tensor, smoothing: Smoothing, *, seed: int = 0, batch_size: int = 250) -> Tensor:
    """PREDICT: the smoothed classifier's class of each image, int64 (N,), by ``smoothing.n`` noisy copies of it.

    With probability 1 - alpha an answer is the smoothed classifier's, or ``ABSTAIN``.

    Args:
        model: see :func:`certify`.
        images: float32 (N, C, H, W), in [0,1].
        smoothing, seed, batch_size: see :func:`certify`; ``n0`` is not used.

    Raises:
        InputError: ``images`` are not as above, or see :func:`certify`.
    """
    check_images(images)
    classes = []
    with torch.no_grad(), frozen(model), reproducible(seed, images.device):
        if len(images):
            _probe(model, images[:2])
        for place in range(len(images)):
            sample = _Sampler(model, images[place : place + 1], smoothing.sigma, batch_size)
            votes = sample(smoothing.n, generator_for(seed, "predict", place, device=images.device))
            top = _majority(votes, smoothing.alpha)
            classes.append(ABSTAIN if top is None else top)
    return torch.tensor(classes, dtype=torch.int64, device=images.device)


def certify_run(run: Run, purifier: str, smoothing: Smoothing, images: int | None = None) -> Certificate:
    """Certify a run's purifier in front of its classifier, and beside it the classifier alone, under the same noise.

    Args:
        run: with a classifier and a student.
        purifier: its name, for the record.
        smoothing: noise, and how much of it.
        images: on how many random test images; None for all that the recipe takes.
    """
    seed = seed_for(run.recipe.seed, "certification")
    data = run.images("test").limited(images, seed)
    models = {
        "purified": PurifiedClassifier(run.purifiers["student"], run.classifier),
        "classifier alone": run.classifier,
    }
    step = smoothing.sigma / 2
    radii = [step * i for i in range(math.floor(smoothing.largest_radius / step) + 1)]
    found = []
    for name, model in models.items():
        with progress(f"certifying: {name}", len(data) * (smoothing.n0 + smoothing.n)) as advance:
            batch_size = run.recipe.evaluation.batch_size
            each = certify(model, data, smoothing, seed=seed, batch_size=batch_size, cache=run.cache, advance=advance)
        found.append(summarised(name, each, radii))
    return Certificate(
        dataset=data.name,
        classifier=run.classifier_name,
        purifier=purifier,
        n_images=len(data),
        **asdict(smoothing),
        seed=run.recipe.seed,
        largest_radius=smoothing.largest_radius,
        recipe=run.recipe.model_dump(mode="json"),
        versions=versions(),
        hardware=hardware(run.device),
        models=found,
    )


@dataclass(frozen=True)
class _Sampler:
    """SAMPLEUNDERNOISE: how many of so many noisy copies of ``image`` (1, C, H, W) are of each class, and, last, of none, as
    the model's logits are not finite."""

    model: nn.Module
    image: Tensor
    sigma: float
    batch_size: int
    advance: Callable[[int], None] = lambda copies: None

    def __call__(self, count: int, generator: torch.Generator) -> list[int]:
        votes: Tensor | None = None
        for batch in slices(count, self.batch_size):
            size = (batch.stop - batch.start, *self.image.shape[1:])
            noise = torch.randn(size, generator=generator, device=self.image.device)
            logits = self.model(noise.mul_(self.sigma).add_(self.image).clamp_(0, 1))
            found, without = metrics.classes(logits), logits.shape[1]
            part = torch.bincount(torch.where(found < 0, without, found), minlength=without + 1)
            votes = part if votes is None else votes + part
            self.advance(size[0])
        assert votes is not None  # count is at least 1
        return [int(vote) for vote in votes.tolist()]


def _probe(model: nn.Module, images: Tensor) -> Tensor:
    shape = tuple(images.shape)
    try:
        outputs = model(images)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the model fails on images {shape}: {type(error).__name__}: {error}") from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[0] != shape[0] or outputs.shape[1] < 2:
        given = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise InputError(f"the model must give logits (N, at least 2 classes) for images {shape}; got {given}")
    if not outputs.isfinite().all():
        raise InputError(f"the model gives logits that are NaN or infinite for images {shape}")
    return outputs


def _read(path: Path | None, smoothing: Smoothing) -> dict[str, Any] | None:
    if path is None or not path.is_file():
        return None
    try:
        votes = json.loads(path.read_text())
        whole = (sum(votes["selection"]), sum(votes["estimation"])) == (smoothing.n0, smoothing.n)
        return votes if whole and votes["seconds"] >= 0 else None
    except (ValueError, TypeError, KeyError):
        return None  # damaged: drawn again, and replaced


def _certificate(
    label: int, smoothing: Smoothing, selection: list[int], estimation: list[int], seconds: float
) -> ImageCertificate:
    """CERTIFY, once the copies are counted."""
    classes = selection[:-1]
    selected = classes.index(max(classes))
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
    """PREDICT, once the copies are counted: the first class, if a fair coin would not part it so from the second; None where it
    would, and where most copies are of no class."""
    from scipy import stats

    first, second = sorted(votes, reverse=True)[:2]
    if stats.binomtest(first, first + second, 0.5).pvalue > alpha or first == votes[-1]:
        return None
    return votes.index(first)
