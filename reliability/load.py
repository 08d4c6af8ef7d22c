"""The service under more load than it can take, among clients that mean harm, and with a worker that is killed."""

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from http_client import Answer, Connection, Load, closed_loop, connect, open_loop, post
from PIL import Image
from promise import Promise, Result

from purifiers import Purifier
from purifiers.bulk.pieces import purify_pixels

NAME = "cifar10-cpu"
BATCH = 16
MODERATE = 0.6  # goodput with 4 connections, as a share of the bare network's rate in batches of 16
OVERLOADED = 0.8  # goodput under overload, as a share of the highest
MEGABYTES = 700  # of all processes of the service together
ATTEMPTS = 3  # at the rates: other programs may disturb a short measurement
SLACK = 0.1  # for those of less than a minute
START = 120  # seconds


@dataclass
class Server:
    """A running service."""

    process: "subprocess.Popen[bytes]"
    port: int

    def processes(self) -> list[int]:
        """It and its children."""
        found = [self.process.pid]
        for pid in found:  # grows
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found

    def megabytes(self) -> float:
        """Memory of all processes, what they share counted once."""
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.processes()]
        return sum(int(size) for text in texts for size in re.findall(r"^Pss: +(\d+) kB", text, flags=re.M)) / 1024

    def worker(self) -> int:
        """The process that runs the networks."""
        return next(p for p in self.processes() if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes())

    async def get(self, path: str) -> Answer:
        """GET on a connection of its own."""
        connection = await connect(self.port)
        answer = await connection.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connection.transport.close()
        assert answer, path
        return answer


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """A service of its own processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "purifiers", "serve", NAME, "--port", str(port), "--device", "cpu", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # so that the figures mean the same on any number of cores
    with (folder / "log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log, env=environment) as process:
        server = Server(process, port)
        try:
            end = time.monotonic() + START
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((folder / "log").read_text())
                time.sleep(0.05)
            yield server
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()


@dataclass
class Pictures:
    """Requests, and what their answers have to be."""

    requests: list[bytes]
    purified: list[np.ndarray]

    def wrong(self, load: Load) -> int:
        """Answers that are not the purified image; floats round differently in batches of another size."""
        found = 0
        for index, bodies in load.bodies.items():
            for body in bodies:
                pixels = np.asarray(Image.open(io.BytesIO(body))).astype(int)
                expected = self.purified[index]
                found += pixels.shape != expected.shape or bool(np.abs(pixels - expected).max() > 1)
        return found


def png(pixels: np.ndarray) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(purifier: Purifier, count: int = 8) -> Pictures:
    """Random images."""
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    purified = purify_pixels(purifier, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    requests = [post("/purify", png(image)) for image in images]
    return Pictures(requests, list(purified.permute(0, 2, 3, 1).numpy().astype(int)))


def bare_rate(purifier: Purifier, seconds: float) -> float:
    """Images a second of the network alone."""
    images, count = torch.rand(BATCH, 3, 32, 32), 0
    torch.set_num_threads(1)  # as the service
    with torch.no_grad():
        purifier(images)
        begun = time.perf_counter()
        while time.perf_counter() < begun + seconds:
            purifier(images)
            count += BATCH
        return count / (time.perf_counter() - begun)


def goodput(load: Load) -> float:
    """Images a second; on a single core, of the time that the load generator left to the service."""
    alone = len(os.sched_getaffinity(0)) > 1
    return load.rate if alone else load.rate / (1 - load.cpu / load.seconds)


def overload(count: int, folder: Path) -> Result:
    """``count`` seconds of each overload."""
    purifier = Purifier.from_pretrained(NAME)
    sent = pictures(purifier)
    failures: list[str] = []
    rates: list[str] = []
    total = answered = 0
    with serving(folder) as server:

        def measured(load: Awaitable[Load]) -> Load:
            nonlocal total, answered
            found = asyncio.run(_awaited(load))
            wrong, others = sent.wrong(found), found.total - found.statuses[200] - found.statuses[503]
            total, answered = total + found.total, answered + found.total - wrong - others - found.without_retry
            if wrong or others or found.without_retry:
                failures.append(f"{wrong} wrong images, {found.without_retry} without Retry-After, {dict(found.statuses)}")
            return found

        short, least = max(2, count / 15), OVERLOADED - (SLACK if count < 60 else 0)
        for _ in range(ATTEMPTS):
            bare = bare_rate(purifier, short / 2)
            moderate = measured(closed_loop(server.port, sent.requests, 4, short))
            peak = measured(closed_loop(server.port, sent.requests, 32, short))
            twice = measured(open_loop(server.port, sent.requests, 2 * peak.rate, count, most=400))
            between = measured(closed_loop(server.port, sent.requests, 32, short))  # what else runs here changes with time
            tenfold = measured(open_loop(server.port, sent.requests, 10 * peak.rate, count, most=400))
            shares = [2 * goodput(load) / (goodput(peak) + goodput(between)) for load in (twice, tenfold)]
            slowest = max(load.percentile(99) for load in (twice, tenfold))
            bound = 2 * (64 + BATCH) / min(twice.rate, tenfold.rate)
            rates = [f"{share:.2f} of the highest goodput is less than {least}" for share in shares if share < least]
            if goodput(moderate) < MODERATE * bare:
                rates.append(f"{goodput(moderate):.0f} images/s at 4 connections; the bare network does {bare:.0f}")
            if slowest > bound:
                rates.append(f"p99 of {slowest:.2f} s, more than {bound:.2f} s for twice the queue")
            if not rates:
                break
        megabytes = server.megabytes()
    if megabytes > MEGABYTES:
        failures.append(f"{megabytes:.0f} MB, more than {MEGABYTES}")
    offered = tenfold.total / tenfold.seconds
    figures = (
        f"{moderate.rate:.0f}/s at 4 connections ({goodput(moderate) / bare:.2f} of the bare network), at most "
        f"{peak.rate:.0f}/s ({goodput(peak) / bare:.2f}); {shares[0]:.2f} of that at twice, {shares[1]:.2f} at ten times the "
        f"load ({offered:.0f} requests/s, p99 {slowest:.2f} s); {megabytes:.0f} MB; overloaded for {count} s each"
    )
    return Result(total, answered, "requests answered in time", figures, failures + rates)


async def _awaited(load: Awaitable[Load]) -> Load:
    return await load


async def refused_upload(port: int, request: bytes, expected: int) -> bool:
    """Whether a request gets this status."""
    answer = await (await connect(port)).ask(request)
    return answer is not None and answer[0] == expected


async def ended_upload(port: int, request: bytes, after: float) -> bool:
    """Send this, and go away after some seconds."""
    connection = await connect(port)
    connection.transport.write(request)
    await asyncio.sleep(after)
    connection.transport.abort()
    return True


async def held_open(port: int, parts: Sequence[bytes], opened: list[Connection]) -> bool:
    """Send this slowly, and stay."""
    connection = await connect(port)
    opened.append(connection)
    for part in parts:
        connection.transport.write(part)
        await asyncio.sleep(0.02)
    return True


def bad_clients(count: int, folder: Path) -> Result:
    """``count`` clients of all kinds, among clients that want images."""
    purifier = Purifier.from_pretrained(NAME)
    sent = pictures(purifier)
    request = sent.requests[0]
    head, _, body = request.partition(b"\r\n\r\n")
    bomb = bytearray(body)  # claims to be of 100,000 x 100,000 pixels
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    opened: list[Connection] = []
    kinds: list[Callable[[int], Awaitable[bool]]] = [
        lambda port: held_open(port, [], opened),
        lambda port: held_open(port, [head[i : i + 1] for i in range(20)], opened),
        lambda port: held_open(port, [head + b"\r\n\r\n", *(body[i : i + 1] for i in range(20))], opened),
        lambda port: ended_upload(port, request, 0.01),
        lambda port: ended_upload(port, request[: len(request) // 2], 0.01),
        lambda port: ended_upload(port, request[: len(head) // 2], 0),
        lambda port: refused_upload(port, post("/purify", body[: len(body) // 2]), 400),
        lambda port: refused_upload(port, post("/purify", b"not an image"), 400),
        lambda port: refused_upload(port, post("/purify", bytes(bomb)), 413),
        lambda port: refused_upload(port, head.replace(b"Content-Length: ", b"Content-Length: 9999") + b"\r\n\r\n", 413),
        lambda port: refused_upload(port, b"\x16\x03\x01 no HTTP\r\n\r\n", 400),
    ]
    failures: list[str] = []

    async def among(server: Server) -> tuple[Load, int, dict[str, object], str]:
        good = asyncio.create_task(closed_loop(server.port, sent.requests, 4, max(2, count / 50)))
        handled = 0
        for start in range(0, count, len(kinds)):
            outcomes = await asyncio.gather(*(kind(server.port) for kind in kinds[: count - start]), return_exceptions=True)
            for number, outcome in enumerate(outcomes):
                handled += outcome is True
                if outcome is not True:
                    failures.append(f"bad client of kind {number}: {outcome!r}")
        load = await good
        for connection in opened:
            connection.transport.abort()
        await asyncio.sleep(0.5)
        health, metrics = json.loads((await server.get("/health"))[2]), (await server.get("/metrics"))[2].decode()
        return load, handled, health, metrics

    with serving(folder) as server:
        alone = asyncio.run(closed_loop(server.port, sent.requests, 4, 2))
        load, handled, health, metrics = asyncio.run(among(server))
        megabytes = server.megabytes()
    wrong, others = sent.wrong(load), load.total - load.statuses[200]
    if wrong or others:
        failures.append(f"of the others, {wrong} got a wrong image, and of all {dict(load.statuses)}")
    if health != {"status": "ok", "restarts": 0} or "purifiers_waiting 0.0" not in metrics:
        failures.append(f"afterwards: {health}, {re.findall('purifiers_waiting .*', metrics)}")
    figures = f"meanwhile the others got {load.rate:.0f} images/s, p99 {load.percentile(99):.2f} s (alone {alone.rate:.0f}/s, "
    figures += f"{alone.percentile(99):.2f} s); {megabytes:.0f} MB"
    return Result(count, handled, "bad clients", figures, failures)


def killed_worker(count: int, folder: Path) -> Result:
    """``count`` kills of the worker, while images are sent."""
    sent = pictures(Purifier.from_pretrained(NAME))
    failures: list[str] = []
    back: list[float] = []

    async def killed(server: Server) -> Load:
        load = Load()
        for kill in range(1, count + 1):
            work = asyncio.create_task(closed_loop(server.port, sent.requests, 4, 1))
            await asyncio.sleep(0.5)
            begun = time.monotonic()
            os.kill(server.worker(), signal.SIGKILL)
            seen = 0
            while time.monotonic() < begun + START:
                status, _, body = await server.get("/health")
                seen += status == 503
                if status == 200 and json.loads(body)["restarts"] == kill:
                    break
                await asyncio.sleep(0.02)
            else:
                failures.append(f"kill {kill}: not back within {START} s")
            back.append(time.monotonic() - begun)
            if not seen:
                failures.append(f"kill {kill}: /health did not report it")
            for one in (await work, await closed_loop(server.port, sent.requests, 2, 0.2)):
                load.statuses += one.statuses
                if wrong := sent.wrong(one):
                    failures.append(f"kill {kill}: {wrong} wrong images")
            if not one.statuses[200]:
                failures.append(f"kill {kill}: nothing was purified afterwards")
        return load

    with serving(folder) as server:
        load = asyncio.run(killed(server))
    if others := load.total - load.statuses[200] - load.statuses[503]:
        failures.append(f"{others} requests were lost: {dict(load.statuses)}")
    figures = f"back after {max(back):.1f} s at most; meanwhile {load.statuses[503]} requests were refused with 503, none lost"
    return Result(count, count - len({failure.partition(":")[0] for failure in failures}), "kills", figures, failures)


PROMISES = {
    "overload": Promise(
        "The service keeps its rate under more load than it can take, and refuses the rest.",
        "4 and 32 connections without a pause, then twice and ten times the highest rate; one thread for the network; "
        "every image is compared",
        overload,
        2,
        300,
    ),
    "bad-clients": Promise(
        "Clients that are slow, break off or send rubbish do not hold or spoil others.",
        "silent, slow, broken and gone clients, damaged images and oversized bodies beside 4 connections that want images",
        bad_clients,
        22,
        1_100,
    ),
    "worker-killed": Promise(
        "A worker that dies is started again; requests get their image or 503.",
        "SIGKILL to the worker of the service while images are sent; `/health` is watched",
        killed_worker,
        1,
        30,
    ),
}
