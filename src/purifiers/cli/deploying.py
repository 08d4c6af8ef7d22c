"""The commands that put a purifier to use. As in :mod:`purifiers.cli.commands`, imports are inside."""

import argparse
import os
import sys
from pathlib import Path

from purifiers.cli import options
from purifiers.cli.commands import fail, recipe_behind, refuse_idle

LISTED = 20
"""Failures that are printed; all are in a file."""


def add_commands(add: options.Add) -> None:
    """Add them to the command line."""
    command = add(
        "purify",
        purify,
        "clean image files with a trained purifier",
        "Purify an image, or every image below a folder, into PNG files of the same names. What is there already is skipped, "
        "so that the same command goes on after an interruption; it is made again for another purifier or a changed image. "
        "Unreadable files stop nothing: they are listed at the end and in OUT/failed.txt, with exit status 1.",
    )
    command.add_argument("source", metavar="IN", type=Path, help="an image file, or a folder of them")
    command.add_argument("target", metavar="OUT", help="where to write: a file for a file, a folder for a folder")
    command.add_argument(
        "--purifier", metavar="NAME|DIR", required=True, help="a shipped one (cifar10), or the --output of 'train'"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="purify again what is there already, and replace files that are not from here"
    )
    command.add_argument(
        "--compare",
        metavar="DIR",
        type=Path,
        help="also write the original, the purified image and their difference side by side",
    )
    add_max_pixels(command, default=50_000_000)
    options.add_device(command)

    command = add(
        "serve",
        serve,
        "purify images over HTTP",
        "POST an image to /purify, as the body or as the field 'image' of a form, and get a purified PNG; with --classifier, "
        "POST it to /classify and get scores. See /docs for the rest, and /health and /metrics to watch it. "
        "SIGTERM and Ctrl-C stop it with exit status 0 once everything in flight is answered.",
    )
    options.add_what(command, hub=True)
    options.add_behind(command)
    options.add_set(command)
    command.add_argument("--host", default="127.0.0.1", help="127.0.0.1: this machine alone (the default); 0.0.0.0 or ::: all")
    command.add_argument("--port", type=options.count, default=8000, help="(default: %(default)s)")
    command.add_argument(
        "--max-batch-size",
        metavar="N",
        type=options.count,
        default=16,
        help="images that are purified together (default: %(default)s)",
    )
    command.add_argument(
        "--batch-timeout",
        metavar="SECONDS",
        type=seconds,
        default=0.01,
        help="how long the first image of a batch waits for others (default: %(default)s)",
    )
    command.add_argument(
        "--max-bytes",
        metavar="N",
        type=options.count,
        default=10_000_000,
        help="refuse requests with a longer body (default: 10_000_000)",
    )
    add_max_pixels(command, default=4_000_000)
    command.add_argument(
        "--max-queue",
        metavar="N",
        type=options.count,
        default=64,
        help="requests at once; one more is told to come back later (default: %(default)s)",
    )
    options.add_device(command)


def seconds(text: str) -> float:
    """A time of 0 to 10 seconds."""
    value = float(text)
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"0 to 10 seconds, please; got {text}")
    return value


def add_max_pixels(command: argparse.ArgumentParser, default: int) -> None:
    """The largest image."""
    command.add_argument(
        "--max-pixels",
        metavar="N",
        type=options.count,
        default=default,
        help=f"refuse images of more pixels, before they are decoded (default: {default:_})",
    )


def purify(parsed: argparse.Namespace) -> int:
    """Clean image files."""
    from purifiers.bulk.purify_files import purify_files
    from purifiers.console import say
    from purifiers.device import find_device
    from purifiers.purifier import Purifier

    purifier = Purifier.from_pretrained(parsed.purifier).to(find_device(parsed.device))
    if getattr(purifier.network, "redraws", False):
        print(
            f"purifiers: warning: '{parsed.purifier}' draws images anew for its classifier, and people may see nothing in them "
            "(its card says how far from the original they are)",
            file=sys.stderr,
        )
    target = Path(parsed.target)
    if parsed.target.endswith(("/", os.sep)) and parsed.source.is_file():
        target = target / f"{parsed.source.stem}.png"
    result = purify_files(
        purifier, parsed.source, target, overwrite=parsed.overwrite, max_pixels=parsed.max_pixels, compare=parsed.compare
    )
    say(f"{result.purified} purified, {result.skipped} there already, {len(result.failed)} failed")
    if result.replaced:
        say(f"{result.replaced} had been made by another purifier, and were made again")
    if result.animated:
        say(f"{result.animated} hold several frames or pages: the first was purified")
    for failure in result.failed[:LISTED]:
        fail(failure)
    if len(result.failed) > LISTED:
        fail(f"and {len(result.failed) - LISTED} more: see {target / 'failed.txt'}")
    return 1 if result.failed else 0


def serve(parsed: argparse.Namespace) -> int:
    """Purify images over HTTP."""
    from purifiers.console import say
    from purifiers.device import find_device
    from purifiers.serve.endpoints import Limits
    from purifiers.serve.server import serve as serve_until_stopped

    if not parsed.classifier:
        refuse_idle(parsed, "a --classifier")
    limits = Limits(max_bytes=parsed.max_bytes, max_pixels=parsed.max_pixels, max_queue=parsed.max_queue)
    serve_until_stopped(
        parsed.what,
        recipe=recipe_behind(parsed) if parsed.classifier else None,
        host=parsed.host,
        port=parsed.port,
        max_batch_size=parsed.max_batch_size,
        batch_timeout=parsed.batch_timeout,
        limits=limits,
        device=find_device(parsed.device),
    )
    say("stopped")
    return 0
