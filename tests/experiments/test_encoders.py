"""The script that weighs ingredients of adversarial training."""

import argparse
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from experiments.encoders import INGREDIENTS, accuracy, settings
from purifiers.attacks import FGSM
from purifiers.data import ImageSet

ARGUMENTS = argparse.Namespace(precision="32-true", images=10, test_images=5, epochs=1)


def test_every_ingredient_changes_the_recipe() -> None:
    recipes = {name: str(settings(ARGUMENTS, [name])) for name in INGREDIENTS}
    assert not [pair for pair in combinations(recipes, 2) if recipes[pair[0]] == recipes[pair[1]]]
    together = settings(ARGUMENTS, list(INGREDIENTS))
    assert together.latent is not None
    assert (together.purifier.arguments["activation"], together.latent.encoder.ema) == ("silu", 0.995)


class Brightness(nn.Module):
    """Class 1 where the mean is above one half."""

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1).mean(1) - 0.5
        return torch.stack([-score, score], 1)


def test_accuracy_is_of_all_batches_and_falls_under_attack() -> None:
    values = torch.tensor([0, 124, 130, 255], dtype=torch.uint8).repeat(80)
    data = ImageSet("grey", values[:, None, None, None].expand(-1, 3, 2, 2), (values > 127).long(), ("dark", "bright"))
    assert accuracy(Brightness(), data) == 100
    assert accuracy(Brightness(), data, FGSM(epsilon=8 / 255)) == pytest.approx(50)
