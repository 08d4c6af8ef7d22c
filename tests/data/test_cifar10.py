import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import requests

from purifiers.data import cifar10, load_images
from purifiers.errors import DataError, MissingFileError
from tests.conftest import CIFAR10, needs_cifar10


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six small batches of random pixels in CIFAR-10's format, with their own checksums in place of the originals'."""
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    for seed, name in enumerate(list(cifar10.BATCH_MD5)):
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 256, (4, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": pixels, "labels": [seed, 1, 2, 3]})
        (folder / name).write_bytes(content)
        monkeypatch.setitem(cifar10.BATCH_MD5, name, hashlib.md5(content).hexdigest())
    return folder


def test_batches_become_images_in_order(batches: Path) -> None:
    train = load_images("cifar10", "train", path=str(batches))
    assert train.images.shape == (20, 3, 32, 32)
    assert train.labels.tolist()[::4] == [0, 1, 2, 3, 4]
    first = pickle.loads((batches / "data_batch_1").read_bytes())["data"][0]
    # A row of a batch holds the red plane, then green, then blue, each row by row.
    assert train.images[0, 1, 2, 5] == first[1024 + 2 * 32 + 5]
    assert load_images("cifar10", "test", path=str(batches.parent)).labels.tolist() == [5, 1, 2, 3]


def test_the_folder_may_come_from_the_environment(batches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURIFIERS_DATA", str(batches))
    assert len(load_images("cifar10", "test")) == 4


def test_a_damaged_batch_is_never_unpickled(batches: Path) -> None:
    class Bomb:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (pytest.fail, ("a damaged batch was unpickled",))

    (batches / "test_batch").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="test_batch is damaged"):
        load_images("cifar10", "test", path=str(batches))
    content = (batches / "data_batch_3").read_bytes()
    (batches / "data_batch_3").write_bytes(content[:-100])
    with pytest.raises(DataError, match="data_batch_3 is damaged"):
        load_images("cifar10", "train", path=str(batches))


def test_missing_batches_are_named(batches: Path, tmp_path: Path) -> None:
    (batches / "data_batch_2").unlink()
    with pytest.raises(MissingFileError, match="data_batch_2 is missing"):
        load_images("cifar10", "train", path=str(batches))
    with pytest.raises(MissingFileError, match="no CIFAR-10 batches in"):
        load_images("cifar10", "train", path=str(tmp_path / "elsewhere"))


def test_without_a_folder_it_is_downloaded_and_a_failure_says_what_to_do(
    batches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def retrieve(url: str, known_hash: str, **options: object) -> list[str]:
        asked.update(url=url, known_hash=known_hash, **options)
        return [str(batches / name) for name in cifar10.BATCH_MD5]

    monkeypatch.delenv("PURIFIERS_DATA", raising=False)
    monkeypatch.setattr("pooch.retrieve", retrieve)
    assert len(load_images("cifar10", "train")) == 20
    assert asked["known_hash"] == "md5:c58f30108f718f92721af3b95e74349a"
    assert asked["progressbar"] is True

    def fail(*_: object, **__: object) -> list[str]:
        raise requests.ConnectionError("no route")

    monkeypatch.setattr("pooch.retrieve", fail)
    with pytest.raises(MissingFileError, match=r"no route.*by hand.*--data-dir"):
        load_images("cifar10", "train")


@needs_cifar10
def test_the_real_test_batch() -> None:
    data = load_images("cifar10", "test", path=str(CIFAR10))
    assert data.images.shape == (10_000, 3, 32, 32)
    assert data.labels.bincount().tolist() == [1000] * 10
    assert [data.classes[i] for i in data.labels[:4].tolist()] == ["cat", "ship", "ship", "airplane"]
