"""The command that makes a file for other programs. As in :mod:`purifiers.cli.commands`, imports are inside."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from purifiers.cli import options
from purifiers.cli.commands import loaded
from purifiers.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from purifiers.data import ImageSet
    from purifiers.recipes import Recipe

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
    command.add_argument(
        "what", metavar="WHAT", help="a shipped purifier (cifar10), the --output of 'train', a saved folder, or owner/name"
    )
    command.add_argument("target", metavar="OUT", type=Path, help="the file to write: .onnx, or .pt2 with --format torch")
    command.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="(default: %(default)s)")
    command.add_argument("--opset", type=int, default=18, help="version of ONNX's operators (default: %(default)s)")
    command.add_argument(
        "--classifier", metavar="SOURCE", help="put this classifier behind the purifier: logits come out; see 'train --help'"
    )
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
    command.add_argument("--data-dir", metavar="DIR", help="where that data lies, e.g. CIFAR-10's batches")


def export(parsed: argparse.Namespace) -> int:
    """Write the file, check it, and say what it is."""
    from purifiers.console import say
    from purifiers.deploy.export import about, export_onnx, export_torch, exportable
    from purifiers.purifier import Purifier

    ending = {"onnx": ".onnx", "torch": ".pt2"}[parsed.format]
    if parsed.target.suffix != ending or parsed.target.is_dir():
        raise ConfigError(f"{parsed.target}: give a file that ends in {ending} (--format {parsed.format})")
    if parsed.format == "torch" and parsed.int8:
        raise ConfigError("--int8 is for ONNX: not with --format torch")
    if (parsed.images or parsed.data_dir) and not (parsed.int8 or parsed.classifier):
        raise ConfigError("--images and --data-dir are for --int8, or to try a --classifier on")
    purifier = Purifier.from_pretrained(parsed.what)
    exportable(purifier)  # what cannot be is told before data are read
    recipe = _recipe(parsed)
    if parsed.int8 and recipe is None:
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
    from purifiers.deploy.export import export_onnx
    from purifiers.deploy.quantise import quantisation_loss, quantise

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


def _recipe(parsed: argparse.Namespace) -> "Recipe | None":
    """The recipe that names data for WHAT: of the user's images, of the run, or of the training of a shipped purifier."""
    from purifiers import weights
    from purifiers.recipes import NAMES, load_recipe
    from purifiers.training.run import RECIPE_FILE, is_run

    sized = [("data.size", parsed.size)] if parsed.size else []
    if parsed.images:
        return loaded("folder", [("data.path", str(Path(parsed.images).resolve())), *sized])
    place = [("data.path", str(Path(parsed.data_dir).resolve()))] if parsed.data_dir else []
    if is_run(parsed.what):
        return loaded(weights.locate(parsed.what) / RECIPE_FILE, place)
    if parsed.what not in weights.PURIFIERS:
        return None
    shipped = next((name for name in NAMES if load_recipe(name).weights.get("student") == parsed.what), None)
    return None if shipped is None else loaded(shipped, place)


def _images(recipe: "Recipe", split, limit: int) -> "ImageSet":  # type: ignore[no-untyped-def]
    from purifiers.data import load_images
    from purifiers.seeds import seed_for

    config = recipe.data
    data = load_images(config.name, split, **config.source())
    own = config.limit if split == "train" else config.test_limit
    return data.limited(min(limit, own or limit), seed_for(recipe.seed, split, "export"))


def _classifier(parsed: argparse.Namespace, recipe: "Recipe | None") -> "nn.Module":
    """The one to put behind the purifier; it is tried on images, unless it is one of ours and none are needed."""
    from purifiers import weights
    from purifiers.registry import CONFIG_FILE, load_network
    from purifiers.training.classifier import load_classifier
    from purifiers.training.sources import is_transformers

    folder = weights.locate(parsed.classifier)
    if (folder / CONFIG_FILE).is_file() and not is_transformers(folder) and not parsed.images:
        return load_network(folder)
    if recipe is None:
        raise ConfigError(f"the classifier '{parsed.classifier}' is tried on images first: give --images DIR, or --data-dir")
    return load_classifier(parsed.classifier, recipe.classifier, _images(recipe, "test", MEASURED))


def _judge(parsed: argparse.Namespace, recipe: "Recipe", test: "ImageSet"):  # type: ignore[no-untyped-def]
    """The classifier that the purifier was trained for, and what it is called; None where it is not known."""
    from purifiers import weights
    from purifiers.training.classifier import load_classifier
    from purifiers.training.run import is_run

    if parsed.images:
        return None, ""
    own = weights.locate(parsed.what) / "checkpoints" / "classifier"
    source = recipe.classifier.source or (str(own) if is_run(parsed.what) else recipe.weights.get("classifier"))
    return (None, "") if source is None else (load_classifier(source, recipe.classifier, test), Path(source).name)


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
