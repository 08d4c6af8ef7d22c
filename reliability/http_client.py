"""A load generator for one HTTP service: keep-alive connections that cost little, on one thread."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

Answer = tuple[int, bytes, bytes]
"""Status, head, body."""
LATEST = 60  # seconds; an answer that takes longer is a hang


def post(path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a request."""
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: image/png", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """Sends one request at a time, and hands its answer, or None where the connection ends, to ``done``."""

    def __init__(self) -> None:
        self.done: Callable[[Answer | None], object] | None = None
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Collect an answer until it is whole."""
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] if end else b""
        if length and len(body) >= int(length):
            self.buffer = b""
            self.finish((int(head[9:12]), head, body))

    def connection_lost(self, _: Exception | None) -> None:
        """Report that there will be no answer."""
        self.finish(None)

    def finish(self, answer: Answer | None) -> None:
        """Hand over the answer, once."""
        done, self.done = self.done, None
        if done:
            done(answer)

    def send(self, request: bytes, done: Callable[[Answer | None], object]) -> None:
        """Send a request."""
        self.done = done
        self.transport.write(request)

    async def ask(self, request: bytes) -> Answer | None:
        """Send a request and wait."""
        future: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self.send(request, lambda answer: None if future.done() else future.set_result(answer))
        return await asyncio.wait_for(future, LATEST)


async def connect(port: int) -> Connection:
    """A connection to a port of this machine."""
    return (await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port))[1]


@dataclass
class Load:
    """What a service answered to a load."""

    seconds: float = 0.0
    cpu: float = 0.0  # seconds that the generator used
    statuses: Counter[int] = field(default_factory=Counter)  # 0: the connection ended without an answer
    without_retry: int = 0  # 503 without Retry-After
    latencies: list[float] = field(default_factory=list)  # seconds, of those answered with 200
    bodies: dict[int, set[bytes]] = field(default_factory=dict)  # by the request's index

    @property
    def rate(self) -> float:
        """Answers of status 200 in a second."""
        return self.statuses[200] / self.seconds

    @property
    def total(self) -> int:
        """All requests."""
        return self.statuses.total()

    def percentile(self, percent: float) -> float:
        """Of the latencies."""
        ordered = sorted(self.latencies) or [0.0]
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    def add(self, index: int, begun: float, answer: Answer | None) -> None:
        """Count an answer."""
        status, head, body = answer or (0, b"", b"")
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append(time.perf_counter() - begun)
            self.bodies.setdefault(index, set()).add(body)
        elif status == 503 and b"retry-after" not in head.lower():
            self.without_retry += 1


async def _timed(load: Load, work: Awaitable[object]) -> Load:
    begun, cpu = time.perf_counter(), time.process_time()
    await work
    load.seconds, load.cpu = time.perf_counter() - begun, time.process_time() - cpu
    return load


async def closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Every connection sends its next request when it has the answer to the last one, without a pause."""
    load, end = Load(), time.perf_counter() + seconds

    async def user(number: int) -> None:
        connection = await connect(port)
        for turn in range(number, 10**9, connections):
            if (begun := time.perf_counter()) >= end:
                break
            answer = await connection.ask(requests[turn % len(requests)])
            load.add(turn % len(requests), begun, answer)
            if answer is None or b"connection: close" in answer[1].lower():
                connection = await connect(port)
        connection.transport.close()

    return await _timed(load, asyncio.gather(*(user(i) for i in range(connections))))


async def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float, most: int = 1000) -> Load:
    """``rate`` requests a second whatever is answered, on at most ``most`` connections."""
    load, idle, opened, sent = Load(), deque[Connection](), 0, 0

    async def work() -> None:
        nonlocal opened, sent
        begun = time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            while sent < (now - begun) * rate:
                if idle:
                    connection = idle.popleft()
                elif opened < most:
                    connection, opened = await connect(port), opened + 1
                else:
                    break
                if not connection.transport.is_closing():
                    send(connection, sent % len(requests))
                    sent += 1
                else:
                    opened -= 1
            await asyncio.sleep(0.002)
        while load.total < sent and time.perf_counter() < begun + seconds + LATEST:
            await asyncio.sleep(0.01)
        load.statuses[0] += sent - load.total
        for connection in idle:
            connection.transport.close()

    def send(connection: Connection, index: int) -> None:
        begun = time.perf_counter()

        def done(answer: Answer | None) -> None:
            load.add(index, begun, answer)
            idle.append(connection)

        connection.send(requests[index], done)

    return await _timed(load, work())
