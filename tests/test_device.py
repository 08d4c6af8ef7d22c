import os

import pytest
import torch

from purifiers.device import find_device, repeatable
from purifiers.errors import ConfigError


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
