"""8-bit ONNX files, and their loss of accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from purifiers.data import ImageSet, slices, to_float
from purifiers.errors import require
from purifiers.evaluation.metrics import classes, matches, psnr
from purifiers.export.program_file import open_onnx, run_onnx, stamp
from purifiers.storage import atomic_path

BATCH = 32


@dataclass(frozen=True)
class Loss:
    """Differences of an 8-bit file from its float file."""

    n: int  # images
    largest: float  # difference of an output from the float file's
    psnr: float | None  # of the purified images to the float file's, mean in dB; None where the output is logits
    shares: tuple[float, float, float] | None  # accuracy in float and in 8 bits, and the same class; None without a classifier


def quantise(source: Path, target: Path, images: ImageSet, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file with 8-bit weights and activations in its convolutions and linear layers (static, QDQ).

    By ONNX Runtime's quantiser, with the ranges of activations on ``images``, some hundred typical ones. Weights use 7 of the 8
    bits, so that processors without VNNI instructions do not overflow, and have a scale for each channel. ``source`` is the
    float file; ``metadata`` is of :func:`purifiers.export.program_file.about`.
    """
    tool = require("onnxruntime.quantization")
    prepare = require("onnxruntime.quantization.shape_inference").quant_pre_process
    batches = (to_float(images.images[batch].cpu()).numpy() for batch in slices(len(images), BATCH))

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Any] | None:
            return next(({"images": batch} for batch in batches), None)

    with TemporaryDirectory() as folder, atomic_path(target) as temporary:
        prepared = Path(folder) / "prepared.onnx"
        prepare(source, prepared, skip_symbolic_shape=True)
        tool.quantize_static(
            prepared,
            temporary,
            Reader(),
            quant_format=tool.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul"],  # the few others are cheap, and exact in float
            activation_type=tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        stamp(temporary, metadata)


def quantisation_loss(float_file: Path, file: Path, images: ImageSet, classifier: nn.Module | None = None) -> Loss:
    """Compare an 8-bit file with its float file on ``images``, with ``classifier`` behind if the files return images."""
    sessions = open_onnx(float_file), open_onnx(file)
    differences, ratios, predictions = [], [], []
    with torch.no_grad():
        for batch in slices(len(images), BATCH):
            outputs = [run_onnx(session, to_float(images.images[batch].cpu())) for session in sessions]
            differences.append((outputs[0] - outputs[1]).abs().max())
            if outputs[0].ndim == 4:
                ratios.append(psnr(outputs[1], outputs[0]))
                outputs = [] if classifier is None else [classifier(output.clamp(0, 1)) for output in outputs]
            if outputs:
                predictions.append(torch.stack([classes(output) for output in outputs]))
    n, shares = len(images), None
    if predictions:
        (before, after), labels = torch.cat(predictions, dim=1), images.labels.cpu()
        counts = matches(before, labels), matches(after, labels), matches(before, after)
        shares = (counts[0] / n, counts[1] / n, counts[2] / n)
    return Loss(n, torch.stack(differences).max().item(), torch.cat(ratios).mean().item() if ratios else None, shares)
