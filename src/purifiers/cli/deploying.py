"""The commands that put a purifier to use. As in :mod:`purifiers.cli.commands`, imports are inside."""

import argparse
import os
from pathlib import Path

from purifiers.cli import options
from purifiers.cli.commands import fail

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
    from purifiers.console import say
    from purifiers.deploy.bulk import purify_files
    from purifiers.purifier import Purifier
    from purifiers.training.run import make_fabric

    purifier = Purifier.from_pretrained(parsed.purifier).to(make_fabric(parsed.device, "32-true").device)
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
