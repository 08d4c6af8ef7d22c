from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import nn

from purifiers.cli import main
from purifiers.console import console
from purifiers.errors import ConfigError, MissingFileError, TrainingError
from purifiers.training import distributed

Ranks = Callable[[int, int], None]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """Make this process the one of a number, of so many."""

    def become(rank: int, size: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: size)

    return become


def test_alone_everything_is_as_without_processes() -> None:
    batch, network = torch.rand(5, 2), nn.Sequential(nn.BatchNorm1d(2))
    losses = {"loss": torch.ones(())}
    with distributed.together(), distributed.synchronised(network) as same:
        assert same is network
        assert torch.equal(distributed.mine(batch), batch)
        assert distributed.weighted(losses, 5) is losses
        assert distributed.averaged(batch) is batch
        assert distributed.first_only(lambda: 3) == 3
        assert not console.quiet


@pytest.mark.parametrize(("count", "size"), [(8, 2), (7, 3)])
def test_the_mean_over_processes_is_that_of_the_batch(ranks: Ranks, count: int, size: int) -> None:
    values = torch.arange(count, dtype=torch.float32) ** 2
    parts = []
    for rank in range(size):
        ranks(rank, size)
        parts.append(distributed.weighted({"loss": distributed.mine(values).mean()}, count)["loss"])
    assert torch.stack(parts).mean().item() == pytest.approx(values.mean().item())


def test_a_batch_of_fewer_images_than_processes_is_refused(ranks: Ranks) -> None:
    ranks(0, 4)
    with pytest.raises(ConfigError, match="4 processes"):
        distributed.weighted({"loss": torch.ones(())}, 3)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_statistics_are_those_of_the_batch_of_two_processes(
    kind: type[nn.BatchNorm1d | nn.BatchNorm2d], options: dict[str, bool | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both processes have the same images, so that every sum over them is twice that of one."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    torch.manual_seed(0)
    shape = (4, 3, 5, 6) if kind is nn.BatchNorm2d else (4, 3)
    features, weight = torch.rand(shape) * 4 + 2, torch.rand(shape)
    whole, part = kind(3, **options), kind(3, **options)  # type: ignore[arg-type]
    for _ in range(2):
        one, two = features.clone().requires_grad_(), features.clone().requires_grad_()
        expected, found = whole(torch.cat([one, one]))[:4], distributed._normalised(part, two)
        assert torch.allclose(found, expected, atol=1e-5)
        # Of both processes' losses together: one's images are in the whole batch twice.
        (expected * weight).sum().backward()
        (found * weight).sum().backward()
        assert one.grad is not None and two.grad is not None
        assert torch.allclose(two.grad, one.grad, atol=1e-5)
    for name, buffer in whole.named_buffers():
        assert torch.allclose(buffer, dict(part.named_buffers())[name], atol=1e-5), name
    assert torch.equal(distributed._normalised(part.eval(), features), part(features))


def test_the_first_process_works_and_the_others_hear_of_it(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []

    def broadcast(outcome: list[object]) -> None:
        if distributed.rank() == 0:
            sent[:] = outcome
        outcome[:] = sent

    def missing() -> None:
        raise MissingFileError("gone")

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    for rank in range(2):
        ranks(rank, 2)
        assert distributed.first_only(lambda: distributed.rank() + 5) == 5
    for rank in range(2):
        ranks(rank, 2)
        with pytest.raises(MissingFileError, match="gone"):
            distributed.first_only(missing)


def test_only_the_first_process_prints_and_the_loss_of_another_is_explained(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda **options: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    ranks(1, 2)
    with pytest.raises(TrainingError, match="resumes"), distributed.together():
        assert console.quiet
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert not console.quiet
    with pytest.raises(RuntimeError, match="of our own"), distributed.together():
        raise RuntimeError("a mistake of our own")


@pytest.mark.parametrize("command", [["train"], ["reproduce"]])
def test_half_of_torchruns_variables_and_commands_for_one_process_are_refused(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 1
    assert "torchrun" in capsys.readouterr().err
