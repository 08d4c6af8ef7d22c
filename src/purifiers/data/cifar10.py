"""CIFAR-10 (Krizhevsky 2009): read from its original Python batches, downloaded if they are not there."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from purifiers.data.datasets import DATASETS
from purifiers.data.images import ImageSet
from purifiers.errors import DataError, MissingFileError, require

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
BATCH_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@DATASETS.register("cifar10", classes=CLASSES, size=32)
def load_cifar10(split: Literal["train", "test"], path: str | None = None) -> ImageSet:
    """CIFAR-10's 50,000 training or 10,000 test images.

    ``path``: the folder ``cifar-10-batches-py`` or the one that holds it; by default ``$PURIFIERS_DATA``, else the user's
    cache, into which the original archive (170 MB) is downloaded once.

    Raises:
        MissingFileError: a named folder does not hold the batches, or the download failed.
        DataError: a batch is damaged: its MD5 is not the original's. Nothing is unpickled before that check.
    """
    folder = _find(path or os.environ.get("PURIFIERS_DATA"))
    batches = [_read_batch(folder / name) for name in BATCH_MD5 if (name == "test_batch") == (split == "test")]
    images, labels = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*batches, strict=True))
    return ImageSet("cifar10", images, labels, CLASSES)


def _find(path: str | None) -> Path:
    if path is None:
        return _download()
    for folder in (Path(path), Path(path) / FOLDER):
        if (folder / "test_batch").is_file():
            return folder
    advice = f"give --data-dir (or $PURIFIERS_DATA) the folder {FOLDER} or the one that holds it, or neither to download it"
    raise MissingFileError(f"no CIFAR-10 batches in {path}: {advice}")


def _download() -> Path:
    pooch, requests = require("pooch"), require("requests")
    try:
        unpack, folder = pooch.Untar(members=[f"{FOLDER}/{name}" for name in BATCH_MD5]), pooch.os_cache("purifiers")
        files = pooch.retrieve(ARCHIVE_URL, f"md5:{ARCHIVE_MD5}", path=folder, processor=unpack, progressbar=True)
    except (requests.RequestException, OSError, ValueError) as error:
        advice = f"fetch {ARCHIVE_URL} by hand, unpack it, and give the folder with --data-dir or $PURIFIERS_DATA"
        raise MissingFileError(f"CIFAR-10 could not be downloaded ({error}); {advice}") from error
    return Path(files[0]).parent


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise MissingFileError(f"CIFAR-10's {path.name} is missing from {path.parent}; unpack the archive again")
    content = path.read_bytes()
    if hashlib.md5(content).hexdigest() != BATCH_MD5[path.name]:
        raise DataError(f"{path} is damaged: its MD5 is not that of the original batch; unpack the archive again")
    batch = pickle.loads(content, encoding="latin1")  # noqa: S301 - byte-identical to the original, by its MD5
    pixels = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    return pixels, np.asarray(batch["labels"], dtype=np.int64)
