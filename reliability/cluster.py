"""Bulk cleaning on a Ray cluster of two nodes, one of which is killed; and libraries that call the purifier on batches."""

import io
import os
import random
import shutil
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from promise import Promise, Result

from purifiers import Purifier
from purifiers.interop.batches import PurifyBatch

PURIFIER = "cifar10-cpu"
SHARD = 100  # images


def _encoded(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _same(one: bytes, other: bytes) -> bool:
    """Whether two purified images are the same, but for the rounding of other batches."""
    pixels = [np.asarray(Image.open(io.BytesIO(image))).astype(int) for image in (one, other)]
    return bool(np.abs(pixels[0] - pixels[1]).max() <= 1)


def _fill(folder: Path, images: list[bytes]) -> None:
    """Images, a third each as files, in Parquet files and in WebDataset shards, with their numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "files").mkdir(parents=True)
    numbers = range(len(images))
    for number in numbers[0::3]:
        (folder / "files" / f"{number}.png").write_bytes(images[number])
    for start in range(0, len(numbers[1::3]), SHARD):
        part = list(numbers[1::3][start : start + SHARD])
        structs = [{"bytes": images[number], "path": f"{number}.png"} for number in part]
        pq.write_table(pa.table({"number": part, "image": structs}), folder / f"table-{start}.parquet")
    for start in range(0, len(numbers[2::3]), SHARD):
        with tarfile.open(folder / f"shard-{start}.tar", "w") as tar:
            for number in numbers[2::3][start : start + SHARD]:
                for name, content in ((f"{number}.cls", b"3"), (f"{number}.png", images[number])):
                    about = tarfile.TarInfo(name)
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))


def _found(folder: Path) -> list[tuple[int, bytes]]:
    """The number and the content of every image in an output."""
    import pyarrow.parquet as pq

    images = [(int(file.stem), file.read_bytes()) for file in (folder / "files").glob("*.png")]
    for file in folder.glob("*.parquet"):
        images += [(row["number"], row["image"]["bytes"]) for row in pq.read_table(file).to_pylist()]
    for file in folder.glob("*.tar"):
        with tarfile.open(file) as tar:
            members = [(Path(one.name), tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]
        images += [(int(name.stem), content) for name, content in members if name.suffix == ".png"]
    return images


def node_killed(count: int, folder: Path) -> Result:
    """Clean ``count`` images on two nodes, and kill one of them when some pieces are there."""
    if find_spec("ray") is None:
        return Result(0, 0, "images", skipped="ray is not installed (the extra ray)")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # of a busy machine
    import ray
    from ray.cluster_utils import Cluster

    from purifiers.interop.on_ray import DONE, purify_on_ray

    images, source, target = [_encoded(number) for number in range(count)], folder / "in", folder / "out"
    _fill(source, images)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    wanted, over, killed = random.randint(1, 3), threading.Event(), threading.Event()

    def kill() -> None:
        while len(list((target / DONE).glob("[0-9a-f]*"))) < wanted:
            time.sleep(0.02)
        if not over.is_set():
            cluster.remove_node(second, allow_graceful=False)
            killed.set()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        result = purify_on_ray(Purifier.from_pretrained(PURIFIER), str(source), str(target), device="cpu")
    finally:
        over.set()
        killer.join(10)
        ray.shutdown()
        cluster.shutdown()
    failures = [*result.failed, *([] if killed.is_set() else ["all was over before a node was killed"])]
    found, expected = _found(target), PurifyBatch(PURIFIER, device="cpu").results(images)
    there = [number for number, _ in found]
    failures += [f"image {number} is there {there.count(number)} times" for number in range(count) if there.count(number) != 1]
    failures += [f"image {number} is not as it should be" for number, content in found if not _same(content, expected[number])]
    return Result(count, count - len(failures), "images", f"one of two nodes killed after {wanted} pieces", failures)


def _with_ray(images: list[bytes]) -> list[bytes]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        rows = ray.data.from_items([{"number": number, "image": image} for number, image in enumerate(images)])
        rows = rows.map_batches(PurifyBatch, fn_constructor_args=(PURIFIER, "image", "cpu"), batch_size=4, concurrency=1)
        return [row["image"] for row in sorted(rows.take_all(), key=lambda row: row["number"])]
    finally:
        ray.shutdown()


def _with_datasets(images: list[bytes]) -> list[bytes]:
    import datasets

    data = datasets.Dataset.from_dict({"image": images}).map(PurifyBatch(PURIFIER, device="cpu"), batched=True, batch_size=4)
    pictures = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    decoded = pictures.map(PurifyBatch(PURIFIER, device="cpu"), batched=True)[0]["image"]
    assert np.array_equal(np.asarray(decoded), np.asarray(Image.open(io.BytesIO(data[0]["image"])))), "PIL images differ"
    return list(data["image"])


def _with_spark(images: list[bytes]) -> list[bytes]:
    import pandas as pd
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import pandas_udf

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        session.sparkContext.setLogLevel("OFF")
        batches = PurifyBatch(PURIFIER, device="cpu")

        def purified(images: pd.Series) -> pd.Series:
            return pd.Series(batches(images.to_numpy()))

        purify = pandas_udf(purified, "binary")
        rows = session.createDataFrame(list(enumerate(map(bytearray, images))), ["number", "image"])
        found = rows.withColumn("image", purify("image")).orderBy("number").collect()
        return [bytes(row["image"]) for row in found]
    finally:
        session.stop()


LIBRARIES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "ray": _with_ray,
    "datasets": _with_datasets,
    "pyspark": _with_spark,
}


def libraries(count: int, folder: Path) -> Result:
    """Purify ``count`` images with each library that is installed."""
    images = [_encoded(number) for number in range(count)]
    expected = PurifyBatch(PURIFIER, device="cpu").results(images)
    installed = [name for name in LIBRARIES if find_spec(name) and (name != "pyspark" or shutil.which("java"))]
    if not installed:
        return Result(0, 0, "images", skipped=f"none of {', '.join(LIBRARIES)} is installed")
    result = Result(count * len(installed), 0, "images", f"with {', '.join(installed)}")
    for name in installed:
        found = LIBRARIES[name](images)
        result.survived += sum(map(_same, found, expected))
    return result


PROMISES = {
    "node-killed": Promise(
        "On a cluster every image is cleaned, and none twice, also if a node dies.",
        "files, Parquet and WebDataset shards on a Ray cluster of two nodes, one killed at a random moment",
        node_killed,
        quick=300,
        long=600,
    ),
    "libraries": Promise(
        "Ray Data, Hugging Face datasets and Spark purify the same as one process.",
        "the same object, by `map_batches`, `map` and a `pandas_udf` of the real libraries, as far as they are installed",
        libraries,
        quick=8,
        long=200,
    ),
}
