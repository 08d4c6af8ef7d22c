"""Put the weights of a finished run into the library, each with its model card, and its results under results/.

    python tools/ship_weights.py runs/strong-cpu cifar10 --also runs/unseen \\
        --classifiers classifier=cifar10-resnet56 companion_1=cifar10-resnet20
    python tools/ship_weights.py runs/paper-cpu/seed-0 cifar10-paper --seeds runs/paper-cpu/seed-1 runs/paper-cpu/seed-2

The runs must have been evaluated, from a source tree without changes, so that their commit says what was run. `--also`
names folders of further results of the same purifier, `--seeds` those of its recipe with other seeds. Pictures are not
copied: they show images of the data set. The purifier's kernels are rounded to float16, which halves the download, after
a check that this moves purified pixels by less than a tenth of 1/255 in the mean.
"""

import argparse
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from keep_results import keep, portable

import purifiers.weights
from purifiers.data import to_float
from purifiers.evaluation.audited import Audit
from purifiers.evaluation.records import Results
from purifiers.files import load_tensors, save_tensors, write_text
from purifiers.purifier import Purifier
from purifiers.recipes import load_recipe
from purifiers.registry import CONFIG_FILE, WEIGHTS_FILE, load_network, place
from purifiers.reports.card import classifier_card, model_card
from purifiers.reports.report import write_seeds
from purifiers.training.classifier import accuracy
from purifiers.training.run import RECIPE_FILE, Run, make_fabric

ROOT = Path(purifiers.weights.__file__).parent
RESULTS = Path(__file__).parents[1] / "results"
LIMIT = 16_000_000
"""Bytes of all shipped weights together."""


def main() -> None:
    """Copy, write the cards and tables, and check the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="of the student")
    parser.add_argument("--classifiers", metavar="STAGE=NAME", nargs="*", default=[], help="ship these of the run too")
    parser.add_argument("--also", metavar="DIR", type=Path, nargs="*", default=[])
    parser.add_argument("--seeds", metavar="DIR", type=Path, nargs="*", default=[])
    parser.add_argument(
        "--audit", metavar="DIR", type=Path, help="of an audit of the run alone, whose worst cases the card tells"
    )
    chosen = parser.parse_args()
    folders = [chosen.run, *chosen.also]
    results, seeds = ([portable(Results.read(folder)) for folder in group] for group in (folders, chosen.seeds))
    recipe = load_recipe(chosen.run / RECIPE_FILE)
    test = Run(recipe, chosen.run, make_fabric("auto", "32-true"), chosen.run / "cache").images("test")
    audit = None if chosen.audit is None else Audit.read(chosen.audit)
    ship_purifier(chosen.run, chosen.name, results, to_float(test.images[:500]), audit)
    for stage, name in (pair.split("=") for pair in chosen.classifiers):
        folder = chosen.run / "checkpoints" / stage
        with torch.no_grad():
            right = accuracy(place(load_network(folder), test.images.device), test)
        put(folder, name, classifier_card(name, stage, results[0], right, len(test)))
    if seeds:
        write_seeds([results[0], *seeds], RESULTS / chosen.name)
    for folder, one in zip([*folders, *chosen.seeds], [*results, *seeds], strict=True):
        keep(one, RESULTS / chosen.name / folder.name)
    size = sum(path.stat().st_size for path in ROOT.glob("*/*"))
    print(f"{size / 1e6:.1f} MB of weights and cards")
    if size > LIMIT:
        raise SystemExit(f"that is more than the {LIMIT / 1e6:.0f} MB that may ship")


def ship_purifier(run: Path, name: str, results: Sequence[Results], images: torch.Tensor, audit: Audit | None) -> None:
    """The run's student, rounded to float16, and its card."""
    with tempfile.TemporaryDirectory() as temporary:
        rounded = Path(temporary)
        shutil.copyfile(run / CONFIG_FILE, rounded / CONFIG_FILE)
        # What is small anyway, and may lie outside the range of float16, such as running variances, stays as it is.
        tensors, _ = load_tensors(run / WEIGHTS_FILE)
        halved = {key: tensor.half() if tensor.ndim > 1 else tensor for key, tensor in tensors.items()}
        save_tensors(rounded / WEIGHTS_FILE, halved)
        with torch.no_grad():
            before, after = (Purifier.from_pretrained(folder)(images) for folder in (run, rounded))
        moved = 255 * (before - after).abs()
        said = f"{moved.mean().item():.4f}/255 in the mean, at most {moved.max().item():.2f}/255"
        print(f"rounding to float16 moves pixels by {said}")
        if moved.mean() >= 0.1:
            raise SystemExit("that is too much: ship float32")
        note = f"\nKernels were rounded to float16 after the measurement, which moves purified pixels by {said}.\n"
        put(rounded, name, model_card(name, results, audit=audit) + note)


def put(source: Path, name: str, card: str) -> None:
    """One network's files and card to its folder in the library; the card tells the file's checksum."""
    folder = ROOT / name
    folder.mkdir(exist_ok=True)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(source / file, folder / file)
    checksum = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    write_text(folder / "README.md", f"{card}\nSHA-256 of {WEIGHTS_FILE}: `{checksum}`\n")


if __name__ == "__main__":
    main()
