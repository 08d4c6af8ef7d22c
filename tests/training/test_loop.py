import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from purifiers.console import Deadline
from purifiers.errors import CheckpointError, DeviceMemoryError, OutOfTime, TrainingError
from purifiers.networks import CAE
from purifiers.recipes.parts import Optimisation
from purifiers.registry import place
from purifiers.storage import load_state, save_state
from purifiers.training.loop import Stage, _optimizer, _resume, fit, make_fabric
from purifiers.training.losses import Losses
from purifiers.training.objectives import nt_losses


def stage(epochs: int = 4, **options: object) -> Stage:
    torch.manual_seed(0)
    network = place(CAE(widths=[4, 6], blocks=[1, 2], skip_every=1), "cpu")
    images = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    defaults = {"batch_size": 16, "learning_rate": 0.01, "schedule": "one_cycle", "flip": True, "crop": 1}
    optimisation = Optimisation(epochs=epochs, **{**defaults, **options})  # type: ignore[arg-type]
    return Stage("test", network, images, torch.zeros(40, dtype=torch.int64), nt_losses, optimisation, seed=1)


def weights(stage: Stage) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in stage.network.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_an_interrupted_training_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path: Path, optimizer: str, schedule: str, ema: float
) -> None:
    fabric = make_fabric(torch.device("cpu"))
    whole = stage(optimizer=optimizer, schedule=schedule, ema=ema)
    history = fit(whole, fabric, tmp_path / "whole.safetensors")

    class KillError(Exception):
        pass

    cut = stage(optimizer=optimizer, schedule=schedule, ema=ema)
    calls = 0

    def dying(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        nonlocal calls
        calls += 1
        if calls == 6:  # in the middle of the third epoch of two steps
            raise KillError
        return nt_losses(network, images, labels, generator)

    with pytest.raises(KillError):
        fit(replace(cut, losses=dying), fabric, tmp_path / "cut.safetensors")
    fresh = stage(optimizer=optimizer, schedule=schedule, ema=ema)
    resumed = fit(fresh, fabric, tmp_path / "cut.safetensors")
    assert all(torch.equal(value, weights(fresh)[name]) for name, value in weights(whole).items())
    assert [record["loss"] for record in resumed] == [record["loss"] for record in history]
    assert [record["epoch"] for record in resumed] == [1, 2, 3, 4]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where a script runs the tests in the background, for which shells ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("last", [1, 2, 6])
@pytest.mark.usefixtures("interruptible")
def test_a_signal_saves_the_epoch_so_far(tmp_path: Path, last: int) -> None:
    """It comes in the middle of a step, which is completed; the training then goes on with the next."""
    fabric, path, calls = make_fabric(torch.device("cpu")), tmp_path / "cut.safetensors", 0
    whole = stage(epochs=3, batch_size=10)
    history = fit(whole, fabric, tmp_path / "whole.safetensors")

    def losses(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        nonlocal calls
        calls += 1
        if calls == last:
            signal.raise_signal(signal.SIGINT)
        return nt_losses(network, images, labels, generator)

    with pytest.raises(KeyboardInterrupt):
        fit(replace(stage(epochs=3, batch_size=10), losses=losses), fabric, path)
    assert calls == last
    resumed = stage(epochs=3, batch_size=10)
    again = fit(replace(resumed, losses=losses), fabric, path)
    assert calls == 12
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
    assert [record["loss"] for record in again] == [record["loss"] for record in history]


def test_memory_that_is_too_small_for_a_step_is_explained(tmp_path: Path) -> None:
    def losses(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        return {"loss": torch.zeros(2**50).sum()}

    with pytest.raises(DeviceMemoryError, match="batch_size"):
        fit(replace(stage(), losses=losses), make_fabric(torch.device("cpu")), tmp_path / "s.safetensors")


def test_training_lowers_the_loss_and_is_the_same_twice(tmp_path: Path) -> None:
    fabric = make_fabric(torch.device("cpu"))
    histories = [fit(stage(epochs=15), fabric, tmp_path / f"{i}.safetensors") for i in range(2)]
    assert histories[0][-1]["loss"] < 0.5 * histories[0][0]["loss"]
    assert [record["loss"] for record in histories[0]] == [record["loss"] for record in histories[1]]


def test_a_finished_stage_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fabric, path = make_fabric(torch.device("cpu")), tmp_path / "s.safetensors"
    first = stage()
    fit(first, fabric, path)
    written = path.stat().st_mtime_ns
    second = stage()
    fit(second, fabric, path)
    assert path.stat().st_mtime_ns == written
    assert "is trained already" in capsys.readouterr().out
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())
    assert not second.network.training


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path: Path) -> None:
    calls = 0

    def exploding(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        nonlocal calls
        calls += 1
        loss = network(images).square().mean()
        return {"loss": loss * (float("nan") if calls == 6 else 1), "other": loss}

    path = tmp_path / "s.safetensors"
    with pytest.raises(TrainingError, match=r"test: a loss is not finite at epoch 3, step 2 of 2 \(loss = nan, other = 0\."):
        fit(replace(stage(), losses=exploding), make_fabric(torch.device("cpu")), path)
    # What is on disk is the last good epoch: training goes on from there.
    assert len(fit(stage(), make_fabric(torch.device("cpu")), path)) == 4


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path: Path) -> None:
    fabric, path = make_fabric(torch.device("cpu")), tmp_path / "s.safetensors"
    fit(stage(epochs=1), fabric, path)
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"another recipe.*restart"):
        fit(replace(stage(epochs=1), fingerprint="other"), fabric, path)
    assert path.read_bytes() == content


def test_nothing_but_the_checkpoint_is_written(tmp_path: Path) -> None:
    fit(stage(epochs=2), make_fabric(torch.device("cpu")), tmp_path / "deep" / "s.safetensors")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["s.safetensors"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """The loss of the last step is measured before its update: it can be fine and the weights lost."""
    path = tmp_path / "s.safetensors"
    exploding = stage(epochs=1, batch_size=40, optimizer="sgd", learning_rate=1e20, weight_decay=1e20, schedule="constant")
    with pytest.raises(TrainingError, match="left weights that are not finite"):
        fit(exploding, make_fabric(torch.device("cpu")), path)
    assert not path.exists()


def test_stages_of_one_seed_see_the_same_batches_in_the_same_order(tmp_path: Path) -> None:
    seen: dict[str, list[Tensor]] = {}
    for name in ("one", "other"):

        def recording(
            network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, name: str = name
        ) -> Losses:
            seen.setdefault(name, []).append(images.clone())
            return nt_losses(network, images, labels, generator)

        fit(replace(stage(), name=name, losses=recording), make_fabric(torch.device("cpu")), tmp_path / f"{name}.safetensors")
    assert len(seen["one"]) == 8
    assert all(torch.equal(a, b) for a, b in zip(seen["one"], seen["other"], strict=True))


def test_bf16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    one = stage(epochs=8)
    history = fit(one, make_fabric(torch.device("cpu"), "bf16-mixed"), tmp_path / "s.safetensors")
    assert history[-1]["loss"] < history[0]["loss"]
    assert {value.dtype for value in one.network.parameters()} == {torch.float32}


def test_fewer_images_than_a_batch_still_train(tmp_path: Path) -> None:
    assert len(fit(stage(epochs=2, batch_size=500), make_fabric(torch.device("cpu")), tmp_path / "s.safetensors")) == 2


def test_a_time_limit_cuts_between_epochs_and_nothing_is_lost(tmp_path: Path) -> None:
    fabric = make_fabric(torch.device("cpu"))
    whole, pieces = stage(), stage()
    fit(whole, fabric, tmp_path / "whole.safetensors")

    class Epochs(Deadline):
        """Room for one epoch."""

        def check(self, done: str, next_seconds: float = 0.0, *, finished: bool = True) -> None:
            if done.startswith("epoch"):
                assert next_seconds > 0
                raise OutOfTime(done)

    for epoch in (1, 2, 3):
        with pytest.raises(OutOfTime, match=f"epoch {epoch}/4 of test"):
            fit(pieces := stage(), fabric, tmp_path / "pieces.safetensors", Epochs())
    fit(pieces := stage(), fabric, tmp_path / "pieces.safetensors", Epochs())
    assert all(torch.equal(value, weights(pieces)[name]) for name, value in weights(whole).items())
    with pytest.raises(OutOfTime, match=r"time limit of 0\.0 s after what comes before test"):
        fit(stage(), fabric, tmp_path / "never.safetensors", Deadline(minutes=0))
    assert not (tmp_path / "never.safetensors").exists()


def test_an_epoch_longer_than_the_limit_is_done_once_in_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 10_000, 100))  # each look at the clock is 100 s after the last one
    monkeypatch.setattr("purifiers.console.time.perf_counter", lambda: float(next(seconds)))
    fabric, path = make_fabric(torch.device("cpu")), tmp_path / "s.safetensors"
    for epoch in (1, 2, 3):
        with pytest.raises(OutOfTime, match=f"after epoch {epoch}/4 of test"):
            fit(stage(), fabric, path, Deadline(minutes=2))
    assert len(fit(stage(), fabric, path, Deadline(minutes=2))) == 4


def test_what_was_finished_on_another_device_is_read_and_what_was_not_is_refused(tmp_path: Path) -> None:
    fabric, path = make_fabric(torch.device("cpu")), tmp_path / "s.safetensors"
    fit(finished := stage(epochs=1), fabric, path)
    state = load_state(path)
    save_state(path, {**state, "device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)})
    fit(read := stage(epochs=1), fabric, path)
    assert all(torch.equal(value, weights(read)[name]) for name, value in weights(finished).items())
    with pytest.raises(CheckpointError, match=r"started on cuda .* choose cuda"):
        fit(stage(epochs=2), fabric, path)


def test_floating_point_operations_are_those_of_the_convolutions(tmp_path: Path) -> None:
    history = fit(stage(epochs=1), make_fabric(torch.device("cpu")), tmp_path / "s.safetensors")
    # Widths 4 and 6 on 8x8 pixels, halved once: 3->4 at 64 places, 4->6 and 6->6 at 16, and the same on the way back. Each
    # 3x3 convolution multiplies and adds 9 times; the backward pass does it twice more, but not for the images.
    forward = 2 * 2 * 9 * (64 * 3 * 4 + 16 * 4 * 6 + 16 * 6 * 6)
    images = 2 * 9 * 64 * 3 * 4
    assert history[0]["flops_per_image"] == 3 * forward - images


def test_a_compiled_training_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, compile_with = [], torch.compile

    def compiled(module: nn.Module) -> nn.Module:
        calls.append(module)
        return compile_with(module, backend="aot_eager")  # type: ignore[return-value]

    fabric, plain, traced = make_fabric(torch.device("cpu")), stage(), replace(stage(), compiled=True)
    fit(plain, fabric, tmp_path / "plain.safetensors")
    monkeypatch.setattr(torch, "compile", compiled)
    history = fit(traced, fabric, tmp_path / "traced.safetensors")
    assert len(calls) == 1
    assert history[0]["flops_per_image"] > 0
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(traced)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("captured", [False, True])
def test_what_began_captured_goes_on_without_and_the_other_way_round(kind: Literal["sgd", "adamw"], captured: bool) -> None:
    """Under torchrun a step is not captured, alone on a GPU it is."""
    network = nn.Linear(2, 1)
    settings = Optimisation(epochs=1, optimizer=kind, learning_rate=0.5)
    began, goes_on = (_optimizer(settings, network, one) for one in (captured, not captured))
    network(torch.ones(1, 2)).sum().backward()
    began.step()
    began.param_groups[0]["lr"] = torch.tensor(0.25) if captured else 0.25
    flags = {key: goes_on.param_groups[0][key] for key in ("fused", "capturable") if key in goes_on.param_groups[0]}
    _resume(goes_on, began.state_dict())
    (group,) = goes_on.param_groups
    assert {key: group[key] for key in flags} == flags
    assert isinstance(group["lr"], Tensor) is not captured and float(group["lr"]) == 0.25
    moments = "momentum_buffer" if kind == "sgd" else "exp_avg"
    assert torch.equal(goes_on.state[network.weight][moments], began.state[network.weight][moments])
