import io
import tarfile
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from purifiers import Purifier
from purifiers.cli import main

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
    memory.pipe_file("/out/failed.txt", b"mine")
    on_ray.list_failed(memory, "/out/failed.txt", [])
    assert memory.cat_file("/out/failed.txt") == b"mine"


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
        ("memory://in", "memory://full", "overwrite"),
    ],
)
def test_what_cannot_be_done_is_refused_before_ray_starts(
    memory: Any, source: str, target: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    memory.pipe_file("/full/other.txt", b"")
    assert main(["purify", source, target, "--purifier", "cifar10", "--engine", "ray"]) == 1
    assert named in capsys.readouterr().err
