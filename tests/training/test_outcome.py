"""Which weights a training gives, with numbers worked by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from purifiers.attacks import FGSM
from purifiers.recipes.parts import Optimisation
from purifiers.training.loop import Stage, fit, make_fabric
from purifiers.training.losses import Losses
from purifiers.training.outcome import Outcome, RobustAccuracy
from tests.conftest import Linear


class One(nn.Module):
    """A single weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).mean(1) * self.weight


def falling(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
    """A loss that lowers the weight by one in every step of a learning rate of one."""
    return {"loss": next(network.parameters()).sum() + 0 * network(images).sum()}


def stage(epochs: int, **options: float) -> Stage:
    """Two steps in every epoch."""
    optimisation = Optimisation(epochs=epochs, batch_size=2, optimizer="sgd", learning_rate=1.0, **options)  # type: ignore[arg-type]
    images, labels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    return Stage("test", One(), images, labels, falling, optimisation, seed=1)


def test_the_moving_average_is_that_of_every_step(tmp_path: Path) -> None:
    plain, averaged = stage(2), stage(2, ema=0.9)
    seen: list[float] = []

    def noting(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        seen.append(next(network.parameters()).item())
        return falling(network, images, labels, generator)

    fit(replace(plain, losses=noting), make_fabric(torch.device("cpu")), tmp_path / "plain.safetensors")
    fit(averaged, make_fabric(torch.device("cpu")), tmp_path / "averaged.safetensors")
    after = [*seen[1:], plain.network.weight.item()]  # type: ignore[union-attr, operator]
    expected = 0.0
    for step, value in enumerate(after):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert averaged.network.weight.item() == pytest.approx(expected, rel=1e-6)  # type: ignore[union-attr, operator]


def test_a_weight_that_two_modules_share_is_averaged_once() -> None:
    one = One()
    network = nn.Sequential(one, nn.BatchNorm1d(1), one)
    outcome = Outcome(network, 0.9, None)
    nn.init.ones_(one.weight)
    network[1].num_batches_tracked += 3  # type: ignore[operator]
    outcome.after_step()  # a decay of 1/10 in the first step
    average = outcome.current
    assert average[0].weight.item() == pytest.approx(0.9) and average[1].num_batches_tracked == 3  # type: ignore[index]


@pytest.mark.parametrize("cut", [2, 4])
def test_the_best_epoch_is_given_whenever_a_training_was_stopped(
    tmp_path: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, weights = {1: 0.5, 2: 0.5, 3: 0.4, 4: 0.1}, []  # of two alike the later one is better trained

    def score(network: nn.Module) -> float:
        weights.append(network.weight.item())  # type: ignore[union-attr, operator]
        return scores[len(weights)]

    fabric, checkpoint = make_fabric(torch.device("cpu")), tmp_path / "state.safetensors"
    whole = replace(stage(4), score=score)
    if cut < 4:
        calls = 0

        def dying(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
            nonlocal calls
            calls += 1
            if calls > 2 * cut:
                raise InterruptedError
            return falling(network, images, labels, generator)

        with pytest.raises(InterruptedError):
            fit(replace(stage(4), score=score, losses=dying), fabric, checkpoint)
    history = fit(whole, fabric, checkpoint)
    assert [record["robust_accuracy"] for record in history] == list(scores.values())
    assert whole.network.weight.item() == weights[1]  # type: ignore[union-attr, operator]
    assert "from 50.0% to 10.0%" in capsys.readouterr().out
    again = replace(stage(4), score=score)
    fit(again, fabric, checkpoint)  # it is trained already
    assert again.network.weight.item() == weights[1]  # type: ignore[union-attr, operator]


def test_the_score_is_the_accuracy_under_the_attack_on_both() -> None:
    """Half of the images lie further from a linear boundary than the attack reaches."""
    classifier = Linear(2, (3, 2, 2))
    with torch.no_grad():
        classifier.weight.copy_(torch.stack([torch.ones(12), -torch.ones(12)]))
        classifier.bias.copy_(torch.tensor([-6.0, 6.0]))  # the boundary is at a mean of 0.5
    images = torch.tensor([128 + 4, 128 + 40], dtype=torch.uint8).repeat(300)[:, None, None, None].expand(-1, 3, 2, 2)
    labels = torch.zeros(600, dtype=torch.int64)
    score = RobustAccuracy(FGSM(epsilon=16 / 255), images, labels, classifier)
    assert score(nn.Identity()) == 0.5
