"""Attacks and audits beside the same attacks of other libraries."""

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import purifiers
from benchmarks.measure import Benchmark, Table, clock, digits, interleaved, ratio
from purifiers import PurifiedClassifier, Purifier, load_classifier
from purifiers.attacks import BIM
from purifiers.console import console
from purifiers.data import load_images, to_float
from purifiers.errors import PurifiersError
from purifiers.evaluation.audit.result import EVERYTHING, WORST

EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 20
WEAK, WEAK_STEP = 1 / 255, 0.25 / 255
"""For the comparison of results: some images withstand it."""
HALF = 0.5
"""What share of ART's time an audit may take."""
QUERIES = 100
AUDIT = {
    "views": {"full": ["FGSM", "MI-FGSM", "PGD"], "bpda": None, "eot": None, "transfer": None, "query": ["Square"]},
    "attacks.Square.num_queries": QUERIES,
    "cascade": True,
    "check_images": 0,
}
"""The attacks of an audit that ART has too, within the L-inf ball."""


def _images(count: int) -> tuple[Tensor, Tensor, str]:
    """Test images of CIFAR-10 with labels, or random ones with a note."""
    try:
        found = load_images("cifar10", "test", path=os.environ.get("PURIFIERS_DATA", "data"))
    except PurifiersError:
        torch.manual_seed(0)
        return (
            torch.rand(count, 3, 32, 32),
            torch.randint(10, (count,)),
            "On random images: CIFAR-10 is not at $PURIFIERS_DATA.",
        )
    return to_float(found.images[:count]), found.labels[:count], ""


def _art(model: nn.Module) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (3, 32, 32), 10, clip_values=(0.0, 1.0), device_type="cpu")


def _others(model: nn.Module, images: Tensor, labels: Tensor, notes: list[str]) -> dict[str, Callable[[], Any]]:
    """BIM of each library that is installed."""
    found: dict[str, Callable[[], Any]] = {}
    if find_spec("foolbox"):
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=WEAK_STEP, steps=STEPS, random_start=False)
        found["foolbox"] = lambda: attack(wrapped, images, labels, epsilons=WEAK)[1]
    if find_spec("torchattacks"):
        import torchattacks

        found["torchattacks"] = partial(torchattacks.BIM(model, eps=WEAK, alpha=WEAK_STEP, steps=STEPS), images, labels)
    if find_spec("art"):
        from art.attacks.evasion import BasicIterativeMethod

        iterative = BasicIterativeMethod(_art(model), WEAK, WEAK_STEP, STEPS, batch_size=len(images), verbose=False)
        found["ART"] = lambda: torch.from_numpy(iterative.generate(images.numpy(), labels.numpy()))
    missing = [name for name, module in (("torchattacks", "torchattacks"), ("ART", "art")) if not find_spec(module)]
    if missing:
        notes.append(f"Not installed: {', '.join(missing)}.")
    notes.append("AutoAttack's own code has no BIM; our `AutoAttack` and `Square` run that code (pyautoattack).")
    return found


def attacks(quick: bool, _: Path) -> Table:
    """BIM on a ResNet-56, whose parameters are frozen for all."""
    images, labels, note = _images(2 if quick else 32)
    notes = [note] if note else []
    model = load_classifier("cifar10-resnet56").requires_grad_(False)
    ours = partial(BIM(epsilon=WEAK, step_size=WEAK_STEP, num_steps=STEPS), model, images, labels)
    works: dict[str, Callable[[], Any]] = {"purifiers": ours, **_others(model, images, labels, notes)}
    times = interleaved(works, quick)
    rows = []
    for name, work in works.items():
        adversarial = work().detach()
        with torch.no_grad():
            broken = int((model(adversarial).argmax(1) != labels).sum())
        spent = times[name]
        rows.append(
            [name, digits(len(images) / median(spent)), digits(ratio(spent, times["purifiers"])), f"{broken} of {len(images)}"]
        )
    return Table(["BIM, 1/255, 20 steps", "images/s", "times ours", "broken"], rows, notes=notes)


def audit(quick: bool, _: Path) -> Table:
    """An audit against the same attacks through ART, one after another, each on all images."""
    images, labels, note = _images(2 if quick else 12)
    notes = [note] if note else []
    purifier, classifier = Purifier.from_pretrained("cifar10").placed("cpu"), load_classifier("cifar10-resnet56")
    settings: dict[str, Any] = AUDIT | {"views": {**AUDIT["views"], "blind": ["PGD", "MI-FGSM"]}}  # type: ignore[dict-item]
    begun = clock()
    with console.capture():
        result = purifiers.audit(purifier, classifier, images, labels, settings=settings)
    ours = clock() - begun
    defended = PurifiedClassifier(purifier, classifier)
    worst = [record for record in result.records if (record.view, record.attack) == (WORST, EVERYTHING)]
    if not find_spec("art"):
        return Table(["", "seconds"], [["audit", digits(ours)]], notes=[*notes, "ART is not installed (the extra `art`)."])
    begun, right = clock(), torch.ones(len(images), dtype=torch.bool)
    for model, names in ((defended, ("FGSM", "MI-FGSM", "PGD", "Square")), (classifier, ("PGD", "MI-FGSM"))):
        for name in names:
            found = torch.from_numpy(_art_attack(name, model, len(images)).generate(images.numpy(), labels.numpy()))
            with torch.no_grad():
                right &= defended(found.float()).argmax(1) == labels
    theirs = clock() - begun
    rows = [
        ["audit, a cascade", digits(ours), digits(ours / theirs), f"{worst[0].accuracy:.0%}" if worst else "-"],
        ["ART, one after another", digits(theirs), "1", f"{right.double().mean():.0%}"],
    ]
    bars = [f"the audit takes {ours / theirs:.2f} of ART's time (bar: {HALF})"]
    return Table([f"{len(images)} images", "seconds", "of ART's", "accuracy, worst case"], rows, bars, notes)


def _art_attack(name: str, model: nn.Module, count: int) -> Any:
    from art.attacks import evasion

    estimator, common = _art(model), {"batch_size": count}
    if name == "FGSM":
        return evasion.FastGradientMethod(estimator, eps=EPSILON, **common)
    if name == "MI-FGSM":
        return evasion.MomentumIterativeMethod(estimator, np.inf, EPSILON, EPSILON / 10, 1.0, 10, verbose=False, **common)
    if name == "PGD":
        return evasion.ProjectedGradientDescent(
            estimator, np.inf, EPSILON, STEP, max_iter=STEPS, num_random_init=1, verbose=False, **common
        )
    return evasion.SquareAttack(estimator, max_iter=QUERIES, eps=EPSILON, verbose=False, **common)


BENCHMARKS = {
    "attacks": Benchmark(
        "Attacks, beside other libraries",
        "The same attack with the same numbers on the shipped ResNet-56; the results agree where as many images are broken.",
        attacks,
    ),
    "audit": Benchmark(
        "An audit, beside the same attacks through ART",
        "`cifar10` in front of the ResNet-56 under FGSM, MI-FGSM, PGD and Square (100 queries) of one who knows the purifier, "
        "and PGD and MI-FGSM on the classifier alone; the audit with `cascade`: later attacks skip what earlier ones broke.",
        audit,
    ),
}
