"""On a GPU alone: there is nothing to capture without one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from purifiers.console import Deadline
from purifiers.errors import OutOfTime
from purifiers.training.cuda_graph import WARM_UP, CapturedStep
from purifiers.training.loop import Stage, fit, make_fabric
from tests.training.test_loop import stage, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(captured: bool, **options: object) -> Stage:
    made = stage(**options)  # type: ignore[arg-type]
    network, images, labels = made.network.cuda(), made.images.cuda(), made.labels.cuda()
    return replace(made, network=network, images=images, labels=labels, captured=captured)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_a_captured_training_is_the_one_that_is_launched_kernel_by_kernel(
    tmp_path: Path, optimizer: str, schedule: str
) -> None:
    fabric = make_fabric(torch.device("cuda"))
    both = [on_gpu(captured, epochs=8, optimizer=optimizer, schedule=schedule) for captured in (False, True)]
    plain, captured = (fit(one, fabric, tmp_path / f"{one.captured}.safetensors") for one in both)
    assert [record["loss"] for record in captured] == pytest.approx([record["loss"] for record in plain], rel=1e-3)
    assert captured[-1]["learning_rate"] == pytest.approx(plain[-1]["learning_rate"])
    assert captured[-1]["loss"] < 0.9 * captured[0]["loss"]


def test_an_interrupted_captured_training_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path: Path) -> None:
    fabric = make_fabric(torch.device("cuda"))
    whole, cut, fresh = (on_gpu(True, epochs=6, optimizer="adamw") for _ in range(3))
    fit(whole, fabric, tmp_path / "whole.safetensors")

    class After(Deadline):
        def check(self, done: str, next_seconds: float = 0.0, *, finished: bool = True) -> None:
            if "epoch 3" in done:
                raise OutOfTime(done)

    with pytest.raises(OutOfTime):
        fit(cut, fabric, tmp_path / "cut.safetensors", After())
    fit(fresh, fabric, tmp_path / "cut.safetensors")
    assert all(torch.equal(value, weights(fresh)[name]) for name, value in weights(whole).items())


def test_random_numbers_are_new_in_every_replay_and_those_of_the_generator() -> None:
    def drawn(captured: bool) -> list[float]:
        generator = torch.Generator("cuda").manual_seed(0)

        def step(chosen: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": torch.rand((), generator=generator, device="cuda") + chosen.sum()}

        take = CapturedStep(step, generator) if captured else step
        return [take(torch.full((2,), i, device="cuda"))["loss"].item() for i in range(WARM_UP + 4)]

    assert drawn(True) == drawn(False)
    assert len({value % 1 for value in drawn(True)}) == WARM_UP + 4
