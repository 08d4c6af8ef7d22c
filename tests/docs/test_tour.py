"""The tour, as a user takes it: its commands as they stand in docs/tour.md, one after the other, at a small size. The service is
a process of its own; the others are run in this one."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from purifiers.cli import main
from tests.docs.test_documents import ROOT, blocks

CLASSES = ("blue", "green", "red")
PER_CLASS = 40
SMALL = {
    "train": [
        "purifier={network: cae, widths: [4, 8], blocks: [1, 1], residual: true}",
        "training_attacks.PGD.num_steps=2",
        *(f"{stage}.epochs=1" for stage in ("teacher_nt", "teacher_at", "student")),
    ],
    "evaluate": [
        "evaluation.attacks={FGSM: {kind: fgsm, epsilon: 8/255}}",
        "evaluation.adaptive_attacks=[]",
        "data.test_limit=12",
    ],
    "audit": [
        "audit.images=4",
        "audit.attacks.PGD.num_steps=5",
        "audit.check_images=0",
        "audit.views={query: [], transfer: [], blind: [PGD], full: [PGD]}",
    ],
}
"""Settings that make a command short; all that it does is left in."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos/` of 120 images of mixed sizes and `my-resnet/`, a classifier that tells them apart."""
    transformers = pytest.importorskip("transformers", reason="the tour protects a transformers classifier")
    folder = tmp_path_factory.mktemp("tour")
    random = np.random.default_rng(0)
    small = []
    for label, name in enumerate(CLASSES):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            height, width = random.integers(32, 80, 2)
            pixels = random.integers(0, 120, (height, width, 3))
            pixels[..., 2 - label] += 100
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / "photos" / name / f"{i}.{'png' if i % 2 == 0 else 'jpg'}")
            small.append(np.asarray(image.resize((32, 32))))
    images = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255
    labels = torch.arange(3).repeat_interleave(PER_CLASS)
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=dict(enumerate(CLASSES))
    )
    network = transformers.ResNetForImageClassification(config)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(4):
        for batch in torch.randperm(len(labels)).split(20):
            optimiser.zero_grad()
            F.cross_entropy(network(pixel_values=(images[batch] - 0.5) / 0.25).logits, labels[batch]).backward()
            optimiser.step()
    network.eval().save_pretrained(folder / "my-resnet")
    normalisation = {
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": False,
    }
    (folder / "my-resnet" / "preprocessor_config.json").write_text(json.dumps(normalisation))
    return folder


def typed() -> Iterator[list[str]]:
    """The commands of the page, in order, without the installation."""
    for _, body in blocks(ROOT / "docs" / "tour.md"):
        for line in body.splitlines():
            words = shlex.split(line)
            if words and words[0] != "pip":
                yield words


def run(words: list[str]) -> None:
    settings = [part for setting in SMALL.get(words[0], []) for part in ("--set", setting)]
    assert main([*words, *settings]) == 0, shlex.join(words)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}


def test_the_tour(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands = list(typed())
    assert len(commands) < 10  # "in under ten commands"
    *before, serve = [words[1:] for words in commands if words[0] == "purifiers"]
    assert [words[0] for words in (*before, serve)] == ["train", "evaluate", "audit", "export", "purify", "serve"]
    weights = (place / "my-resnet" / "model.safetensors").read_bytes()
    monkeypatch.chdir(place)
    for words in before:
        run(words)
        printed = capsys.readouterr().out
        if words[0] == "evaluate":
            accuracy = json.loads((place / "my-purifier" / "results.json").read_text())["records"][0]["accuracy"]
            assert accuracy > 0.9  # the classifier does tell these apart, behind the purifier too
        if words[0] == "audit":
            assert "worst" in printed
    assert (place / "my-purifier" / "report.html").is_file() and (place / "my-purifier" / "audit.html").is_file()
    assert (place / "my-purifier.onnx").stat().st_size > 1000
    assert len(list((place / "cleaned").rglob("*.png"))) == 3 * PER_CLASS
    assert (place / "my-resnet" / "model.safetensors").read_bytes() == weights
    serving(serve, [words for words in commands if words[0] == "curl"], place)


def serving(words: list[str], asked: list[list[str]], place: Path) -> None:
    """Start the service, ask it as the page does, and stop it; on another port, as the page's may be taken."""
    if shutil.which("curl") is None:
        pytest.skip("the page asks with curl, which is not installed; all before that was done")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    server = subprocess.Popen([sys.executable, "-m", "purifiers", *words, "--port", port], cwd=place, env=environment())
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                assert server.poll() is None, "the service stopped"
                assert time.monotonic() < deadline, "the service does not answer"
                time.sleep(0.3)
        answers = [
            subprocess.run(
                ["curl", "-sS", *(word.replace(":8000", f":{port}") for word in words[1:])],
                cwd=place,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for words in asked
        ]
        assert json.loads(answers[0])["name"] == "red", answers[0]
        with Image.open(place / "purified.png") as purified, Image.open(place / "photos" / "red" / "0.png") as original:
            assert purified.size == original.size
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
