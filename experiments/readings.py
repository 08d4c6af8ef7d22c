"""Which reading of the paper gives its tables: small trainings of each, on shared adversarial examples.

    python experiments/readings.py E0 E1 E2 E3 --output runs/readings

- E0: no training; what losing detail alone does.
- E1: teacher NT alone, for several autoencoders. The paper's numbers want one that leaves 55 to 65 % of clean images, 30 to
  45 % under PGD of 8/255, and under 16/255 at least 0.7 of that (docs/method.md).
- E2: teacher AT with each form of equation 2's second term, for the autoencoder ``--network``.
- E3: all rows of Table 2 for ``--network`` and ``--form``, and how far they are from the paper's.

What E1 to E3 train is measured after each epoch too: what would more epochs change, and is what a second teacher brings more
than the swing from one epoch to the next?

Run a stopped command again to resume it. Each experiment writes a table and its numbers to ``<experiment>.md`` and ``.json``
in the output folder. Other settings need another output folder.
"""

import argparse
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar, get_args

import torch
from torch import nn

import purifiers
from purifiers.attacks import Attack
from purifiers.baselines import Shrink, TotalVariation
from purifiers.classifiers.load import load_classifier
from purifiers.console import Deadline
from purifiers.errors import OutOfTime
from purifiers.recipes.load import changed, load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.recipes.training_settings import Outputs
from purifiers.registry import CONFIG_FILE
from purifiers.reports import paper
from purifiers.reports.render import Table
from purifiers.runs import STATE_FILE, STUDENTS, TEACHERS, Run
from purifiers.storage import load_state, write_text
from purifiers.training.adversarial_data import Panel, attack_training_images
from purifiers.training.objectives import at_losses, nt_losses
from purifiers.training.pipeline import train_purifier, train_recipe

T = TypeVar("T")
NETWORKS: dict[str, dict[str, Any]] = {
    "skips to full resolution": {},
    "skips from half resolution on": {"skips_from": 1},
    "the same, 16 channels there": {"skips_from": 1, "widths": [16, 16, 48]},
    "the same, 8 channels there": {"skips_from": 1, "widths": [16, 8, 48]},
    "the same, 4 channels there": {"skips_from": 1, "widths": [16, 4, 48]},
    "skips at a quarter alone": {"skips_from": 2},
    "shortcuts, latent 48 x 8 x 8": {"skip_every": 0, "shortcuts": 2},
    "shortcuts, latent 16 x 8 x 8": {"skip_every": 0, "shortcuts": 2, "widths": [16, 32, 48, 16], "blocks": [3, 5, 6, 1]},
    "the last block as drawn": {"last_block": "relu_tanh"},
    "one halving, in the first layer": {"widths": [16, 32], "blocks": [1, 14], "skips_from": 1},
}
"""Readings of the autoencoder, as changes of BASE."""
FORMS: dict[str, dict[str, Any]] = {form: {"teacher_at.adversarial_outputs": form} for form in get_args(Outputs)}
for weight in (0.1, 0.2, 0.4):
    FORMS[f"probabilities, weight {weight}"] = FORMS["probabilities"] | {"teacher_at.adversarial_weight": weight}
FORMS["no second term"] = {"teacher_at.adversarial_weight": 0.0}
"""Readings of equation 2."""
BASE = {"network": "cae", "widths": [16, 32, 48], "blocks": [3, 5, 7], "skip_every": 2}
"""Two thirds of the default's widths, so that teacher NT trains in about 15 minutes of one core."""


def settings(arguments: argparse.Namespace, network: str, **others: Any) -> Recipe:
    """The recipe ``paper-cpu`` at the size of the experiments, with one of NETWORKS."""
    small = {"data.limit": arguments.images, "data.test_limit": arguments.test_images}
    epochs = {f"{stage}.epochs": arguments.epochs for stage in ("teacher_nt", "teacher_at", "student")}
    base = {"baselines": {}, "evaluation.views": ["blind"], "evaluation.limits": {}}
    return changed(load_recipe("paper-cpu"), base | small | epochs | {"purifier": BASE | NETWORKS[network]} | others)


class AfterEachEpoch(Deadline):
    """Stops a training after each epoch; the same call resumes it."""

    def check(self, done: str, next_seconds: float = 0.0, *, finished: bool = True) -> None:
        if finished and done.startswith("epoch"):
            raise OutOfTime(done)


def after_each_epoch(run: Run, title: str, train: Callable[[], T]) -> Generator[tuple[str, dict[str, float]], None, T]:
    """A row after each epoch but the last of each stage that ``train`` trains in ``run``; returns what it returns."""
    purifier = run.recipe.purifier.build()

    def row(stage: str) -> tuple[str, dict[str, float]]:
        state = load_state(run.checkpoint(stage) / STATE_FILE)
        purifier.load_state_dict(state["network"])
        training = run.recipe.student if stage in STUDENTS else getattr(run.recipe, stage)
        return f"{title}: {stage}, epoch {len(state['history'])}/{training.epochs}", measured(run, purifier.eval())

    for stage in (*TEACHERS, *STUDENTS):  # the one that an earlier call was measuring when it was stopped
        if (run.checkpoint(stage) / STATE_FILE).is_file() and not (run.checkpoint(stage) / CONFIG_FILE).is_file():
            yield row(stage)
    while True:
        try:
            return train()
        except OutOfTime as stopped:
            yield row(str(stopped).split(" of ")[1])


def opened(recipe: Recipe, folder: Path, cache: Path) -> Run:
    """A run with the frozen classifier, and nothing trained yet."""
    run = Run(recipe, folder, torch.device("cpu"), cache, deadline=AfterEachEpoch())
    assert recipe.classifier.source is not None
    run.classifiers["classifier"] = load_classifier(
        recipe.classifier.source, run.images("train"), **recipe.classifier.options()
    )
    return run


def measured(run: Run, purifier: nn.Module) -> dict[str, float]:
    """Accuracy in % and PSNR in dB of ``purifier`` on the test images, by attack; attacks are on the classifier alone."""
    attacks = run.recipe.evaluation.attacks
    found = purifiers.evaluate(purifier, run.classifier, run.images("test"), attacks=attacks, cache=run.cache, batch_size=125)
    return {record.attack: 100 * record.accuracy for record in found.records} | {"dB": found.records[0].psnr}


def e0(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Untrained networks that lose detail."""
    run = opened(settings(arguments, "skips to full resolution"), arguments.output / "e0", arguments.output / "cache")
    rows = {"no purifier": nn.Identity(), "to 16 x 16 and back": Shrink(2), "total variation": TotalVariation(0.1)}
    for title, network in rows.items():
        yield title, measured(run, network)


def e1(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Teacher NT of each autoencoder."""
    for title in arguments.networks or NETWORKS:
        recipe = settings(arguments, title)
        run = opened(recipe, arguments.output / "e1" / title.replace(" ", "-"), arguments.output / "cache")
        images = run.images("train").images
        train = partial(train_purifier, run, "teacher_nt", recipe.teacher_nt, images, nt_losses)
        yield title, measured(run, (yield from after_each_epoch(run, title, train)))


def e2(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Teacher AT with each form of its second term, and without it."""
    for title in arguments.forms or FORMS:
        recipe = settings(arguments, arguments.network, **FORMS[title])
        run = opened(recipe, arguments.output / "e2" / title.replace(" ", "-"), arguments.output / "cache")
        panel = Panel([run.classifier], run.precision)
        pairs = attack_training_images(run, panel, run.images("train"))
        losses, given = at_losses(recipe.teacher_at, panel), list(panel.classifiers)
        train = partial(train_purifier, run, "teacher_at", recipe.teacher_at, pairs, losses, given)
        yield title, measured(run, (yield from after_each_epoch(run, title, train)))


def distance(row: Mapping[str, float], stage: str, attacks: Mapping[str, Attack]) -> dict[str, float]:
    """How far ``row`` is from the paper's row of ``stage``, in points; nothing where the paper has no such row."""
    theirs = paper.TABLE_2.get(stage, {})
    apart = [abs(row[name] - theirs[attack.title]) for name, attack in attacks.items() if attack.title in theirs]
    return {"from the paper's": mean(apart), "at most": max(apart)} if apart else {}


def e3(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """All purifiers of Table 2, for each seed."""
    for seed in arguments.seeds:
        change, cache = FORMS[arguments.form] | {"seed": seed}, arguments.output / "cache"
        recipe = settings(arguments, arguments.network, **change)
        before = opened(recipe, arguments.output / "e3" / f"seed-{seed}", cache)
        options: dict[str, Any] = {"device": "cpu", "ablation": True, "cache": cache, "deadline": before.deadline}
        train = partial(train_recipe, recipe, before.folder, **options)
        run = yield from after_each_epoch(before, f"seed {seed}", train)
        for stage, purifier in run.purifiers.items():
            row = measured(before, purifier)
            yield f"seed {seed}: {stage}", row | distance(row, stage, recipe.evaluation.attacks)


EXPERIMENTS = {"E0": e0, "E1": e1, "E2": e2, "E3": e3}


def main() -> None:
    """Run the experiments that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--output", type=Path, default=Path("runs/readings"))
    parser.add_argument("--network", choices=NETWORKS, default="skips from half resolution on", help="of E2 and E3")
    parser.add_argument("--networks", choices=NETWORKS, nargs="+", help="of E1, by default all")
    parser.add_argument("--forms", choices=FORMS, nargs="+", help="of E2, by default all")
    parser.add_argument("--form", choices=FORMS, default="no second term", help="of E3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of E3")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--test-images", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    for name in arguments.experiments:
        numbers = arguments.output / f"{name}.json"  # a resumed run keeps the rows of what it does not measure again
        rows: dict[str, dict[str, float]] = json.loads(numbers.read_text()) if numbers.is_file() else {}
        for title, row in EXPERIMENTS[name](arguments):
            rows[title] = row
            table = Table.of_numbers(name, EXPERIMENTS[name].__doc__ or "", "purifier", rows)
            table.show()
            write_text(numbers, json.dumps(rows, indent=1))
            write_text(arguments.output / f"{name}.md", table.markdown())


if __name__ == "__main__":
    main()
