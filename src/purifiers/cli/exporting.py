"""The command that makes a file for other programs. As in :mod:`purifiers.cli.commands`, imports are inside."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from purifiers.cli import options
from purifiers.cli.commands import recipe_behind, refuse_idle
from purifiers.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from purifiers.data import ImageSet
    from purifiers.recipes.schema import Recipe

CALIBRATION = 256
"""Training images that the ranges of 8-bit activations are taken from."""
MEASURED = 1000
"""Test images, at most, that 8 bits are compared with float on."""


def add_command(add: options.Add) -> None:
    """Add it to the command line."""
    command = add(
        "export",
        export,
        "write a purifier as one ONNX file, or as a program of torch.export",
        "Write a purifier, or a purifier with a classifier behind it, as one file for other programs. Images go in, "
        "float32 (batch, 3, height, width) in [0,1], any number and size; purified images come out, or logits. The file is "
        "compared with PyTorch before it gets its name. Needs pip install 'purifiers[onnx]'.",
    )
    options.add_what(command, hub=True)
    command.add_argument("target", metavar="OUT", type=Path, help="the file to write: .onnx, or .pt2 with --format torch")
    command.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="(default: %(default)s)")
    command.add_argument("--opset", type=int, default=18, help="version of ONNX's operators (default: %(default)s)")
    options.add_behind(command)
    options.add_set(command)
    command.add_argument(
        "--size", metavar="N", type=options.count, help="take images of N by N pixels only, as some classifiers do"
    )
    command.add_argument(
        "--int8",
        action="store_true",
        help="quantise to 8 bits, with the ranges that training images give, and say what that loses on test images",
    )
    command.add_argument(
        "--images",
        metavar="DIR",
        help="images for --int8, one sub-folder for each class (default: the data that it was trained on)",
    )


def export(parsed: argparse.Namespace) -> int:
    """Write the file, check it, and say what it is."""
    from purifiers.console import say
    from purifiers.export.program_file import about, export_onnx, export_torch, exportable
    from purifiers.purifier import Purifier

    ending = {"onnx": ".onnx", "torch": ".pt2"}[parsed.format]
    if parsed.target.suffix != ending or parsed.target.is_dir():
        raise ConfigError(f"{parsed.target}: give a file that ends in {ending} (--format {parsed.format})")
    if parsed.format == "torch" and parsed.int8:
        raise ConfigError("--int8 is for ONNX: not with --format torch")
    if not (parsed.int8 or parsed.classifier):
        refuse_idle(parsed, "--int8 or a --classifier")
    purifier = Purifier.from_pretrained(parsed.what)
    exportable(purifier)  # what cannot be is told before data are read
    recipe = recipe_behind(parsed)
    if parsed.int8 and recipe.data.name == "folder" and recipe.data.path is None:
        raise ConfigError(
            f"8 bits need images to take the ranges of activations from, and the data of '{parsed.what}' are not known: give "
            "--images DIR, with one sub-folder for each class"
        )
    classifier = _classifier(parsed, recipe) if parsed.classifier else None
    model = exportable(purifier, classifier)
    channels = getattr(purifier.network, "config", {}).get("channels", 3)
    if parsed.format == "torch":
        exported = export_torch(model, parsed.target, size=parsed.size, channels=channels)
    else:
        name = parsed.what if "/" not in parsed.what else Path(parsed.what).name
        metadata = about(name, purifier, parsed.classifier)
        if parsed.int8:
            return _eight_bits(parsed, model, metadata, recipe, channels)
        exported = export_onnx(model, parsed.target, metadata, opset=parsed.opset, size=parsed.size, channels=channels)
    say(_written(parsed, exported.path, channels))
    say(_checked(exported))
    return 0


def _eight_bits(parsed: argparse.Namespace, model: "nn.Module", metadata, recipe, channels: int) -> int:  # type: ignore[no-untyped-def]
    from tempfile import TemporaryDirectory

    from purifiers.console import say
    from purifiers.export.program_file import export_onnx
    from purifiers.export.quantise import quantisation_loss, quantise

    typical, test = _images(recipe, "train", CALIBRATION), _images(recipe, "test", MEASURED)
    judge, who = (None, parsed.classifier) if parsed.classifier else _judge(parsed, recipe, test)
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "float.onnx"
        exported = export_onnx(model, whole, metadata, opset=parsed.opset, size=parsed.size, channels=channels)
        quantise(whole, parsed.target, typical, metadata | {"quantised": "8 bits, static"})
        loss = quantisation_loss(whole, parsed.target, test, judge)
        say(f"{_written(parsed, parsed.target, channels)}; in float it would be {_megabytes(whole)}")
        say(f"float, {_checked(exported)}")
    say(f"8 bits, on {loss.n:,} test images of {test.name}, against float: outputs off by at most {loss.largest:.3g}")
    if loss.psnr is not None:
        say(f"purified images: {loss.psnr:.1f} dB PSNR to float's")
    if loss.accuracy is not None and loss.agreement is not None:
        before, after = loss.accuracy
        say(f"accuracy with {who}: {before:.2%} in float, {after:.2%} in 8 bits; the same class for {loss.agreement:.2%}")
    return 0


def _images(recipe: "Recipe", split, limit: int) -> "ImageSet":  # type: ignore[no-untyped-def]
    from purifiers.data import load_images
    from purifiers.seeds import seed_for

    config = recipe.data
    data = load_images(config.name, split, **config.source())
    own = config.limit if split == "train" else config.test_limit
    return data.limited(min(limit, own or limit), seed_for(recipe.seed, split, "export"))


def _classifier(parsed: argparse.Namespace, recipe: "Recipe") -> "nn.Module":
    """The one to put behind the purifier, as the recipe has it now."""
    from purifiers.classifiers.load import load_classifier
    from purifiers.data import placeholder

    assert recipe.classifier.source is not None
    data = recipe.data.model_copy(update={"size": parsed.size}) if parsed.size else recipe.data
    return load_classifier(recipe.classifier.source, placeholder(**data.place()), **recipe.classifier.options())


def _judge(parsed: argparse.Namespace, recipe: "Recipe", test: "ImageSet"):  # type: ignore[no-untyped-def]
    """The classifier that the purifier was trained for, and what it is called; None where it is not known."""
    from purifiers import weights
    from purifiers.classifiers.load import load_classifier
    from purifiers.runs import is_run

    if parsed.images:
        return None, ""
    own = weights.locate(parsed.what) / "checkpoints" / "classifier"
    source = recipe.classifier.source or (str(own) if is_run(parsed.what) else recipe.weights.get("classifier"))
    return (None, "") if source is None else (load_classifier(source, test, **recipe.classifier.options()), Path(source).name)


def _written(parsed: argparse.Namespace, path: Path, channels: int) -> str:
    shape = f"(batch, {channels}, {parsed.size or 'height'}, {parsed.size or 'width'})"
    opset = f", opset {parsed.opset}" if parsed.format == "onnx" else ""
    gives = "logits" if parsed.classifier else "purified images"
    return f"{path}: {_megabytes(path)}{opset}; images, float32 {shape} in [0,1] -> {gives}"


def _checked(exported) -> str:  # type: ignore[no-untyped-def]
    shapes = " and ".join("x".join(map(str, shape)) for shape in exported.shapes)
    return f"checked against PyTorch on random images {shapes}: off by at most {exported.difference:.1e}"


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
