"""The commands that put a purifier to use. As in :mod:`purifiers.cli.commands`, imports are inside."""

import argparse
import os
from pathlib import Path

from purifiers.cli import exporting, options
from purifiers.cli.commands import fail


def add_commands(add: options.Add) -> None:
    """Add them to the command line."""
    command = add(
        "purify",
        purify,
        "clean image files with a trained purifier",
        "Purify an image, or every image below a folder, into PNG files of the same names. Files that are there already "
        "are skipped; unreadable ones are listed at the end, with exit status 1.",
    )
    command.add_argument("source", metavar="IN", type=Path, help="an image file, or a folder of them")
    command.add_argument("target", metavar="OUT", help="where to write: a file for a file, a folder for a folder")
    command.add_argument(
        "--purifier", metavar="NAME|DIR", required=True, help="a shipped one (cifar10), or the --output of 'train'"
    )
    command.add_argument("--overwrite", action="store_true", help="purify again what is there already")
    options.add_device(command)

    exporting.add_command(add)


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
    result = purify_files(purifier, parsed.source, target, overwrite=parsed.overwrite)
    say(f"{result.purified} purified, {result.skipped} there already, {len(result.failed)} failed")
    for failure in result.failed:
        fail(failure)
    return 1 if result.failed else 0
