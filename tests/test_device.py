import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import purifiers
from purifiers import PurifiedClassifier, Purifier, attacks
from purifiers.data import noise
from purifiers.device import Precision, autocast, fastest_precision, find_device, in_parts, part_size, repeatable
from purifiers.errors import ConfigError, DeviceMemoryError


def state() -> tuple[object, ...]:
    return (
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.are_deterministic_algorithms_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def test_flags_are_set_within_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = state()

    @repeatable()
    def failing() -> None:
        assert state() == (False, False, False, False, True, ":4096:8")
        raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert state() == before


def test_nothing_is_set_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = state()
    with repeatable():
        assert state() == before


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", "cpu:1", ""])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(ConfigError, match="available"):
        find_device(device)


@pytest.fixture(params=["float64", "meta"])
def default(request: pytest.FixtureRequest) -> Iterator[str]:
    """The process has another default dtype, or another default device."""
    before = torch.get_default_dtype()
    try:
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)
        yield request.param
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


def test_the_defaults_of_the_process_are_of_no_consequence(default: str, tmp_path: Path) -> None:
    defaults = torch.get_default_dtype(), torch.get_default_device()
    images = torch.rand(4, 3, 16, 16, device="cpu", dtype=torch.float32)
    labels = torch.arange(4, device="cpu")
    purifier, classifier = Purifier.from_pretrained("cifar10-cpu"), purifiers.load_classifier("cifar10-resnet20")
    model = PurifiedClassifier(purifier, classifier)
    assert model(images).dtype == torch.float32
    assert noise((4, 4)).images.device.type == "cpu"  # which load_classifier tries a classifier on
    for attack in (attacks.PGD(num_steps=2), attacks.PGD(num_steps=2, norm="l2"), attacks.Square(num_queries=3)):
        assert attack(model, images, labels).dtype == torch.float32
    few = {"FGSM": attacks.FGSM()}
    assert len(purifiers.evaluate(purifier, classifier, images, labels, attacks=few).records) == 2
    settings = {
        "teacher_at": {"epochs": 1, "batch_size": 4},
        "teacher_nt": {"epochs": 1, "batch_size": 4},
        "student": {"epochs": 1, "batch_size": 4},
        "training_attacks": {"FGSM": {"kind": "fgsm"}},
        "purifier.widths": [4, 4, 4],
    }
    trained = purifiers.train(classifier, images, labels, output=tmp_path / "run", recipe="digits", settings=settings)
    assert trained(images).dtype == torch.float32
    assert (torch.get_default_dtype(), torch.get_default_device()) == defaults


def test_each_process_of_torchrun_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 1)
    assert find_device("cuda:0") == torch.device("cuda", 0)
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="cuda"):
        find_device("auto")


def test_what_does_not_fit_into_memory_is_done_in_parts(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []

    def work(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 2:
            torch.zeros(2**50)  # more than there is: the error that torch raises on a CPU
        return images * factors

    images, factors = torch.arange(7.0).view(7, 1), torch.arange(7.0).view(7, 1)
    assert torch.equal(in_parts(work, images, factors), images * factors)
    assert sizes == [7, 4, 2, 2, 3, 2, 1]
    assert "7 images" in capsys.readouterr().out
    with pytest.raises(DeviceMemoryError, match="an image"):
        in_parts(lambda images: torch.zeros(2**50), images)
    with pytest.raises(RuntimeError, match="must match"):  # another error of torch's
        in_parts(lambda images: images.expand(-1, 5) + torch.zeros(6), images)


@pytest.mark.parametrize(
    ("seconds", "memory", "best"), [(lambda n: n, 2**40, 2), (lambda n: 1 + n, 2**40, 40), (lambda n: 1, 0, 1)]
)
def test_the_size_of_parts_is_the_fastest_within_memory(
    seconds: Callable[[int], float], memory: int, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    model = nn.Linear(4, 2)
    model.register_forward_hook(lambda _, inputs, outputs: clock.append(clock.pop() + seconds(len(inputs[0]))))
    monkeypatch.setattr("purifiers.device.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("purifiers.device.LARGE", 40 * 4)
    monkeypatch.setattr("purifiers.device.SIZES", (2, 40))
    monkeypatch.setattr("purifiers.device.MEMORY", memory)
    monkeypatch.setattr("purifiers.device._sizes", {})
    images = torch.rand(40, 4)
    assert part_size(model, images, gradient=True) == best
    assert part_size(model, images[:1], gradient=True) == 1  # small ones go at once
    clock[0] = 0.0
    assert part_size(model, images, gradient=True) == best
    assert clock[0] == 0.0  # it is timed once
    with torch.no_grad():
        torch.testing.assert_close(in_parts(model, images), model(images))


@pytest.mark.parametrize(("slower", "best"), [("bf16-mixed", "32-true"), ("32-true", "bf16-mixed")])
def test_the_fastest_precision_is_measured(slower: str, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    usual = purifiers.device.autocast

    def timed(device: torch.device, precision: Any) -> Any:
        clock[0] += 2 if precision == slower else 1
        return usual(device, precision)

    monkeypatch.setattr("purifiers.device.autocast", timed)
    monkeypatch.setattr("purifiers.device.time.perf_counter", lambda: clock[0])
    state = torch.get_rng_state()
    assert fastest_precision(torch.device("cpu")) == best
    assert torch.equal(torch.get_rng_state(), state)
    assert fastest_precision(torch.device("mps")) == "32-true"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layer", [{"stride": 2, "padding": 2, "groups": 6}, {"stride": (1, 2), "groups": 6, "dilation": 2}])
def test_a_depthwise_layer_with_a_stride_gives_the_same_without_it(layer: dict[str, Any], layout: torch.memory_format) -> None:
    generator, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    images = torch.rand(2, 6, 17, 14, generator=generator).contiguous(memory_format=layout)
    weight, bias = torch.randn(6, 1, 5, 5, generator=generator), torch.randn(6, generator=generator)

    def gradient(precision: Precision) -> tuple[torch.Tensor, torch.Tensor, int]:
        given = images.clone().requires_grad_()
        with FlopCounterMode(display=False) as counter, autocast(cpu, precision):
            outputs = F.conv2d(given, weight, bias, **layer)
        (found,) = torch.autograd.grad(outputs.float().square().sum(), given)
        return outputs, found, counter.get_total_flops()

    (exact, *expected), (outputs, *found) = gradient("32-true"), gradient("bf16-mixed")
    assert outputs.shape == exact.shape and outputs.is_contiguous(memory_format=layout)
    torch.testing.assert_close(outputs.float(), exact, rtol=0.02, atol=0.05)
    torch.testing.assert_close(found[0], expected[0], rtol=0.05, atol=0.5)
    assert found[1] > 1.5 * expected[1]  # more work, which is faster
    with FlopCounterMode(display=False) as counter, autocast(cpu, "bf16-mixed"):
        F.conv2d(images, weight, bias, **layer)
        with autocast(cpu, "32-true"):
            F.conv2d(images.clone().requires_grad_(), weight, bias, **layer)
    assert counter.get_total_flops() == 2 * expected[1]  # but not without gradients, nor in float32
