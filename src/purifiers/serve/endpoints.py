"""The HTTP application: validation, queueing, responses (``pip install 'purifiers[serve]'``)."""

import asyncio
import io
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from purifiers.bulk.pieces import BATCH_PIXELS, purify_pixels, refuse_other_channels
from purifiers.data.files import read_rgb
from purifiers.errors import DataError, ImageTooLargeError, InputError, explain_missing
from purifiers.purifier import Purifier
from purifiers.registry import place
from purifiers.serve.batching import Batcher, Function
from purifiers.version import __version__

with explain_missing():
    import python_multipart  # noqa: F401 - Starlette reads forms with it
    from fastapi import Depends, FastAPI, Request, Response, Security
    from fastapi.responses import JSONResponse, PlainTextResponse
    from fastapi.security import APIKeyHeader
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.types import Message

FIELD = "image"
FORM = "multipart/form-data"
RETRY_AFTER = 1
"""Seconds after which a client that found the queue full should retry."""


class PNG(Response):
    """What ``/purify`` returns, made of uint8 (3, H, W)."""

    media_type = "image/png"

    def render(self, content: np.ndarray) -> bytes:
        """The file."""
        buffer = io.BytesIO()
        Image.fromarray(content.transpose(1, 2, 0)).save(buffer, "PNG")
        return buffer.getvalue()


class Refusal(HTTPException):
    """An error response: its status, the reason for the metrics, and a message for the client."""

    def __init__(self, status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.reason = reason


@dataclass
class Service:
    """A purifier and a classifier behind it, with their queue and metrics; ConfigError if the purifier does not take RGB."""

    purifier: Purifier
    classifier: nn.Module | None = None  # without one there is no /classify
    device: torch.device | str = "cpu"  # both are put there
    names: Sequence[str] | None = None  # of the classes
    batch_size: int = 16  # images that are processed together, at most
    batch_timeout: float = 0.01  # seconds that the first image of a batch waits for others
    max_bytes: int = 10_000_000  # of a request's body
    max_pixels: int = 4_000_000  # width times height of an image
    max_queue: int = 64  # requests that are being read, queued or processed; one more is refused
    timeout: float = 30.0  # seconds for a request, from its first byte to the response

    def __post_init__(self) -> None:
        refuse_other_channels(self.purifier.placed(self.device))
        if self.classifier is not None:
            self.classifier = place(self.classifier, self.device)
        self.waiting = 0
        self.registry = of = CollectorRegistry()
        self.requests = Counter("purifiers_requests", "Requests, by route and HTTP status.", ("route", "status"), registry=of)
        self.seconds = Histogram("purifiers_request_seconds", "From a request to its response.", ("route",), registry=of)
        self.refused = Counter("purifiers_refused", "Refused requests, by reason.", ("reason",), registry=of)
        waiting = Gauge("purifiers_waiting", "Requests that are being read, queued or processed.", registry=of)
        waiting.set_function(lambda: self.waiting)
        sizes = Histogram("purifiers_batch_size", "Images in a batch.", buckets=[2**i for i in range(8)], registry=of)
        self.batcher = Batcher(self.batch_size, self.batch_timeout, sizes.observe)

    async def purify(self, request: Request) -> PNG:
        """Purify an image. Transparency is shown over white. Returns a PNG of the same size."""
        return await asyncio.to_thread(PNG, await self.result(request, "purify", self.purified))

    async def classify(self, request: Request) -> JSONResponse:
        """Purify an image and classify the result. Returns the class, and the probability of each class (softmax)."""
        scores = await self.result(request, "classify", self.classified)
        best = int(np.argmax(scores))
        names = self.names if self.names and len(self.names) == len(scores) else None
        return JSONResponse({"class": best, "name": names and names[best], "scores": scores, "names": names})

    async def metrics(self) -> Response:
        """Counts and times, in Prometheus's format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def health(self) -> str:
        """200 when the service is ready."""
        return "ok"

    def purified(self, images: Tensor) -> Any:
        """Purified images, uint8 (3, H, W)."""
        return purify_pixels(self.purifier, images).numpy()

    def classified(self, images: Tensor) -> Any:
        """The probabilities of the classes, for each image; raises InputError if one is not finite."""
        assert self.classifier is not None
        purified = purify_pixels(self.purifier, images, torch.float32)
        parts = purified.to(self.device).split(max(1, BATCH_PIXELS // (images.shape[2] * images.shape[3])))
        with torch.no_grad():
            scores = torch.cat([self.classifier(part).softmax(1) for part in parts])
        if not scores.isfinite().all():
            raise InputError("the classifier's scores are not finite")
        return scores.tolist()

    async def result(self, request: Request, route: str, function: Function) -> Any:
        """Read and decode an image, and wait for its result; the metrics count it."""
        begun, status, limit = time.perf_counter(), 500, f"within {self.timeout:g} s"
        late = Refusal(408, "slow_request", f"the request was not complete {limit}", {"Connection": "close"})
        self.waiting += 1
        try:
            if self.waiting > self.max_queue:
                message = f"{self.max_queue} requests are waiting already; retry in {RETRY_AFTER} s"
                raise Refusal(503, "queue_full", message, {"Retry-After": str(RETRY_AFTER)})
            try:
                async with asyncio.timeout(self.timeout):
                    content = await self.content(request)
                    late = Refusal(504, "timeout", f"no response {limit}; the server is busy or the image large")
                    pixels = await asyncio.to_thread(self.decoded, content)
                    result = await self.batcher.submit(function, pixels)
            except TimeoutError as error:
                raise late from error
            except InputError as error:
                raise Refusal(422, "failed", str(error)) from error
            status = 200
            return result
        except HTTPException as error:
            status = error.status_code
            self.refused.labels(getattr(error, "reason", "malformed")).inc()
            raise
        finally:
            self.waiting -= 1
            self.requests.labels(route, str(status)).inc()
            self.seconds.labels(route).observe(time.perf_counter() - begun)

    async def content(self, request: Request) -> bytes:
        """The image file of a request: a field of its form, or else its body, whatever type that is called."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        message = f"the body is longer than {self.max_bytes} bytes (--max-bytes)"
        too_long = Refusal(413, "too_many_bytes", message, {"Connection": "close"})
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_bytes:
            raise too_long
        size = 0

        async def receive() -> Message:
            nonlocal size
            message = await request.receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise too_long
            return message

        limited = Request(request.scope, receive)
        try:
            if media_type != FORM:
                return await limited.body()
            async with limited.form(max_files=8, max_fields=32) as form:
                part = form.get(FIELD)
                if not isinstance(part, UploadFile):
                    raise Refusal(400, "missing_field", f"the form has no file in a field '{FIELD}'")
                return await part.read()
        except ClientDisconnect as error:
            raise Refusal(499, "disconnected", "the client closed the connection") from error

    def decoded(self, content: bytes) -> np.ndarray:
        """uint8 (3, H, W)."""
        try:
            image = read_rgb(content, max_pixels=self.max_pixels)
        except ImageTooLargeError as error:
            raise Refusal(413, "too_many_pixels", str(error)) from error
        except DataError as error:
            raise Refusal(400, "no_image", str(error)) from error
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def make_app(service: Service, key: str | None = None) -> FastAPI:
    """The ASGI application; with a ``key``, requests need it in the header ``X-API-Key``, except for ``/docs`` and
    ``/openapi.json``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(service.batcher.run())
        yield
        work.cancel()

    async def authorise(found: Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))]) -> None:
        if not secrets.compare_digest((found or "").encode("latin-1"), (key or "").encode()):
            raise HTTPException(401, "the header X-API-Key is missing or wrong")

    protected = [Depends(authorise)] if key else []
    app = FastAPI(title="purifiers", version=__version__, lifespan=lifespan, dependencies=protected)
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {FIELD: file}, "required": [FIELD]}
    body = {FORM: {"schema": form}, "image/*": {"schema": file}}
    error = {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}
    post: dict[str, Any] = {
        "responses": {status: {"content": error} for status in (400, 408, 413, 422, 503, 504)},
        "openapi_extra": {"requestBody": {"required": True, "content": body}},
    }
    app.post("/purify", response_class=PNG, **post)(service.purify)
    if service.classifier is not None:
        app.post("/classify", **post)(service.classify)
    app.get("/health", response_class=PlainTextResponse)(service.health)
    app.get("/metrics", response_class=PlainTextResponse)(service.metrics)
    app.add_exception_handler(HTTPException, _error)
    app.add_exception_handler(Exception, _error)
    return app


async def _error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": "the server failed; see its log"}, 500)
