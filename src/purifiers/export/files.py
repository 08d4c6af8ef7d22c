"""A purifier, alone or with the classifier behind it, as one file for other programs: ONNX, or torch.export's."""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.errors import ConfigError, require
from purifiers.hub import metadata
from purifiers.purifier import Purifier
from purifiers.registry import NETWORKS, describe
from purifiers.storage import atomic_path
from purifiers.version import __version__

OPSET = 18
"""The oldest that torch's exporter writes of itself, so that most runtimes read it."""
TOLERANCE = 1e-4
"""How far a file's output may be from PyTorch's: of images in [0,1] units, of logits as a share of the largest (if above 1)."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and found to do what the model does.

    Attributes:
        path: the file.
        difference: the largest difference of an output from PyTorch's, see :data:`TOLERANCE`.
        shapes: of the random images on which that was found.
    """

    path: Path
    difference: float
    shapes: tuple[tuple[int, ...], ...]


def exportable(purifier: Purifier, classifier: nn.Module | None = None) -> nn.Module:
    """What goes into the file: the purifier's network and, if given, the classifier behind it; a copy, on the CPU.

    Raises:
        ConfigError: the purifier is none that can be exported; says why, and which can.
    """
    for part in purifier.network.modules():
        if why := getattr(part, "not_exportable", None):
            possible = ", ".join(name for name, one in NETWORKS.items() if getattr(one, "not_exportable", None) is None)
            name = NETWORKS.name_of(type(part))
            raise ConfigError(f"{name} cannot be exported: {why}. What can: {possible} (wrappers if what they are around can)")
    # Without the checks of Purifier: a graph has no errors to raise.
    model = purifier.network if classifier is None else nn.Sequential(purifier.network, classifier)
    return copy.deepcopy(model).cpu().eval().requires_grad_(False)


def about(name: str, purifier: Purifier, classifier: str | None = None) -> dict[str, str]:
    """What a file says of itself: of which purifier it was made, with which arguments, its licence, what goes in and out."""
    said = {
        "purifier": name,
        "config": json.dumps(describe(purifier.network)),
        "license": metadata(purifier.card).get("license") or "not stated",
        "input": "float32 (batch, channels, height, width), RGB, in [0,1]",
        "output": "the purified images, likewise" if classifier is None else "logits (batch, classes)",
    }
    return said if classifier is None else said | {"classifier": classifier}


def export_onnx(
    model: nn.Module, path: Path, metadata: Mapping[str, str], *, opset: int = OPSET, size: int | None = None, channels: int = 3
) -> Exported:
    """Write ``model`` as one ONNX file, and compare it with PyTorch in ONNX Runtime before it gets its name.

    Input ``images``, output ``purified`` (as large) or ``logits``, the batch and, without ``size``, height and width free.

    Args:
        model: see :func:`exportable`.
        path: ends in ``.onnx``.
        metadata: see :func:`about`.
        opset: version of ONNX's operators, :data:`OPSET` or newer.
        size: height and width, where the model takes no others.
        channels: of the images.

    Raises:
        ConfigError: torch cannot export it, ONNX Runtime cannot run it, or does so with another result; or the extra ``onnx``
            is not installed.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module)
    newest = require("onnx.defs").onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise ConfigError(f"opset {opset} cannot be written here: {OPSET} to {newest} can (--opset)")
    free = {0: "batch"} if size else {0: "batch", 2: "height", 3: "width"}
    shapes = check_shapes(channels, size)
    output = "purified" if model(torch.rand(shapes[0])).ndim == 4 else "logits"
    with atomic_path(path) as temporary:
        with _tracing(size):
            program = torch.onnx.export(
                model,
                (example(channels, size),),
                dynamo=True,
                dynamic_shapes=(free,),
                input_names=["images"],
                output_names=[output],
                opset_version=opset,
                verbose=False,
            )
            assert program is not None
            program.save(temporary, external_data=False)
        written = require("onnx").load(temporary, load_external_data=False).opset_import[0].version
        if written != opset:  # torch keeps its own where a conversion fails
            raise ConfigError(f"the file could not be written in opset {opset}; it would be {written}: leave out --opset")
        stamp(temporary, metadata)
        session = open_onnx(temporary)
        difference = largest_difference(model, lambda images: run_onnx(session, images), shapes)
    return Exported(path, difference, shapes)


def export_torch(model: nn.Module, path: Path, *, size: int | None = None, channels: int = 3) -> Exported:
    """Write ``model`` as a program of torch.export, and compare: ``torch.export.load(path).module()`` is a module again.

    Args:
        model, size, channels: see :func:`export_onnx`.
        path: ends in ``.pt2``.

    Raises:
        ConfigError: torch cannot export it.
    """
    free = torch.export.Dim.DYNAMIC
    dynamic = {0: free} if size else {0: free, 2: free, 3: free}
    shapes = check_shapes(channels, size)
    with atomic_path(path) as temporary:
        with _tracing(size):
            torch.export.save(torch.export.export(model, (example(channels, size),), dynamic_shapes=(dynamic,)), temporary)
            loaded = torch.export.load(temporary).module()
        difference = largest_difference(model, loaded, shapes)
    return Exported(path, difference, shapes)


def example(channels: int, size: int | None) -> Tensor:
    """Images to trace with; of no size that a network's stride divides, so that padding is traced too."""
    return torch.rand(2, channels, size or 33, size or 45)


def check_shapes(channels: int, size: int | None) -> tuple[tuple[int, ...], ...]:
    """Of the images that a file is checked with: two numbers and, unless ``size`` is given, two sizes."""
    return (1, channels, size or 32, size or 32), (3, channels, size or 45, size or 38)


def largest_difference(model: nn.Module, other: Any, shapes: Sequence[tuple[int, ...]]) -> float:
    """Between the outputs of ``model`` and of ``other``, a function of images too, on random images of ``shapes``.

    Raises:
        ConfigError: it is above :data:`TOLERANCE`.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for shape in shapes:
        images = torch.rand(shape, generator=generator)
        with torch.no_grad():
            expected = model(images)
        scale = expected.abs().max().clamp(min=1)
        largest = max(largest, ((other(images) - expected).abs().max() / scale).item())
    if not largest <= TOLERANCE:
        raise ConfigError(
            f"the file's output is not PyTorch's: off by {largest:.2g}, more than {TOLERANCE:g}; nothing was kept"
        )
    return largest


@contextmanager
def _tracing(size: int | None) -> Iterator[None]:
    """What surrounds torch's exporters: they trace for every size alike, are quiet, and fail in words."""
    import torch.fx.experimental._config as tracing

    if not hasattr(tracing, "backed_size_oblivious"):
        raise ConfigError(f"exporting needs a newer torch than {torch.__version__}: pip install --upgrade torch")
    # Which operators of torchvision it leaves out is of no use to those who have none.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    # Otherwise a size of 1, or one that needs no padding, would be another program.
    with tracing.patch(backed_size_oblivious=True), warnings.catch_warnings():  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", message=".*treespec.*", category=FutureWarning)  # torch 2.13 warns of itself
        try:
            yield
        except (ConfigError, OSError):
            raise
        except Exception as error:  # torch has no one error for this
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            line = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            hint = "" if size else "; where the classifier takes one size of images only, give it with --size"
            raise ConfigError(f"torch cannot export this model: {line}{hint}") from error


def stamp(path: Path, metadata: Mapping[str, str]) -> None:
    """Write into an ONNX file by whom it was made, and ``metadata``."""
    onnx = require("onnx")
    model = onnx.load(path)
    model.producer_name, model.producer_version = "purifiers", __version__
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def open_onnx(path: Path) -> Any:
    """An ONNX file in ONNX Runtime, on the CPU.

    Raises:
        ConfigError: it cannot be run there.
    """
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors: what it thinks of a graph is nothing to act on
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a dozen classes of its own
        line = str(error).splitlines()[0]
        raise ConfigError(f"ONNX Runtime {runtime.__version__} cannot run the file: {line}; try another --opset") from error


def run_onnx(session: Any, images: Tensor) -> Tensor:
    """The session's output for ``images``, float32 (N, C, H, W)."""
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
