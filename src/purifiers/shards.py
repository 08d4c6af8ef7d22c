"""One process's share of work that several do together, on one machine or many, with one folder for what is finished."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from purifiers.errors import ConfigError, Unfinished

T = TypeVar("T")


@dataclass
class Shard:
    """Every ``count``-th piece of the work, from number ``index`` on; by default all of it.

    The pieces of others are read once they are finished: whoever finds all of them completes the work.
    """

    index: int = 0
    count: int = 1
    missing: set[Path] = field(default_factory=set)  # files of pieces of others that were looked for and not found yet
    incomplete: bool = False  # a result since the last check lacks a piece, even if that piece was found later
    _pieces: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"shards are numbered from 0: of {self.count} they are 0 to {self.count - 1}; got {self.index}")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard ``i/n``; ConfigError for another text."""
        if not (match := re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)):
            raise ConfigError(f"a shard is i/n, such as 0/4, the first of four; got '{text}'")
        return cls(int(match[1]), int(match[2]))

    def begin(self, pieces: int) -> int:
        """The number of the first of so many further pieces."""
        self._pieces += pieces
        return self._pieces - pieces

    def takes(self, number: int) -> bool:
        """Whether the piece of this number belongs to this process."""
        return number % self.count == self.index

    def share(self, pieces: int) -> int:
        """About how many of so many pieces belong to this process."""
        return -(-pieces // self.count)

    def check(self) -> None:
        """Raise Unfinished if pieces of others are missing, or were when a result was made of them."""
        if self.missing or self.incomplete:
            self.incomplete = False
            late = (
                f"{len(self.missing):,} pieces of other shards are not there yet"
                if self.missing
                else "others finished theirs only after this one had looked"
            )
            left = f"shard {self.index}/{self.count} is finished; {late}"
            raise Unfinished(f"{left}: the last shard completes the work, or the same command without --shard")

    def finish(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which is done again if all that was missing is there at its end."""
        begun = self._pieces
        while True:
            try:
                return work()
            except Unfinished:
                if not all(file.is_file() for file in self.missing):
                    raise
                # A part of the work would wait for pieces of the parts after it, which are looked for again later.
                self._pieces = begun
                self.missing.clear()
