"""The application, in this process."""

import asyncio
import io
import json
import math
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from starlette.requests import Request
from torch import Tensor, nn

from purifiers import PurifiedClassifier, Purifier
from purifiers.baselines import Nothing
from purifiers.bulk.pieces import purify_pixels
from purifiers.networks import CAE, ResNet
from purifiers.serve.endpoints import READING, Service, make_app
from purifiers.serve.models import Models
from purifiers.serve.worker import Answer, Job, Refused, Worker, WorkerError

PNG = {"Content-Type": "image/png"}
DIGITS = tuple("0123456789")


class Here(Worker):
    """A worker in this process, and so with networks that wait for the test."""

    def __init__(self, models: Models) -> None:
        super().__init__(lambda: models)
        self.models = models
        self.dead = threading.Event()

    def start(self) -> None:
        self.dead.clear()

    def __call__(self, jobs: list[Job]) -> list[Answer | Refused]:
        answers = self.models(jobs)
        if self.dead.is_set():
            raise WorkerError("dead")
        return answers

    def alive(self) -> bool:
        return not self.dead.is_set()

    def stop(self) -> None:
        self.dead.set()


def serving(
    purifier: nn.Module,
    classifier: nn.Module | None = None,
    *,
    names: tuple[str, ...] | None = None,
    max_pixels: int = 4_000_000,
    **limits: Any,
) -> Service:
    models = Models(
        Purifier(purifier) if not isinstance(purifier, Purifier) else purifier, classifier, names, "cpu", max_pixels
    )
    return Service(Here(models), classifier is not None, **limits)


def image(seed: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.format == "PNG"
        return np.array(opened)


def purified(purifier: Purifier, pixels: np.ndarray) -> np.ndarray:
    return purify_pixels(purifier, tensor(pixels))[0].permute(1, 2, 0).numpy()


def tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for ``condition``, but not forever."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.005)


def metric(client: TestClient, name: str) -> float:
    lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines()]
    return next((float(value) for key, _, value in lines if key == name), 0.0)


def refused(client: TestClient, reason: str) -> float:
    return metric(client, f'purifiers_refused_total{{reason="{reason}"}}')


@pytest.fixture(scope="module")
def networks() -> tuple[Purifier, nn.Module]:
    torch.manual_seed(0)
    return Purifier(CAE(widths=[4, 8], blocks=[1, 1], skip_every=1)), ResNet(depth=8, width=4, num_classes=10).eval()


@pytest.fixture(scope="module")
def client(networks: tuple[Purifier, nn.Module]) -> Iterator[TestClient]:
    with TestClient(make_app(serving(*networks, names=DIGITS, max_bytes=20_000, max_pixels=1_000))) as client:
        yield client


class Gate(nn.Module):
    """Changes nothing, and waits until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        assert self.opened.wait(60)
        return images


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def test_concurrent_requests_of_two_sizes_each_get_their_own_image(networks: tuple[Purifier, nn.Module]) -> None:
    images = [image(i, ((8, 8), (12, 10))[i % 2]) for i in range(8)]
    app = make_app(serving(*networks, batch_size=8, batch_timeout=60))
    with TestClient(app) as client, ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda pixels: client.post("/purify", content=encoded(pixels), headers=PNG), images))
        assert metric(client, "purifiers_batch_size_count") == 1, "they were purified together"
    for pixels, response in zip(images, responses, strict=True):
        assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
        assert np.array_equal(decoded(response.content), purified(networks[0], pixels))


def test_a_batch_ends_at_its_size_or_its_time(gate: Gate) -> None:
    service = serving(gate, batch_size=3, batch_timeout=0.05)
    with TestClient(make_app(service)) as client, ThreadPoolExecutor(6) as pool:
        first = pool.submit(client.post, "/purify", content=encoded(image(0)), headers=PNG)
        until(lambda: gate.sizes)  # alone, as its time is over
        others = [pool.submit(client.post, "/purify", content=encoded(image(i)), headers=PNG) for i in range(5)]
        until(lambda: len(service.batcher.queue) == 5)
        gate.opened.set()
        assert {future.result().status_code for future in (first, *others)} == {200}
    assert gate.sizes == [1, 3, 2]


def test_all_ways_to_send_an_image(client: TestClient, networks: tuple[Purifier, nn.Module]) -> None:
    pixels = image(0)
    content = client.post("/purify", content=encoded(pixels), headers=PNG).content
    assert client.post("/purify", files={"image": encoded(pixels)}).content == content
    other = client.post("/purify", content=encoded(pixels), headers={"Content-Type": "image/jpeg"})
    assert other.content == content, "the content decides, not the declared type"
    jpeg = encoded(pixels, "JPEG")
    with Image.open(io.BytesIO(jpeg)) as opened:
        read = np.array(opened)
    response = client.post("/purify", content=jpeg, headers={"Content-Type": "image/jpeg"})
    assert np.array_equal(decoded(response.content), purified(networks[0], read))
    for form in ("WEBP", "GIF", "BMP", "TIFF"):
        assert client.post("/purify", files={"image": encoded(pixels, form)}).status_code == 200
    for headers in ({}, {"Content-Type": "application/octet-stream"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert client.post("/purify", content=encoded(pixels), headers=headers).content == content


def test_scores_are_the_defended_classifiers_with_the_class_names(
    client: TestClient, networks: tuple[Purifier, nn.Module]
) -> None:
    pixels = image(1)
    result = client.post("/classify", files={"image": encoded(pixels)}).json()
    with torch.no_grad():
        expected = PurifiedClassifier(*networks)(tensor(pixels) / 255).softmax(1)[0]
    assert result["scores"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert result["class"] == int(expected.argmax())
    assert result["names"] == list(DIGITS)
    assert result["name"] == str(result["class"])


def bomb(width: int) -> bytes:
    """A PNG file of a few bytes that claims to be large."""
    parts = (b"IHDR" + struct.pack(">IIBBBBB", width, 10_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0" * 999))
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


GOOD = encoded(image(0))


@pytest.mark.parametrize(
    ("options", "status", "word", "reason"),
    [
        ({"content": b""}, 400, "empty", "no_image"),
        ({"content": b"hello"}, 400, "not an image", "no_image"),
        ({"content": b"%!PS-Adobe-3.0 EPSF-3.0", "headers": {"Content-Type": "image/png"}}, 400, "not an image", "no_image"),
        ({"content": GOOD[:100]}, 400, "damaged", "no_image"),
        ({"content": bomb(10_000)}, 413, "--max-pixels", "too_many_pixels"),
        ({"content": b"\0" * 20_001}, 413, "--max-bytes", "too_many_bytes"),
        ({"content": (b"\0" * 5_000 for _ in range(9))}, 413, "--max-bytes", "too_many_bytes"),  # of undeclared length
        ({"files": {"picture": GOOD}, "headers": {}}, 400, "'image'", "missing_field"),
        ({"files": {"other": b""}, "data": {"image": "text"}, "headers": {}}, 400, "'image'", "missing_field"),
        ({"content": b"", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary", "malformed"),
    ],
)
def test_errors_are_json_with_a_message(
    client: TestClient, options: dict[str, Any], status: int, word: str, reason: str
) -> None:
    before = refused(client, reason)
    response = client.post("/purify", **{"headers": PNG, **options})
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert word in response.json()["error"]
    assert refused(client, reason) == before + 1
    assert client.post("/purify", content=GOOD, headers=PNG).status_code == 200, "it still works"


def test_other_routes_and_methods_are_json_errors_too(client: TestClient) -> None:
    for method, path, status in (("POST", "/nowhere", 404), ("GET", "/purify", 405)):
        response = client.request(method, path)
        assert (response.status_code, list(response.json())) == (status, ["error"])


def test_a_full_queue_says_when_to_retry(gate: Gate) -> None:
    service = serving(gate, max_queue=2)
    with TestClient(make_app(service)) as client, ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(client.post, "/purify", content=GOOD, headers=PNG) for _ in range(2)]
        until(lambda: len(service.reading) + service.queued == 2)
        assert metric(client, "purifiers_waiting") == 2
        response = client.post("/purify", content=GOOD, headers=PNG)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "2 requests" in response.json()["error"]
        assert client.get("/health").status_code == 200
        gate.opened.set()
        assert [future.result().status_code for future in futures] == [200, 200]
        assert client.post("/purify", content=GOOD, headers=PNG).status_code == 200
        assert refused(client, "queue_full") == 1
        assert metric(client, "purifiers_waiting") == 0


def test_a_request_that_takes_too_long_is_answered_and_not_processed_later(gate: Gate) -> None:
    service = serving(gate, timeout=0.2, batch_size=1)
    with TestClient(make_app(service)) as client, ThreadPoolExecutor(2) as pool:
        statuses = list(pool.map(lambda _: client.post("/purify", content=GOOD, headers=PNG).status_code, range(2)))
        assert statuses == [504, 504]
        gate.opened.set()
        until(lambda: client.post("/purify", content=GOOD, headers=PNG).status_code == 200)
        assert refused(client, "timeout") >= 2
    assert len(gate.sizes) == metric_count(service), "only what was still wanted"


def metric_count(service: Service) -> float:
    """Batches of at least one image."""
    name = "purifiers_batch_size_sum"
    return next(s.value for m in service.registry.collect() for s in m.samples if s.name == name)


@pytest.mark.parametrize(("sent", "status"), [("nothing", 408), ("disconnect", 499)])
def test_a_body_that_never_arrives(sent: str, status: int) -> None:
    app = make_app(serving(Nothing(), timeout=0.05))
    messages: list[Any] = []

    async def receive() -> dict[str, Any]:
        if sent == "nothing":
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/purify",
        "query_string": b"",
        "headers": [(b"content-type", b"image/png")],
    }
    asyncio.run(app({**scope, "root_path": "", "http_version": "1.1"}, receive, send))
    assert messages[0]["status"] == status
    assert list(json.loads(messages[1]["body"])) == ["error"]


def test_an_image_that_the_network_cannot_take_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Wide(CAE):
        def forward(self, images: Tensor) -> Tensor:
            if (images.mean(dim=(1, 2, 3)) > 0.99).any():
                raise RuntimeError("too bright")
            return super().forward(images)

    purifier = Purifier(Wide(widths=[4], blocks=[1]))
    images = [image(i) for i in range(4)]
    images[1] = np.full_like(images[1], 255)
    with TestClient(make_app(serving(purifier, batch_size=4, batch_timeout=60))) as client, ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda pixels: client.post("/purify", content=encoded(pixels), headers=PNG), images))
        assert [response.status_code for response in responses] == [200, 422, 200, 200]
        assert "cannot take an image of 8 x 8" in responses[1].json()["error"]
        assert refused(client, "failed") == 1
    assert "too bright" in caplog.text
    for i in (0, 2, 3):
        assert np.array_equal(decoded(responses[i].content), purified(purifier, images[i]))


def test_output_that_is_not_finite_is_no_picture() -> None:
    purifier = Purifier(CAE(widths=[4], blocks=[1]))
    nn.init.constant_(next(purifier.parameters()), torch.nan)
    with TestClient(make_app(serving(purifier))) as client:
        response = client.post("/purify", content=encoded(image(0)), headers=PNG)
    assert response.status_code == 422
    assert "NaN" in response.json()["error"]


def test_a_classifier_that_fails_on_one_image_spoils_no_other() -> None:
    class Picky(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert (images[:, 0, 0, 0] < 0.9).all()
            return images.mean(dim=(2, 3)).log()  # of black: not finite

    images = [np.full((8, 8, 3), value, np.uint8) for value in (100, 255, 0, 50)]
    service = serving(Nothing(), Picky(), names=("one", "two"), batch_size=4, batch_timeout=60)
    with TestClient(make_app(service)) as client, ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda pixels: client.post("/classify", files={"image": encoded(pixels)}), images))
    assert [response.status_code for response in responses] == [200, 422, 422, 200]
    assert "finite" in responses[2].json()["error"]
    for i in (0, 3):
        assert responses[i].json()["scores"] == pytest.approx([1 / 3] * 3)
        assert responses[i].json()["names"] is None, "two names for three classes"


def test_a_failure_of_the_server_shows_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "content", lambda *_: {}["secret"])
    with TestClient(make_app(serving(Nothing())), raise_server_exceptions=False) as client:
        response = client.post("/purify", content=GOOD, headers=PNG)
        assert (response.status_code, list(response.json())) == (500, ["error"])
        assert "secret" not in response.text
        assert metric(client, 'purifiers_requests_total{route="purify",status="500"}') == 1


def test_health_metrics_and_the_schema(client: TestClient) -> None:
    client.post("/purify", content=GOOD, headers=PNG)
    assert client.get("/health").status_code == 200
    assert metric(client, 'purifiers_requests_total{route="purify",status="200"}') >= 1
    assert metric(client, 'purifiers_request_seconds_count{route="purify"}') >= 1
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/purify", "/classify", "/health", "/metrics"}
    purify = paths["/purify"]["post"]
    assert set(purify["requestBody"]["content"]) == {"image/*", "multipart/form-data"}
    assert list(purify["responses"]["200"]["content"]) == ["image/png"]
    assert {"400", "413", "503"} <= set(purify["responses"])
    assert client.get("/docs").status_code == 200


def test_a_token_protects_every_route_but_the_documentation() -> None:
    with TestClient(make_app(serving(Nothing()), token="sésame")) as client:
        for method, path in (("POST", "/purify"), ("GET", "/metrics")):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sésame".encode()}):
                response = client.request(method, path, headers=headers)
                assert (response.status_code, list(response.json())) == (401, ["error"])
            response = client.request(method, path, headers={"Authorization": "Bearer sésame".encode()})
            assert response.status_code == (200 if method == "GET" else 400)
        assert {client.get(path).status_code for path in ("/health", "/openapi.json", "/docs")} == {200}
        assert client.post("/classify").status_code == 404, "without a classifier"


def test_a_worker_that_dies_is_started_again_and_its_images_can_be_sent_again(gate: Gate) -> None:
    service = serving(gate)
    with TestClient(make_app(service)) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/purify", content=GOOD, headers=PNG)
        until(lambda: gate.sizes)
        service.worker.stop()
        assert (client.get("/health").status_code, client.get("/health").json()["status"]) == (503, "starting")
        assert client.post("/purify", content=GOOD, headers=PNG).status_code == 503
        assert refused(client, "starting") == 1
        gate.opened.set()
        assert (first.result().status_code, first.result().headers["retry-after"]) == (503, "1")
        until(lambda: client.get("/health").json() == {"status": "ok", "restarts": 1})
        assert client.post("/purify", content=GOOD, headers=PNG).status_code == 200
        assert metric(client, "purifiers_worker_restarts") == 1


def test_a_worker_that_does_not_answer_is_stopped(gate: Gate) -> None:
    service = serving(gate, timeout=0.05)
    service.worker.stop = gate.opened.set  # type: ignore[method-assign]
    with TestClient(make_app(service)) as client:
        assert client.post("/purify", content=GOOD, headers=PNG).status_code == 504
        until(gate.opened.is_set)


def test_one_address_has_a_limit_of_its_own(gate: Gate) -> None:
    service = serving(gate, max_per_client=1)
    with TestClient(make_app(service)) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/purify", content=GOOD, headers=PNG)
        until(lambda: gate.sizes)
        response = client.post("/purify", content=GOOD, headers=PNG)
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        gate.opened.set()
        assert first.result().status_code == 200
        assert client.post("/purify", content=GOOD, headers=PNG).status_code == 200
        assert not service.clients


def call(app: Any, *messages: Any, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Any:
    """Run a request whose messages arrive as these awaitables do; the status that is sent."""
    sent: list[Any] = []
    coming = iter(messages)

    async def receive() -> Any:
        return await next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/purify", "query_string": b"", "headers": list(headers)}

    async def run() -> int:
        await app({**scope, "root_path": "", "http_version": "1.1"}, receive, send)
        return sent[0]["status"]

    return run()


async def arrives(body: bytes, more: bool = False) -> Any:
    return {"type": "http.request", "body": body, "more_body": more}


async def ends() -> Any:
    return {"type": "http.disconnect"}


def test_an_image_whose_client_has_gone_is_not_processed() -> None:
    service = serving(Nothing())

    async def run() -> None:
        assert await call(make_app(service), arrives(GOOD), ends()) == 499
        await asyncio.sleep(0)
        assert not service.batcher.queue, "its body is not kept"
        assert (len(service.reading), service.queued, service.held) == (0, 0, 0)

    asyncio.run(run())


def hanging() -> Callable[[list[Job]], list[Answer | Refused]]:
    def work(jobs: list[Job]) -> list[Answer | Refused]:
        time.sleep(60)
        return []

    return work


def test_the_service_ends_while_its_worker_hangs() -> None:
    worker = Worker(hanging)
    worker.start()
    app = make_app(service := Service(worker))

    async def run() -> None:
        async with app.router.lifespan_context(app):
            service.batcher.submit(Job("purify", GOOD, math.inf))
            while service.batcher.queue:
                await asyncio.sleep(0.01)

    begun = time.monotonic()
    asyncio.run(run())  # which waits for the thread that waits for the worker
    assert time.monotonic() - begun < 30
    assert not worker.alive()


def test_those_who_send_slowly_keep_out_nobody() -> None:
    service = serving(Nothing(), max_queue=1)
    app = make_app(service)

    async def run() -> None:
        work = asyncio.create_task(service.batcher.run())
        slow = [asyncio.create_task(call(app, asyncio.sleep(60))) for _ in range(READING)]
        await asyncio.sleep(0.01)
        assert len(service.reading) + service.queued == READING
        assert await call(app, arrives(GOOD), asyncio.sleep(60)) == 200
        assert await slow[0] == 408
        assert not any(task.done() for task in slow[1:])
        for task in (work, *slow):
            task.cancel()
        await asyncio.gather(work, *slow, return_exceptions=True)

    asyncio.run(run())


def test_one_whose_time_is_over_takes_no_other_with_it() -> None:
    service = serving(Nothing(), max_queue=1)
    app = make_app(service)

    async def run() -> None:
        slow = [asyncio.create_task(call(app, asyncio.sleep(60))) for _ in range(READING)]
        while len(service.reading) < READING:
            await asyncio.sleep(0)
        first = next(iter(service.reading.values()))
        first.reschedule(0)
        await asyncio.sleep(0)
        assert first.expired() and first in service.reading.values(), "between the end of its time and its own end"
        assert await service.content(Request({"type": "http", "headers": []}, lambda: arrives(GOOD))) == GOOD
        assert await slow[0] == 408
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    asyncio.run(run())


def test_the_bodies_of_all_requests_together_are_limited() -> None:
    service = serving(Nothing(), max_bytes=100)
    service.held = 950
    assert asyncio.run(call(make_app(service), arrives(b"x" * 60))) == 503
    assert service.held == 950


def test_images_of_many_pixels_are_not_in_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purifiers.serve.models.BATCH_PIXELS", 200)
    sizes: list[int] = []

    class Counting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return images

    jobs = [Job("purify", encoded(image(i, size)), time.monotonic() + 60) for i, size in enumerate([(8, 8)] * 4 + [(20, 20)])]
    answers = Models(Purifier(Counting()))([*jobs, jobs[0]._replace(deadline=0.0)])
    assert isinstance(answers[-1], Refused)
    assert answers[-1].status == 504
    assert sizes == [3, 1, 1]
    for i, answer in enumerate(answers[:4]):
        assert isinstance(answer, Answer)
        assert np.array_equal(decoded(answer.content), image(i))
