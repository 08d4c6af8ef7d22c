"""Connections: their limits, and the requests that are refused for load."""

import asyncio
from types import SimpleNamespace
from typing import Any, ClassVar

from purifiers.errors import explain_missing

with explain_missing():
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536
"""Of a request's first line and headers."""
HEAD_SECONDS = 30.0
"""From the start of a connection, or the response before, which has to be read in this time too, to the end of the headers."""
WAITING = 512
"""Connections that wait for the headers of a request. One more ends the one that has waited longest, so that clients that send
slowly, or nothing, keep out nobody."""
ANSWERED: Any = SimpleNamespace(response_complete=True, message_event=SimpleNamespace(set=lambda: None))
"""What uvicorn needs to know of a request that has its answer."""


class LimitedProtocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it, with these limits, and with refusals that are cheap."""

    waiting: ClassVar[dict["LimitedProtocol", asyncio.TimerHandle]] = {}  # the longest first
    head: int | None = None  # bytes received of a head, or of trailers, that is not complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.head is not None:
            self.head += len(data)
        super().data_received(data)
        if self.head is not None and self.head > HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head = 0

    def on_headers_complete(self) -> None:
        self.head = None
        self._end()
        service = self.app_state["service"]  # of the lifespan
        idle = self.cycle is None or self.cycle.response_complete
        overload = service.overload() if idle and self.parser.get_method() == b"POST" else None
        if overload is None:
            return super().on_headers_complete()
        # Here, without a task, a refusal costs less. The body is then received, as of any answered request, and dropped.
        service.refused.labels(overload.reason).inc()
        self.transport.write(overload.bytes)
        self.cycle = ANSWERED
        if not self.parser.should_keep_alive():
            self.transport.close()
        return self.on_response_complete()

    def on_chunk_header(self) -> None:
        self.head = 0  # after the last chunk there are trailers, which are headers

    def on_body(self, body: bytes) -> None:
        self.head = None
        super().on_body(body)

    def on_response_complete(self) -> None:
        begun = bool(self.pipeline)  # the client has sent the next request already, and waits for us
        super().on_response_complete()
        self._end() if begun else self._wait()

    def _wait(self) -> None:
        self._end()
        self.waiting[self] = self.loop.call_later(HEAD_SECONDS, self.transport.abort)
        if len(self.waiting) > WAITING:
            longest = next(iter(self.waiting))
            longest._end()
            longest.transport.abort()

    def _end(self) -> None:
        if timer := self.waiting.pop(self, None):
            timer.cancel()
