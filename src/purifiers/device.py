"""The device to compute on, and in which precision."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from purifiers.console import say
from purifiers.errors import ConfigError, DeviceMemoryError

Precision = Literal["32-true", "bf16-mixed"]
"""Of networks in training: float32, or bfloat16 where autocast allows it, with float32 weights."""


def find_device(name: str = "auto") -> torch.device:
    """The device called ``name``: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``. Under torchrun
    ``auto`` and ``cuda`` are the GPU of the process' LOCAL_RANK.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    kind, _, index = name.partition(":")
    if kind == "auto":
        kind = "cuda" if available["cuda"] else "cpu"
    if kind == "cuda" and not index:
        index = os.environ.get("LOCAL_RANK", "")
    if not (index or "0").isdigit() or int(index or 0) >= available.get(kind, 0):
        usable = ", ".join(name for name, count in available.items() if count)
        raise ConfigError(f"there is no device '{name}' on this machine; available: auto, {usable}")
    return torch.device(kind, int(index or 0)) if kind == "cuda" else torch.device(kind)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Forward passes on ``device`` in ``precision``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Raise DeviceMemoryError for torch's errors within that mean that there is too little memory for ``what``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On a CPU torch raises a plain RuntimeError.
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
            raise DeviceMemoryError(f"too little memory for {what}") from error
        raise


def in_parts(work: Callable[..., torch.Tensor], *batch: torch.Tensor) -> torch.Tensor:
    """What ``work`` returns for a batch, (N, ...); where the memory is too small, for its halves one after the other.

    Raises:
        DeviceMemoryError: it is too small for a single image.
    """
    count, shape = len(batch[0]), tuple(batch[0].shape[1:])
    try:
        with memory_for(f"an image of {shape}: take a smaller one, or another device"):
            return work(*batch)
    except DeviceMemoryError:
        if count < 2:
            raise
    # Only here the failed attempt's tensors are free.
    if batch[0].is_cuda:
        torch.cuda.empty_cache()
    half = count // 2
    say(f"warning: too little memory for {count} images of {shape} at once: they are processed in parts of {count - half}")
    return torch.cat([in_parts(work, *(one[part] for one in batch)) for part in (slice(half), slice(half, None))])


@contextmanager
def float32_on_cpu() -> Iterator[None]:
    """New tensors are float32 on the CPU unless said otherwise, whatever defaults the process has, which are restored."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        # Within the context of a device every operation of torch goes through Python: not where it changes nothing.
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(usual)


@contextmanager
def repeatable() -> Iterator[None]:
    """:func:`float32_on_cpu`; on a GPU also deterministic algorithms, and no TF32, as attacks need it. All is restored.

    A context, or a decorator: ``@repeatable()``.
    """
    with float32_on_cpu(), _deterministic():
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    cudnn, matmul, memory = torch.backends.cudnn, torch.backends.cuda.matmul, torch.utils.deterministic
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = [(cudnn, "benchmark"), (cudnn, "allow_tf32"), (matmul, "allow_tf32"), (memory, "fill_uninitialized_memory")]
    before = [getattr(owner, name) for owner, name in flags]  # the last is for finding mistakes, and slow
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's linear algebra is first used
        torch.use_deterministic_algorithms(True, warn_only=True)
        for owner, name in flags:
            setattr(owner, name, False)
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        for (owner, name), value in zip(flags, before, strict=True):
            setattr(owner, name, value)
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
