"""Purifying files in batches with threads, against one file after the other with Pillow.

    python benchmarks/bulk.py [--count 300] [--side 32] [--repeats 3] [--purifier cifar10]

Both write the same images into empty folders, alternately; prints images/s and the median ratio.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from purifiers import Purifier
from purifiers.bulk.purify_files import purify_files
from purifiers.data import to_float, to_uint8


def one_by_one(purifier: Purifier, source: Path, target: Path) -> None:
    """The obvious loop."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None]
        with torch.no_grad():
            purified = to_uint8(purifier(to_float(pixels)))[0]
        Image.fromarray(purified.permute(1, 2, 0).numpy()).save(target / file.name)


def seconds(clean: Callable[[Path], object], target: Path) -> float:
    """Wall-clock seconds of purifying everything into ``target``."""
    begun = time.perf_counter()
    clean(target)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--purifier", default="cifar10")
    chosen = parser.parse_args()
    purifier = Purifier.from_pretrained(chosen.purifier)
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        source.mkdir()
        random = np.random.default_rng(0)
        for i in range(chosen.count):
            pixels = random.integers(0, 256, (chosen.side, chosen.side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(source / f"{i:05}.png")
        bulk, simple = [], []
        for turn in range(chosen.repeats):
            bulk.append(seconds(lambda target: purify_files(purifier, source, target), Path(place) / f"bulk{turn}"))
            simple.append(seconds(lambda target: one_by_one(purifier, source, target), Path(place) / f"simple{turn}"))
    ratio = statistics.median(one / other for one, other in zip(simple, bulk, strict=True))
    print(
        f"{chosen.count} images of {chosen.side} x {chosen.side}: {chosen.count / statistics.median(bulk):.0f} images/s, "
        f"{ratio:.2f} times one after the other"
    )


if __name__ == "__main__":
    main()
