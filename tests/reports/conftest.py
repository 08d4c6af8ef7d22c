"""Made-up results of a run, and pictures."""

from collections.abc import Callable

import pytest
import torch

from purifiers.evaluation.evaluate import Examples, Row
from purifiers.evaluation.records import AttackWarning, Record, Results
from purifiers.recipes.load import load_recipe

STAGES = ("teacher_at", "student_at", "student_nt", "student", "student_other", "student_nt_other")
ATTACKS = {"none": None, "PGD-20, 8/255": 8 / 255, "CW-40": None}


def record(purifier: str, view: str, attack: str, accuracy: float, dataset: str) -> Record:
    return Record(
        dataset=dataset, classifier="resnet56", purifier=purifier, view="none" if attack == "none" else view, attack=attack,
        norm=None if attack == "none" else "linf", epsilon=ATTACKS[attack], n=1000, accuracy_undefended=0.05,
        accuracy=accuracy, agreement=0.5, ci95=(accuracy - 0.01, accuracy + 0.01), psnr=30.0, ssim=None, l2=1.2, seconds=1.0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_results() -> Callable[..., Results]:
    def make(dataset: str = "cifar10", stages: tuple[str, ...] = STAGES, full: bool = True) -> Results:
        records = [
            record(stage, "blind", attack, 0.6 + 0.01 * i + 0.1 * j, dataset)
            for i, stage in enumerate(stages)
            for j, attack in enumerate(ATTACKS)
        ]
        if full:
            records.append(record("student", "full", "PGD-20, 8/255", 0.0123, dataset))
        return Results(
            recipe=load_recipe("paper").model_dump(mode="json"), seed=0, versions={"torch": "2"},
            hardware={"name": "a <fast> machine", "threads": 2, "platform": "x", "device": "cpu"},
            seconds={"training": 3725.0, "evaluation": 65.0},
            training={"student": [{"epoch": e, "loss": 1.0 / e, "mse": 0.5 / e, "learning_rate": 0.1, "images_per_second": 1, "seconds": 1} for e in (1, 2, 3)]},
            parameters=1_290_675, peak_flops=2e12, records=records, warnings=[AttackWarning(view="blind", attack="AA", message="it seems <odd>")],
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def examples() -> Examples:
    def row(correct: bool) -> Row:
        return Row(torch.rand(4, 3, 16, 16), ["cat", "dog", "a_b", "$x$"], [correct] * 4)

    return Examples("PGD-20, 8/255", True, row(True), row(False), row(True))
