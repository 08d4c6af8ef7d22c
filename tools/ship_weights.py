"""Put the weights of a finished run into the library, each with its model card, and its results under results/.

    python tools/ship_weights.py runs/strong-cpu cifar10 --also runs/unseen \\
        --classifiers classifier=cifar10-resnet56 companion_1=cifar10-resnet20
    python tools/ship_weights.py runs/paper/seed-0 cifar10-paper --seeds runs/paper/seed-1 runs/paper/seed-2
    python tools/ship_weights.py runs/classifier --classifiers classifier=cifar10-resnet56-unseen --unseen
    python tools/ship_weights.py --cards

Without a name for the student only the classifiers ship, of a run that need have trained no more than them. Otherwise the runs
must have been evaluated, from a source tree without changes, so that their commit says what was run. `--also`
names folders of further results of the same purifier, `--seeds` those of its recipe with other seeds. `--rows` keeps every
network that does not ship with the results, so that Table 2 can be measured again. Pictures are not copied: they show images
of the data set. Kernels are rounded to float16, which halves the download: a purifier's after a check that this moves purified
pixels by less than a tenth of 1/255 in the mean; a classifier's before it is measured.

results/shipped.json lists what each card is made from; `--cards` writes all cards anew from that and from results/.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from keep_results import keep, names_alone, portable

import purifiers.weights
from purifiers.data import ImageSet, to_float
from purifiers.device import find_device
from purifiers.evaluation import metrics
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.records import Results, versions
from purifiers.purifier import Purifier
from purifiers.recipes.load import load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.registry import CONFIG_FILE, WEIGHTS_FILE, load_network, place
from purifiers.reports.cards import classifier_card, model_card
from purifiers.reports.pages import write_seeds
from purifiers.runs import RECIPE_FILE, STATE_FILE, TEACHERS, Run, student_configs
from purifiers.storage import load_state, load_tensors, save_tensors, write_text

ROOT = Path(purifiers.weights.__file__).parent
RESULTS = Path(__file__).parents[1] / "results"
SHIPPED = RESULTS / "shipped.json"
"""Name -> what its card is made from: the folders of its results and its audit, or how a classifier was trained; and notes."""
LIMIT = 32_000_000
"""Bytes of all shipped weights together."""


def main() -> None:
    """Copy, write the cards and tables, and check the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("name", nargs="?", help="of the student; without it the student does not ship")
    parser.add_argument("--cards", action="store_true", help="write all cards anew, and nothing else")
    parser.add_argument("--classifiers", metavar="STAGE=NAME", nargs="*", default=[], help="ship these of the run too")
    parser.add_argument("--unseen", action="store_true", help="no purifier was trained with these classifiers")
    parser.add_argument("--also", metavar="DIR", type=Path, nargs="*", default=[])
    parser.add_argument("--seeds", metavar="DIR", type=Path, nargs="*", default=[])
    parser.add_argument(
        "--audit", metavar="DIR", type=Path, help="of an audit of the run alone: its worst cases are in the card"
    )
    parser.add_argument("--rows", action="store_true", help="keep the networks of Table 2 that do not ship with the results")
    parser.add_argument("--note", metavar="TEXT", help="a paragraph for the cards' end")
    chosen = parser.parse_args()
    if chosen.cards == (chosen.run is not None):
        parser.error("give a run, or --cards")
    if chosen.cards:
        for name in json.loads(SHIPPED.read_text()):
            write_card(name)
        return
    folders = [chosen.run, *chosen.also]
    kept = ["audit", "weights", *(folder.name for folder in (*folders, *chosen.seeds))]
    if twice := {name for name in kept if kept.count(name) > 1}:
        parser.error(f"two folders would be kept as {', '.join(twice)}: rename one")
    commit = versions()["commit"]  # before files are written here, which are changes too
    if chosen.classifiers:
        refuse_changed(commit, "the classifiers would be measured")
    notes = [chosen.note] if chosen.note else []
    recipe = load_recipe(chosen.run / RECIPE_FILE)
    test = Run(recipe, chosen.run, find_device(), chosen.run / "cache").images("test")
    if chosen.name is not None:
        target, audit = RESULTS / chosen.name, None
        results, seeds = ([portable(Results.read(folder)) for folder in group] for group in (folders, chosen.seeds))
        if chosen.audit is not None:
            audit = Audit.read(chosen.audit)
            refuse_changed(audit.versions["commit"], f"the audit in {chosen.audit} was made")
            audit = audit.model_copy(update={"settings": names_alone(audit.settings)})
        rounding = ship_student(chosen.run, chosen.name, to_float(test.images[:500]).cpu())
        for folder, one in zip([*folders, *chosen.seeds], [*results, *seeds], strict=True):
            keep(one, target / folder.name)
        rows = {*TEACHERS, *student_configs(recipe, ablation=True)} if chosen.rows else set()
        for folder in (chosen.run, *chosen.seeds):
            for stage in sorted(rows - {"student"} if folder is chosen.run else rows):
                (into := target / "weights" / folder.name / stage).mkdir(parents=True, exist_ok=True)
                rounded(folder / "checkpoints" / stage, into)
        if seeds:
            write_seeds([results[0], *seeds], target)
        made_from: dict[str, Any] = {"results": [f"{chosen.name}/{folder.name}" for folder in folders]}
        if audit is not None:
            audit.write(target / "audit")
            made_from["audit"] = f"{chosen.name}/audit"
        write_card(chosen.name, {**made_from, "notes": [*notes, rounding]})
    for stage, name in (pair.split("=") for pair in chosen.classifiers):
        ship_classifier(chosen.run / "checkpoints" / stage, name, recipe, test, commit, chosen.unseen, notes)
    size = sum(path.stat().st_size for path in ROOT.glob("*/*"))
    print(f"{size / 1e6:.1f} MB of weights and cards")
    if size > LIMIT:
        raise SystemExit(f"that is more than the {LIMIT / 1e6:.0f} MB that may ship")


def refuse_changed(commit: str, what: str) -> None:
    """Stop if the source tree had changes that ``commit`` does not have."""
    if commit.endswith("-dirty"):
        raise SystemExit(f"{what} with uncommitted changes: commit them, then measure again")


def ship_classifier(
    stage: Path, name: str, recipe: Recipe, test: ImageSet, commit: str, unseen: bool, notes: list[str]
) -> None:
    """One classifier, rounded to float16, and its card."""
    with tempfile.TemporaryDirectory() as temporary:
        half = rounded(stage, Path(temporary))
        predicted = metrics.predict(place(load_network(half), test.images.device), test.images, 500)
        right = metrics.matches(predicted, test.labels) / len(test)
        put(half, name)
    history = load_state(stage / STATE_FILE)["history"]
    number = int(stage.name.removeprefix("companion_")) if stage.name != "classifier" else 0
    config = [recipe.classifier, *recipe.companions][number].model_dump(mode="json")
    trained = {
        "dataset": recipe.data.name,
        "depth": config["network"]["depth"],
        "recipe": recipe.name,
        "stage": stage.name,
        "seed": recipe.seed,
        "precision": recipe.precision,
        "settings": {key: value for key, value in config["training"].items() if value and key != "epochs"},
        "epochs": len(history),
        "seconds": sum(epoch["seconds"] for epoch in history),
        "accuracy": right,
        "images": len(test),
        "commit": commit,
        "unseen": unseen,
    }
    write_card(name, {"classifier": trained, "notes": notes})


def ship_student(run: Path, name: str, images: torch.Tensor) -> str:
    """The run's student, rounded to float16, and how much that changes, in a sentence for its card."""
    with tempfile.TemporaryDirectory() as temporary:
        half = rounded(run, Path(temporary))
        with torch.no_grad():
            before, after = (Purifier.from_pretrained(folder)(images) for folder in (run, half))
        moved = 255 * (before - after).abs()
        change = f"{moved.mean().item():.4f}/255 in the mean, at most {moved.max().item():.2f}/255"
        print(f"rounding to float16 moves pixels by {change}")
        if not moved.mean() < 0.1:  # it may be NaN
            raise SystemExit("that is too much: ship float32")
        put(half, name)
    return f"Kernels were rounded to float16 after the measurement, which moves purified pixels by {change}."


def write_card(name: str, made_from: dict[str, Any] | None = None) -> None:
    """Write the card of shipped weights, from what ``results/shipped.json`` lists; ``made_from`` becomes its entry there."""
    shipped = json.loads(SHIPPED.read_text())
    if made_from is not None:
        shipped[name] = made_from
        write_text(SHIPPED, json.dumps(shipped, indent=2) + "\n")
    entry = shipped[name]
    checksum = hashlib.sha256((ROOT / name / WEIGHTS_FILE).read_bytes()).hexdigest()
    notes = [*entry["notes"], f"SHA-256 of {WEIGHTS_FILE}: `{checksum}`"]
    if "classifier" in entry:
        card = classifier_card(name, entry["classifier"], notes)
    else:
        results = [Results.read(RESULTS / folder) for folder in entry["results"]]
        audit = Audit.read(RESULTS / entry["audit"]) if "audit" in entry else None
        card = model_card(name, results, audit=audit, notes=notes)
    write_text(ROOT / name / "README.md", card)


def rounded(source: Path, target: Path) -> Path:
    """One network's files, copied to ``target`` with its kernels in float16."""
    shutil.copyfile(source / CONFIG_FILE, target / CONFIG_FILE)
    # What is small anyway, and may lie outside the range of float16, such as running variances, stays as it is.
    tensors, _ = load_tensors(source / WEIGHTS_FILE)
    halved = {key: tensor.half() if tensor.ndim > 1 else tensor for key, tensor in tensors.items()}
    save_tensors(target / WEIGHTS_FILE, halved)
    return target


def put(source: Path, name: str) -> None:
    """One network's files to its folder in the library."""
    (ROOT / name).mkdir(exist_ok=True)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(source / file, ROOT / name / file)


if __name__ == "__main__":
    main()
