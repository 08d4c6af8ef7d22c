"""The HTTP application: admission, reading, queueing, responses (``pip install 'purifiers[serve]'``)."""

import asyncio
import json
import secrets
import time
from collections import Counter as Counts
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Annotated, Any

from purifiers.errors import explain_missing
from purifiers.serve.batching import Batcher
from purifiers.serve.worker import Answer, Job, Refused, Worker
from purifiers.version import __version__

with explain_missing():
    import python_multipart  # noqa: F401 - Starlette reads forms with it
    from fastapi import Depends, FastAPI, Request, Response, Security
    from fastapi.responses import JSONResponse, PlainTextResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.types import Message

FIELD = "image"
FORM = "multipart/form-data"
RETRY_AFTER = 1
"""Seconds after which a client that was refused for load should retry."""
AFTER = {"Retry-After": str(RETRY_AFTER)}
READING = 4
"""Requests that may be read at a time, in multiples of those that may be queued."""
HELD = 10
"""Bytes of bodies that may be in memory at a time, in multiples of the largest body."""


class Refusal(HTTPException):
    """An error response: its status, the reason for the metrics, and a message for the client."""

    def __init__(self, status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, (AFTER if status in (429, 503) else {}) | (headers or {}))
        self.reason = reason

    @cached_property
    def bytes(self) -> bytes:
        """The whole response."""
        body = json.dumps({"error": self.detail}).encode()
        headers = {**dict(self.headers or {}), "Content-Type": "application/json", "Content-Length": str(len(body))}
        head = [f"HTTP/1.1 {self.status_code} {HTTPStatus(self.status_code).phrase}"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*head, "", ""]).encode() + body


STARTING = Refusal(503, "starting", f"the worker is starting again; retry in {RETRY_AFTER} s")


@dataclass
class Service:
    """A worker, with its queue, limits and metrics."""

    worker: Worker  # started before the first request
    classifies: bool = False  # has a classifier; without one there is no /classify
    batch_size: int = 16  # images that are processed together, at most
    batch_timeout: float = 0.002  # seconds that the first image of a batch waits for others
    max_bytes: int = 10_000_000  # of a request's body
    max_queue: int = 64  # requests that are queued or processed; one more is refused
    max_per_client: int | None = None  # requests of one address that are read, queued or processed; one more is refused
    timeout: float = 30.0  # seconds for a request, from its first byte to the response
    reading: dict[Request, asyncio.Timeout] = field(default_factory=dict)  # requests whose bodies arrive, the longest first
    queued: int = 0  # requests that wait for their answers
    held: int = 0  # bytes of the bodies of both
    clients: Counts[str] = field(default_factory=Counts)  # the same requests, by address

    def __post_init__(self) -> None:
        message = f"{self.max_queue} requests are waiting already; retry in {RETRY_AFTER} s"
        self.full = Refusal(503, "queue_full", message)
        self.registry = of = CollectorRegistry()
        self.requests = Counter("purifiers_requests", "Requests, by route and HTTP status.", ("route", "status"), registry=of)
        self.seconds = Histogram("purifiers_request_seconds", "From a request to its response.", ("route",), registry=of)
        self.refused = Counter("purifiers_refused", "Refused requests, by reason.", ("reason",), registry=of)
        waiting = Gauge("purifiers_waiting", "Requests that are being read, queued or processed.", registry=of)
        waiting.set_function(lambda: len(self.reading) + self.queued)
        restarts = Gauge("purifiers_worker_restarts", "Times that the worker died and was started again.", registry=of)
        sizes = Histogram("purifiers_batch_size", "Images in a batch.", buckets=[2**i for i in range(8)], registry=of)
        self.batcher = Batcher(self.worker, self.batch_size, self.batch_timeout, 2 * self.timeout, sizes.observe)
        restarts.set_function(lambda: self.batcher.restarts)

    async def purify(self, request: Request) -> Response:
        """Purify an image. Transparency is shown over white. Returns a PNG of the same size."""
        return await self.response(request, "purify")

    async def classify(self, request: Request) -> Response:
        """Purify an image and classify the result. Returns the class, and the probability of each class (softmax)."""
        return await self.response(request, "classify")

    async def metrics(self) -> Response:
        """Counts and times, in Prometheus's format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def health(self) -> JSONResponse:
        """200 when the service is ready, 503 while its worker starts again; how often that happened."""
        ready = self.worker.alive()
        found = {"status": "ok" if ready else "starting", "restarts": self.batcher.restarts}
        return JSONResponse(found, 200 if ready else 503, None if ready else AFTER)

    def overload(self) -> Refusal | None:
        """Why a request cannot be taken now."""
        return self.full if self.queued >= self.max_queue else None if self.worker.alive() else STARTING

    async def response(self, request: Request, route: str) -> Response:
        """Read an image file, wait for its answer, and count it in the metrics."""
        begun, status, client = time.perf_counter(), 500, request.client.host if request.client else ""
        self.clients[client] += 1
        try:
            if overload := self.overload():
                raise overload.with_traceback(None)  # the same object each time
            if self.max_per_client and self.clients[client] > self.max_per_client:
                message = f"{self.max_per_client} requests of {client} are waiting already (--max-per-client)"
                raise Refusal(429, "client_limit", message)
            deadline = time.monotonic() + self.timeout
            content = await self.content(request)
            if overload := self.overload():  # others were faster
                raise overload.with_traceback(None)
            self.queued, self.held = self.queued + 1, self.held + len(content)
            try:
                answer = await self.answer(request, Job(route, content, deadline))
            finally:
                self.queued, self.held = self.queued - 1, self.held - len(content)
            status = 200
            return Response(answer.content, media_type=answer.media_type)
        except HTTPException as error:
            status = error.status_code
            self.refused.labels(getattr(error, "reason", "malformed")).inc()
            raise
        finally:
            self.clients[client] -= 1
            if not self.clients[client]:
                del self.clients[client]
            self.requests.labels(route, str(status)).inc()
            self.seconds.labels(route).observe(time.perf_counter() - begun)

    async def answer(self, request: Request, job: Job) -> Answer:
        """The worker's answer; a job of which the client has gone is not done."""
        result = self.batcher.submit(job)
        gone = asyncio.ensure_future(request.receive())  # after the body, there is only its end
        try:
            either: set[asyncio.Future[Any]] = {result, gone}
            await asyncio.wait(either, timeout=job.deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                if isinstance(answer := result.result(), Refused):
                    raise Refusal(*answer)
                return answer
            if gone.done():
                raise Refusal(499, "disconnected", "the client closed the connection")
            raise Refusal(504, "timeout", f"no response within {self.timeout:g} s; the server is busy or the image large")
        finally:
            result.cancel()
            gone.cancel()

    async def content(self, request: Request) -> bytes:
        """The image file of a request: a field of its form, or else its body, whatever type that is called."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        message = f"the body is longer than {self.max_bytes} bytes (--max-bytes)"
        too_long = Refusal(413, "too_many_bytes", message, {"Connection": "close"})
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_bytes:
            raise too_long
        if len(self.reading) >= READING * self.max_queue:  # the slowest goes, so that those who send slowly keep out nobody
            slowest = self.reading.pop(next(iter(self.reading)))
            if not slowest.expired():  # then it is about to go
                slowest.reschedule(0)
        size = 0

        async def receive() -> Message:
            nonlocal size
            message = await request.receive()
            size, self.held = size + len(message.get("body", b"")), self.held + len(message.get("body", b""))
            if size > self.max_bytes:
                raise too_long
            if self.held > HELD * self.max_bytes:
                raise Refusal(503, "memory", "too many large images are waiting already", {"Connection": "close"})
            return message

        limited = Request(request.scope, receive)
        try:
            async with asyncio.timeout(self.timeout) as limit:
                self.reading[request] = limit
                if media_type != FORM:
                    return await limited.body()
                async with limited.form(max_files=8, max_fields=32) as form:
                    part = form.get(FIELD)
                    if not isinstance(part, UploadFile):
                        raise Refusal(400, "missing_field", f"the form has no file in a field '{FIELD}'")
                    return await part.read()
        except TimeoutError as error:
            message = f"the request was not complete within {self.timeout:g} s, or others needed its place"
            raise Refusal(408, "slow_request", message, {"Connection": "close"}) from error
        except ClientDisconnect as error:
            raise Refusal(499, "disconnected", "the client closed the connection") from error
        finally:
            self.held -= size
            self.reading.pop(request, None)


def make_app(service: Service, token: str | None = None) -> FastAPI:
    """The ASGI application; with a ``token``, requests need it in the header ``Authorization: Bearer``, except for
    ``/health``, ``/docs`` and ``/openapi.json``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Service]]:
        work = asyncio.create_task(service.batcher.run())
        yield {"service": service}  # for LimitedProtocol
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        await asyncio.to_thread(service.worker.stop)  # the thread that waits for it would keep the process alive

    async def authorise(
        found: Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))],
    ) -> None:
        sent = found.credentials if found else ""
        if not secrets.compare_digest(sent.encode("latin-1"), (token or "").encode()):
            raise HTTPException(
                401, "the header 'Authorization: Bearer TOKEN' is missing or wrong", {"WWW-Authenticate": "Bearer"}
            )

    protected = [Depends(authorise)] if token else []
    app = FastAPI(title="purifiers", version=__version__, lifespan=lifespan)
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {FIELD: file}, "required": [FIELD]}
    body = {FORM: {"schema": form}, "image/*": {"schema": file}}
    error = {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}
    post: dict[str, Any] = {
        "dependencies": protected,
        "responses": {status: {"content": error} for status in (400, 408, 413, 422, 429, 503, 504)},
        "openapi_extra": {"requestBody": {"required": True, "content": body}},
    }
    app.post("/purify", response_class=type("PNG", (Response,), {"media_type": "image/png"}), **post)(service.purify)
    if service.classifies:
        app.post("/classify", **post)(service.classify)
    app.get("/health")(service.health)
    app.get("/metrics", response_class=PlainTextResponse, dependencies=protected)(service.metrics)
    app.add_exception_handler(HTTPException, _error)
    app.add_exception_handler(Exception, _error)
    return app


async def _error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": "the server failed; see its log"}, 500)
