"""Data sets by name, in an open registry."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from purifiers.data.images import ImageSet
from purifiers.errors import ConfigError, DataError
from purifiers.registry import Registry
from purifiers.weights import MEMORY


@dataclass(frozen=True)
class DataSet:
    """A data set by name.

    Attributes:
        load: (split, ...) -> ImageSet; may take ``path``, ``size``, ``labels`` and ``classes``, as the others below may. If it
            takes ``cache``, ``limit`` and ``seed``, it gets those of :func:`load_images`.
        classes: the class names, or a function that returns them; None where they are not known.
        size: of the images where none is given, or a function that returns (height, width); None where it is not known.
    """

    load: Callable[..., ImageSet]
    classes: tuple[str, ...] | Callable[..., tuple[str, ...] | None] | None = None
    size: int | Callable[..., tuple[int, int] | None] | None = None

    def class_names(self, **options: Any) -> tuple[str, ...] | None:
        """The class names, without reading images; None where they are not known, as of a folder that is not here."""
        return self.classes(**_taken(self.classes, options)) if callable(self.classes) else self.classes

    def shape(self, size: int | None = None, **options: Any) -> tuple[int, int] | None:
        """Height and width of the images, of which at most one is read; None where they are not known."""
        if size is None and callable(self.size):
            return self.size(**_taken(self.size, options))
        chosen = size or self.size
        return (chosen, chosen) if isinstance(chosen, int) else None


DATASETS: Registry[DataSet] = Registry("data set", "purifiers.data", make=DataSet)
"""What a recipe may name under ``data.name``."""


def load_images(
    name: str,
    split: Literal["train", "test"],
    *,
    limit: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    **options: Any,
) -> ImageSet:
    """Load a split of a data set by its name, with the options that are not None; raises ConfigError if one is unknown.

    ``limit``: only so many of its images, drawn by ``seed``; a folder's others are not read. ``cache``: where a data set that
    does not fit into memory keeps what it makes of it.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"a split is train or test; got {split!r}")
    given = {key: value for key, value in options.items() if value is not None}
    refuse_unknown(name, given)
    load = DATASETS[name].load
    return load(split, **given, **_taken(load, {"cache": cache, "limit": limit, "seed": seed})).limited(limit, seed)


def refuse_unknown(name: str, options: Collection[str]) -> None:
    """Raise ConfigError if the data set does not take one of ``options``."""
    if unknown := set(options) - inspect.signature(DATASETS[name].load).parameters.keys():
        raise ConfigError(f"the data set '{name}' takes no data.{min(unknown)}")


def placeholder(name: str, **options: Any) -> ImageSet | None:
    """:func:`noise` of the size and classes of a data set that need not be here; None where its size is not known."""
    shape = DATASETS[name].shape(**options)
    return None if shape is None else noise(shape, DATASETS[name].class_names(**options) or ())


def _taken(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in inspect.signature(function).parameters}


def noise(shape: tuple[int, int], classes: tuple[str, ...] = ()) -> ImageSet:
    """Two images of noise of height and width ``shape``, where images are not known."""
    generator = torch.Generator("cpu").manual_seed(0)
    pixels = torch.randint(256, (2, 3, *shape), dtype=torch.uint8, generator=generator, device="cpu")
    return ImageSet("noise", pixels, torch.zeros(2, dtype=torch.int64, device="cpu"), classes)


@DATASETS.register(MEMORY)
def load_memory(split: Literal["train", "test"], size: int | None = None) -> ImageSet:
    """The images of a run that was trained from Python: always raises DataError, as they are not on disk."""
    advice = "measure it there, with purifiers.evaluate(purifier, classifier, images, labels)"
    raise DataError(f"the {split} images of this run were passed from Python and are not on disk: {advice}")
