"""Bad input: damaged files and recipes, impossible tensors and requests. A failure is a traceback that is not one of the
library's own errors, a hang, a wrong answer, or too much memory."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from promise import Promise, Result

import purifiers.recipes as recipes_folder
from purifiers.data.files import FORMATS
from purifiers.networks import CAE
from purifiers.registry import CONFIG_FILE, WEIGHTS_FILE, save_network
from purifiers.storage import save_state, save_tensors

PART = 100_000  # inputs of one process; each begins with another seed
RECIPES = Path(recipes_folder.__file__).parent
KEPT = Path(__file__).parents[1] / "build" / "fuzz"  # inputs that failed


def images() -> list[bytes]:
    """A small file of each format and of the odder kinds."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    kinds = [colours, *(colours.convert(mode) for mode in ("L", "P", "1", "RGBA", "LA", "CMYK", "I;16"))]
    found = []
    for form in FORMATS:
        for image in kinds:
            buffer = io.BytesIO()
            try:
                image.save(buffer, form)
            except (OSError, ValueError, KeyError):  # a format without this kind
                continue
            found.append(buffer.getvalue())
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    colours.save(buffer, "JPEG", exif=exif, dpi=(72, 72))
    return [*found, buffer.getvalue()]


def recipes() -> list[bytes]:
    """Two of the shipped recipes, and changes of one."""
    changes = ["student.epochs=5", "data.size=16", "audit.attacks={A: {kind: PGD, epsilon: 8/255}}", "a: &x [*x, *x]"]
    return [(RECIPES / f"{name}.yaml").read_bytes() for name in ("digits", "folder")] + [change.encode() for change in changes]


def networks(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """Configs of networks and files of weights, with and without a checksum; a small network is written to ``folder``."""
    network = CAE(widths=[2, 3], blocks=[1, 1], skip_every=1)
    save_network(folder, network)
    config, whole = (folder / CONFIG_FILE).read_bytes(), (folder / WEIGHTS_FILE).read_bytes()
    (folder / "config").write_bytes(config)
    (folder / "weights").write_bytes(whole)
    # Without a checksum, so that a change gets further.
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    header["__metadata__"] = {}
    bare = json.dumps(header).encode()
    unchecked = len(bare).to_bytes(8, "little") + bare + whole[8 + size :]
    save_state(folder / "state", {"epoch": 1, "tensor": torch.zeros(2), "list": [1, {"a": None}]})
    save_tensors(folder / "empty", {})
    small = {"block": "dense", "blocks": 1, "features": 4, "growth": 4}  # the whole NRP takes a third of a second
    others = [{"network": "resnet", "arguments": {"depth": 20}}, {"network": "nrp", "arguments": small}]
    others += [{"network": "soap", "arguments": {"epsilon": 0.1}}]
    configs = [config, *(json.dumps({"format": 1, **other}).encode() for other in others)]
    return configs, [whole, unchecked, (folder / "state").read_bytes(), (folder / "empty").read_bytes()]


def damaged(count: int, folder: Path) -> Result:
    """Feed the readers of fuzz_target.py with inputs that grow from small files, guided by coverage."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for reader, seeds in enumerate((images(), recipes(), *networks(folder))):
        for number, seed in enumerate(seeds):
            (corpus / f"{reader}-{number}").write_bytes(bytes([reader]) + seed)
    done, failures, megabytes = 0, [], 0
    for part in range(-(-count // PART)):
        words = [str(Path(__file__).with_name("fuzz_target.py")), str(min(PART, count - done)), str(part + 1), str(folder)]
        run = subprocess.run([sys.executable, *words], capture_output=True, text=True, errors="replace")
        stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", run.stderr))
        done += int(stats.get("number_of_executed_units", 0))
        megabytes = max(megabytes, int(stats.get("peak_rss_mb", 0)))
        if run.returncode:
            KEPT.mkdir(parents=True, exist_ok=True)
            kept = [file.replace(KEPT / file.name) for file in folder.glob("*-*") if file.is_file()]
            failures.append(f"{', '.join(map(str, kept))}: {run.stderr[-3000:]}")
            break
    return Result(done, done - len(failures), "inputs", f"at most {megabytes} MB", failures)


PROMISES = {
    "damaged-files": Promise(
        "Damaged image files, recipes, changes of recipes, networks' configs, weights and training states are refused with a "
        "message, or read.",
        "by atheris, guided by coverage, from small files of every kind",
        damaged,
        300,
        1_000_000,
    ),
}
