import pytest

from purifiers.errors import ConfigError
from purifiers.shards import Shard


@pytest.mark.parametrize("text", ["", "1", "0/0", "4/4", "-1/4", "1/4/2", "a/b", "1.0/4"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="shard"):
        Shard.parse(text)


def test_each_piece_is_of_one_shard() -> None:
    shards = [Shard.parse(f"{index}/3") for index in range(3)]
    assert [[number for number in range(7) if shard.takes(number)] for shard in shards] == [[0, 3, 6], [1, 4], [2, 5]]
