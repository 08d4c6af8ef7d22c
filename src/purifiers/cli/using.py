"""``purifiers export``, ``purify``, ``serve`` and ``app``."""

import os
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from purifiers import weights
from purifiers.cli import options
from purifiers.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from purifiers.data import ImageSet
    from purifiers.recipes.schema import Recipe
    from purifiers.serve.models import Models

CALIBRATION = 256  # training images from which the ranges of 8-bit activations are taken
MEASURED = 1000  # test images, at most, on which 8 bits are compared with float
TOKEN = "PURIFIERS_TOKEN"  # the environment variable that holds what requests to the service have to bring
LISTED = 20  # failures that 'purify' prints; all are in a file


def _recipe_behind(what: str, recipe: str | None, overrides: options.Overrides) -> "Recipe":
    """The recipe of the purifier ``what``; where that is unknown, the one for a folder of images."""
    from purifiers.recipes.load import load_recipe
    from purifiers.runs import recipe_of

    return load_recipe(recipe_of(what, recipe) or "folder", overrides)


def _classifier_of(recipe: "Recipe", size: int | None = None) -> "nn.Module":
    """The classifier that ``recipe`` names, tried on noise, of images of ``size``, by default the recipe's."""
    from purifiers.classifiers.load import load_classifier
    from purifiers.data import placeholder

    noise = placeholder(recipe.data.name, **recipe.data.source() | ({"size": size} if size else {}))
    return load_classifier(str(recipe.classifier.source), noise, **recipe.classifier.options())


def _images(recipe: "Recipe", split: Literal["train", "test"], limit: int) -> "ImageSet":
    from purifiers.data import load_images
    from purifiers.seeds import seed_for

    data, own = recipe.data, recipe.data.limit if split == "train" else recipe.data.test_limit
    seed = seed_for(recipe.seed, split, "export")
    return load_images(data.name, split, limit=min(limit, own or limit), seed=seed, **data.source())


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
) -> None:
    """Export a purifier to one file, for ONNX or torch.export.

    Write a purifier, alone or with a classifier behind it, as one file for other programs. It takes images, float32
    (batch, 3, height, width) in [0,1], of any number and size, and returns purified images or logits. The file is checked
    against PyTorch before it is saved. ONNX needs pip install
    'purifiers[onnx]'; --classifier and --int8 also need 'purifiers[research]'.
    """
    from purifiers.bulk.pieces import refuse_other_channels
    from purifiers.console import say
    from purifiers.export.program_file import about, export_onnx, export_torch, exportable
    from purifiers.networks.network import channels_of
    from purifiers.purifier import Purifier

    ending = {"onnx": ".onnx", "torch": ".pt2"}[format]
    if target.suffix != ending or target.is_dir():
        raise ConfigError(f"{target}: expected a file that ends in {ending} (--format {format})")
    if format == "torch" and int8:
        raise ConfigError("--int8 is for ONNX: not with --format torch")
    classifier = changes.classifier
    if not (int8 or classifier):
        changes.refuse_unused("--int8 or a --classifier", recipe=recipe)
    loaded = Purifier.from_pretrained(purifier)
    exportable(loaded)  # before data are read
    behind = None
    if int8:
        refuse_other_channels(loaded)  # as the images are RGB
    if int8 or classifier:  # these need the packages for research, a purifier alone does not
        overrides = changes.overrides() + ([("data.size", size)] if changes.images and size else [])
        known = _recipe_behind(purifier, recipe, overrides)
        if int8 and known.data.name == "folder" and known.data.path is None:
            raise ConfigError(f"8 bits are calibrated on images, and the data of '{purifier}' are unknown: give --images DIR")
        behind = _classifier_of(known, size) if classifier else None
    model = exportable(loaded, behind)
    channels = channels_of(loaded.network) or 3
    metadata = about(Path(purifier).resolve().name, loaded, classifier)
    if int8:
        from purifiers.classifiers.load import completed, load_classifier
        from purifiers.export.quantise import quantisation_loss, quantise
        from purifiers.runs import is_run

        calibration, test = _images(known, "train", CALIBRATION), _images(known, "test", MEASURED)
        if size and {*calibration.images.shape[2:]} != {size}:
            found = "{} by {}".format(*calibration.images.shape[2:])
            raise ConfigError(f"--size {size}: 8 bits are calibrated on images of {known.data.name}, which are {found}")
        own = weights.locate(purifier) / "checkpoints" / "classifier"
        trained_for = known.classifier.source or (str(own) if is_run(purifier) else known.weights.get("classifier"))
        judge = None
        if trained_for and not (classifier or changes.images):
            judge = load_classifier(trained_for, test, **known.classifier.options())
        if predicts := behind or judge:
            test = completed(test, predicts)
    with TemporaryDirectory() as folder:
        if format == "torch":
            difference = export_torch(model, target, size=size, channels=channels)
        else:
            whole = Path(folder) / "float.onnx" if int8 else target
            difference = export_onnx(model, whole, metadata, opset=opset, size=size, channels=channels)
        if int8:
            quantise(whole, target, calibration, metadata | {"quantised": "8 bits, static"})
            loss = quantisation_loss(whole, target, test, judge)
            say(f"in float: {whole.stat().st_size / 1e6:.1f} MB")
    form = f"float32 (batch, {channels}, {size or 'height'}, {size or 'width'}) in [0,1]"
    about_it = f"{target.stat().st_size / 1e6:.1f} MB" + (f", opset {opset}" if format == "onnx" else "")
    say(f"{target}: {about_it}; images, {form} -> {'logits' if classifier else 'purified images'}")
    checked = f"checked against PyTorch on random images: off by at most {difference:.1e}"
    say(f"float, {checked}" if int8 else checked)
    if int8:
        say(f"8 bits, on {loss.n:,} test images of {test.name}, against float: outputs off by at most {loss.largest:.3g}")
        if loss.psnr is not None:
            say(f"purified images: {loss.psnr:.1f} dB PSNR to float's")
        if loss.shares is not None:
            shares = "{:.2%} in float, {:.2%} in 8 bits; the same class for {:.2%}".format(*loss.shares)
            say(f"accuracy with {classifier or Path(str(trained_for)).name}: {shares}")


def purify(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="An image file, or a folder of them; with --engine ray also URLs.")
    ],
    target: Annotated[str, typer.Argument(metavar="OUT", help="Where to write: a file for a file, a folder for a folder.")],
    purifier: Annotated[
        str,
        typer.Option(metavar="NAME|DIR", help="A shipped purifier (such as cifar10), or the --output of 'purifiers train'."),
    ],
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Purify again what is there already, and replace files that were not written here."),
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write the original, the purified image and their difference side by side."),
    ] = None,
    max_pixels: options.MaxPixels = 50_000_000,
    engine: Annotated[
        Literal["threads", "ray"], typer.Option(help="This machine; or a Ray cluster, also for Parquet and WebDataset shards.")
    ] = "threads",
    device: options.Device = "auto",
    on_error: Annotated[
        Literal["skip", "stop"], typer.Option(help="Skip and list files that cannot be read or written, or stop at the first.")
    ] = "skip",
    shard: options.ShardOfWork = None,
) -> None:
    """Clean image files with a purifier.

    Purify an image, or every image below a folder, into PNG files of the same names. Files that are there already are
    skipped, so that the same command resumes after an interruption; they are written again for another purifier or a changed
    image. Files that cannot be read or written are listed at the end and in OUT/failed.txt, with exit status 1.
    """
    from purifiers.bulk.purify_files import purify_files
    from purifiers.console import say
    from purifiers.data.files import counted
    from purifiers.device import find_device
    from purifiers.purifier import Purifier

    loaded = Purifier.from_pretrained(purifier)
    if getattr(loaded.network, "redraws", False):
        warning = (
            f"warning: '{purifier}' draws each image anew from a latent: details are lost, look at the results (--compare)"
        )
        typer.echo(f"purifiers: {warning}", err=True)
    place = Path(target)
    if engine == "ray":
        from purifiers.interop.on_ray import purify_on_ray

        if compare is not None or shard is not None or on_error != "skip":
            raise ConfigError("--compare, --shard and --on-error are for --engine threads")
        result = purify_on_ray(loaded, source, target, overwrite=overwrite, max_pixels=max_pixels, device=device)
    else:
        share, one = options.find_shard(shard), Path(source)
        if target.endswith(("/", os.sep)) and one.is_file():
            place /= f"{one.stem}.png"
        loaded = loaded.to(find_device(device))
        result = purify_files(
            loaded, one, place, overwrite=overwrite, max_pixels=max_pixels, compare=compare, on_error=on_error, shard=share
        )
    say(f"{result.purified} purified, {result.skipped} there already, {len(result.failed)} failed")
    if result.replaced:
        say(f"{result.replaced} were written by another purifier, or of another or older image, and were replaced")
    if remarks := counted(result.remarks):
        say(f"left out or changed: {remarks}")
    for failure in result.failed[:LISTED]:
        typer.echo(f"purifiers: {failure}", err=True)
    if len(result.failed) > LISTED:
        typer.echo(f"purifiers: and {len(result.failed) - LISTED} more: see {place / 'failed.txt'}", err=True)
    if result.failed:
        raise typer.Exit(1)


def serve(
    purifier: options.WhatOrHub,
    *,
    changes: options.Changes,
    recipe: options.BehindRecipe = None,
    host: options.Host = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=1, help="Port to listen on.")] = 8000,
    max_batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images that are purified together.")] = 16,
    batch_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            parser=options.reader(float, "seconds from 0 to 10", lambda seconds: 0 <= seconds <= 10),
            help="How long the first image of a batch waits for others.",
        ),
    ] = 0.002,
    max_bytes: Annotated[int, typer.Option(metavar="N", min=1, help="Refuse requests with a longer body.")] = 10_000_000,
    max_pixels: options.MaxPixels = 4_000_000,
    max_queue: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that wait; further ones get status 503.")] = 64,
    max_per_client: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests of one address at a time; further ones get status 429.")
    ] = None,
    device: options.Device = "auto",
) -> None:
    """Purify images over HTTP.

    POST an image to /purify, as the body or as the field 'image' of a form, to get a purified PNG; with --classifier, POST it
    to /classify to get scores. /docs describes the API; /health and /metrics are for monitoring. After SIGTERM or Ctrl-C the
    service answers all requests in flight and stops, with exit status 0.
    """
    from purifiers.console import say
    from purifiers.serve.connections import LimitedProtocol
    from purifiers.serve.endpoints import Service, make_app
    from purifiers.serve.server import serve_app
    from purifiers.serve.worker import Worker

    if not changes.classifier:
        changes.refuse_unused("a --classifier", recipe=recipe)
    token = os.environ.get(TOKEN, "").strip()  # a file that it was read from ends in a new line
    if TOKEN in os.environ and not token:
        raise ConfigError(f"{TOKEN} is set and empty, which would protect nothing: give it a value, or unset it")
    worker = Worker(partial(_served, purifier, changes, recipe, device, max_pixels))
    limits = (max_batch_size, batch_timeout, max_bytes, max_queue, max_per_client)
    service = Service(worker, bool(changes.classifier), *limits)

    def make() -> Any:
        worker.start()
        return make_app(service, token)

    try:
        serve_app(make, host, port, access_log=False, http=LimitedProtocol, timeout_graceful_shutdown=ceil(service.timeout))
    finally:
        worker.stop()
    say("stopped")


def _served(purifier: str, changes: options.Changes, recipe: str | None, device: str, max_pixels: int) -> "Models":
    """What the worker of the service does."""
    from purifiers.data import DATASETS
    from purifiers.device import find_device
    from purifiers.purifier import Purifier
    from purifiers.serve.models import Models

    classifier = names = None
    if changes.classifier:
        known = _recipe_behind(purifier, recipe, changes.overrides())
        classifier, names = _classifier_of(known), DATASETS[known.data.name].class_names(**known.data.source())
    return Models(Purifier.from_pretrained(purifier), classifier, names, find_device(device), max_pixels)


def app(
    purifier: options.What = "cifar10",
    *,
    changes: options.Changes,
    recipe: options.BehindRecipe = None,
    host: options.Host = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port to listen on; 0 for any free one.")] = 7860,
    device: options.Device = "auto",
) -> None:
    """Open a web page to attack images and purify them.

    On the page an image is attacked by an attacker who knows the classifier alone, or the purifier too; then it is purified
    and classified. It runs on this machine, contacts no other, and needs no data set. Needs pip install 'purifiers[app]'.
    Ctrl-C ends it.
    """
    from purifiers.app.page import Defence, serve_page
    from purifiers.app.samples import credit_of, samples_for
    from purifiers.console import say
    from purifiers.purifier import PurifiedClassifier
    from purifiers.reports.cards import robustness_summary
    from purifiers.runs import open_defended, own_classifier

    run = open_defended(purifier, changes.overrides(), Path(os.devnull), recipe, device, samples_for)  # writes no files
    place, student = weights.locate(purifier), run.purifiers["student"]
    name = place.resolve().name
    behind, behind_name = own_classifier(name, student) or (run.classifier, run.classifier_name)
    attacks = run.recipe.evaluation.attacks.values()
    defence = Defence(
        PurifiedClassifier(student, behind),
        name,
        behind_name,
        run.images("test"),
        credit_of(run.recipe),
        robustness_summary(place, behind_name if changes.classifier or recipe else None),
        next((attack.epsilon for attack in attacks if attack.norm == "linf" and attack.epsilon), 8 / 255),
    )
    serve_page(defence, host, port, lambda address: say(f"open {address}  (Ctrl-C ends it)"))
