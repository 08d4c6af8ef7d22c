"""``purifiers purify``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from purifiers.cli import options

LISTED = 20
"""Failures that are printed; all are in a file."""


def purify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image file, or a folder of them.")],
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
    device: options.Device = "auto",
) -> None:
    """Clean image files with a purifier.

    Purify an image, or every image below a folder, into PNG files of the same names. Files that are there already are
    skipped, so that the same command resumes after an interruption; they are written again for another purifier or a changed
    image. Unreadable files do not stop the command: they are listed at the end and in OUT/failed.txt, with exit status 1.
    """
    from purifiers.bulk.purify_files import purify_files
    from purifiers.console import say
    from purifiers.device import find_device
    from purifiers.purifier import Purifier

    loaded = Purifier.from_pretrained(purifier).to(find_device(device))
    if getattr(loaded.network, "redraws", False):
        typer.echo(
            f"purifiers: warning: the output of '{purifier}' is made for its classifier and is not human-readable", err=True
        )
    place = Path(target)
    if target.endswith(("/", os.sep)) and source.is_file():
        place /= f"{source.stem}.png"
    result = purify_files(loaded, source, place, overwrite=overwrite, max_pixels=max_pixels, compare=compare)
    say(f"{result.purified} purified, {result.skipped} there already, {len(result.failed)} failed")
    if result.replaced:
        say(f"{result.replaced} were written by another purifier, and were replaced")
    if result.animated:
        say(f"{result.animated} have several frames or pages: the first was purified")
    if result.dark:
        say(f"{result.dark} are 16-bit grey that uses 12 bits at most, and so nearly black: scale them to 16 bits first")
    for failure in result.failed[:LISTED]:
        typer.echo(f"purifiers: {failure}", err=True)
    if len(result.failed) > LISTED:
        typer.echo(f"purifiers: and {len(result.failed) - LISTED} more: see {place / 'failed.txt'}", err=True)
    if result.failed:
        raise typer.Exit(1)
