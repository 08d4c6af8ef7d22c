"""Cleaning images in bulk on a Ray cluster: image files, Parquet files and WebDataset shards, on disks or at URLs of fsspec.

Actors hold the purifier, two on each GPU: one decodes while the other computes. They write each file under a name of its own,
whole or not at all: what is done twice, because a node died, is there once.
"""

import io
import json
import logging
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from purifiers.bulk.pieces import refuse_other_channels
from purifiers.bulk.purify_files import FAILED_FILE, NOT_OURS, BulkResult, failed_list, led_out, refuse_other_list
from purifiers.console import console
from purifiers.data.files import SUFFIXES
from purifiers.errors import ConfigError, DataError, MissingFileError, explain_missing, first_line
from purifiers.interop.batches import THREADS, PurifyBatch
from purifiers.purifier import Purifier
from purifiers.registry import fingerprint
from purifiers.storage import atomic_path, digest, parse_json

with explain_missing():
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray.data

TOGETHER = 64
"""Image files of one piece of work, and images in memory at once, besides the file of a shard."""
SHARDS = (".parquet", ".tar")
DONE = ".purified"
"""The folder in the output with a file for each finished piece, named for what it was made by and from; it has the count."""
NAMES = f"{DONE}/names-"
"""How the lists of the files begin that runs were to write, and so may replace."""
Samples = list[tuple[dict[str, Any], str]]
"""Of each sample its files or columns by name, and which of them is the image."""


class _Worker(PurifyBatch):
    """The actor. ``read`` and ``write`` are fsspec's file systems, with the folder of the input and of the output there."""

    def __init__(self, read: tuple[Any, str], write: tuple[Any, str], made_by: str, overwrite: bool, *about: Any) -> None:
        super().__init__(*about)
        (self.files, self.root), (self.into, self.target) = read, write
        self.made_by, self.overwrite = made_by, overwrite

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The counts of a piece of work, and the failures."""
        paths, failed = list(row["paths"]), []
        state = [self.files.ukey(path) for path in paths]  # of each file's name, size, time and the like
        done = f"{self.target}/{DONE}/{digest(self.made_by, state)}"
        if not self.overwrite and self.into.exists(done) and all(map(self.into.exists, map(self._output, paths))):
            return {"purified": 0, "skipped": int(self.into.cat_file(done)), "failed": []}
        try:
            samples, schema = self._samples(paths)
        except (OSError, DataError, tarfile.TarError, pa.ArrowException) as error:
            samples, schema = [({paths[0]: error}, paths[0])], None
        for start in range(0, len(samples), TOGETHER):
            some = samples[start : start + TOGETHER]
            for (parts, image), result in zip(some, self.results([parts[image] for parts, image in some]), strict=True):
                parts[image] = result
        kept = [sample for sample in samples if not isinstance(sample[0][sample[1]], Exception)]
        for number, (parts, image) in enumerate(samples):
            if isinstance(fault := parts[image], Exception):
                where = image if image == paths[0] or len(paths) > 1 else f"{paths[0]}, sample {number}, {image}"
                failed.append(f"{where}: {getattr(fault, 'strerror', None) or first_line(fault)}")
        if not is_shard(paths[0]):
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda one: self._put(one[1], one[0][one[1]]), kept))
        elif kept:
            self._put(paths[0], _as_tar(kept) if schema is None else _as_parquet(kept, schema))
        if not failed:
            put(self.into, done, str(len(kept)).encode())
        return {"purified": len(kept), "skipped": 0, "failed": failed}

    def _samples(self, paths: list[str]) -> tuple[Samples, Any]:
        if not is_shard(paths[0]):
            return [({path: self._content(path)}, path) for path in paths], None
        with self.files.open(paths[0]) as handle:
            if paths[0].lower().endswith(".tar"):
                return _from_tar(handle), None
            table = pq.read_table(handle)
        encoded = [
            one.name for one in table.schema if re.match("(large_)?binary|struct<.*bytes: (large_)?binary", str(one.type))
        ]
        if not encoded:
            raise DataError(f"no column holds encoded images; there are {', '.join(table.column_names)}")
        image = self.column if self.column in encoded else encoded[0]
        return [(columns, image) for columns in table.to_pylist()], table.schema

    def _put(self, path: str, content: bytes) -> None:
        put(self.into, self._output(path), content)

    def _output(self, path: str) -> str:
        return f"{self.target}/{target_name(path, self.root)}"

    def _content(self, path: str) -> Any:
        try:
            return self.files.cat_file(path)
        except OSError as error:
            return error


def purify_on_ray(
    purifier: Purifier,
    source: str,
    target: str,
    *,
    overwrite: bool = False,
    max_pixels: int = 50_000_000,
    device: str = "auto",
) -> BulkResult:
    """Purify all image files, Parquet files and WebDataset shards below a folder, on the Ray cluster that ``ray.init`` finds.

    An image becomes a PNG of its name, and a shard one of its name, less the images that failed, which are reported. What this
    purifier made already from the same state of the same files is skipped. Files of the same names that no such call made are
    not replaced: those of the source then count as failures.

    Args:
        source: a folder, or files by a pattern such as ``s3://bucket/*.tar``, whose folder is then what is before the first
            wildcard. A shard has to fit into memory. Its images are in the column ``image`` or else the first with encoded
            ones, as bytes or structs of ``bytes``; of a WebDataset's sample the first file that ends like an image.
        target: a folder, which all nodes reach, as they reach ``source``.
        overwrite: purify again what is there already, and replace files of the same names that were not made here.
        max_pixels: of an image; larger ones are refused before they are decoded.
        device: of the actors: with ``auto`` or ``cuda`` the cluster's GPUs if it has any, otherwise its CPUs.

    Raises:
        MissingFileError: there is nothing to purify.
        ConfigError: ``target`` is the folder of ``source``, or lies inside it and ``source`` is a folder or has ``**``; it is a
            file; a ``failed.txt`` there that is not ours; a purifier that does not take RGB; no Ray.
        DataError: Ray gave up.
    """
    refuse_other_channels(purifier)
    (files, root), (into, place) = fsspec.core.url_to_fs(source), fsspec.core.url_to_fs(target)
    below = files.isdir(root)
    deep, found = below or "**" in root, files.find(root) if below else files.glob(root)
    root = root if below else re.split(r"[*?[]", root)[0].rpartition("/")[0]
    home, there = _without_links(files, root), _without_links(into, place)
    if type(files) is type(into) and (there == home or (deep and there.startswith(f"{home}/"))):
        advice = "purified images could replace their sources, or be purified again: choose another folder"
        raise ConfigError(f"{target} is the folder of {source}, or lies inside it; {advice}")
    if into.isfile(place):
        raise ConfigError(f"{target} is a file; give a folder to write to")
    written = {path.removeprefix(f"{place}/") for path in into.find(place)}
    if FAILED_FILE in written:
        refuse_other_list(into.cat_file(f"{place}/{FAILED_FILE}"), f"{target}/{FAILED_FILE}")
    for path in [path for path in written if path.startswith(NAMES)]:
        written -= {*parse_json(into.cat_file(f"{place}/{path}"), f"{target}/{path}")}  # those of earlier runs are ours
    result, names = BulkResult(), dict[str, str]()
    for path in sorted(found):
        suffix, name = PurePosixPath(path).suffix.lower(), target_name(path, root)
        if suffix not in (*SUFFIXES, *SHARDS) or any(part.startswith(".") for part in name.split("/")):
            continue
        if name in names:
            result.fail(f"{path}: would become {name}, like {names[name]}; rename one")
        elif isinstance(into, LocalFileSystem) and (reason := led_out(Path(place), name)):
            result.fail(f"{path}: {reason}")
        elif name in written and not overwrite:
            result.fail(f"{path}: {target}/{name} {NOT_OURS}")
        else:
            names[name] = path
    if not names and not result.failed:
        raise MissingFileError(f"nothing to purify in {source} ({', '.join((*SUFFIXES, *SHARDS))})")
    images = [path for path in names.values() if not is_shard(path)]
    pieces = [images[start : start + TOGETHER] for start in range(0, len(images), TOGETHER)]
    pieces += [[path] for path in names.values() if is_shard(path)]
    put(into, f"{place}/{NAMES}{digest([*names])}.json", json.dumps([*names]).encode())
    about = ((files, root), (into, place), fingerprint(purifier.network), overwrite, purifier.to("cpu"), "image")
    for row in on_cluster(pieces, device, max_pixels, *about) if pieces else ():
        result.purified += row["purified"]
        result.skipped += row["skipped"]
        for failure in row["failed"]:
            result.fail(failure)
    list_failed(into, f"{place}/{FAILED_FILE}", result.failed)
    return result


def on_cluster(pieces: list[list[str]], device: str, max_pixels: int, *about: Any) -> Iterator[dict[str, Any]]:
    """What actors made with what is ``about`` them return for each piece; raises DataError if Ray gives up."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it reports its plans
    ray.data.DataContext.get_current().enable_progress_bars = console.is_terminal
    gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
    gpus = 0 if device == "cpu" else gpus
    rows = ray.data.from_items([{"paths": paths} for paths in pieces], override_num_blocks=len(pieces)).map(
        _Worker,
        fn_constructor_args=(*about, "cuda" if gpus else "cpu", max_pixels),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=2 * gpus or cpus),
        num_gpus=0.5 if gpus else 0,
    )
    try:
        yield from rows.iter_rows()
    except ray.exceptions.RayError as error:
        raise DataError(f"Ray gave up: {first_line(error)}; finished pieces are kept, the same command resumes") from error


def list_failed(files: Any, path: str, failed: list[str]) -> None:
    """Write what failed, or remove an earlier list where all is mended."""
    if failed:
        put(files, path, failed_list(failed).encode())
    elif files.exists(path):
        files.rm_file(path)


def _without_links(files: Any, folder: str) -> str:
    return Path(folder).resolve().as_posix() if isinstance(files, LocalFileSystem) else folder


def target_name(path: str, root: str) -> str:
    """The name, below the target, of what is made of a file."""
    name = PurePosixPath(path.removeprefix(root).lstrip("/"))
    return str(name if is_shard(path) else name.with_suffix(".png"))


def is_shard(path: str) -> bool:
    """Whether a file holds many images."""
    return path.lower().endswith(SHARDS)


def put(files: Any, path: str, content: bytes) -> None:
    """Write a file that nobody sees before it is whole, as is usual in stores of objects."""
    if isinstance(files, LocalFileSystem):
        with atomic_path(Path(path)) as temporary:
            temporary.write_bytes(content)
    else:
        files.pipe_file(path, content)


def _as_parquet(samples: Samples, schema: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([columns for columns, _ in samples], schema), buffer)
    return buffer.getvalue()


def _from_tar(handle: Any) -> Samples:
    """The samples of a WebDataset: files that share the name up to the first dot of its last part."""
    with tarfile.open(fileobj=handle, mode="r|*") as tar:
        content = [(one.name, tar.extractfile(one).read()) for one in tar if one.isfile()]  # type: ignore[union-attr]
    samples = [dict(group) for _, group in groupby(content, lambda one: re.match(r"(.*/)?[^.]*", one[0])[0])]  # type: ignore[index]
    endings = re.compile(rf"(.*/)?[^.]*({'|'.join(map(re.escape, SUFFIXES))})", re.I)
    found = [(files, next(filter(endings.fullmatch, files), next(iter(files)))) for files in samples]
    for files, image in found:
        if (name := _as_png(image)) != image and name in files:
            files[image] = DataError(f"would become {name}, like another file of its sample; rename one")
    return found


def _as_png(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".png"))


def _as_tar(samples: Samples) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for files, image in samples:
            for name, content in files.items():
                about = tarfile.TarInfo(_as_png(name) if name == image else name)
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    return buffer.getvalue()
