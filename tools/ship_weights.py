"""Put the weights of a finished run into the library, each with its model card, and its results under results/.

    python tools/ship_weights.py runs/strong-cpu cifar10 --also runs/unseen \\
        --classifiers classifier=cifar10-resnet56 companion_1=cifar10-resnet20
    python tools/ship_weights.py runs/paper/seed-0 cifar10-paper --seeds runs/paper/seed-1 runs/paper/seed-2
    python tools/ship_weights.py runs/classifier --classifiers classifier=cifar10-resnet56-unseen --unseen

Without a name for the student only the classifiers ship, of a run that need have trained no more than them. Otherwise the runs
must have been evaluated, from a source tree without changes, so that their commit says what was run. `--also`
names folders of further results of the same purifier, `--seeds` those of its recipe with other seeds. Pictures are not
copied: they show images of the data set. Kernels are rounded to float16, which halves the download: a purifier's after
a check that this moves purified pixels by less than a tenth of 1/255 in the mean; a classifier's before it is measured.
"""

import argparse
import hashlib
import shutil
import tempfile
from pathlib import Path

import torch
from keep_results import keep, portable

import purifiers.weights
from purifiers.classifiers.load import accuracy
from purifiers.data import ImageSet, to_float
from purifiers.device import find_device
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.records import Results, versions
from purifiers.purifier import Purifier
from purifiers.recipes.load import load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.registry import CONFIG_FILE, WEIGHTS_FILE, load_network, place
from purifiers.reports.cards import classifier_card, model_card
from purifiers.reports.run_report import write_seeds
from purifiers.runs import RECIPE_FILE, STATE_FILE, Run
from purifiers.storage import load_state, load_tensors, save_tensors, write_text

ROOT = Path(purifiers.weights.__file__).parent
RESULTS = Path(__file__).parents[1] / "results"
LIMIT = 24_000_000
"""Bytes of all shipped weights together."""


def main() -> None:
    """Copy, write the cards and tables, and check the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", nargs="?", help="of the student; without it the student does not ship")
    parser.add_argument("--classifiers", metavar="STAGE=NAME", nargs="*", default=[], help="ship these of the run too")
    parser.add_argument("--unseen", action="store_true", help="no purifier was trained against these classifiers")
    parser.add_argument("--also", metavar="DIR", type=Path, nargs="*", default=[])
    parser.add_argument("--seeds", metavar="DIR", type=Path, nargs="*", default=[])
    parser.add_argument(
        "--audit", metavar="DIR", type=Path, help="of an audit of the run alone, whose worst cases the card tells"
    )
    parser.add_argument("--note", metavar="TEXT", default="", help="a paragraph for the cards' end")
    chosen = parser.parse_args()
    recipe = load_recipe(chosen.run / RECIPE_FILE)
    test = Run(recipe, chosen.run, find_device(), chosen.run / "cache").images("test")
    if chosen.name is not None:
        folders = [chosen.run, *chosen.also]
        results, seeds = ([portable(Results.read(folder)) for folder in group] for group in (folders, chosen.seeds))
        audit = None if chosen.audit is None else Audit.read(chosen.audit)
        card = model_card(chosen.name, results, audit=audit) + (f"\n{chosen.note}\n" if chosen.note else "")
        ship_purifier(chosen.run, chosen.name, card, to_float(test.images[:500]))
        if seeds:
            write_seeds([results[0], *seeds], RESULTS / chosen.name)
        for folder, one in zip([*folders, *chosen.seeds], [*results, *seeds], strict=True):
            keep(one, RESULTS / chosen.name / folder.name)
    for stage, name in (pair.split("=") for pair in chosen.classifiers):
        ship_classifier(chosen.run / "checkpoints" / stage, name, recipe, test, chosen.unseen, chosen.note)
    size = sum(path.stat().st_size for path in ROOT.glob("*/*"))
    print(f"{size / 1e6:.1f} MB of weights and cards")
    if size > LIMIT:
        raise SystemExit(f"that is more than the {LIMIT / 1e6:.0f} MB that may ship")


def ship_classifier(stage: Path, name: str, recipe: Recipe, test: ImageSet, unseen: bool, note: str) -> None:
    """One classifier, rounded to float16, and its card."""
    commit = versions()["commit"]
    if commit.endswith("-dirty"):
        raise SystemExit(f"{name} would be measured with uncommitted changes: commit them first")
    with tempfile.TemporaryDirectory() as temporary:
        half = rounded(stage, Path(temporary))
        with torch.no_grad():
            right = accuracy(place(load_network(half), test.images.device), test)
        history = load_state(stage / STATE_FILE)["history"]
        content = recipe.model_dump(mode="json")
        card = classifier_card(name, stage.name, content, history, right, len(test), commit, unseen)
        put(half, name, card + (f"\n{note}\n" if note else ""))


def ship_purifier(run: Path, name: str, card: str, images: torch.Tensor) -> None:
    """The run's student, rounded to float16, and its card."""
    with tempfile.TemporaryDirectory() as temporary:
        half = rounded(run, Path(temporary))
        with torch.no_grad():
            before, after = (Purifier.from_pretrained(folder)(images) for folder in (run, half))
        moved = 255 * (before - after).abs()
        said = f"{moved.mean().item():.4f}/255 in the mean, at most {moved.max().item():.2f}/255"
        print(f"rounding to float16 moves pixels by {said}")
        if moved.mean() >= 0.1:
            raise SystemExit("that is too much: ship float32")
        note = f"\nKernels were rounded to float16 after the measurement, which moves purified pixels by {said}.\n"
        put(half, name, card + note)


def rounded(source: Path, target: Path) -> Path:
    """One network's files, copied to ``target`` with its kernels in float16."""
    shutil.copyfile(source / CONFIG_FILE, target / CONFIG_FILE)
    # What is small anyway, and may lie outside the range of float16, such as running variances, stays as it is.
    tensors, _ = load_tensors(source / WEIGHTS_FILE)
    halved = {key: tensor.half() if tensor.ndim > 1 else tensor for key, tensor in tensors.items()}
    save_tensors(target / WEIGHTS_FILE, halved)
    return target


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
