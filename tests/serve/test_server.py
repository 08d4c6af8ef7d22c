"""The service: the real server in a process of its own, asked over HTTP; and what needs no server."""

import io
import json
import os
import queue
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import purifiers.recipes
from purifiers import PurifiedClassifier, Purifier
from purifiers.baselines import Nothing
from purifiers.bulk.pieces import purify_pixels
from purifiers.cli import main
from purifiers.cli.commands import recipe_behind
from purifiers.cli.parser import make_parser
from purifiers.data import class_names, image_shape, load_images
from purifiers.errors import ConfigError
from purifiers.networks import CAE, ResNet
from purifiers.recipes.load import load_recipe, recipe_text
from purifiers.recipes.schema import Recipe
from purifiers.registry import save_network
from purifiers.serve.endpoints import ImageSpec, Limits
from purifiers.serve.server import PurifyAPI
from purifiers.storage import save_tensors

SIZES = ((8, 8), (12, 10))
LIMITS = {"--max-bytes": 20_000, "--max-pixels": 1_000, "--max-queue": 8, "--batch-timeout": 0.3}


class Service:
    """A server in front of a purifier and a classifier."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.purifier = Purifier(CAE(widths=[4, 8], blocks=[1, 1], skip_every=1))
        self.classifier = ResNet(depth=20, width=4, num_classes=10).eval()
        self.folder = folder
        self.purifier.save_pretrained(folder / "run")
        save_network(folder / "classifier", self.classifier)
        shutil.copy(Path(purifiers.recipes.__file__).parent / "digits.yaml", folder / "run" / "recipe.yaml")
        self.process: Any = None  # subprocess.Popen, once it is started

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = [str(word) for limit in LIMITS.items() for word in limit]
        command = [sys.executable, "-m", "purifiers", "serve", str(self.folder / "run"), "--port", str(self.port)]
        self.log = self.folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, "--classifier", str(self.folder / "classifier"), "--device", "cpu", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        until(lambda: self.healthy() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def healthy(self) -> bool:
        try:
            return self.ask("/health")[0] == 200
        except OSError:
            return False

    def ask(
        self, path: str, body: bytes | None = None, media_type: str = "image/png", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": media_type, **headers})
        try:
            with urllib.request.urlopen(request, timeout=100) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    def error(self, path: str, body: bytes | None, media_type: str = "image/png") -> tuple[int, str]:
        """Status and words of a refusal, which has nothing else."""
        status, headers, answer = self.ask(path, body, media_type)
        assert headers["content-type"] == "application/json"
        said = json.loads(answer)
        assert list(said) == ["error"]
        assert "Traceback" not in said["error"]
        return status, said["error"]

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("/metrics")[2].decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for ``condition``, and not for ever."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"))
    yield service
    if service.process is not None and service.process.poll() is None:
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(60)


@pytest.fixture
def running(service: Service) -> Service:
    if service.process is None or service.process.poll() is not None:
        service.start()
    return service


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


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def form(name: str, content: bytes, filename: str | None = "a.png") -> tuple[bytes, str]:
    file = f'; filename="{filename}"' if filename else ""
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + content + b"\r\n--xyz--\r\n", "multipart/form-data; boundary=xyz"


def test_many_at_once_of_two_sizes_get_each_its_own(running: Service) -> None:
    images = [image(i, SIZES[i % 2]) for i in range(8)]
    before = running.metric("purifiers_batch_size_count")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda pixels: running.ask("/purify", encoded(pixels)), images))
    for pixels, (status, headers, content) in zip(images, answers, strict=True):
        assert (status, headers["content-type"]) == (200, "image/png")
        expected = purify_pixels(running.purifier, tensor(pixels))[0].permute(1, 2, 0).numpy()
        assert np.array_equal(decoded(content), expected)
    assert running.metric("purifiers_batch_size_count") - before < len(images), "some were purified together"


def test_every_way_of_sending_an_image(running: Service) -> None:
    pixels = image(0)
    content = running.ask("/purify", encoded(pixels))[2]
    assert running.ask("/purify", *form("image", encoded(pixels)))[2] == content
    assert running.ask("/purify", encoded(pixels), "image/jpeg")[2] == content, "content decides"
    jpeg = encoded(pixels, "JPEG")
    with Image.open(io.BytesIO(jpeg)) as opened:
        read = np.array(opened)
    expected = purify_pixels(running.purifier, tensor(read))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(decoded(running.ask("/purify", jpeg, "image/jpeg")[2]), expected)
    assert running.ask("/purify", encoded(pixels, "WEBP"), "image/webp")[0] == 200


def test_scores_are_the_defended_classifiers_with_the_runs_class_names(running: Service) -> None:
    pixels = image(1)
    status, _, content = running.ask("/classify", *form("image", encoded(pixels)))
    assert status == 200
    answer = json.loads(content)
    with torch.no_grad():
        expected = PurifiedClassifier(running.purifier, running.classifier)(tensor(pixels) / 255).softmax(1)[0]
    assert answer["scores"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer["class"] == int(expected.argmax())
    assert answer["names"] == list("0123456789")
    assert answer["name"] == str(answer["class"])


def test_refusals_are_json_with_words(running: Service) -> None:
    def bomb(width: int) -> bytes:
        parts = (b"IHDR" + struct.pack(">IIBBBBB", width, 10_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0" * 999))
        chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

    good = encoded(image(0))
    cases: list[tuple[tuple[bytes, str], int, str]] = [
        ((b"", "image/png"), 400, "empty, 0 bytes"),
        ((b"hello", "image/png"), 400, "not an image (PNG, JPEG, WEBP can be read)"),
        ((encoded(image(0), "GIF"), "image/png"), 400, "not an image"),
        ((good[:100], "image/png"), 400, "damaged image"),
        ((bomb(10_000), "image/png"), 413, "10000 x 10000 are 100.0 megapixels; at most 0.001 are read (--max-pixels)"),
        ((b"\0" * 20_001, "image/png"), 413, "at most 20000 bytes are read (--max-bytes); the request has 20001 bytes"),
        ((good, "text/plain"), 415, "the Content-Type is 'text/plain'; send image/png, image/jpeg, image/webp, or multipart"),
        (form("picture", good), 400, "no file in a field 'image'"),
        (form("image", b"text", filename=None), 400, "no file in a field 'image'"),
        ((b"", "multipart/form-data"), 400, "oundary"),
    ]
    for (body, media_type), status, words in cases:
        found, said = running.error("/purify", body, media_type)
        assert found == status, said
        assert words in said
    assert running.error("/nowhere", b"")[0] == 404
    assert running.error("/purify", None)[0] == 405
    for reason in ("no_image", "too_many_pixels", "too_many_bytes", "media_type", "missing_field"):
        assert running.metric(f'purifiers_refused_total{{reason="{reason}"}}') >= 1
    assert running.ask("/purify", good)[0] == 200, "it goes on"


def test_a_body_of_untold_length_is_limited_while_it_is_read(running: Service) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=100) as client:
        client.sendall(b"POST /purify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"5000\r\n" + b"\0" * 0x5000 + b"\r\n")
        assert client.recv(12) == b"HTTP/1.1 413"


def test_a_full_queue_says_when_to_come_back(running: Service) -> None:
    slow = []
    full = 'purifiers_refused_total{reason="queue_full"}'
    before = running.metric(full)
    try:
        for _ in range(int(LIMITS["--max-queue"])):
            slow.append(socket.create_connection(("127.0.0.1", running.port), timeout=100))
            slow[-1].sendall(b"POST /purify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n")
        until(lambda: running.metric("purifiers_waiting") == LIMITS["--max-queue"])
        status, headers, content = running.ask("/purify", encoded(image(0)))
        assert status == 503
        assert headers["retry-after"] == "1"
        assert "8 requests are waiting already" in json.loads(content)["error"]
        assert running.ask("/health")[0] == 200
    finally:
        for client in slow:
            client.close()
    until(lambda: not running.metric("purifiers_waiting"))
    assert running.ask("/purify", encoded(image(0)))[0] == 200
    assert running.metric(full) == before + 1
    assert "Exception in ASGI" not in running.log.read_text(), "clients that go away are no failures"


def test_health_metrics_and_the_schema(running: Service) -> None:
    running.ask("/purify", encoded(image(0)))
    assert running.ask("/health")[0] == 200
    assert running.metric('purifiers_requests_total{route="purify",status="200"}') >= 1
    assert running.metric('purifiers_request_seconds_count{route="purify"}') >= 1
    schema = json.loads(running.ask("/openapi.json")[2])
    purify = schema["paths"]["/purify"]["post"]
    assert set(purify["requestBody"]["content"]) == {"image/png", "image/jpeg", "image/webp", "multipart/form-data"}
    assert list(purify["responses"]["200"]["content"]) == ["image/png"]
    assert {"400", "413", "415", "503"} <= set(purify["responses"])
    assert "/classify" in schema["paths"]
    assert running.ask("/docs")[0] == 200
    assert not list(running.folder.glob("client*.py")), "LitServe's client file"


def test_sigterm_answers_what_is_in_flight_and_ends_with_status_0(running: Service) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.ask, "/purify", encoded(image(0)))
        until(lambda: running.metric("purifiers_waiting") or answer.done())
        running.process.send_signal(signal.SIGTERM)
        assert answer.result()[0] == 200
    assert running.process.wait(60) == 0
    log = running.log.read_text()
    assert log.endswith("stopped\n")
    assert "Traceback" not in log


def api_of(recipe: Recipe | None = None, max_batch_size: int = 4) -> PurifyAPI:
    return PurifyAPI("x", recipe, ImageSpec(Limits(), None, recipe is not None), max_batch_size, 0.0)


def test_what_a_network_cannot_take_fails_alone_and_answers_keep_their_order() -> None:
    class Wide(CAE):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.shape[3] == 9:
                raise RuntimeError("too narrow")
            return super().forward(images)

    api = api_of()
    api.purifier = Purifier(Wide(widths=[4], blocks=[1]))
    images = [image(i, size).transpose(2, 0, 1) for i, size in enumerate([(8, 8), (9, 8), (10, 8), (8, 8)])]
    answers = api.predict([(pixels, False) for pixels in images])
    assert [answer.failure for answer in answers] == [None, "the purifier cannot take an image of 9 x 8", None, None]
    assert [answer.batch for answer in answers] == [4, None, None, None]
    for i in (0, 2, 3):
        assert np.array_equal(answers[i].pixels, purify_pixels(api.purifier, torch.from_numpy(images[i])[None])[0].numpy())


def test_a_classifier_that_fails_or_says_nothing_spoils_no_other_answer() -> None:
    class Picky(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert (images[:, 0, 0, 0] < 0.9).all()
            return images.mean(dim=(2, 3)).log()  # of black: not finite

    api = api_of()
    api.purifier, api.classifier = Purifier(Nothing()), Picky()
    images = [np.full((3, 8, 8), value, np.uint8) for value in (100, 255, 0, 50)]
    answers = api.predict([(pixels, True) for pixels in images])
    assert [answer.failure for answer in answers] == [
        None,
        "the purifier or the classifier cannot take an image of 8 x 8",
        "the classifier's scores are not finite",
        None,
    ]
    assert [answer.scores for answer in answers] == [pytest.approx([1 / 3] * 3), None, None, pytest.approx([1 / 3] * 3)]


def write_classes(folder: Path, size: int) -> Path:
    for name in ("cat", "ant"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(image(0, (size, size))).save(folder / name / "a.png")
    return folder


def served(*words: object) -> torch.nn.Module:
    """The classifier that ``purifiers serve WORDS`` puts behind the purifier."""
    return api_of(recipe_behind(make_parser().parse_args(["serve", *map(str, words)]))).load_classifier()


def test_the_runs_normalisation_is_of_the_runs_classifier_however_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = ResNet(depth=20, width=4, num_classes=10).eval()
    for name in ("c", "other"):
        save_tensors(Path(f"{name}.safetensors"), network.state_dict())
    given = [
        *("classifier.network.depth=20", "classifier.network.width=4"),
        *(("classifier.source", "c.safetensors"), ("classifier.mean", [0.5]), ("classifier.std", [0.25])),
    ]
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(recipe_text(load_recipe("digits", given)))
    images = torch.rand(2, 3, 16, 16)
    # The network's own normalisation, in whose place the other comes, is (images - 0.5) / 0.5.
    bare, normalised = network(images), network(2 * images - 0.5)
    assert not torch.allclose(bare, normalised, atol=1e-3)
    for words, expected in [
        (["c.safetensors"], normalised),
        (["./c.safetensors"], normalised),
        (["other.safetensors"], bare),
        (["other.safetensors", "--mean", "0.5", "--std", "0.25"], normalised),
        (["c.safetensors", "--mean", "0.5", "--std", "0.5"], bare),
    ]:
        torch.testing.assert_close(served("run", "--classifier", *words)(images), expected)


OWN = """
import torch
from torch import nn

def fixed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))

def grey():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_classifiers_served.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_classifiers_served", raising=False)


@pytest.mark.usefixtures("own_module")
def test_a_classifier_is_tried_at_the_size_of_the_images_or_not_at_all(tmp_path: Path) -> None:
    fixed = ["--classifier", "own_classifiers_served:fixed"]
    saved = tmp_path / "saved"  # no run, and of no known images
    logits = served(saved, *fixed)(torch.zeros(2, 3, 64, 64))
    assert logits.shape == (2, 2)
    assert served(saved, *fixed, "--data-dir", write_classes(tmp_path / "large", 64))(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    with pytest.raises(ConfigError, match=r"fails on images \(2, 3, 20, 20\)"):
        served(saved, *fixed, "--data-dir", write_classes(tmp_path / "small", 20))
    with pytest.raises(ConfigError, match=r"fails on images \(2, 3, 24, 24\)"):
        served(saved, *fixed, "--set", "data.size=24")
    with pytest.raises(ConfigError, match="5 classes, and the images have 2"):
        served(saved, "--classifier", "own_classifiers_served:grey", "--data-dir", tmp_path / "large")
    grey = ["--classifier", "own_classifiers_served:grey"]
    for words in ([], ["--set", "data.size=24"]):
        assert served(saved, *grey, *words)(torch.rand(2, 3, 24, 24)).shape == (2, 5)


def test_what_is_no_classifier_of_these_images_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "c.safetensors", {})
    for what, words, message in [
        ("cifar10", ["cifar10-paper"], "'cifar10-paper' is a purifier"),
        (tmp_path, ["cifar10-paper"], "'cifar10-paper' is a purifier"),
        (tmp_path, [tmp_path / "c.safetensors"], "not known here: name the recipe of its images with --recipe"),
        (tmp_path, ["cifar10-resnet56", "--recipe", "digits", "--mean", "0.5"], "mean and std go together"),
    ]:
        with pytest.raises(ConfigError, match=message):
            served(what, "--classifier", *words)


def test_a_batch_ends_at_its_size_or_its_time_and_late_requests_are_told_apart() -> None:
    api = api_of(max_batch_size=2)
    api.request_timeout = 30
    requests: queue.Queue[Any] = queue.Queue()
    now = time.monotonic()
    for uid, since in (("a", now), ("late", now - 31), ("b", now), ("c", now)):
        requests.put((0, uid, since, uid.upper()))
    loop = api.loop
    assert loop.get_batch_requests(api, requests, None) == ([(0, "a", "A"), (0, "b", "B")], [(0, "late")])
    assert loop.get_batch_requests(api, requests, None) == ([(0, "c", "C")], [])


def test_mistakes_are_told_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            (["cifar-10"], "no purifier at 'cifar-10'; did you mean 'cifar10'"),
            (["cifar10", "--mean", "0.5", "--std", "0.5"], "--mean is for a --classifier, and there is none"),
            (["cifar10", "--port", "80"], "the port 1024 to 65535; got 127.0.0.1, 80"),
            (["cifar10", "--host", "example.org"], "the host is one of 127.0.0.1, 0.0.0.0, ::"),
            (["cifar10", "--port", port], "Address already in use; give another --port"),
            (["cifar10", "--classifier", "cifar10-resnet5"], "cannot load a classifier from 'cifar10-resnet5'"),
        ]
        for words, message in cases:
            assert main(["serve", *words, "--device", "cpu"]) == 1
            assert message in capsys.readouterr().err


def test_class_names_are_known_without_the_images(tmp_path: Path) -> None:
    assert class_names("cifar10") == purifiers.data.cifar10.CLASSES
    assert class_names("folder", str(tmp_path)) is None
    assert class_names("folder", "/nowhere") is None
    for name in ("cat", "ant"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"")
    assert class_names("folder", str(tmp_path)) == ("ant", "cat")
    assert image_shape("folder", str(tmp_path)) is None, "damaged"
    Image.fromarray(image(0, (9, 7))).save(tmp_path / "ant" / "a.png")
    assert image_shape("folder", str(tmp_path)) == (7, 9)
    assert image_shape("folder", str(tmp_path), 5) == (5, 5)
    assert image_shape("folder", "/nowhere") is None
    assert image_shape("digits") == tuple(load_images("digits", "test").images.shape[2:])
    assert image_shape("cifar10") == (32, 32)
