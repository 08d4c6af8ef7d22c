"""The command, as a process of its own; and the classifiers that it serves."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from purifiers import Purifier
from purifiers.baselines import Nothing
from purifiers.cli import main
from purifiers.errors import ConfigError
from purifiers.networks import CAE, ResNet
from purifiers.recipes.load import load_recipe, recipe_text
from purifiers.serve import server, worker
from purifiers.serve.models import Models
from purifiers.storage import save_tensors
from tests.serve.test_endpoints import decoded, encoded, image, purified, until


def environment() -> dict[str, str]:
    """For a process that imports the same library as this one."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def fetch(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, {"Content-Type": "image/png"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_client_cannot_name_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header names the client only if FORWARDED_ALLOW_IPS is set, as behind a proxy."""

    class SeenError(Exception):
        pass

    def config(app: object, **options: object) -> None:
        raise SeenError(options["proxy_headers"])

    monkeypatch.setattr("uvicorn.Config", config)
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    for behind_proxy in (False, True):
        with pytest.raises(SeenError, match=str(behind_proxy)):
            server.serve_app(lambda: None, "127.0.0.1", 0)
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.1")


def test_a_real_server_under_load_until_it_is_stopped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    purifier = Purifier(CAE(widths=[4, 8], blocks=[1, 1], skip_every=1))
    purifier.save_pretrained(tmp_path / "saved")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = ["serve", "saved", "--port", str(port), "--device", "cpu", "--max-queue", "8", "--batch-timeout", "0.2"]
    with (
        (tmp_path / "log").open("w+") as log,
        subprocess.Popen(
            [sys.executable, "-m", "purifiers", *command], cwd=tmp_path, stdout=log, stderr=log, env=environment()
        ) as process,
    ):

        def is_up() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                return fetch(f"{url}/health")[0] == 200
            except OSError:
                return False

        def waiting() -> int:
            lines = fetch(f"{url}/metrics")[1].decode().splitlines()
            return next(int(float(line.split()[1])) for line in lines if line.startswith("purifiers_waiting "))

        try:
            until(is_up)
            slow = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(8)]
            for client in slow:
                client.sendall(b"POST /purify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n")
            until(lambda: waiting() == 8)
            assert fetch(f"{url}/purify", encoded(image(0)))[0] == 200, "those who send slowly keep out nobody"
            for client in slow:
                client.close()
            until(lambda: waiting() == 0)
            images = [image(i) for i in range(64)]
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda pixels: fetch(f"{url}/purify", encoded(pixels)), images))
                assert {status for status, _ in found} == {200}
                for pixels, (_, content) in zip(images, found, strict=True):
                    assert np.array_equal(decoded(content), purified(purifier, pixels))
                last = pool.submit(fetch, f"{url}/purify", encoded(images[0]))
                until(lambda: waiting() or last.done())
                process.send_signal(signal.SIGTERM)
                assert last.result()[0] == 200, "in flight"
            assert process.wait(60) == 0
        finally:
            process.kill()
        text = (tmp_path / "log").read_text()
        assert text.endswith("stopped\n")
        assert "Traceback" not in text and "Exception" not in text


def test_mistakes_are_reported_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker.Worker, "start", lambda self: self.build())  # in this process, which has loaded torch
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for words, message in [
            (["cifar-10"], "did you mean 'cifar10'"),
            (["cifar10", "--mean", "0.5", "--std", "0.5"], "--mean has no effect"),
            (["cifar10", "--port", "70000"], "--port"),
            (["cifar10", "--host", "no.such.host.invalid"], "--host"),
            (["cifar10", "--port", str(taken.getsockname()[1])], "in use"),
            (["cifar10", "--classifier", "cifar10-resnet5"], "cifar10-resnet5"),
        ]:
            assert main(["serve", *words, "--device", "cpu"]) == 1
            assert message in capsys.readouterr().err


Served = Callable[..., nn.Module]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Served:
    """The classifier that ``purifiers serve`` with these arguments puts behind the purifier, of which only the name counts."""
    built: list[Models] = []
    monkeypatch.setattr(Purifier, "from_pretrained", lambda name: Purifier(Nothing()))
    monkeypatch.setattr(worker.Worker, "start", lambda self: built.append(self.build()))
    monkeypatch.setattr(server, "serve_app", lambda make, *_, **__: make())

    def served(*words: object) -> nn.Module:
        if main(["serve", *map(str, words), "--device", "cpu"]) != 0:
            raise ConfigError(capsys.readouterr().err)
        assert built[-1].classifier is not None
        return built[-1].classifier

    return served


def test_a_runs_normalisation_belongs_to_the_runs_classifier_by_any_path(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = ResNet(depth=8, width=4, num_classes=10).eval()
    for name in ("c", "other"):
        save_tensors(Path(f"{name}.safetensors"), network.state_dict())
    given = [
        *("classifier.network.depth=8", "classifier.network.width=4"),
        *(("classifier.source", "c.safetensors"), ("classifier.mean", [0.5]), ("classifier.std", [0.25])),
    ]
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(recipe_text(load_recipe("digits", given)))
    images = torch.rand(2, 3, 16, 16)
    # The network's own normalisation, which the other replaces, is (images - 0.5) / 0.5.
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


def write_classes(folder: Path, size: int) -> Path:
    for name in ("cat", "ant"):
        (folder / name).mkdir(parents=True)
        for file in ("a.png", "b.png"):
            Image.fromarray(image(0, (size, size))).save(folder / name / file)
    return folder


@pytest.mark.usefixtures("own_module")
def test_a_classifier_is_tried_at_the_size_of_the_images_if_it_is_known(served: Served, tmp_path: Path) -> None:
    fixed = ["--classifier", "own_classifiers_served:fixed"]
    saved = tmp_path / "saved"  # not a run, and for unknown images
    logits = served(saved, *fixed)(torch.zeros(2, 3, 64, 64))
    assert logits.shape == (2, 2)
    assert served(saved, *fixed, "--data-dir", write_classes(tmp_path / "large", 64))(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    with pytest.raises(ConfigError, match=r"\(2, 3, 20, 20\)"):
        served(saved, *fixed, "--data-dir", write_classes(tmp_path / "small", 20))
    with pytest.raises(ConfigError, match=r"\(2, 3, 24, 24\)"):
        served(saved, *fixed, "--set", "data.size=24")
    with pytest.raises(ConfigError, match="5 classes"):
        served(saved, "--classifier", "own_classifiers_served:grey", "--data-dir", tmp_path / "large")
    grey = ["--classifier", "own_classifiers_served:grey"]
    for words in ([], ["--set", "data.size=24"]):
        assert served(saved, *grey, *words)(torch.rand(2, 3, 24, 24)).shape == (2, 5)


def test_what_cannot_classify_these_images_is_refused(served: Served, tmp_path: Path) -> None:
    save_tensors(tmp_path / "c.safetensors", {})
    for what, words, message in [
        ("cifar10", ["cifar10-paper"], "purifier"),
        (tmp_path, ["cifar10-paper"], "purifier"),
        (tmp_path, [tmp_path / "c.safetensors"], "--recipe"),
        (tmp_path, ["cifar10-resnet56", "--recipe", "digits", "--mean", "0.5"], "mean and std"),
    ]:
        with pytest.raises(ConfigError, match=message):
            served(what, "--classifier", *words)
