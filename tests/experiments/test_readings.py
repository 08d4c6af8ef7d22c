"""The script that trains readings of the paper: every one is a recipe that the library takes, and its table is a table."""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments import readings
from experiments.readings import FORMS, NETWORKS, AfterEachEpoch, after_each_epoch, distance, settings
from purifiers.recipes.load import load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.runs import Run
from purifiers.training.objectives import nt_losses
from purifiers.training.pipeline import train_purifier

ARGUMENTS = argparse.Namespace(images=10, test_images=5, epochs=1, output=Path("runs"))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_reading_is_a_network_that_returns_images(network: str) -> None:
    recipe = settings(ARGUMENTS, network)
    assert (recipe.data.limit, recipe.teacher_nt.epochs, recipe.student.schedule) == (10, 1, "constant")
    images = torch.rand(2, 3, 32, 32)
    assert recipe.purifier.build().eval()(images).shape == images.shape


def test_no_two_readings_are_the_same() -> None:
    recipes = [settings(ARGUMENTS, network, **form) for network in NETWORKS for form in FORMS.values()]
    assert len({(str(recipe.purifier), str(recipe.teacher_at)) for recipe in recipes}) == len(recipes)


def test_a_training_with_a_row_after_each_epoch_gives_what_it_gives_in_one_piece(
    tiny_run: Run, tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("teacher_nt.epochs=3")
    seen, networks = [], []

    def measured(run: Run, purifier: nn.Module) -> dict[str, float]:
        seen.append(copy.deepcopy(purifier.state_dict()))
        return {"dB": 1.0}

    monkeypatch.setattr(readings, "measured", measured)
    for folder, deadline in (("whole", {}), ("stopped", {"deadline": AfterEachEpoch()})):
        run = Run(recipe, tmp_path / folder, torch.device("cpu"), tmp_path / "cache", **deadline)
        run.classifiers["classifier"] = tiny_run.classifier
        train = partial(train_purifier, run, "teacher_nt", recipe.teacher_nt, run.images("train").images, nt_losses)
        rows = after_each_epoch(run, "one", train)
        titles = []
        try:
            while True:
                titles.append(next(rows)[0])
        except StopIteration as ended:
            networks.append(ended.value)
    assert titles == ["one: teacher_nt, epoch 1/3", "one: teacher_nt, epoch 2/3"]
    assert len(seen) == 2 and any(not torch.equal(seen[0][key], seen[1][key]) for key in seen[0])
    whole, stopped = (network.state_dict() for network in networks)
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_a_row_that_was_being_measured_when_it_was_stopped_is_made_by_the_next_call(
    tiny_run: Run, tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("teacher_nt.epochs=3")
    run = Run(recipe, tmp_path, torch.device("cpu"), tmp_path / "cache", deadline=AfterEachEpoch())
    run.classifiers["classifier"] = tiny_run.classifier
    train = partial(train_purifier, run, "teacher_nt", recipe.teacher_nt, run.images("train").images, nt_losses)

    def killed(run: Run, purifier: nn.Module) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(readings, "measured", killed)
        next(after_each_epoch(run, "one", train))
    monkeypatch.setattr(readings, "measured", lambda *_: {"dB": 1.0})
    titles = [title for title, _ in after_each_epoch(run, "one", train)]
    assert titles == ["one: teacher_nt, epoch 1/3", "one: teacher_nt, epoch 2/3"]


def test_teacher_at_of_e2_sees_each_adversarial_example_and_no_clean_image(
    tiny_recipe: Callable[..., Recipe], tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, seen = tiny_recipe(f"classifier.source={tiny_run.checkpoint('classifier')}"), []

    def trained(run: Run, name: str, optimisation: object, pairs: torch.Tensor, *_: object) -> nn.Module:
        seen.append(pairs)
        return nn.Identity()

    monkeypatch.setattr(readings, "settings", lambda *_, **__: recipe)
    monkeypatch.setattr(readings, "train_purifier", trained)
    monkeypatch.setattr(readings, "measured", lambda *_: {"dB": 1.0})
    arguments = argparse.Namespace(forms=["probabilities"], network="any", output=tmp_path)
    assert [title for title, _ in readings.e2(arguments)] == ["probabilities"]
    images, attacked = seen[0][:, :3], seen[0][:, 3:]
    assert images.equal(tiny_run.images("train").images)
    assert attacked.shape == images.shape and (attacked != images).flatten(1).any(1).all()


def test_the_distance_from_the_papers_row_is_over_its_attacks() -> None:
    attacks = load_recipe("paper").evaluation.attacks
    row = {"none": 90.0, "PGD8": 41.2, "PGD16": 33.57, "FGSM": 40.12, "BIM": 38.37, "CW": 56.87, "AA": 41.91}
    assert distance(row, "student", attacks) == {"from the paper's": pytest.approx(1.0), "at most": pytest.approx(5.0)}
    assert distance(row, "teacher_nt", attacks) == {}
