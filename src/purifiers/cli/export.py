"""``purifiers export``."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from purifiers.cli import options
from purifiers.cli.common import recipe_behind
from purifiers.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from purifiers.data import ImageSet
    from purifiers.recipes.schema import Recipe

CALIBRATION = 256
"""Training images from which the ranges of 8-bit activations are taken."""
MEASURED = 1000
"""Test images, at most, on which 8 bits are compared with float."""


def export(
    purifier: options.WhatOrHub,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .onnx, or .pt2 with --format torch.")],
    *,
    changes: options.Changes,
    format: Annotated[Literal["onnx", "torch"], typer.Option(help="ONNX, or a program of torch.export.")] = "onnx",
    opset: Annotated[int, typer.Option(metavar="N", help="Version of ONNX's operators.")] = 18,
    recipe: options.BehindRecipe = None,
    size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Take images of N by N pixels only, as some classifiers do.")
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Quantise to 8 bits, calibrated on training images, and report the loss on test images."),
    ] = False,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Images for --int8, one subfolder per class.", show_default="the data it was trained on"
        ),
    ] = None,
) -> None:
    """Write a purifier as one ONNX file, or for torch.export.

    Write a purifier, alone or with a classifier behind it, as one file for other programs. It takes images, float32
    (batch, 3, height, width) in [0,1], of any number and size, and returns purified images or logits. The file is compared
    with PyTorch before it gets its name. Needs pip install 'purifiers[onnx]'.
    """
    from purifiers.console import say
    from purifiers.export.program_file import about, export_onnx, export_torch, exportable
    from purifiers.export.quantise import quantisation_loss, quantise
    from purifiers.purifier import Purifier

    ending = {"onnx": ".onnx", "torch": ".pt2"}[format]
    if target.suffix != ending or target.is_dir():
        raise ConfigError(f"{target}: expected a file that ends in {ending} (--format {format})")
    if format == "torch" and int8:
        raise ConfigError("--int8 is for ONNX: not with --format torch")
    classifier = changes.classifier
    if not (int8 or classifier):
        changes.refuse_unused("--int8 or a --classifier", recipe=recipe, images=images)
    loaded = Purifier.from_pretrained(purifier)
    exportable(loaded)  # before data are read
    overrides = changes.overrides(images=images)
    overrides += [("data.size", size)] if images and size else []
    known = recipe_behind(purifier, recipe, overrides)
    if int8 and known.data.name == "folder" and known.data.path is None:
        raise ConfigError(
            f"8 bits are calibrated on images, and the data of '{purifier}' are unknown: give --images DIR, with one subfolder "
            "per class"
        )
    model = exportable(loaded, _classifier(known, size) if classifier else None)
    channels = getattr(loaded.network, "config", {}).get("channels", 3)
    metadata = about(Path(purifier).resolve().name, loaded, classifier)
    loss = None
    if format == "torch":
        exported = export_torch(model, target, size=size, channels=channels)
    elif not int8:
        exported = export_onnx(model, target, metadata, opset=opset, size=size, channels=channels)
    else:
        calibration, test = _images(known, "train", CALIBRATION), _images(known, "test", MEASURED)
        judge, judge_name = (None, classifier) if classifier or images else _judge(known, purifier, test)
        with TemporaryDirectory() as folder:
            whole = Path(folder) / "float.onnx"
            exported = export_onnx(model, whole, metadata, opset=opset, size=size, channels=channels)
            quantise(whole, target, calibration, metadata | {"quantised": "8 bits, static"})
            loss = quantisation_loss(whole, target, test, judge)
            say(f"in float: {_megabytes(whole)}")
    form = f"float32 (batch, {channels}, {size or 'height'}, {size or 'width'}) in [0,1]"
    version = f", opset {opset}" if format == "onnx" else ""
    say(f"{target}: {_megabytes(target)}{version}; images, {form} -> {'logits' if classifier else 'purified images'}")
    shapes = " and ".join("x".join(map(str, shape)) for shape in exported.shapes)
    checked = f"checked against PyTorch on random images {shapes}: off by at most {exported.difference:.1e}"
    say(f"float, {checked}" if int8 else checked)
    if loss is None:
        return
    say(f"8 bits, on {loss.n:,} test images of {test.name}, against float: outputs off by at most {loss.largest:.3g}")
    if loss.psnr is not None:
        say(f"purified images: {loss.psnr:.1f} dB PSNR to float's")
    if loss.accuracy is not None and loss.agreement is not None:
        before, after = loss.accuracy
        say(
            f"accuracy with {judge_name}: {before:.2%} in float, {after:.2%} in 8 bits; the same class for {loss.agreement:.2%}"
        )


def _images(recipe: "Recipe", split: Literal["train", "test"], limit: int) -> "ImageSet":
    from purifiers.data import load_images
    from purifiers.seeds import seed_for

    config = recipe.data
    data = load_images(config.name, split, **config.source())
    own = config.limit if split == "train" else config.test_limit
    return data.limited(min(limit, own or limit), seed_for(recipe.seed, split, "export"))


def _classifier(recipe: "Recipe", size: int | None) -> "nn.Module":
    """The classifier to put behind the purifier."""
    from purifiers.classifiers.load import load_classifier
    from purifiers.data import placeholder

    assert recipe.classifier.source is not None
    data = recipe.data.model_copy(update={"size": size}) if size else recipe.data
    return load_classifier(recipe.classifier.source, placeholder(data.name, **data.source()), **recipe.classifier.options())


def _judge(recipe: "Recipe", purifier: str, test: "ImageSet") -> tuple["nn.Module | None", str]:
    """The classifier that the purifier was trained for, and its name; None where it is unknown."""
    from purifiers import weights
    from purifiers.classifiers.load import load_classifier
    from purifiers.runs import is_run

    own = weights.locate(purifier) / "checkpoints" / "classifier"
    source = recipe.classifier.source or (str(own) if is_run(purifier) else recipe.weights.get("classifier"))
    return (None, "") if source is None else (load_classifier(source, test, **recipe.classifier.options()), Path(source).name)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
