"""What a trust check is, and how it decides: shares and comparisons on the same images, each beyond chance."""

from typing import Literal

from pydantic import Field, FiniteFloat
from torch import Tensor

from purifiers.evaluation.metrics import sign_test, wilson_interval
from purifiers.evaluation.records import Result

SIGNIFICANT = 0.01
"""A stronger attack counts as weaker than a weaker one if, of the images on which the two differ, so many more fall to the
weaker one that a fair coin would do that less often than this. With 17 checks a sound model rarely fails one by chance."""


class Check(Result):
    """The result of one check: its name, what came out, one plain sentence, and the figures that it rests on."""

    name: str
    status: Literal["passed", "failed", "not applicable"]
    sentence: str
    figures: dict[str, FiniteFloat] = Field(default_factory=dict)


def decided(name: str, passed: bool, sentence: str, **figures: float) -> Check:
    """A check that passed or failed."""
    return Check(name=name, status="passed" if passed else "failed", sentence=sentence, figures=figures)


def not_applicable(name: str, sentence: str) -> Check:
    """A check that cannot be made."""
    return Check(name=name, status="not applicable", sentence=sentence)


def share(images: Tensor) -> float:
    """The share of images for which ``images``, bool (N,), is true."""
    return images.float().mean().item()


def of(images: Tensor) -> str:
    """The same in words: "3 of 100"."""
    return f"{int(images.sum())} of {len(images)}"


def exceeds(number: int | Tensor, count: int, limit: float) -> bool:
    """Is the share of ``number`` images in ``count`` above ``limit``, at the low end of its 95 % interval?"""
    return wilson_interval(max(int(number), 0), count)[0] > limit


def weaker(strong: Tensor, weak: Tensor) -> float:
    """The chance that two equal attacks differ so much against ``strong``; both bool (N,): is the image right after it?"""
    against, favour = int((strong & ~weak).sum()), int((~strong & weak).sum())
    return sign_test(against, against + favour)
