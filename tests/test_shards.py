from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from purifiers.cache import Cache
from purifiers.errors import ConfigError, Unfinished
from purifiers.shards import Shard


@pytest.mark.parametrize("text", ["", "1", "0/0", "4/4", "-1/4", "1/4/2", "a/b", "1.0/4"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="shard"):
        Shard.parse(text)


def test_each_piece_is_of_one_shard() -> None:
    shards = [Shard.parse(f"{index}/3") for index in range(3)]
    assert [[number for number in range(7) if shard.takes(number)] for shard in shards] == [[0, 3, 6], [1, 4], [2, 5]]


def test_work_of_two_parts_is_completed_when_the_pieces_of_others_come_late(tmp_path: Path) -> None:
    """Each part checks that its own pieces are there: those of the second must not count against the first."""
    mine, other = Cache(tmp_path, Shard(0, 2)), Cache(tmp_path, Shard(1, 2))
    passes = 0

    def part(name: str) -> int:
        found = mine.load(name, "x", lambda state: int(state["value"]))
        if found is None and mine.left(name, "x", 1):
            found = 0
        mine.shard.check()
        assert found is not None
        return found

    def work() -> dict[str, Any]:
        nonlocal passes
        passes, found = passes + 1, {}
        for name in ("first", "second"):
            with suppress(Unfinished):
                found[name] = part(name)
        if passes == 1:  # the other process finishes while this one looks
            for number, name in enumerate(("first", "second")):
                other.save(name, "x", {"value": torch.tensor(number + 1)})
        mine.shard.check()
        return found

    assert mine.shard.finish(work) == {"first": 1, "second": 2}
    assert passes == 2


def test_what_was_left_out_for_want_of_a_piece_is_done_again(tmp_path: Path) -> None:
    """Even if the piece comes in the meantime and is found when it is looked for once more."""
    shard = Shard(0, 2)
    own, others = Cache(tmp_path, shard), Cache(tmp_path)

    def work() -> list[int]:
        parts = []
        for _ in range(2):
            found = own.load("piece", "key", lambda state: int(state["value"]))
            if found is None and own.left("piece", "key", number=1):
                others.save("piece", "key", {"value": 7})
            elif found is not None:
                parts.append(found)
        shard.check()
        return parts

    assert shard.finish(work) == [7, 7]
