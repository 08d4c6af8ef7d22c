import os
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from purifiers.data import load_images
from purifiers.data.files import Picture, read_image
from purifiers.data.folder import cover
from purifiers.errors import ConfigError, DataError, MissingFileError


def write_image(path: Path, size: tuple[int, int] = (12, 12), mode: str = "RGB", value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in enumerate(("cat", "ant", "bee")):
        for i in range(10):
            write_image(tmp_path / "set" / name / f"{i}.png", value=100 * label + i)
    return tmp_path / "set"


def test_about_one_fifth_of_a_class_is_for_testing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(150):
            write_image(tmp_path / name / f"{i}.png", size=(4, 4))
    counts = load_images("folder", "test", path=str(tmp_path)).labels.bincount()
    assert counts.min() > 15
    assert counts.max() < 50


def test_files_added_later_move_no_image_between_the_splits(folder: Path) -> None:
    def contents(split: Literal["train", "test"]) -> set[bytes]:
        return {bytes(image.flatten().numpy()) for image in load_images("folder", split, path=str(folder)).images}

    trained_on = contents("train")
    for name in ("cat", "ant", "bee"):
        for i in range(10, 40):
            write_image(folder / name / f"{i}.png", value=1000 + 100 * len(name) + i)
    assert not trained_on & contents("test")


def test_every_image_is_in_one_split(folder: Path) -> None:
    train, test = (load_images("folder", split, path=str(folder)) for split in ("train", "test"))
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert train.labels.bincount().min() >= 1
    assert test.labels.bincount().min() >= 1
    everything = {bytes(image.flatten().numpy()) for data in (train, test) for image in data.images}
    assert len(everything) == 30
    assert load_images("folder", "test", path=str(folder)).fingerprint() == test.fingerprint()


def test_of_a_limited_folder_only_what_is_drawn_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_images("folder", "train", path=str(folder))
    read: list[Path] = []

    def counting(file: Path) -> Picture:
        read.append(file)
        return read_image(file)

    monkeypatch.setattr("purifiers.data.folder.read_image", counting)
    few = load_images("folder", "train", path=str(folder), size=12, limit=7, seed=3)
    assert few.fingerprint() == whole.limited(7, 3).fingerprint()
    assert len(read) == 7


def test_a_line_of_pixels_is_cropped_before_it_is_scaled() -> None:
    line = Image.new("RGB", (1, 1_000_000), "orange")
    assert cover(line, 224, 224).getcolors() == [(224 * 224, (255, 165, 0))]


def test_an_image_of_the_wanted_size_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert (np.array(cover(Image.fromarray(pixels), 20, 30)) == pixels).all()


@pytest.mark.parametrize(("train_folder", "test_folder"), [("train", "test"), ("train", "val"), ("Train", "TEST")])
def test_own_train_and_test_folders_are_used(tmp_path: Path, train_folder: str, test_folder: str) -> None:
    for split, count in ((train_folder, 3), (test_folder, 2)):
        for name in ("a", "b"):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.jpg", value=i)
    assert len(load_images("folder", "train", path=str(tmp_path))) == 6
    assert len(load_images("folder", "test", path=str(tmp_path))) == 4
    write_image(tmp_path / test_folder / "c" / "0.png")
    with pytest.raises(DataError, match="same class folders"):
        load_images("folder", "test", path=str(tmp_path))
    shutil.rmtree(tmp_path / test_folder)
    with pytest.raises(DataError, match="needs both train and test or val"):
        load_images("folder", "test", path=str(tmp_path))


def test_a_third_split_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            write_image(tmp_path / split / name / "0.jpg")
    assert len(load_images("folder", "train", path=str(tmp_path))) == 2
    assert "2 x images outside of train and test" in capsys.readouterr().out


def test_pixels_arrive_unchanged_and_grey_becomes_rgb(folder: Path) -> None:
    data = load_images("folder", "train", path=str(folder))
    with Image.open(folder / "ant" / "0.png") as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert any(torch.equal(pixels, image) for image in data.images) or any(
        torch.equal(pixels, image) for image in load_images("folder", "test", path=str(folder)).images
    )
    for i in range(10):
        write_image(folder / "ant" / f"{i}.png", mode="L")
    grey = load_images("folder", "train", path=str(folder))
    assert torch.equal(grey.images[0, 0], grey.images[0, 1])


def test_mixed_sizes_need_one_size(folder: Path) -> None:
    write_image(folder / "bee" / "wide.webp", size=(40, 20))
    write_image(folder / "bee" / "tall.bmp", size=(9, 30))
    with pytest.raises(ConfigError, match=r"from .* give one, that of the classifier.*--set data\.size="):
        load_images("folder", "train", path=str(folder))
    train, test = (load_images("folder", split, path=str(folder), size=16) for split in ("train", "test"))
    assert train.images.shape[2:] == test.images.shape[2:] == (16, 16)
    assert len(train) + len(test) == 32


def test_hidden_files_and_folders_are_left_out(folder: Path) -> None:
    before = load_images("folder", "train", path=str(folder))
    for place in (".ipynb_checkpoints/0.png", "cat/.ipynb_checkpoints/1-copy.png", "cat/._2.png"):
        write_image(folder / place)
    after = load_images("folder", "train", path=str(folder))
    assert after.classes == before.classes == ("ant", "bee", "cat")
    assert torch.equal(after.images, before.images) and torch.equal(after.labels, before.labels)


def test_unreadable_files_are_named_up_to_twenty_and_counted(folder: Path) -> None:
    content = (folder / "ant" / "0.png").read_bytes()
    (folder / "ant" / "0.png").write_bytes(b"")
    (folder / "bee" / "1.png").write_bytes(content[: len(content) // 2])
    for i in range(10):
        (folder / "cat" / f"{i}.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="cannot be read") as caught:
        for split in ("train", "test"):
            load_images("folder", split, path=str(folder))
    assert "12 of 30 images cannot be read" in str(caught.value), "of both splits at once"
    for i in range(40):
        (folder / "cat" / f"more{i}.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"(\d+) of \d+ images cannot be read") as caught:
        load_images("folder", "train", path=str(folder))
    assert str(caught.value).count(".png") == 20 and str(caught.value).endswith("...")


@pytest.mark.parametrize(("path", "message"), [(None, "needs data.path"), ("/nowhere/at/all", "no folder")])
def test_a_missing_folder(path: str | None, message: str) -> None:
    with pytest.raises((ConfigError, MissingFileError), match=message):
        load_images("folder", "train", path=path)


def test_a_folder_without_classes(tmp_path: Path) -> None:
    write_image(tmp_path / "only" / "0.png")
    with pytest.raises(MissingFileError, match="at least two subfolders"):
        load_images("folder", "train", path=str(tmp_path))


def test_folders_that_are_numbers_are_classes_in_numeric_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in range(11):
        for i in range(2):
            write_image(tmp_path / str(label) / f"{i}.png", size=(4, 4), value=label)
    data = load_images("folder", "train", path=str(tmp_path))
    assert data.classes == tuple(map(str, range(11)))
    assert data.labels.tolist() == list(range(11))
    assert "alphabetical" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "10")
    assert load_images("folder", "train", path=str(tmp_path)).classes == tuple(map(str, range(10)))
    assert not capsys.readouterr().out  # both orders are the same


def test_names_in_another_encoding(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(3):
            write_image(tmp_path / "set" / name / os.fsdecode(b"caf\xe9%d.png" % number))
    assert len(load_images("folder", "train", path=str(tmp_path / "set"))) > 0
    (tmp_path / "set" / "cat").rename(tmp_path / "set" / os.fsdecode(b"caf\xe9"))
    with pytest.raises(DataError, match="UTF-8"):
        load_images("folder", "train", path=str(tmp_path / "set"))


def test_a_class_may_be_called_train(folder: Path) -> None:
    (folder / "bee").rename(folder / "train")
    (folder / "cat").rename(folder / "val")
    assert load_images("folder", "train", path=str(folder)).classes == ("ant", "train", "val")


def test_an_empty_class_folder_is_refused(folder: Path) -> None:
    (folder / "dog").mkdir()
    with pytest.raises(DataError, match=r"set/dog"):
        load_images("folder", "train", path=str(folder))


def test_folders_of_folders_are_no_classes(folder: Path, tmp_path: Path) -> None:
    for split in ("training", "testing"):
        shutil.copytree(folder, tmp_path / "splits" / split)
    with pytest.raises(DataError, match=r"named train and test"):
        load_images("folder", "train", path=str(tmp_path / "splits"))
    write_image(folder / "ant" / "more" / "0.png")  # a class may have folders beside its images
    assert load_images("folder", "train", path=str(folder)).classes == ("ant", "bee", "cat")


def test_what_is_left_out_or_changed_is_counted_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_images("folder", "train", path=str(folder))
    assert not capsys.readouterr().out
    for name in ("stray.png", ".hidden.png", "cat/a.heic", "cat/b.heic"):
        (folder / name).write_bytes(b"")
    (folder / "ant" / "gone.png").symlink_to("nothing")
    (folder / "bee" / "linked").symlink_to(folder / "cat")
    for i in range(10):
        frames = [Image.new("RGB", (12, 12), (value, i, 0)) for value in (0, 255)]
        frames[0].save(folder / "cat" / f"{i}.png", save_all=True, append_images=frames[1:])
    train, test = (load_images("folder", split, path=str(folder)) for split in ("train", "test"))
    first, second = capsys.readouterr().out.splitlines()
    for counted in ("1 x images outside", "2 x .heic", "1 x No such file", "1 x linked folders"):
        assert counted in first
        assert counted not in second
    cats = [int((data.labels == 2).sum()) for data in (train, test)]
    assert all(f"{count} x of several frames" in line for count, line in zip(cats, (first, second), strict=True))
