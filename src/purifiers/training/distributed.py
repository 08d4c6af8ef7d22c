"""Training by several processes, on many devices: the same batches, losses and weights as by one.

Every process runs the whole pipeline in step with the others. It draws all random numbers of a batch, and computes its own part
of the images; gradients, losses and the statistics of batch normalisation are those of the whole batch. The first process alone
reads and writes the output folder, and prints.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from purifiers.console import console
from purifiers.errors import ConfigError, PurifiersError, TrainingError

T = TypeVar("T")
TIMEOUT = timedelta(days=1)
"""How long one waits for another, which may be attacking a whole data set. The end of a process is noticed at once."""


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def together() -> Iterator[None]:
    """Train with the other processes that torchrun started, if it did. Only the first prints.

    Raises:
        ConfigError: the variables that torchrun sets are incomplete or wrong.
        TrainingError: another process ended, or cannot be reached.
    """
    own = os.environ.get("WORLD_SIZE", "1") != "1" and not dist.is_initialized()
    if own:
        try:
            dist.init_process_group(timeout=TIMEOUT)
        except ValueError as error:
            raise ConfigError(f"WORLD_SIZE is set, but the processes cannot meet: {error}; start them with torchrun") from error
    quiet = console.quiet
    try:
        console.quiet = quiet or rank() > 0
        yield
    except RuntimeError as error:
        if isinstance(error, PurifiersError) or world_size() == 1 or not _is_lost(error):
            raise
        advice = "the same command resumes after the last finished epoch"
        raise TrainingError(f"process {rank()} of {world_size()}: another one ended or cannot be reached; {advice}") from error
    finally:
        console.quiet = quiet
        if own:
            dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)  # whose errors have no type of their own


def first_only(work: Callable[[], T]) -> T:
    """Run ``work`` in the first process; all processes return its result, or raise its error of this library or the system."""
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except (PurifiersError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def mine(batch: Tensor) -> Tensor:
    """This process' part of a batch, a view: every n-th image, so that the first k of each part are the first n * k."""
    return batch[rank() :: world_size()]


def weighted(losses: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The means over this process' part of ``count`` images, so that their mean over the processes is that of all images.

    Raises:
        ConfigError: there are fewer images than processes.
    """
    if (size := world_size()) == 1:
        return losses
    if count < size:
        raise ConfigError(f"a batch of {count} images cannot be split among {size} processes: start fewer")
    weight = len(range(rank(), count, size)) * size / count
    return {name: value * weight for name, value in losses.items()}


def averaged(values: Tensor) -> Tensor:
    """The mean over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


@contextmanager
def synchronised(network: nn.Module) -> Iterator[nn.Module]:
    """``network`` with gradients and statistics of batch normalisation that are those of all processes together."""
    if world_size() == 1:
        yield network
        return
    # torch's own SyncBatchNorm works on GPUs only.
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    try:
        for norm in norms:
            norm.forward = partial(_normalised, norm)  # type: ignore[method-assign]
        # Stages may leave a part of their network unused, which a static graph allows.
        yield DistributedDataParallel(network, static_graph=True)
    finally:
        for norm in norms:
            del norm.forward


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _normalised(norm: _BatchNorm, features: Tensor) -> Tensor:
    """``norm.forward``, in training with the statistics of all processes' features."""
    if not norm.training:
        return type(norm).forward(norm, features)
    dims, shape = [0, *range(2, features.ndim)], (1, -1, *[1] * (features.ndim - 2))
    # Sums around a value that all processes have lose less to rounding than sums of squares.
    shift = torch.zeros(norm.num_features) if norm.running_mean is None else norm.running_mean.clone()
    shifted = features.float() - shift.to(features.device).view(shape)
    count = shifted.new_full((1,), shifted.numel() / norm.num_features)
    sums = _Sum.apply(torch.cat([shifted.sum(dims), shifted.square().sum(dims), count]))  # type: ignore[no-untyped-call]
    first, second, count = sums.split([norm.num_features, norm.num_features, 1])
    mean = first / count
    variance = (second / count - mean.square()).clamp(min=0)
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.lerp_(mean + shift, momentum)
            norm.running_var.lerp_(variance * count / (count - 1), momentum)
    scaled = (shifted - mean.view(shape)) * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        scaled = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    return scaled.to(features.dtype)
