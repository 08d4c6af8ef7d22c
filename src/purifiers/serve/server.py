"""Serving a purifier over HTTP (``pip install 'purifiers[serve]'``)."""

import math
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import nn

from purifiers.bulk.pieces import refuse_other_channels
from purifiers.classifiers.load import load_classifier
from purifiers.data import DATASETS, placeholder
from purifiers.errors import explain_missing
from purifiers.purifier import Purifier
from purifiers.registry import place
from purifiers.serve.address import bind
from purifiers.serve.endpoints import Limits, Service, make_app

with explain_missing():
    import uvicorn

if TYPE_CHECKING:
    from purifiers.recipes.schema import Recipe

KEY = "PURIFIERS_API_KEY"
"""The environment variable that holds the key for requests."""


def serve(
    what: str,
    *,
    recipe: "Recipe | None" = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_batch_size: int = 16,
    batch_timeout: float = 0.01,
    limits: Limits | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Serve a purifier over HTTP until SIGTERM or Ctrl-C; requests in flight are completed first.

    ``POST /purify``: an image in, a PNG out. ``POST /classify``, with a classifier: scores. ``/health``, ``/metrics``,
    ``/docs``, ``/openapi.json``.

    Args:
        what: a run's folder, a shipped purifier's name, or a saved one's folder.
        recipe: its ``classifier``, with a source, goes behind the purifier; its ``data`` name the classes. None: no classifier.
        host: an address of this machine; ``0.0.0.0`` or ``::`` for all of them.
        max_batch_size, batch_timeout, limits: see :class:`Service`.

    Raises:
        ConfigError: a host or port that cannot be bound; a classifier that cannot be loaded.
        MissingFileError, CheckpointError: see :meth:`Purifier.from_pretrained`.
    """
    limits = limits or Limits()
    with bind(host, port) as bound:
        purifier = Purifier.from_pretrained(what).placed(device)
        refuse_other_channels(purifier)
        classifier = names = None
        if recipe is not None:
            classifier = place(recipe_classifier(recipe), device)
            names = DATASETS[recipe.data.name].class_names(recipe.data.path)
        app = make_app(Service(purifier, classifier, device, names, limits, max_batch_size, batch_timeout), os.environ.get(KEY))
        server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=math.ceil(limits.timeout)))
        # uvicorn raises the signal that stopped it once more when it has shut down.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with suppress(KeyboardInterrupt):
                server.run(sockets=[bound])
        finally:
            signal.signal(signal.SIGTERM, before)


def recipe_classifier(recipe: "Recipe") -> nn.Module:
    """The classifier that ``recipe`` names, tried on noise; see :func:`purifiers.classifiers.load.load_classifier`."""
    data, classifier = recipe.data, recipe.classifier
    assert classifier.source is not None
    return load_classifier(classifier.source, placeholder(data.name, **data.source()), **classifier.options())
