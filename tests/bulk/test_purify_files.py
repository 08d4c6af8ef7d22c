import errno
import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from purifiers import Purifier
from purifiers.bulk import pieces
from purifiers.bulk import purify_files as purify_module
from purifiers.bulk.pieces import purify_pixels
from purifiers.bulk.purify_files import BulkResult, purify_files
from purifiers.bulk.side_by_side import BAND, GAP
from purifiers.cli import main
from purifiers.data.files import ANIMATED, DARK
from purifiers.errors import ConfigError, DataError, MissingFileError
from purifiers.networks import CAE
from purifiers.shards import Shard


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
    assert (result.purified, result.replaced, result.skipped) == (2, 1, 1)
    assert purify_files(purifier, tmp_path / "in", tmp_path / "out", overwrite=True).purified == 3


def test_files_of_one_name_size_and_time_are_told_apart(purifier: Purifier, tmp_path: Path) -> None:
    for seed, folder in enumerate(("one", "two")):
        write(tmp_path / folder / "a.bmp", seed=seed)
        os.utime(tmp_path / folder / "a.bmp", (1e9, 1e9))
    purify_files(purifier, tmp_path / "one", tmp_path / "out")
    first = (tmp_path / "out" / "a.png").read_bytes()
    assert str(tmp_path).encode() not in first
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert purify_files(purifier, tmp_path / "link", tmp_path / "out").skipped == 1
    result = purify_files(purifier, tmp_path / "two", tmp_path / "out")
    assert (result.purified, result.replaced) == (1, 1)
    assert (tmp_path / "out" / "a.png").read_bytes() != first


@pytest.mark.parametrize("damaged", ["out/a.png", "compared/a.png"])
def test_a_result_that_was_cut_off_is_made_again(purifier: Purifier, tmp_path: Path, damaged: str) -> None:
    write(tmp_path / "in" / "a.png", size=(32, 32))

    def run() -> BulkResult:
        return purify_files(purifier, tmp_path / "in", tmp_path / "out", compare=tmp_path / "compared")

    run()
    whole = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(whole[:-100])
    assert (run().purified, (tmp_path / damaged).read_bytes()) == (1, whole)
    assert run().skipped == 1


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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["failed.txt", "good.png"]
    listed = (tmp_path / "out" / "failed.txt").read_text().splitlines()
    assert listed[1:] == sorted(result.failed)
    for name in ("empty.png", "text.jpg", "half.png"):
        (tmp_path / "in" / name).unlink()
    assert purify_files(purifier, tmp_path / "in", tmp_path / "out").skipped == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"], "a list of what is mended would mislead"


def test_it_stops_at_the_first_failure_where_asked(purifier: Purifier, tmp_path: Path) -> None:
    write(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_text("no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        purify_files(purifier, tmp_path / "in", tmp_path / "out", on_error="stop")


def test_shards_purify_every_file_once_and_join_their_lists(purifier: Purifier, tmp_path: Path) -> None:
    for number in range(7):
        write(tmp_path / "in" / f"{number}.png", size=(9 + number % 2, 9), seed=number)
        (tmp_path / "in" / f"bad-{number}.png").write_text("no image")
    whole = purify_files(purifier, tmp_path / "in", tmp_path / "whole")
    assert whole.purified == 7
    expected = {path.name: path.read_bytes().replace(b"whole", b"parts") for path in (tmp_path / "whole").iterdir()}
    for index in (2, 0, 1):
        result = purify_files(purifier, tmp_path / "in", tmp_path / "parts", shard=Shard(index, 3))
        assert 0 < result.purified < 7 and result.skipped == 0
        assert {*result.failed} <= {*(tmp_path / "parts" / "failed.txt").read_text().splitlines()}
    own = {f"failed-{index}-of-3.txt" for index in range(3)}
    found = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    assert found.keys() - own == expected.keys() and all(found[name] == expected[name] for name in expected)
    again = purify_files(purifier, tmp_path / "in", tmp_path / "parts")
    assert (again.purified, again.skipped) == (0, 7)
    assert {path.name for path in (tmp_path / "parts").iterdir()} == expected.keys(), "a whole run has no lists of shards"


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_joined_list_is_right_whichever_shard_was_interrupted(
    purifier: Purifier, tmp_path: Path, order: tuple[int, ...]
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    for number in range(6):
        write(source / f"{number}.png")
    (source / "0.png").write_text("no image")
    for index in (0, 1):  # the third was interrupted
        purify_files(purifier, source, target, shard=Shard(index, 3))
    write(source / "0.png")
    (source / "4.png").write_text("no image")
    failed = [one for index in order for one in purify_files(purifier, source, target, shard=Shard(index, 3)).failed]
    assert (target / "failed.txt").read_text().splitlines()[1:] == failed
    assert len(failed) == 1 and "4.png" in failed[0]
    write(source / "4.png")
    purify_files(purifier, source, target, shard=Shard(1, 3))
    assert not list(target.glob("failed*"))


def test_lists_of_shards_that_end_together_are_all_joined(
    purifier: Purifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        (tmp_path / f"in-{number}").mkdir()
        (tmp_path / f"in-{number}" / "a.png").write_text("no image")
    real = purify_module.write_text

    def late(file: Path, content: str) -> None:
        if file.name == "failed.txt":
            monkeypatch.undo()
            purify_files(purifier, tmp_path / "in-0", tmp_path / "out", shard=Shard(0, 2))
        real(file, content)

    monkeypatch.setattr(purify_module, "write_text", late)
    (tmp_path / "in-1" / "b.png").write_text("no image")
    purify_files(purifier, tmp_path / "in-1", tmp_path / "out", shard=Shard(1, 2))
    assert len((tmp_path / "out" / "failed.txt").read_text().splitlines()) == 3


def test_paths_that_cannot_be_read_or_written_are_listed(purifier: Purifier, tmp_path: Path) -> None:
    write(tmp_path / "in" / "good.png")
    write(tmp_path / "in" / "blocked" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "blocked").write_text("mine")  # a file where a folder is needed
    odd = os.fsdecode(b"in/caf\xe9.png")
    write(tmp_path / odd)
    (tmp_path / os.fsdecode(b"in/\xff.png")).write_text("no image, and no UTF-8 name")
    (tmp_path / "in" / "two\nlines.png").write_text("no image")
    (tmp_path / "in" / "gone.png").symlink_to("nothing")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out")
    assert result.purified == 2
    assert (tmp_path / odd.replace("in", "out")).is_file()
    assert len(result.failed) == 4 == len((tmp_path / "out" / "failed.txt").read_text().splitlines()) - 1
    reasons = (
        "gone.png: No such file",
        f"blocked/a.png: cannot write {tmp_path / 'out' / 'blocked' / 'a.png'}: {tmp_path / 'out' / 'blocked'} is no folder",
        "\\udcff.png: not an image",
        "two\\nlines.png: not an image",
    )
    assert all(any(reason in failure for failure in result.failed) for reason in reasons)
    assert "\\udcff" in (tmp_path / "out" / "failed.txt").read_text()


@pytest.mark.skipif(os.name == "nt", reason="names that Windows does not have")
def test_nothing_is_written_outside_of_the_output_folder(purifier: Purifier, tmp_path: Path) -> None:
    source, target, elsewhere = (tmp_path / name for name in ("in", "out", "elsewhere"))
    for name in ("a\nb.png", "-rf.png", "~.png", "deep/a.png", "deep/er/a.png", "w/a.png"):
        write(source / name)
    elsewhere.mkdir()
    target.mkdir()
    (target / "deep").symlink_to(elsewhere)
    (target / "inside").mkdir()
    (target / "w").symlink_to(target / "inside")
    result = purify_files(purifier, source, target)
    assert result.purified == 4
    assert len(result.failed) == 2
    assert all("link" in failure for failure in result.failed)
    assert not list(elsewhere.iterdir())
    assert len((target / "failed.txt").read_text().splitlines()) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "elsewhere"}


def test_a_full_disk_stops_the_work(purifier: Purifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "b.png", size=(3, 3))

    def no_space(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", no_space)
    with pytest.raises(OSError, match="No space left"):
        purify_files(purifier, tmp_path / "in", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_ctrl_c_leaves_nothing_half_written_and_the_next_run_goes_on(
    purifier: Purifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        write(tmp_path / "in" / f"{i}.png", size=(5 + i, 5), seed=i)
    calls = []

    def interrupted(*args: object) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return purify_pixels(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pieces, "purify_pixels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        purify_files(purifier, tmp_path / "in", tmp_path / "out")
    monkeypatch.undo()
    left = sorted((tmp_path / "out").iterdir())
    assert all(path.suffix == ".png" and not path.name.startswith(".") for path in left)
    for path in left:
        with Image.open(path) as image:
            image.load()
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out")
    assert (result.purified, result.skipped) == (6 - len(left), len(left))
    assert 1 <= len(left) < 6


def test_another_purifier_makes_them_again_but_files_of_the_users_stay(purifier: Purifier, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / "in" / f"{name}.png")
    write(tmp_path / "out" / "c.png", size=(2, 2))
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out")
    assert (result.purified, result.failed) == (
        2,
        [
            f"{tmp_path}/in/c.png: {tmp_path}/out/c.png is there already and was not made by 'purifiers purify'; --overwrite replaces it"
        ],
    )
    torch.manual_seed(1)
    other = Purifier(CAE(widths=[4, 6], blocks=[1, 1], skip_every=1))
    text = PngImagePlugin.PngInfo()
    text.add_text("purifiers", " ")  # none of ours
    Image.new("RGB", (2, 2)).save(tmp_path / "out" / "c.png", pnginfo=text)
    result = purify_files(other, tmp_path / "in", tmp_path / "out")
    assert (result.purified, result.replaced, result.skipped, len(result.failed)) == (2, 2, 0, 1)
    assert purify_files(other, tmp_path / "in", tmp_path / "out").skipped == 2
    assert purify_files(other, tmp_path / "in", tmp_path / "out", overwrite=True).purified == 3


def test_alpha_and_what_is_said_of_a_picture_are_kept(purifier: Purifier, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (7, 10, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "Ada")
    (tmp_path / "in").mkdir()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "in" / "a.png", exif=exif, icc_profile=profile, dpi=(300, 300), pnginfo=text)
    assert purify_files(purifier, tmp_path / "in", tmp_path / "out").purified == 1
    upright = np.rot90(pixels, -1).copy()
    with Image.open(tmp_path / "out" / "a.png") as found:
        result = np.array(found)
        assert dict(found.getexif()) == {0x010F: "Maker"}
        assert found.info["icc_profile"] == profile
        assert found.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert found.info["Author"] == "Ada"
    assert np.array_equal(result[..., 3], upright[..., 3])
    expected = purify_pixels(purifier, torch.from_numpy(upright[..., :3]).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert np.array_equal(result[..., :3], expected.numpy())


def test_what_was_left_out_or_changed_is_counted(purifier: Purifier, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "in" / "a.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "in" / "b.heic").write_bytes(b"")
    for name, white in (("twelve", 4095), ("sixteen", 65535)):
        Image.fromarray(np.linspace(0, white, 36, dtype=np.uint16).reshape(6, 6)).save(tmp_path / "in" / f"{name}.png")
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out")
    assert (result.purified, result.failed) == (3, [])
    assert +result.remarks == {ANIMATED: 1, DARK: 1, ".heic": 1}


def test_output_that_is_not_finite_is_not_written(purifier: Purifier, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png")
    torch.nn.init.constant_(next(purifier.parameters()), torch.nan)
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out")
    assert (result.purified, len(result.failed)) == (0, 1)
    assert "NaN" in result.failed[0]
    assert not (tmp_path / "out" / "a.png").exists()


def test_too_large_an_image_is_refused_by_its_header(purifier: Purifier, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png", size=(20, 20))
    write(tmp_path / "in" / "b.png", size=(10, 10))
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out", max_pixels=100)
    assert (result.purified, len(result.failed)) == (1, 1)
    assert "a.png: 20 x 20 are 400 pixels; at most 100 " in result.failed[0]


def test_what_the_network_cannot_take_fails_alone(tmp_path: Path) -> None:
    class Wide(CAE):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.shape[3] < 8 or (len(images) > 1 and images.shape[3] == 9):
                raise RuntimeError("padding is larger than the image\nand much more")
            return super().forward(images)

    purifier = Purifier(Wide(widths=[4], blocks=[1]))
    for i, width in enumerate((7, 9, 9, 10)):
        write(tmp_path / "in" / f"{i}.png", size=(width, 5))
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out")
    assert result.purified == 3
    assert result.failed == [f"{tmp_path}/in/0.png: padding is larger than the image"]
    grey = Purifier(CAE(widths=[4], blocks=[1], channels=1))
    with pytest.raises(ConfigError, match="takes images of 1 channels; files are read as RGB"):
        purify_files(grey, tmp_path / "in", tmp_path / "out")


def test_comparisons_show_both_and_the_difference_ten_times(purifier: Purifier, tmp_path: Path) -> None:
    pixels = write(tmp_path / "in" / "deep" / "a.png", size=(64, 48))
    purify_files(purifier, tmp_path / "in", tmp_path / "out")
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out", compare=tmp_path / "seen")
    assert (result.purified, result.skipped) == (1, 0), "made again, as its comparison was missing"
    assert purify_files(purifier, tmp_path / "in", tmp_path / "out", compare=tmp_path / "seen").skipped == 1
    with Image.open(tmp_path / "out" / "deep" / "a.png") as image:
        purified = np.asarray(image).astype(int)
    with Image.open(tmp_path / "seen" / "deep" / "a.png") as image:
        sheet = np.asarray(image)
    band, factor = sheet[:16], 3
    panels = [sheet[16::factor, start : start + 192 : factor] for start in (0, 196, 392)]
    assert np.array_equal(panels[0], pixels)
    assert np.array_equal(panels[1], purified)
    assert np.array_equal(panels[2], (128 + 10 * (purified - pixels)).clip(0, 255))
    assert all((band[:, start : start + 192] < 128).any() for start in (0, 196, 392)), "titles"
    for folder in ("in", "out", "out/seen"):
        with pytest.raises(ConfigError, match="folder apart"):
            purify_files(purifier, tmp_path / "in", tmp_path / "out", compare=tmp_path / folder)


def test_a_line_of_pixels_is_compared_too(purifier: Purifier, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, size in (("line", (3000, 1)), ("other", (8, 8))):
        Image.new("RGB", size).save(tmp_path / "in" / f"{name}.png")
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out", compare=tmp_path / "compared")
    assert (result.purified, result.failed) == (2, [])
    with Image.open(tmp_path / "compared" / "line.png") as sheet:
        assert sheet.size == (3 * 1024 + 2 * GAP, BAND + 1)


def test_a_comparison_of_the_users_stays_and_one_that_cannot_be_written_is_named(purifier: Purifier, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "deep" / "b.png")
    write(tmp_path / "seen" / "a.png", size=(3, 3))
    (tmp_path / "seen" / "deep").write_text("a file where a folder is needed")
    result = purify_files(purifier, tmp_path / "in", tmp_path / "out", compare=tmp_path / "seen")
    assert (result.purified, len(result.failed)) == (0, 2)
    assert f"{tmp_path}/seen/a.png is there already" in result.failed[0]
    assert f"cannot write {tmp_path}/seen/deep/b.png" in result.failed[1]
    with Image.open(tmp_path / "seen" / "a.png") as image:
        assert image.size == (3, 3)


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
    write(tmp_path / "clear.png", mode="RGBA")
    for skipped in (0, 1):
        assert purify_files(purifier, tmp_path / "clear.png", tmp_path / "clean.JPG").skipped == skipped
    with Image.open(tmp_path / "clean.JPG") as jpeg:
        assert (jpeg.format, jpeg.size) == ("JPEG", (10, 7))


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
    for target, compare in (("file", None), ("out", tmp_path / "file")):
        with pytest.raises(ConfigError, match="file is a file"):
            purify_files(purifier, tmp_path / "in", tmp_path / target, compare=compare)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "failed.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"failed\.txt"):
        purify_files(purifier, tmp_path / "in", tmp_path / "mine")
    assert (tmp_path / "mine" / "failed.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="no image that can be read"):
        purify_files(purifier, tmp_path / "file", tmp_path / "x.png")
    with pytest.raises(ConfigError, match="must end in"):
        purify_files(purifier, tmp_path / "in" / "a.png", tmp_path / "v1.2")
    with pytest.raises(ConfigError, match="over it"):
        purify_files(purifier, tmp_path / "in" / "a.png", tmp_path / "in" / "a.png")
    assert not (tmp_path / "out").exists()


def test_a_purifier_that_redraws_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in.png")
    for residual, warned in ((True, False), (False, True)):
        Purifier(CAE(widths=[4], blocks=[1], skip_every=0, residual=residual)).save_pretrained(tmp_path / f"p{residual}")
        out = str(tmp_path / f"out{residual}.png")
        assert (
            main(["purify", str(tmp_path / "in.png"), out, "--purifier", str(tmp_path / f"p{residual}"), "--device", "cpu"])
            == 0
        )
        assert ("draws each image anew" in capsys.readouterr().err) == warned
