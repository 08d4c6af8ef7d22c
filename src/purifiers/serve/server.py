"""The purifier as a service over HTTP, on LitServe (``pip install 'purifiers[serve]'``).

Importing this module raises ConfigError where that library is not installed.
"""

import logging
import math
import os
import signal
import socket
import time
from collections.abc import Sequence
from queue import Empty, Queue
from typing import Any

import numpy as np
import torch
from torch import nn

from purifiers.bulk.pieces import BATCH_PIXELS, purify_pixels, refuse_other_channels
from purifiers.classifiers.load import load_classifier
from purifiers.data import DATASETS, placeholder
from purifiers.errors import ConfigError, ServiceError, require
from purifiers.purifier import Purifier
from purifiers.recipes.schema import Recipe
from purifiers.registry import place
from purifiers.serve.endpoints import Answer, ImageSpec, Limits, add_routes

require("litserve")
from litserve import LitAPI, LitServer  # noqa: E402
from litserve.loops.simple_loops import BatchedLoop  # noqa: E402

HOSTS = ("127.0.0.1", "0.0.0.0", "::")
"""What LitServe binds to: this machine alone, or every address of it."""
IDLE = 1.0
"""Seconds that the worker waits for a request at a time."""

logger = logging.getLogger("litserve.purifiers")


def serve(
    what: str,
    *,
    recipe: Recipe | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_batch_size: int = 16,
    batch_timeout: float = 0.01,
    limits: Limits | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Serve a purifier over HTTP until SIGTERM or Ctrl-C; what is in flight is answered first.

    ``POST /purify``: an image in, a PNG out. ``POST /classify``, with a classifier: scores. ``/health``, ``/metrics``,
    ``/docs``, ``/openapi.json``.

    Args:
        what: a run's folder, a shipped purifier's name, or a saved one's folder.
        recipe: its ``classifier``, with a source, goes behind the purifier; its ``data`` tell the classes. None: none is.
        host: one of ``HOSTS``.
        port: 1024 to 65535.
        max_batch_size: images that are purified together, at most.
        batch_timeout: seconds that the first image of a batch waits for others.
        limits: what is refused.
        device: cpu, cuda:N or mps.

    Raises:
        ConfigError: a host or port that cannot be bound; a classifier that cannot be loaded.
        MissingFileError, CheckpointError: see :meth:`Purifier.from_pretrained`.
        ServiceError: the worker did not start, or died.
    """
    _refuse_address(host, port)
    refuse_other_channels(Purifier.from_pretrained(what))
    limits = limits or Limits()
    spec = ImageSpec(limits, DATASETS[recipe.data.name].class_names(recipe.data.path) if recipe else None, recipe is not None)
    api = PurifyAPI(what, recipe, spec, max_batch_size, batch_timeout)
    if recipe is not None:
        api.load_classifier()  # what is wrong with it is told here and not in the worker
    kind = torch.device(device)
    server = LitServer(
        api,
        accelerator=kind.type,
        devices=[kind.index or 0] if kind.type == "cuda" else 1,
        timeout=limits.timeout,
        max_payload_size=limits.max_bytes,
    )
    add_routes(server, spec, api)
    _run(server, host, port)


def _refuse_address(host: str, port: int) -> None:
    if host not in HOSTS or not 1024 <= port <= 65535:
        raise ConfigError(f"the host is one of {', '.join(HOSTS)}, the port 1024 to 65535; got {host}, {port}")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot serve on {host}, port {port}: {error.strerror}; give another --port") from error


def _run(server: LitServer, host: str, port: int) -> None:
    """Run until a signal. LitServe ends in order on KeyboardInterrupt alone, and its processes inherit our handler."""
    own = os.getpid()

    def stop(*_: object) -> None:
        if os.getpid() == own:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # One process for HTTP, which counts the queue and the metrics, beside the worker's.
        server.run(host=host, port=port, num_api_servers=1, generate_client_file=False)
    except KeyboardInterrupt:  # before the first request could be taken
        pass
    except (RuntimeError, EOFError, ConnectionError) as error:
        raise ServiceError(f"the worker did not start or died ({str(error) or type(error).__name__}); see the log") from error
    finally:
        for worker in getattr(server, "inference_workers", ()):
            worker.terminate()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Loop(BatchedLoop):  # type: ignore[misc]
    """LitServe's loop in batches, which waits for the first request asleep: LitServe's own asks a thousand times a second."""

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: "Queue[Any]", transport: object
    ) -> tuple[list[tuple[int, str, Any]], list[tuple[int, str]]]:
        """The next requests, and those that waited too long; up to ``max_batch_size`` within ``batch_timeout`` of the first."""
        taken: list[tuple[int, str, Any]] = []
        late: list[tuple[int, str]] = []
        until = None
        while len(taken) < lit_api.max_batch_size:
            wait = IDLE if until is None else max(0.0, until - time.monotonic())
            try:
                queue, uid, since, payload = request_queue.get(timeout=wait)
            except Empty:
                break
            until = until or time.monotonic() + lit_api.batch_timeout
            if time.monotonic() - since > lit_api.request_timeout:
                late.append((queue, uid))
            else:
                taken.append((queue, uid, payload))
        return taken, late


class PurifyAPI(LitAPI):  # type: ignore[misc]
    """The worker: its own process, in which the purifier and the classifier live."""

    def __init__(self, what: str, recipe: Recipe | None, spec: ImageSpec, max_batch_size: int, batch_timeout: float) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout, loop=_Loop(), spec=spec)
        self.what = what
        self.recipe = recipe

    def load_classifier(self) -> nn.Module:
        """The recipe's classifier; see :func:`purifiers.classifiers.load.load_classifier`."""
        assert self.recipe is not None
        config = self.recipe.classifier
        assert config.source is not None
        return load_classifier(config.source, placeholder(**self.recipe.data.place()), **config.options())

    def setup(self, device: str) -> None:
        """Load everything; LitServe calls this in the worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; this one is still needed then
        self.purifier = Purifier.from_pretrained(self.what).placed(device)
        self.classifier = place(self.load_classifier(), device) if self.recipe is not None else None

    def decode_request(self, request: tuple[np.ndarray, bool]) -> tuple[np.ndarray, bool]:
        """Nothing: the process for HTTP has decoded it, so that a bad image spoils no batch."""
        return request

    def batch(self, inputs: list[tuple[np.ndarray, bool]]) -> list[tuple[np.ndarray, bool]]:
        """Nothing: sizes differ."""
        return inputs

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """Nothing."""
        return output

    def encode_response(self, output: Answer) -> Answer:
        """Nothing: the process for HTTP does."""
        return output

    def predict(self, x: list[tuple[np.ndarray, bool]]) -> list[Answer]:
        """Answers, in order; images of one size and one purpose go through the networks together."""
        groups: dict[tuple[tuple[int, ...], bool], list[int]] = {}
        for place_in_batch, (pixels, classify) in enumerate(x):
            groups.setdefault((pixels.shape, classify), []).append(place_in_batch)
        answers = [Answer()] * len(x)
        for (shape, classify), places in groups.items():
            images = torch.from_numpy(np.stack([x[i][0] for i in places]))
            for i, answer in zip(places, self.answers(images, shape, classify), strict=True):
                answers[i] = Answer(answer.pixels, answer.scores, answer.failure, len(x) if i == 0 else None)
        return answers

    def answers(self, images: torch.Tensor, shape: Sequence[int], classify: bool) -> list[Answer]:
        """Answers to images of one size, uint8 (N, 3, H, W)."""
        try:
            if not classify:
                return [Answer(pixels=pixels) for pixels in purify_pixels(self.purifier, images).numpy()]
            assert self.classifier is not None
            purified = purify_pixels(self.purifier, images, torch.float32).to(self.device or "cpu")
            with torch.no_grad():
                parts = purified.split(max(1, BATCH_PIXELS // (shape[1] * shape[2])))
                scores = torch.cat([self.classifier(part).softmax(1) for part in parts])
            return [
                Answer(scores=row) if all(map(math.isfinite, row)) else Answer(failure="the classifier's scores are not finite")
                for row in scores.cpu().tolist()
            ]
        except Exception:  # of whatever kind a foreign classifier raises
            if len(images) > 1:
                return [answer for image in images.split(1) for answer in self.answers(image, shape, classify)]
            logger.exception("an image of %d x %d failed", shape[2], shape[1])
            part = "the purifier or the classifier" if classify else "the purifier"
            return [Answer(failure=f"{part} cannot take an image of {shape[2]} x {shape[1]}")]
