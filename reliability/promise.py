"""What a promise is, and what a run of its test gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Result:
    """What a test of a promise found."""

    injected: int  # faults, inputs or requests
    survived: int  # of them, those after which all was as promised
    unit: str  # what they are: "kills", "inputs"
    figures: str = ""  # what else was measured, in a few words
    failures: list[str] = field(default_factory=list)  # a line each; a promise is kept only if there are none
    skipped: str = ""  # why it was not tested

    @property
    def kept(self) -> bool:
        """Whether the promise was kept, or not tested."""
        return bool(self.skipped) or (not self.failures and 0 < self.injected == self.survived)


@dataclass(frozen=True)
class Promise:
    """A promise and its test."""

    title: str  # the promise, in plain words
    how: str  # how it is tested, in one sentence
    test: Callable[[int, Path], Result]  # of a count and an empty folder
    quick: int  # the count in CI
    long: int  # the count of 'make reliability'
