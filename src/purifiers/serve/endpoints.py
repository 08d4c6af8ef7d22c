"""The service's side of HTTP: what is refused, what waits, and what is answered (``pip install 'purifiers[serve]'``).

Importing this module raises ConfigError where a library of that is not installed.
"""
# ruff: noqa: E402 - what is not installed is told before it is imported

import asyncio
import io
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from purifiers.data.files import read_rgb
from purifiers.errors import DataError, ImageTooLargeError, require

for _module in ("litserve", "prometheus_client", "python_multipart"):
    require(_module)
from fastapi import Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from litserve import LitAPI, LitServer
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, ResponseBufferItem
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")
FORMATS = ("PNG", "JPEG", "WEBP")
FIELD = "image"
RETRY_AFTER = 1
"""Seconds after which a client that met a full queue may come back."""


@dataclass(frozen=True)
class Limits:
    """What the service takes.

    Attributes:
        max_bytes: of a request's body.
        max_pixels: width times height of an image.
        max_queue: requests that are being read, waiting or worked on; one more is refused.
        timeout: seconds for a request, from its first byte to its answer.
    """

    max_bytes: int = 10_000_000
    max_pixels: int = 4_000_000
    max_queue: int = 64
    timeout: float = 30.0


class Refused(HTTPException):
    """A request that is not answered as asked: a status, words for the client, and a reason for the metrics."""

    def __init__(self, status: int, reason: str, words: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, words, headers)
        self.reason = reason


class Metrics:
    """What /metrics shows, in Prometheus's format."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "purifiers_requests", "Requests, by route and HTTP status.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "purifiers_request_seconds", "From a request's head to its answer.", ("route",), registry=self.registry
        )
        self.refused = Counter(
            "purifiers_refused", "Requests that were refused, by reason.", ("reason",), registry=self.registry
        )
        sizes = (1, 2, 4, 8, 16, 32, 64, 128)
        self.batches = Histogram("purifiers_batch_size", "Images in a batch.", buckets=sizes, registry=self.registry)
        self.waiting = Gauge("purifiers_waiting", "Requests read, waiting or worked on now.", registry=self.registry)


@dataclass(frozen=True)
class Answer:
    """What the worker makes of an image: ``pixels`` uint8 (3, H, W), or ``scores``, or ``failure`` in words.

    ``batch``: the number of images of the batch, told once for each batch.
    """

    pixels: np.ndarray | None = None
    scores: Sequence[float] | None = None
    failure: str | None = None
    batch: int | None = None


class ImageSpec(LitSpec):  # type: ignore[misc]
    """LitServe's specification of this service: images in, a PNG or scores out."""

    def __init__(self, limits: Limits, classes: Sequence[str] | None, classifies: bool) -> None:
        super().__init__()
        self.api_path = "/purify"
        self.limits = limits
        self.classes = classes
        self.classifies = classifies
        self.waiting = 0
        self.metrics: Metrics | None = Metrics()

    def __getstate__(self) -> dict[str, Any]:
        """Without the metrics, which have locks, and which the worker has no use for."""
        return {**super().__getstate__(), "metrics": None}

    async def purify(self, request: Request) -> Response:
        """Purify an image; transparency is shown over white. Answers with a PNG of the same size."""
        answer = await self.answered(request, "purify")
        assert answer.pixels is not None
        return Response(await asyncio.to_thread(_png, answer.pixels), media_type="image/png")

    async def classify(self, request: Request) -> JSONResponse:
        """Purify an image and classify the result. Answers with the class, and the probability of each (softmax)."""
        scores = (await self.answered(request, "classify")).scores or ()
        best = int(np.argmax(scores))
        named = self.classes if self.classes and len(self.classes) == len(scores) else None
        return JSONResponse({"class": best, "name": named and named[best], "scores": list(scores), "names": named})

    async def show_metrics(self) -> Response:
        """Counts and times, in Prometheus's format."""
        assert self.metrics is not None
        self.metrics.waiting.set(self.waiting)
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def answered(self, request: Request, route: str) -> Answer:
        """The worker's answer to a request, counted."""
        assert self.metrics is not None
        begun, status = time.perf_counter(), 500
        try:
            answer = await self.handled(request, route)
            status = 200
            return answer
        except AnyHTTPException as error:
            status = error.status_code
            self.metrics.refused.labels(getattr(error, "reason", "malformed")).inc()
            raise
        finally:
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - begun)

    async def handled(self, request: Request, route: str) -> Answer:
        """Read, decode and hand over an image, and wait."""
        if self.waiting >= self.limits.max_queue:
            words = f"{self.waiting} requests are waiting already; come back in {RETRY_AFTER} s"
            raise Refused(503, "queue_full", words, {"Retry-After": str(RETRY_AFTER)})
        self.waiting += 1
        read = False
        try:
            async with asyncio.timeout(self.limits.timeout):
                content = await self.content(request)
                read = True
                pixels = await asyncio.to_thread(self.decoded, content)
                return await self.worked_on(pixels, route == "classify")
        except TimeoutError as error:
            limit = f"within {self.limits.timeout:g} s"
            if read:
                raise Refused(504, "timeout", f"no answer {limit}; the server is busy or the image large") from error
            raise Refused(408, "slow_request", f"the request was not complete {limit}", {"Connection": "close"}) from error
        finally:
            self.waiting -= 1

    async def content(self, request: Request) -> bytes:
        """The image file in a request, as its body or in a form."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in (*MEDIA_TYPES, "multipart/form-data"):
            takes = f"{', '.join(MEDIA_TYPES)}, or multipart/form-data with a field '{FIELD}'"
            raise Refused(415, "media_type", f"the Content-Type is '{media_type}'; send {takes}")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.max_bytes:
            raise self.too_many_bytes(f"{length} bytes")
        try:
            if media_type != "multipart/form-data":
                return await request.body()
            async with request.form(max_files=8, max_fields=32) as form:
                part = form.get(FIELD)
                if not isinstance(part, UploadFile):
                    raise Refused(400, "missing_field", f"the form has no file in a field '{FIELD}'")
                return await part.read()
        except ClientDisconnect as error:
            raise Refused(499, "disconnected", "the client went away") from error
        except AnyHTTPException as error:
            if error.status_code == 413:  # LitServe's limit, while reading
                raise self.too_many_bytes("more") from error
            raise

    def too_many_bytes(self, found: str) -> Refused:
        """The refusal of a body that is too long."""
        words = f"at most {self.limits.max_bytes} bytes are read (--max-bytes); the request has {found}"
        return Refused(413, "too_many_bytes", words, {"Connection": "close"})

    def decoded(self, content: bytes) -> np.ndarray:
        """uint8 (3, H, W)."""
        try:
            image = read_rgb(content, max_pixels=self.limits.max_pixels, formats=FORMATS)
        except ImageTooLargeError as error:
            raise Refused(413, "too_many_pixels", str(error)) from error
        except DataError as error:
            raise Refused(400, "no_image", str(error)) from error
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    async def worked_on(self, pixels: np.ndarray, classify: bool) -> Answer:
        """Wait for the worker."""
        assert self.metrics is not None
        uid, event = str(uuid.uuid4()), asyncio.Event()
        self.response_buffer[uid] = ResponseBufferItem(event)
        try:
            self.request_queue.put((self.response_queue_id, uid, time.monotonic(), (pixels, classify)))
            await event.wait()
            answer, status = self.response_buffer[uid].response
        finally:
            self.response_buffer.pop(uid, None)
        if status != LitAPIStatus.OK:
            raise Refused(500, "error", "the worker failed; see the server's log")
        if answer.batch is not None:
            self.metrics.batches.observe(answer.batch)
        if answer.failure is not None:
            raise Refused(422, "failed", answer.failure)
        return answer


def add_routes(server: LitServer, spec: ImageSpec, api: LitAPI) -> None:
    """Add the routes to LitServe's application, with what /docs and /openapi.json say of them, and errors as JSON."""
    authorised = [Depends(server.setup_auth(api))]
    file = {"type": "string", "format": "binary"}
    form = {"schema": {"type": "object", "properties": {FIELD: file}, "required": [FIELD]}}
    body = {
        "required": True,
        "content": {"multipart/form-data": form, **{media_type: {"schema": file} for media_type in MEDIA_TYPES}},
    }
    error = {"content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}}
    words = {
        400: "No image, a damaged one, or no field of that name.",
        408: "The request was not complete in time.",
        413: "Too many bytes or pixels.",
        415: "A media type that is not read.",
        422: "The purifier or the classifier cannot take this image, or gives no finite scores.",
        503: "The queue is full; see Retry-After.",
        504: "No answer in time.",
    }
    refusals: dict[int | str, dict[str, Any]] = {status: {"description": text, **error} for status, text in words.items()}

    class _PNG(Response):
        media_type = "image/png"

    routes = [("/purify", spec.purify, _PNG)] + ([("/classify", spec.classify, JSONResponse)] if spec.classifies else [])
    for path, endpoint, kind in routes:
        server.app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_class=kind,
            response_model=None,
            responses=refusals,
            openapi_extra={"requestBody": body},
            dependencies=authorised,
        )
    server.app.add_api_route(
        "/metrics", spec.show_metrics, methods=["GET"], response_model=None, response_class=Response, dependencies=authorised
    )
    server.app.add_exception_handler(AnyHTTPException, _told)
    server.app.add_exception_handler(Exception, _failed)


async def _told(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "the server failed; see its log"}, 500)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()
