"""Sets of images in files: the same as in memory, read once, resumed, and refused where the disk is full."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from purifiers.attacks import FGSM
from purifiers.attacks.generate import generate
from purifiers.data import ImageSet, files, folder, load_images
from purifiers.data.large import empty
from purifiers.errors import DataError
from purifiers.storage import read_only
from tests.conftest import Linear


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split, count in (("train", 9), ("test", 4)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (5 + i, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / split / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded."""
    names: list[str] = []

    def noted(file: Path) -> files.Picture:
        names.append(file.name)
        return files.read_image(file)

    monkeypatch.setattr(folder, "read_image", noted)
    return names


def load(photos: Path, cache: Path | None = None) -> ImageSet:
    return load_images("folder", "train", cache=cache, path=str(photos), labels="classifier", size=6)


def test_a_large_set_is_decoded_once_and_equal(
    photos: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = load(photos, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("purifiers.data.large.IN_MEMORY", 0)
    monkeypatch.setattr("purifiers.data.large.TOGETHER", 2)
    for times in (2, 2, 3):  # without a folder it is decoded each time
        large = load(photos, None if times == 3 else tmp_path / "cache")
        assert len(read) == 9 * times
        assert large.fingerprint() == in_memory.fingerprint()
        chosen = torch.tensor([8, 0, 3])
        assert torch.equal(large.images[chosen], in_memory.images[chosen])
    assert len([*(tmp_path / "cache").iterdir()]) == 1


def test_what_was_read_is_not_read_again(
    photos: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(photos).images
    monkeypatch.setattr("purifiers.data.large.IN_MEMORY", 0)
    whole = (photos / "train" / "4.png").read_bytes()
    (photos / "train" / "4.png").write_bytes(whole[:60])
    with pytest.raises(DataError, match="1 of 13 images"):
        load(photos, tmp_path)
    (photos / "train" / "4.png").unlink()
    read.clear()
    assert torch.equal(load(photos, tmp_path).images, expected[[0, 1, 2, 3, 5, 6, 7, 8]])
    assert not read, "the broken one was removed"
    (photos / "train" / "9.png").write_bytes(whole)
    assert torch.equal(load(photos, tmp_path).images[-1], expected[4])
    assert read == ["9.png"], "one was added at the end"
    (index,) = (path for path in tmp_path.glob("images-*/index.jsonl") if "9.png" in path.read_text())
    for kept in (slice(3), slice(0)):  # a process was killed, the second time within a line
        index.write_text("\n".join([*index.read_text().splitlines()[kept], *(['["/ph'] if kept.stop else [])]))
        read.clear()
        load(photos, tmp_path)
        assert len(read) == 9
    before = load(photos, tmp_path).images
    os.utime(photos / "train" / "0.png", (1, 1))
    read.clear()
    (photos / "train" / "0.png").write_bytes(whole)
    assert torch.equal(load(photos, tmp_path).images[0], expected[4])
    assert len(read) == 9 and torch.equal(before[0], expected[0]), "who has the old images keeps them"


def test_what_a_forecast_read_is_not_read_again(
    photos: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("purifiers.data.large.IN_MEMORY", 0)
    for changed in range(2):
        os.utime(photos / "train" / "0.png", (changed, changed))
        with read_only():
            load(photos, tmp_path)
        read.clear()
        load(photos, tmp_path)
        assert not read


def test_a_forecast_decodes_alone_too(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it decodes is kept, so that two forecasts at once would write into one file."""
    homes: list[Path] = []
    monkeypatch.setattr("purifiers.data.large.IN_MEMORY", 0)
    monkeypatch.setattr("fcntl.flock", lambda handle, how: homes.append(Path(f"/proc/self/fd/{handle}").readlink().parent))
    with read_only():
        load(photos, tmp_path / "cache")
    assert [home.parent for home in homes] == [tmp_path / "cache"]


def test_a_full_disk_is_told_and_nothing_stays_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = []

    def full(handle: int, start: int, size: int) -> None:
        reserved.append(size)
        os.truncate(handle, size // 2)  # as the system does before it gives up
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("purifiers.data.large.IN_MEMORY", 0)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    for free, name in ((10, "known"), (10**12, "found out")):
        monkeypatch.setattr("purifiers.data.large.shutil.disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        with pytest.raises(DataError, match=r"(?i)no space left.*0\.2 GB are needed in"):
            empty((1000, 3, 224, 224), torch.uint8, tmp_path, name)
        assert (tmp_path / name).stat().st_size == 0
    assert len(reserved) == 1, "nothing is reserved where it cannot fit"


def test_adversarial_examples_of_a_large_set_are_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(256, (10, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data, model = ImageSet("mine", images, torch.arange(10) % 2, ("a", "b")), Linear(2, (3, 4, 4))
    in_memory = generate(FGSM(), model, data, cache=tmp_path)
    monkeypatch.setattr("purifiers.data.large.IN_MEMORY", 0)
    before = {*tmp_path.iterdir()}
    assert torch.equal(generate(FGSM(), model, data, cache=tmp_path).images, in_memory.images)
    assert {*tmp_path.iterdir()} == before, "the file has no name"
