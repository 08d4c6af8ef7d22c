"""Stages of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from purifiers.attacks import FGSM, PGD
from purifiers.errors import ConfigError
from purifiers.networks import CAE
from purifiers.recipes.load import recipe_text
from purifiers.recipes.schema import Recipe
from purifiers.recipes.training_settings import HeldOut, Student
from purifiers.runs import RECIPE_FILE, Run
from purifiers.training.loop import Stage
from purifiers.training.objectives import nt_losses
from purifiers.training.outcome import RobustAccuracy
from purifiers.training.pipeline import train_classifier, train_recipe
from purifiers.training.stages import fit_stage
from purifiers.training.starting import check_trainings, settled

HELD_OUT = "student.held_out={images: 8, attack: {kind: fgsm}}"


def test_held_out_images_are_no_training_images(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    settings = [HELD_OUT, "student.epochs=2", "student.attack={kind: fgsm}"]
    run = train_recipe(tiny_recipe(*settings), tmp_path / "run", device="cpu")
    history = run.histories["student"]
    assert [0 <= record["robust_accuracy"] <= 1 for record in history] == [True, True]
    student, data = run.recipe.student, run.images("train")
    score = RobustAccuracy(FGSM(), data.images, data.labels, run.classifier)
    assert score(run.purifiers["student"].network, 8) in {i / 8 for i in range(9)}
    assert history[0]["images_per_second"] * history[0]["seconds"] > (len(data) - 8) // student.batch_size * student.batch_size
    with pytest.raises(ConfigError, match="held_out"):
        train_recipe(tiny_recipe(*settings, HELD_OUT.replace("8", "1000000")), tmp_path / "other", device="cpu")
    assert not (tmp_path / "other").exists(), "before anything is trained"


@pytest.mark.parametrize("crops", [None, 3])
def test_stages_hold_out_the_same_images_and_all_crops_of_them(
    crops: int | None, tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stage may start from the weights of another."""
    own = [] if crops is None else [f"data.crops={{size: 8, count: {crops}}}"]
    run = Run(tiny_recipe(*own), tmp_path, torch.device("cpu"), tmp_path / "cache")
    seen: list[Stage] = []
    monkeypatch.setattr("purifiers.training.stages.fit", lambda stage, *_: seen.append(stage) or [])
    images, labels = torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8), torch.arange(60)
    for name, epochs in (("teacher_at", 1), ("student", 2)):
        student = Student(epochs=epochs, attack=FGSM(), held_out=HeldOut(images=15, attack=FGSM()))
        fit_stage(run, Stage(name, CAE(widths=[4], blocks=[1]), images, labels, nt_losses, student))
    for stage in seen:
        assert stage.rows is not None and isinstance(stage.score, RobustAccuracy)
        apart, rows = stage.score.labels, labels[stage.rows]
        assert torch.cat([apart, rows]).sort().values.equal(labels)
        assert len(apart) == 15
        assert apart.equal(seen[0].score.labels)  # type: ignore[union-attr]
        assert not set((apart // (crops or 1)).tolist()) & set((rows // (crops or 1)).tolist())


@pytest.mark.parametrize("key", ["classifier.training.weight_perturbation", "student.weight_perturbation"])
def test_what_needs_the_whole_batch_needs_one_process(
    key: str, tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of perturbed weights are not averaged over processes, whose weights would drift apart; nor is a pattern."""
    monkeypatch.setattr("purifiers.training.starting.world_size", lambda: 2)
    run = Run(tiny_recipe(f"{key}=0.005"), tmp_path, torch.device("cpu"), tmp_path / "cache")
    with pytest.raises(ConfigError, match=rf"{key} .* one process"):
        check_trainings(run)


@pytest.mark.parametrize("faster", ["32-true", "bf16-mixed"])
def test_auto_is_the_faster_precision_when_a_run_begins_and_stays(
    faster: str, tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tiny_recipe("precision=auto"), tmp_path, torch.device("cpu"), tmp_path / "cache")
    monkeypatch.setattr("purifiers.training.starting.fastest_precision", lambda device: faster)
    assert settled(run, restart=False).precision == faster
    (tmp_path / RECIPE_FILE).write_text(recipe_text(tiny_recipe("precision=bf16-mixed")))
    assert settled(run, restart=False).precision == "bf16-mixed"
    assert settled(run, restart=True).precision == faster
    fixed = Run(tiny_recipe("precision=32-true"), tmp_path, torch.device("cpu"), tmp_path / "cache")
    assert settled(fixed, restart=False) is fixed.recipe


def test_a_classifier_may_be_trained_under_attack(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """It withstands the attack better than an ordinary one of as many steps."""
    attack = "{kind: pgd, epsilon: 0.1, step_size: 0.05, num_steps: 3}"
    right = []
    for own in (["classifier.training.attack=" + attack, "classifier.training.ema=0.9"], []):
        folder = tmp_path / f"run-{len(own)}"
        settings = ["data.limit=600", "classifier.training.epochs=6", *own]
        run = Run(tiny_recipe(*settings), folder, torch.device("cpu"), folder / "cache")
        network, data = train_classifier(run, "classifier").eval(), run.images("test")
        pgd = PGD(epsilon=0.1, step_size=0.05, num_steps=3)
        right.append(RobustAccuracy(pgd, data.images, data.labels, nn.Identity())(network))
    assert right[0] > right[1]
