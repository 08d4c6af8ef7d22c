"""What purifying costs, beside the classifier and beside other purifiers."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import LONG, Benchmark, Table, digits, interleaved, limit_works, limits, ratio
from purifiers import Purifier, load_classifier
from purifiers.baselines.classical import JPEG, TotalVariation
from purifiers.baselines.nrp import NRP
from purifiers.baselines.soap import SOAP
from purifiers.errors import require
from purifiers.export.program_file import about, export_onnx, exportable
from purifiers.networks import CAE, ResNet
from purifiers.networks.inference import Optimised
from purifiers.registry import NETWORKS, place

LONGEST = 2.0
"""Seconds: a batch that would take longer is not run; its cell is that of a smaller batch, in proportion, with a ~."""
PASSES = 100
DDPM = 2 * 6.06e9
"""Floating-point operations of a pass of DDPM's U-Net for CIFAR-10 (Ho et al. 2020): 6.06 G multiply-adds."""
FASTER, PREDICTIONS = 1.5, 1e-3
RIVALS = {"NRP": 50, "SOAP": 100, "diffusion": 1000}
"""How many times as long as one of ours they should take."""

TINY = "cifar10-tiny"

Way = Callable[[Tensor], Any]


def _ways(purifier: Purifier, images: Tensor, folder: Path, quick: bool, notes: list[str]) -> dict[str, Way]:
    """The ways to run a purifier, by name."""
    plain, best = Optimised(purifier.network), purifier.optimize(images)
    plain.runtime = None
    ways: dict[str, Way] = {"eager": purifier, "fused": plain, "optimize()": best}
    if best.network.runtime is None:
        why = "was slower" if find_spec("openvino") else "is not installed (the extra `openvino`)"
        notes.append(f"`optimize()` took the fused network: OpenVINO {why}.")
    if LONG in os.environ:
        ways["compiled"] = torch.compile(purifier.network, dynamic=True)
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        file = folder / "purifier.onnx"
        export_onnx(exportable(purifier), file, about("benchmark", purifier))
        options = require("onnxruntime").SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # its threads would wait in a loop, on everybody's time
        session = require("onnxruntime").InferenceSession(file, options, providers=["CPUExecutionProvider"])
        ways["ONNX Runtime"] = lambda batch: session.run(None, {"images": batch.numpy()})
    else:
        notes.append("ONNX Runtime is not installed (the extra `onnx`).")
    return ways


def _rivals(purifier: Purifier, classifier: nn.Module) -> dict[str, Way]:
    soap = SOAP(ResNet(depth=56))
    others = {
        "ResNet-56, the classifier": classifier,
        "NRP small": NRP("residual"),
        "NRP": NRP(),
        "SOAP, of a ResNet-56": soap,
        "JPEG": JPEG(),
        "total variation": TotalVariation(),
        "RED30-64": CAE(widths=[64], blocks=[15]),
    }
    return {name: place(network, "cpu").eval().requires_grad_(False) for name, network in others.items()}


def _flops(way: Way, side: int) -> float:
    with FlopCounterMode(display=False) as counter:
        way(torch.rand(1, 3, side, side))
    return float(counter.get_total_flops())


def purification(quick: bool, folder: Path) -> Table:
    """``cifar10`` and ``cifar10-tiny`` on CIFAR-10's size."""
    torch.manual_seed(0)
    purifier, tiny = (Purifier.from_pretrained(name).placed("cpu") for name in ("cifar10", TINY))
    classifier, images = load_classifier("cifar10-resnet56"), torch.rand(4 if quick else 256, 3, 32, 32)
    notes: list[str] = []
    ways = _ways(purifier, images, folder, quick, notes) | {TINY: tiny.optimize(images)}
    rivals = {} if quick else _rivals(purifier, classifier)
    batches, sizes = (1, 4) if quick else (1, 16, 256), {TINY: _flops(tiny, 32)}
    table, times = _compared({**ways, **rivals}, 32, batches, quick, notes, sizes)
    with torch.no_grad():
        images = torch.rand(64, 3, 32, 32)
        moved = (classifier(ways["optimize()"](images)) - classifier(purifier(images))).abs().max().item()
    table.bars.append(f"logits of the classifier behind `optimize()` differ by {moved:.1g} (bar: {PREDICTIONS:g})")
    for count, found in times.items():
        gain = ratio(found["eager"], found["optimize()"])
        table.bars.append(f"`optimize()` is {gain:.2f} times as fast as eager at batch {count} (bar: {FASTER:g})")
    last, ours = times[max(times)], median(times[max(times)]["optimize()"]) / max(times)
    rate = limits(last)[0]
    share = _flops(purifier, 32) / ours / rate
    table.bars.append(f"`optimize()` runs at {share:.0%} of the rate of a matrix product at batch {max(times)} (bar: 60 %)")
    slower = {"diffusion": (DDPM * PASSES / rate, DDPM * PASSES / rate)}
    for name in ("NRP", "SOAP"):
        row = next((key for key in rivals if key.split(",")[0] == name and key in times[1]), None)
        if row:
            most = max(count for count in times if row in times[count])
            slower[name] = median(times[1][row]), median(times[most][row]) / most
    for name, (alone, each) in slower.items():
        factors = []
        for one, row in (("cifar10", "optimize()"), (TINY, TINY)):
            single, many = median(times[1][row]), median(times[max(times)][row]) / max(times)
            factors.append(f"{digits(alone / single)} (one image) and {digits(each / many)} (batches) times as long as `{one}`")
        table.bars.append(f"{name} takes {', '.join(factors)} (bar: {RIVALS[name]:,} times one of them)")
    table.notes.append(
        f"Diffusion is the least that a purifier as DiffPure can take: {PASSES} passes of DDPM's U-Net for CIFAR-10 "
        f"({DDPM / 1e9:.1f} GFLOP each, as published) at the rate of the matrix product, which no network reaches."
    )
    return table


def photographs(quick: bool, folder: Path) -> Table:
    """224 pixels: photos and cifar10."""
    ours, large = Purifier.from_pretrained("photos").placed("cpu"), Purifier.from_pretrained("cifar10").placed("cpu")
    notes: list[str] = []
    ways = _ways(ours, torch.rand(1, 3, 224, 224), folder, True, notes)
    ways["cifar10, eager"], ways["cifar10, optimize()"] = large, large.optimize()
    rivals = {} if quick else {name: way for name, way in _rivals(large, large).items() if name in ("NRP small", "JPEG")}
    side, batches = (64, (1,)) if quick else (224, (1, 16))
    sizes = dict.fromkeys(("cifar10, eager", "cifar10, optimize()"), _flops(large, side))
    return _compared({**ways, **rivals}, side, batches, quick, notes, sizes)[0]


def _compared(
    ways: Mapping[str, Way], side: int, batches: tuple[int, ...], quick: bool, notes: list[str], sizes: Mapping[str, float]
) -> tuple[Table, dict[int, dict[str, list[float]]]]:
    """A table of the ways at each batch size, and the seconds that it is made of. ``sizes``: the operations of the ways that
    are of neither the first purifier nor a plain network."""
    times: dict[int, dict[str, list[float]]] = {}
    own = _flops(ways["eager"], side)
    flops = {name: _flops(way, side) if type(way) in NETWORKS.values() else own for name, way in ways.items()} | dict(sizes)
    rows = {name: [name, digits(flops[name] / 1e6) if flops[name] else "-"] for name in ways}
    each: dict[str, float] = {}
    for count in batches:
        chosen = {name: way for name, way in ways.items() if each.get(name, 0) * count < LONGEST}
        works = {name: partial(way, torch.rand(count, 3, side, side)) for name, way in chosen.items()}
        with torch.no_grad():
            times[count] = interleaved({**works, **limit_works()}, quick)
        rate, eager = limits(times[count])[0], times[count]["eager"]
        each |= {name: median(times[count][name]) / count for name in chosen}
        for name, row in rows.items():
            about = "" if name in chosen else "~"
            times_eager = ratio(times[count][name], eager) if name in chosen else each[name] * count / median(eager)
            share = flops[name] / each[name] / rate
            row += [f"{about}{digits(1000 * each[name])}", f"{about}{digits(times_eager)}", f"{share:.0%}" if share else "-"]
    columns = ["", "MFLOP"]
    for count in batches:
        columns += [f"batch {count}: ms an image", "times eager", "of the matrix rate"]
    return Table(columns, list(rows.values()), notes=notes), times


BENCHMARKS = {
    "purification": Benchmark(
        "Purifying CIFAR-10's 32 pixels",
        "The rows from eager to ONNX Runtime are `cifar10`; `cifar10-tiny` is as `Purifier.optimize` took it. "
        "`fused` has its normalisations in its convolutions and works in pieces of 16 images; `optimize()` is what "
        "`Purifier.optimize` took; `BENCHMARK_LONG=1` adds `torch.compile`. The other "
        "purifiers have random weights: their cost does not depend on them.",
        purification,
    ),
    "photographs": Benchmark(
        "Purifying photographs of 224 pixels",
        "The rows from eager to ONNX Runtime are `photos`, which works at half the resolution. "
        "A ~ marks what would take too long, in proportion to a smaller batch.",
        photographs,
    ),
}
