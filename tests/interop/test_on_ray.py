import io
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from purifiers import Purifier
from purifiers.bulk.purify_files import BulkResult
from purifiers.cli import main
from purifiers.errors import ConfigError

pytest.importorskip("ray", reason="the extra ray is not installed")

import pyarrow as pa
import pyarrow.parquet as pq

from purifiers.interop import on_ray


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def memory() -> Any:
    """A store of objects, by URL, with an image, a damaged one, a table of two and a shard of two images."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pipe_file("/in/sub/a.png", encoded(0))
    files.pipe_file("/in/damaged.png", b"no image")
    table = pa.table({"label": [1, 2], "image": [{"bytes": encoded(1), "path": "1.png"}, {"bytes": b"", "path": "2.png"}]})
    with files.open("/in/table.parquet", "wb") as handle:
        pq.write_table(table, handle)
    with files.open("/in/shard.tar", "wb") as handle, tarfile.open(fileobj=handle, mode="w") as tar:
        for name, content in (("x/3.txt", b"three"), ("x/3.jpg", encoded(3)), ("x/4.0.txt", b"four"), ("x/4.jpg", encoded(4))):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return files


def worker(files: Any, overwrite: bool = False, made_by: str = "this") -> on_ray._Worker:
    purifier = Purifier.from_pretrained("cifar10-cpu")
    return on_ray._Worker((files, "/in"), (files, "/out"), made_by, overwrite, purifier, "image", "cpu", 1000)


@pytest.fixture
def purify(monkeypatch: pytest.MonkeyPatch) -> Callable[..., BulkResult]:
    """The call, with its pieces done in this process and not by Ray."""

    def here(pieces: list[list[str]], device: str, max_pixels: int, *about: Any) -> Iterator[dict[str, Any]]:
        assert about[1][0].exists(f"{about[1][1]}/{on_ray.DONE}"), "from its start on, the folder is known as ours"
        return map(on_ray._Worker(*about, device, max_pixels), ({"paths": paths} for paths in pieces))

    monkeypatch.setattr(on_ray, "on_cluster", here)
    return partial(on_ray.purify_on_ray, Purifier.from_pretrained("cifar10-cpu"), device="cpu")


def test_image_files_keep_their_names_and_failures_are_named(memory: Any) -> None:
    found = worker(memory)({"paths": ["/in/damaged.png", "/in/sub/a.png"]})
    assert (found["purified"], found["skipped"]) == (1, 0)
    assert len(found["failed"]) == 1 and found["failed"][0].startswith("/in/damaged.png: not an image")
    purified = memory.cat_file("/out/sub/a.png")
    assert Image.open(io.BytesIO(purified)).size == (8, 8) and purified != encoded(0)
    # What failed is tried again, with the other images of its piece.
    assert worker(memory)({"paths": ["/in/damaged.png", "/in/sub/a.png"]})["purified"] == 1


def test_a_list_of_what_is_mended_goes(memory: Any) -> None:
    on_ray.list_failed(memory, "/out/failed.txt", ["a.png: damaged"])
    assert memory.cat_file("/out/failed.txt").endswith(b"a.png: damaged\n")
    on_ray.list_failed(memory, "/out/failed.txt", [])
    assert not memory.exists("/out/failed.txt")


def test_the_same_call_resumes_after_failures(memory: Any, purify: Callable[..., BulkResult]) -> None:
    memory.mv("/in/damaged.png", "/in/sub/damaged.png")
    first = purify("memory://in/*/*.png", "memory://out")  # one piece
    assert (first.purified, len(first.failed)) == (1, 1)
    memory.pipe_file("/in/sub/damaged.png", encoded(9))
    second = purify("memory://in/*/*.png", "memory://out")
    assert (second.purified, second.skipped, second.failed) == (2, 0, [])
    third = purify("memory://in/*/*.png", "memory://out")
    assert (third.purified, third.skipped, third.failed) == (0, 2, [])


def test_a_call_that_was_killed_resumes(
    memory: Any, purify: Callable[..., BulkResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(on_ray._Worker, "results", killed)
        with pytest.raises(KeyboardInterrupt):
            purify("memory://in/sub", "memory://out")
    memory.pipe_file("/out/a.png", b"of a piece that was not finished")
    assert purify("memory://in/sub", "memory://out").purified == 1


@pytest.mark.parametrize("gone", ["a.png", "shard.tar"])
def test_what_has_gone_is_made_again(memory: Any, purify: Callable[..., BulkResult], gone: str) -> None:
    memory.mv("/in/sub/a.png", "/in/a.png")
    for name in ("damaged.png", "table.parquet"):
        memory.rm_file(f"/in/{name}")
    assert purify("memory://in", "memory://out").purified == 3
    memory.rm_file(f"/out/{gone}")
    again = purify("memory://in", "memory://out")
    assert again.purified > 0 and again.purified + again.skipped == 3
    assert memory.exists(f"/out/{gone}")


def test_files_that_no_call_made_stay(memory: Any, purify: Callable[..., BulkResult]) -> None:
    memory.pipe_file("/out/sub/a.png", b"mine")
    memory.pipe_file("/out/other.txt", b"mine too")
    for _ in range(2):  # it does not become ours
        result = purify("memory://in", "memory://out")
        assert any("a.png" in failure and "--overwrite" in failure for failure in result.failed)
        assert memory.cat_file("/out/sub/a.png") == b"mine"
    purify("memory://in", "memory://out", overwrite=True)
    assert memory.cat_file("/out/sub/a.png") != b"mine" and memory.cat_file("/out/other.txt") == b"mine too"
    memory.pipe_file("/out/failed.txt", b"mine")
    with pytest.raises(ConfigError, match="failed"):
        purify("memory://in", "memory://out", overwrite=True)
    assert memory.cat_file("/out/failed.txt") == b"mine"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_nothing_is_written_through_a_link(tmp_path: Path, purify: Callable[..., BulkResult]) -> None:
    for folder in ("in/sub", "out", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        (tmp_path / "in" / name).write_bytes(encoded(0))
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    result = purify(str(tmp_path / "in"), str(tmp_path / "out"))
    assert result.purified == 1 and len(result.failed) == 1 and "link" in result.failed[0]
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "again").symlink_to(tmp_path / "in")
    with pytest.raises(ConfigError, match="folder"):
        purify(str(tmp_path / "in"), str(tmp_path / "again" / "out"))


@pytest.mark.parametrize(
    ("source", "target"), [("in", "in/out"), ("in/*.png", "in"), ("in/*.png", "in/sub/.."), ("in/**/*.png", "in/out")]
)
def test_sources_are_not_replaced(tmp_path: Path, purify: Callable[..., BulkResult], source: str, target: str) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a.png").write_bytes(encoded(0))
    (tmp_path / "in" / on_ray.DONE).mkdir()
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="inside"):
            purify(f"{tmp_path}/{source}", f"{tmp_path}/{target}", overwrite=overwrite)
    assert (tmp_path / "in" / "a.png").read_bytes() == encoded(0)


def test_a_pattern_keeps_the_folders_after_its_first_wildcard(memory: Any, purify: Callable[..., BulkResult]) -> None:
    assert purify("memory://in/s*/*.png", "memory://in/out").purified == 1
    assert memory.exists("/in/out/sub/a.png")


def test_a_sample_whose_image_would_take_the_name_of_its_mask_fails(memory: Any) -> None:
    with memory.open("/in/masks.tar", "wb") as handle, tarfile.open(fileobj=handle, mode="w") as tar:
        for name, content in (("0.jpg", encoded(3)), ("0.png", encoded(4)), ("1.jpg", encoded(5)), ("1.mask.png", encoded(6))):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    found = worker(memory)({"paths": ["/in/masks.tar"]})
    assert found["purified"] == 1
    assert "sample 0, 0.jpg: would become 0.png" in found["failed"][0]
    with memory.open("/out/masks.tar") as handle, tarfile.open(fileobj=handle) as tar:
        assert tar.getnames() == ["1.png", "1.mask.png"]


def test_a_table_keeps_its_columns_and_loses_rows_that_failed(memory: Any) -> None:
    found = worker(memory)({"paths": ["/in/table.parquet"]})
    assert found["purified"] == 1 and "sample 1" in found["failed"][0]
    with memory.open("/out/table.parquet") as handle:
        (row,) = pq.read_table(handle).to_pylist()
    assert row["label"] == 1 and row["image"]["path"] == "1.png"
    assert row["image"]["bytes"] != encoded(1) and Image.open(io.BytesIO(row["image"]["bytes"])).size == (8, 8)


def test_a_finished_shard_is_skipped_until_something_changes(memory: Any) -> None:
    piece = {"paths": ["/in/shard.tar"]}
    assert worker(memory)(piece)["purified"] == 2
    with memory.open("/out/shard.tar") as handle, tarfile.open(fileobj=handle) as tar:
        assert tar.getnames() == ["x/3.txt", "x/3.png", "x/4.0.txt", "x/4.png"]
        member = tar.extractfile("x/3.txt")
        assert member is not None and member.read() == b"three"
    assert worker(memory)(piece) == {"purified": 0, "skipped": 2, "failed": []}
    assert worker(memory, overwrite=True)(piece)["purified"] == 2
    assert worker(memory, made_by="another")(piece)["purified"] == 2
    memory.pipe_file("/in/shard.tar", memory.cat_file("/in/shard.tar") + b"\0" * 1024)
    assert worker(memory)(piece)["purified"] == 2


@pytest.mark.parametrize("name", ["shard.TAR", "table.Parquet"])
def test_the_case_of_a_suffix_does_not_count(memory: Any, name: str) -> None:
    memory.mv(f"/in/{name.lower()}", f"/in/{name}")
    assert worker(memory)({"paths": [f"/in/{name}"]})["purified"] >= 1
    assert memory.exists(f"/out/{name}")


def test_damaged_shards_and_tables_without_images_fail_alone(memory: Any) -> None:
    memory.pipe_file("/in/shard.tar", memory.cat_file("/in/shard.tar")[:700])
    assert worker(memory)({"paths": ["/in/shard.tar"]})["failed"][0].startswith("/in/shard.tar: ")
    with memory.open("/in/table.parquet", "wb") as handle:
        pq.write_table(pa.table({"label": [1]}), handle)
    assert "label" in worker(memory)({"paths": ["/in/table.parquet"]})["failed"][0]


@pytest.mark.parametrize(
    ("source", "target", "named"),
    [
        ("memory://in/sub", "memory://in/sub/out", "inside"),
        ("memory://in/*.gif", "memory://out", "nothing to purify"),
        ("memory://in", "memory://full/file", "is a file"),
        ("memory://in", "memory://full", "failed.txt"),
    ],
)
def test_what_cannot_be_done_is_refused_before_ray_starts(
    memory: Any, source: str, target: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("file", "failed.txt"):
        memory.pipe_file(f"/full/{name}", b"mine")
    assert main(["purify", source, target, "--purifier", "cifar10", "--engine", "ray"]) == 1
    assert named in capsys.readouterr().err
