"""A purifier, alone or with the classifier behind it, as one file for other programs: ONNX or torch.export."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purifiers import hub
from purifiers.errors import ConfigError, first_line, require
from purifiers.networks.inference import example, fused
from purifiers.networks.network import channels_of
from purifiers.purifier import Purifier
from purifiers.registry import NETWORKS, describe
from purifiers.storage import atomic_path
from purifiers.version import __version__

OPSET = 18
"""The oldest that torch's exporter writes by itself, so that most runtimes read it."""
TOLERANCE = 1e-4
"""How far a file's output may be from PyTorch's: of images in [0,1] units, of logits as a share of the largest (if above 1)."""


def exportable(purifier: Purifier, classifier: nn.Module | None = None) -> nn.Module:
    """A copy, on the CPU, of the purifier's network and, if given, the classifier behind it.

    Raises:
        ConfigError: the purifier cannot be exported.
    """
    for part in purifier.network.modules():
        if why := getattr(part, "not_exportable", None):
            raise ConfigError(f"{NETWORKS.name_of(type(part))} cannot be exported: {why}")
    # Without the checks of Purifier: a graph has no errors to raise.
    network = copy.deepcopy(purifier.network).cpu()
    if type(network) in NETWORKS.values():
        network = fused(network.float(), example(channels_of(network) or 3))
    model = network if classifier is None else nn.Sequential(network, classifier)
    copied = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    return copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # channels-last needs a batch above 1


def about(name: str, purifier: Purifier, classifier: str | None = None) -> dict[str, str]:
    """Metadata for a file: the purifier's name, arguments and licence, the classifier's name, inputs and outputs."""
    return {
        "purifier": name,
        "config": json.dumps(describe(purifier.network)),
        "license": hub.metadata(purifier.card).get("license") or "not stated",
        "input": "float32 (batch, channels, height, width), RGB, in [0,1]",
        "output": "logits (batch, classes)" if classifier else "the purified images, likewise",
        **({"classifier": classifier} if classifier else {}),
    }


def export_onnx(
    model: nn.Module, path: Path, metadata: Mapping[str, str], *, opset: int = OPSET, size: int | None = None, channels: int = 3
) -> float:
    """Write ``model`` as one ONNX file, which keeps its name only if ONNX Runtime computes the same as PyTorch with it.
    Returns by how much it differs at most, on random images; see :data:`TOLERANCE`.

    Input ``images``; output ``purified`` (of the same size) or ``logits``. The batch is dynamic, and without ``size`` height
    and width are too.

    Args:
        model, metadata: see :func:`exportable` and :func:`about`.
        path: ends in ``.onnx``.
        opset: version of ONNX's operators, :data:`OPSET` or newer.
        size: height and width, for models that take one size only.

    Raises:
        ConfigError: torch cannot export it, ONNX Runtime cannot run it, or its result differs.
    """
    onnx, _, _ = (require(module) for module in ("onnx", "onnxscript", "onnxruntime"))
    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise ConfigError(f"opset {opset} cannot be written here: {OPSET} to {newest} can (--opset)")
    images = _example(channels, size)
    with atomic_path(path) as temporary:
        with _tracing(size):
            program = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                dynamic_shapes=({0: "batch"} if size else {0: "batch", 2: "height", 3: "width"},),
                input_names=["images"],
                output_names=["purified" if model(images).ndim == 4 else "logits"],
                opset_version=opset,
                verbose=False,
            )
            assert program is not None
            program.save(temporary, external_data=False)
        written = onnx.load(temporary, load_external_data=False).opset_import[0].version
        if written != opset:  # torch keeps its own if a conversion fails
            raise ConfigError(f"this model cannot be written in opset {opset}, but in {written}: leave out --opset")
        stamp(temporary, metadata)
        session = open_onnx(temporary)
        return _checked(model, lambda images: run_onnx(session, images), channels, size)


def export_torch(model: nn.Module, path: Path, *, size: int | None = None, channels: int = 3) -> float:
    """Write ``model`` as a program of torch.export, a .pt2 file: ``torch.export.load(path).module()`` is a module again.

    Arguments, result and errors are as in :func:`export_onnx`.
    """
    free = torch.export.Dim.DYNAMIC
    dynamic = {0: free} if size else {0: free, 2: free, 3: free}
    with atomic_path(path) as temporary:
        with _tracing(size):
            program = torch.export.export(model, (_example(channels, size),), dynamic_shapes=(dynamic,))
            torch.export.save(program, temporary)
            loaded = torch.export.load(temporary).module()
        return _checked(model, loaded, channels, size)


def _example(channels: int, size: int | None) -> Tensor:
    """Images to trace with; no network's stride divides their size, so that padding is traced too."""
    return example(channels, size or 33, size or 45)


@torch.no_grad()
def _checked(model: nn.Module, other: Callable[[Tensor], Tensor], channels: int, size: int | None) -> float:
    """By how much ``model`` and ``other`` differ on random images; ConfigError if it is more than :data:`TOLERANCE`."""
    shapes = (1, channels, size or 32, size or 32), (3, channels, size or 45, size or 38)
    generator, differences = torch.Generator().manual_seed(0), []
    for images in [torch.rand(shape, generator=generator) for shape in shapes]:
        expected = model(images)
        differences.append((other(images) - expected).abs().max() / expected.abs().max().clamp(min=1))
    largest = torch.stack(differences).max().item()  # unlike Python's, it keeps NaN
    if not largest <= TOLERANCE:
        raise ConfigError(f"the file's output differs from PyTorch's by {largest:.2g}, more than {TOLERANCE:g}; it is deleted")
    return largest


@contextmanager
def _tracing(size: int | None) -> Iterator[None]:
    """Run torch's exporters quietly, for any size of images, with ConfigErrors."""
    import torch.fx.experimental._config as tracing

    if not hasattr(tracing, "backed_size_oblivious"):
        raise ConfigError(f"exporting needs a newer torch than {torch.__version__}: pip install --upgrade torch")
    # It lists the operators of torchvision that it leaves out.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    # Without this a size of 1, or one that needs no padding, would be another program.
    with tracing.patch(backed_size_oblivious=True), warnings.catch_warnings():  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", message=".*treespec.*", category=FutureWarning)  # torch 2.13 warns of itself
        try:
            yield
        except (ConfigError, OSError):
            raise
        except Exception as error:  # torch raises errors of many types
            cause: Any = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            hint = "" if size else "; if the classifier takes one size of images only, give it with --size"
            raise ConfigError(f"torch cannot export this model: {first_line(cause)}{hint}") from error


def stamp(path: Path, metadata: Mapping[str, str]) -> None:
    """Write the producer and ``metadata`` into an ONNX file."""
    onnx = require("onnx")
    model = onnx.load(path)
    model.producer_name, model.producer_version = "purifiers", __version__
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def open_onnx(path: Path) -> Any:
    """An ONNX file in ONNX Runtime, on the CPU; raises ConfigError if it cannot be run there."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a dozen classes of its own
        line = first_line(error)
        raise ConfigError(f"ONNX Runtime {runtime.__version__} cannot run the file: {line}; try another --opset") from error


def run_onnx(session: Any, images: Tensor) -> Tensor:
    """The session's output for ``images``, float32 (N, C, H, W)."""
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
