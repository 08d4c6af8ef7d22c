"""The device to compute on, and in which precision."""

import math
import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from purifiers.console import say
from purifiers.errors import ConfigError, DeviceMemoryError

LARGE = 2**22
"""Values of a batch that a CPU computes in parts: 28 photographs of 224 pixels have so many."""
MEMORY = 2**30
"""Bytes that such a part may keep for its gradient."""
SIZES = (2, 8, 32, 128)
"""The sizes of parts that are tried."""
GAIN = 0.95
"""A larger one is taken if an image takes less than so much of the time."""
_sizes: dict[Hashable, int] = {}  # that were found
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


def fastest_precision(device: torch.device) -> Precision:
    """In which a training takes less time on ``device``. A CPU without instructions for bfloat16 emulates it, ten times as
    slowly as it computes in float32, so both are timed there, on a convolution."""
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if device.type != "cpu":
        return "32-true"
    with torch.random.fork_rng(devices=[]):
        layer, images = nn.Conv2d(32, 32, 3, padding=1), torch.rand(8, 32, 16, 16)
    seconds: dict[Precision, float] = {}
    for precision in get_args(Precision):
        for _ in range(3):  # libraries prepare in the first
            begun = time.perf_counter()
            with autocast(device, precision):
                outputs = layer(images)
            torch.autograd.grad(outputs.float().sum(), layer.weight)
            spent = time.perf_counter() - begun
            seconds[precision] = min(seconds.get(precision, math.inf), spent)
    return min(seconds, key=lambda precision: seconds[precision])


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Forward passes on ``device`` in ``precision``."""
    context = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")
    return _with_quick_gradients(context) if device.type == "cpu" and precision == "bf16-mixed" else context


@contextmanager
def _with_quick_gradients(context: AbstractContextManager[object]) -> Iterator[None]:
    with context, _DepthwiseWithoutStride():
        yield


class _DepthwiseWithoutStride(TorchFunctionMode):
    """Within, a depthwise convolution of stride 2 is computed without one, and every second output dropped. The result is the
    same, but the gradient of a strided one is slow in bfloat16 on a CPU: half of the time of an attack on an
    EfficientNet-lite0, which has four of them (torch 2.13)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (_conv2d if func is F.conv2d else func)(*args, **kwargs or {})


def _conv2d(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Any = 1, *rest: Any, **more: Any
) -> torch.Tensor:
    strides = (stride, stride) if isinstance(stride, int) else tuple(stride)
    depthwise = 1 < len(weight) == input.shape[-3] and weight.shape[1] == 1
    needed = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad) and torch.is_autocast_enabled("cpu")
    if max(strides) != 2 or not depthwise or not needed:
        return F.conv2d(input, weight, bias, stride, *rest, **more)
    every = F.conv2d(input, weight, bias, 1, *rest, **more)
    last = every.ndim == 4 and every.is_contiguous(memory_format=torch.channels_last)
    kept = every[..., :: strides[0], :: strides[-1]]
    return kept.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


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


def in_parts(work: Callable[..., torch.Tensor], *batch: torch.Tensor, size: int | None = None) -> torch.Tensor:
    """What ``work`` returns for a batch, (N, ...), computed in parts of ``size`` one after the other, by default, for a module
    without gradients, of :func:`part_size`; where the memory is too small for a part, in its halves.

    Raises:
        DeviceMemoryError: it is too small for a single image.
    """
    count, shape = len(batch[0]), tuple(batch[0].shape[1:])
    if size is None:
        size = part_size(work, batch[0]) if isinstance(work, nn.Module) and not torch.is_grad_enabled() else count
    if size < count:
        places = [slice(start, start + size) for start in range(0, count, size)]
        return torch.cat([in_parts(work, *(one[part] for one in batch), size=size) for part in places])
    try:
        with memory_for(f"an image of {shape}: take a smaller one, or another device"):
            return work(*batch)
    except DeviceMemoryError:
        if count < 2:
            raise
    # Only here the failed attempt's tensors are free.
    if batch[0].is_cuda:
        torch.cuda.empty_cache()
    half = count - count // 2
    say(f"warning: too little memory for {count} images of {shape} at once: they are processed in parts of {half}")
    return in_parts(work, *batch, size=half)


def part_size(model: nn.Module, images: torch.Tensor, gradient: bool = False) -> int:
    """How many of ``images`` (N, C, H, W) go through ``model`` at once, forward or with their ``gradient``: all, if they are on
    a GPU or small. A CPU can spend half of its time on getting memory for a large batch of photographs: there a few sizes are
    timed, once for each network and size of image, as far as the gradient needs no more than ``MEMORY``."""
    if images.device.type != "cpu" or images.numel() < LARGE:
        return len(images)
    key = repr(model), images.shape[1:], gradient
    if key not in _sizes:
        with torch.random.fork_rng(devices=[]):
            _sizes[key] = _fastest(model, images, gradient)
    return _sizes[key]


def one_pass(model: nn.Module, images: torch.Tensor, gradient: bool) -> None:
    """``images`` go through ``model`` once, with their ``gradient`` or without."""
    images = images.clone().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        outputs = model(images.view_as(images))
        if gradient and outputs.requires_grad:
            torch.autograd.grad(outputs.flatten(1).logsumexp(1).sum(), images, allow_unused=True)


def _fastest(model: nn.Module, images: torch.Tensor, gradient: bool) -> int:
    weights, kept = {weight.data_ptr() for weight in model.parameters()}, dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        one_pass(model, images[:1], gradient)
    best, least = 1, math.inf
    for size in [one for one in SIZES if one <= len(images) and one * sum(kept.values()) <= MEMORY]:
        seconds = []
        for _ in range(2):  # libraries prepare in the first
            begun = time.perf_counter()
            one_pass(model, images[:size], gradient)
            seconds.append(time.perf_counter() - begun)
        if min(seconds) / size > GAIN * least:
            break
        best, least = size, min(seconds) / size
    return best


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
