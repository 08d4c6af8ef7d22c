"""``purifiers serve``."""

from typing import Annotated

import typer

from purifiers.cli import options
from purifiers.cli.common import recipe_behind


def serve(
    purifier: options.WhatOrHub,
    *,
    changes: options.Changes,
    recipe: options.BehindRecipe = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen: 127.0.0.1 is this machine alone; 0.0.0.0 or :: is all.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=1, help="Its port.")] = 8000,
    max_batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images that are purified together.")] = 16,
    batch_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, max=10, help="How long the first image of a batch waits for others.")
    ] = 0.01,
    max_bytes: Annotated[int, typer.Option(metavar="N", min=1, help="Refuse requests with a longer body.")] = 10_000_000,
    max_pixels: options.MaxPixels = 4_000_000,
    max_queue: Annotated[int, typer.Option(metavar="N", min=1, help="Requests at a time; further ones get status 503.")] = 64,
    device: options.Device = "auto",
) -> None:
    """Purify images over HTTP.

    POST an image to /purify, as the body or as the field 'image' of a form, to get a purified PNG; with --classifier, POST it
    to /classify to get scores. /docs describes the rest; /health and /metrics are for monitoring. SIGTERM and Ctrl-C stop the
    service, with exit status 0, when all requests in flight are answered.
    """
    from purifiers.console import say
    from purifiers.device import find_device
    from purifiers.serve import server
    from purifiers.serve.endpoints import Limits

    if not changes.classifier:
        changes.refuse_unused("a --classifier", recipe=recipe)
    server.serve(
        purifier,
        recipe=recipe_behind(purifier, recipe, changes.overrides()) if changes.classifier else None,
        host=host,
        port=port,
        max_batch_size=max_batch_size,
        batch_timeout=batch_timeout,
        limits=Limits(max_bytes=max_bytes, max_pixels=max_pixels, max_queue=max_queue),
        device=find_device(device),
    )
    say("stopped")
