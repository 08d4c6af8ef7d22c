"""The script that trains readings of the paper: every one is a recipe that the library takes, and its table is a table."""

import argparse
from pathlib import Path

import pytest
import torch

from experiments.readings import FORMS, NETWORKS, distance, settings, table
from purifiers.recipes.load import load_recipe

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


def test_a_table_has_a_column_for_every_number_and_a_dash_where_there_is_none() -> None:
    made = table("E0", {"one": {"none": 90.04, "PGD8": 1}, "two": {"none": 50, "dB": 26.06}})
    assert made.header == ["purifier", "none", "PGD8", "dB"]
    assert made.rows == [["one", "90.0", "1.0", "-"], ["two", "50.0", "-", "26.1"]]


def test_the_distance_from_the_papers_row_is_over_its_attacks() -> None:
    attacks = load_recipe("paper").evaluation.attacks
    row = {"none": 90.0, "PGD8": 41.2, "PGD16": 33.57, "FGSM": 40.12, "BIM": 38.37, "CW": 56.87, "AA": 41.91}
    assert distance(row, "student", attacks) == {"from the paper's": pytest.approx(1.0), "at most": pytest.approx(5.0)}
    assert distance(row, "teacher_nt", attacks) == {}
