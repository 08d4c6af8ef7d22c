from pathlib import Path

import pytest
import torch
from torch import nn

from purifiers.errors import CheckpointError
from purifiers.storage import load_state, save_state, save_tensors


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    for _ in range(steps):
        step(model, optimizer, scheduler)
    return model, optimizer, scheduler


def step(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
    optimizer.zero_grad()
    model(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    scheduler.step()


def test_optimizer_scheduler_and_generator_go_on_as_if_never_stopped(tmp_path: Path) -> None:
    model, optimizer, scheduler = trained(4)
    generator = torch.Generator().manual_seed(5)
    torch.rand(3, generator=generator)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "generator": generator.get_state(),
    }
    save_state(tmp_path / "s.safetensors", state)
    loaded = load_state(tmp_path / "s.safetensors")
    other, other_optimizer, other_scheduler = trained(0)
    other.load_state_dict(loaded["model"])
    other_optimizer.load_state_dict(loaded["optimizer"])
    other_scheduler.load_state_dict(loaded["scheduler"])
    other_generator = torch.Generator()
    other_generator.set_state(loaded["generator"])
    for _ in range(5):
        step(model, optimizer, scheduler)
        step(other, other_optimizer, other_scheduler)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=other_generator))


def test_any_nesting_comes_back(tmp_path: Path) -> None:
    state = {"a": {1: torch.tensor([1.0]), "x.y": [torch.tensor(2), None, True, {"deep": 0.5}]}, "empty": {}, "list": []}
    save_state(tmp_path / "s.safetensors", state)
    loaded = load_state(tmp_path / "s.safetensors")
    assert loaded["a"][1].tolist() == [1.0]
    assert loaded["a"]["x.y"][0].item() == 2
    assert loaded["a"]["x.y"][1:] == [None, True, {"deep": 0.5}]
    assert (loaded["empty"], loaded["list"]) == ({}, [])


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "weights.safetensors", {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match="not a training state"):
        load_state(tmp_path / "weights.safetensors")
