"""What a certification found, as typed records in ``certificate.json``. Its tables and its figure read only these."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from purifiers.evaluation.metrics import wilson_interval
from purifiers.evaluation.records import Result
from purifiers.storage import write_text

CERTIFICATE_FILE = "certificate.json"


class ImageCertificate(Result):
    """One image, and what is certain of the smoothed classifier around it.

    Attributes:
        label: the true class.
        predicted: the class that CERTIFY gives; None where it abstains.
        radius: no perturbation shorter than this (L2, [0,1] units) changes that class; 0 where it abstains.
        votes: how many of the n noisy copies are of the selected class: the bound on its probability is made of these.
        majority: the class that PREDICT gives from the same copies; None where it abstains.
        seconds: time that the noisy copies took.
    """

    label: int
    predicted: int | None
    radius: float
    votes: int
    majority: int | None
    seconds: float


class Level(Result):
    """Certified accuracy at one radius: the share of images that are right there and certified up to it, with its 95 %
    Wilson interval, as the images are a sample."""

    radius: float
    accuracy: float
    ci95: tuple[float, float]


class SmoothedModel(Result):
    """One smoothed classifier on all images.

    Attributes:
        name: ``purified`` or ``classifier alone``.
        certified_accuracy: by radius, from 0 up.
        natural_accuracy: share of images that PREDICT gets right, without any perturbation.
        abstention: share of images on which CERTIFY abstains.
        average_radius: mean certified radius over all images, where those that are wrong or abstained count as 0 (Zhai et
            al. 2020).
        seconds: time that all noisy copies took, also where they came from the cache now.
        images: in the data's order.
    """

    name: str
    certified_accuracy: list[Level]
    natural_accuracy: float
    abstention: float
    average_radius: float
    seconds: float
    images: list[ImageCertificate]


class Certificate(Result):
    """Everything that a certification found.

    Attributes:
        dataset, classifier, purifier: names.
        n_images: how many images.
        sigma: standard deviation of the noise, in [0,1] units.
        n0, n: noisy copies of each image to select a class, and to bound its probability.
        alpha: with at most this probability an image's certificate is wrong.
        seed: of the noise.
        largest_radius: what n copies of one class certify: none can be larger.
        recipe: the recipe, resolved, that the data set and the classifier are of.
        versions, hardware: what it ran with.
        models: the purifier with the classifier, and the classifier alone.
    """

    dataset: str
    classifier: str
    purifier: str
    n_images: int
    sigma: float
    n0: int
    n: int
    alpha: float
    seed: int
    largest_radius: float
    recipe: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    models: list[SmoothedModel]

    def write(self, folder: Path) -> None:
        """Write ``certificate.json`` into ``folder``, atomically."""
        write_text(folder / CERTIFICATE_FILE, self.model_dump_json(indent=2) + "\n")


def summarised(name: str, images: Sequence[ImageCertificate], radii: Sequence[float]) -> SmoothedModel:
    """The counts over ``images``, with certified accuracy at each of ``radii``."""
    n = len(images)
    certified = [image.radius for image in images if image.predicted == image.label]
    right = [sum(found >= radius for found in certified) for radius in radii]
    return SmoothedModel(
        name=name,
        certified_accuracy=[
            Level(radius=radius, accuracy=count / n, ci95=wilson_interval(count, n))
            for radius, count in zip(radii, right, strict=True)
        ],
        natural_accuracy=sum(image.majority == image.label for image in images) / n,
        abstention=sum(image.predicted is None for image in images) / n,
        average_radius=sum(certified) / n,
        seconds=sum(image.seconds for image in images),
        images=list(images),
    )
