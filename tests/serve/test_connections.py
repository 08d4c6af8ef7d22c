"""Connections to a server in this process, as clients that mean harm hold them."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import uvicorn

from purifiers.serve import connections
from purifiers.serve.connections import LimitedProtocol
from purifiers.serve.endpoints import Service, make_app
from tests.serve.test_endpoints import GOOD, Gate, encoded, image, serving, until

POST = b"POST /purify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
Connect = Callable[[], socket.socket]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def service(gate: Gate) -> Service:
    return serving(gate, max_queue=1)


@pytest.fixture
def connect(service: Service, gate: Gate) -> Iterator[Connect]:
    """Connects to the service."""
    opened: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as bound:
        config = uvicorn.Config(make_app(service), http=LimitedProtocol, log_level="error", timeout_graceful_shutdown=0)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()

        def connect() -> socket.socket:
            opened.append(socket.create_connection(bound.getsockname(), timeout=60))
            return opened[-1]

        until(lambda: server.started)
        yield connect
        for one in opened:
            one.close()
        gate.opened.set()  # the server waits for what it has begun
        server.should_exit = True
        thread.join()


def answer(client: socket.socket, end: bytes) -> bytes:
    """What is received until it has this end."""
    found = b""
    while not found.endswith(end):
        part = client.recv(65_536)
        assert part, found
        found += part
    return found


def ended(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def test_a_request_that_cannot_be_taken_is_refused_before_its_body(service: Service, connect: Connect) -> None:
    service.queued = 1
    client = connect()
    for _ in range(2):
        client.sendall(POST % len(GOOD))
        found = answer(client, b"}")
        assert found.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 1\r\n" in found
        client.sendall(GOOD)  # on the same connection, which then goes on
    client.sendall(HEALTH)
    assert b" 200 OK" in answer(client, b'"restarts":0}')
    client.sendall(POST.replace(b"1.1", b"1.0") % 9)
    assert b" 503 " in answer(client, b"}")
    assert ended(client), "as HTTP 1.0 has it"
    assert service.refused.labels("queue_full")._value.get() == 3


def test_a_client_that_sends_no_request_is_ended(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    silent, slow = connect(), connect()
    slow.sendall(b"\r\nGET /he")
    assert ended(silent)
    assert ended(slow)


def test_of_many_that_send_nothing_the_longest_is_ended(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WAITING", 3)
    first, *others = [connect() for _ in range(4)]
    assert ended(first)
    for client in others:
        client.sendall(HEALTH)
        assert b" 200 OK" in answer(client, b"}")


def test_trailers_without_end_are_not_kept(connect: Connect) -> None:
    client = connect()
    client.sendall(b"POST /purify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: ")
    with pytest.raises(ConnectionError):
        for _ in range(1000):
            client.sendall(b"x" * 10_000)


def test_chunks_of_any_size_are_taken(service: Service, connect: Connect) -> None:
    client = connect()
    client.sendall(b"POST /purify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    body = encoded(image(0, (200, 400)))  # one that can be read: any other has its answer before anybody sees it queued
    for start in range(0, len(body), 100_000):
        part = body[start : start + 100_000]
        client.sendall(b"%x\r\n" % len(part) + part + b"\r\n")
    client.sendall(b"0\r\nX: trailer\r\n\r\n")
    until(lambda: service.queued == 1)  # the gate keeps it


def test_a_request_that_waits_for_the_one_before_it_is_no_silent_connection(
    service: Service, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    client = connect()
    client.sendall(HEALTH + POST % len(GOOD) + GOOD)  # the gate keeps the second
    assert b" 200 OK" in answer(client, b'"restarts":0}')
    until(lambda: service.queued == 1)
    client.settimeout(0.5)
    with pytest.raises(TimeoutError):
        client.recv(1)


def test_headers_without_end_are_not_kept(connect: Connect) -> None:
    client = connect()
    with pytest.raises(ConnectionError):
        for _ in range(1000):
            client.sendall(b"GET /health HTTP/1.1\r\nX: " + b"x" * 10_000)
