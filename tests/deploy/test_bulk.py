import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from purifiers import Purifier
from purifiers.deploy.bulk import purify_files
from purifiers.errors import ConfigError, MissingFileError
from purifiers.networks import CAE


@pytest.fixture
def purifier() -> Purifier:
    torch.manual_seed(0)
    return Purifier(CAE(widths=[4, 6], blocks=[1, 1], skip_every=1))


def write(path: Path, size: tuple[int, int] = (10, 7), seed: int = 0, mode: str = "RGB") -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_a_tree_of_mixed_sizes_keeps_names_and_sizes(purifier: Purifier, tmp_path: Path) -> None:
    pixels = write(tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "deep" / "er" / "b.jpg", size=(31, 17))
    write(tmp_path / "in" / "grey.bmp", mode="L")
    (tmp_path / "in" / "notes.txt").write_text("not an image, not touched")
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out")
    assert (result.purified, result.skipped, result.failed) == (3, 0, [])
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert names == ["a.png", "deep/er/b.png", "grey.png"]
    with Image.open(tmp_path / "out" / "deep" / "er" / "b.png") as image:
        assert (image.size, image.mode) == ((31, 17), "RGB")
    with Image.open(tmp_path / "out" / "a.png") as image:
        found = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = purifier(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0]
    assert (found / 255 - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_a_second_run_does_only_what_is_new(purifier: Purifier, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "b.png")
    purify_files(purifier, tmp_path / "in", tmp_path / "out")
    write(tmp_path / "in" / "c.png")
    later = (tmp_path / "out" / "a.png").stat().st_mtime + 10
    os.utime(tmp_path / "in" / "a.png", (later, later))
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out")
    assert (result.purified, result.skipped) == (2, 1)
    assert purify_files(purifier, tmp_path / "in", tmp_path / "out", overwrite=True).purified == 3


def test_bad_files_stop_nothing_and_are_listed(purifier: Purifier, tmp_path: Path) -> None:
    write(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    (tmp_path / "in" / "text.jpg").write_text("hello")
    whole = (tmp_path / "in" / "good.png").read_bytes()
    (tmp_path / "in" / "half.png").write_bytes(whole[: len(whole) // 2])
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out")
    assert result.purified == 1
    assert len(result.failed) == 3
    assert all(name in " ".join(result.failed) for name in ("empty.png", "text.jpg", "half.png"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_two_files_that_would_become_one_are_told_apart(purifier: Purifier, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "a.jpg")
    write(tmp_path / "in" / "b.gif")
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out")
    assert result.purified == 2
    assert len(result.failed) == 1
    assert "a.png: would become" in result.failed[0]


def test_one_file(purifier: Purifier, tmp_path: Path) -> None:
    write(tmp_path / "a.webp")
    purify_files(purifier, tmp_path / "a.webp", tmp_path / "clean.png")
    assert (tmp_path / "clean.png").is_file()
    (tmp_path / "folder").mkdir()
    purify_files(purifier, tmp_path / "a.webp", tmp_path / "folder")
    assert (tmp_path / "folder" / "a.png").is_file()


def test_mistakes_are_explained_before_anything_is_written(purifier: Purifier, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no file or folder"):
        purify_files(purifier, tmp_path / "none", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(MissingFileError, match="no image below"):
        purify_files(purifier, tmp_path / "in", tmp_path / "out")
    write(tmp_path / "in" / "a.png")
    with pytest.raises(ConfigError, match="lies inside"):
        purify_files(purifier, tmp_path / "in", tmp_path / "in" / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a folder"):
        purify_files(purifier, tmp_path / "in", tmp_path / "file")
    with pytest.raises(ConfigError, match="no image that can be read"):
        purify_files(purifier, tmp_path / "file", tmp_path / "x.png")
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        purify_files(purifier, tmp_path / "in" / "a.png", tmp_path / "v1.2")
    with pytest.raises(ConfigError, match="write over"):
        purify_files(purifier, tmp_path / "in" / "a.png", tmp_path / "in" / "a.png")
    assert not (tmp_path / "out").exists()
