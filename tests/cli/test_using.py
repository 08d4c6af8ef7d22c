"""purify, export, serve and app; more of each stands with the tests of what they call."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from purifiers import load_classifier
from purifiers.cli import main
from purifiers.registry import fingerprint
from purifiers.runs import Run

CPU = ["--device", "cpu"]


def test_purify_resumes_and_lists_what_fails(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target, compared = tmp_path / "in", tmp_path / "out", tmp_path / "compared"
    source.mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(source / "a.png")
    command = ["purify", str(source), str(target), "--purifier", str(tiny_run.folder), *CPU]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("1 purified, 0 there already, 0 failed")
    for i in range(22):
        (source / f"bad [{i}] :bug:.png").write_text("x")
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(source / "large.png")
    assert main([*command, "--max-pixels", "300"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("0 purified, 1 there already, 23 failed")
    assert "bad [0] :bug:.png" in captured.err
    assert "and 3 more" in captured.err
    assert (target / "failed.txt").read_text().count("bad [") == 22
    assert (
        main([*command[:1], str(source / "a.png"), f"{target}/", *command[3:], "--overwrite", "--compare", str(compared)]) == 0
    )
    assert capsys.readouterr().out.startswith("1 purified")
    with Image.open(target / "a.png") as image:
        assert image.size == (9, 9)
    assert list(compared.rglob("*.png"))


def test_export_writes_a_program(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "p.pt2"
    assert main(["export", str(tiny_run.folder), str(target), "--format", "torch", "--size", "16"]) == 0
    assert "(batch, 3, 16, 16)" in capsys.readouterr().out
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(torch.export.load(target).module()(images), tiny_run.purifiers["student"](images).detach())


def test_options_of_serve_reach_it(tiny_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setenv("PURIFIERS_TOKEN", "secret\n")
    built = []
    monkeypatch.setattr("purifiers.serve.worker.Worker.start", lambda self: built.append(self.build()))
    monkeypatch.setattr("purifiers.serve.endpoints.make_app", lambda *given: given)
    monkeypatch.setattr(
        "purifiers.serve.server.serve_app", lambda make, host, port, **options: calls.append((*make(), host, port, options))
    )
    words = ["--host", "0.0.0.0", "--port", "9000", "--max-batch-size", "4", "--batch-timeout", "0.5", "--max-bytes", "100"]
    words += [
        "--max-pixels",
        "50",
        "--max-queue",
        "3",
        "--max-per-client",
        "2",
        "--classifier",
        "cifar10-resnet20",
        "--set",
        "data.size=16",
    ]
    assert main(["serve", str(tiny_run.folder), *words, *CPU]) == 0
    assert main(["serve", "cifar10", *CPU]) == 0
    assert capsys.readouterr().out == "stopped\nstopped\n"
    monkeypatch.setenv("PURIFIERS_TOKEN", " \n")
    assert main(["serve", "cifar10", *CPU]) == 1
    assert "PURIFIERS_TOKEN is set and empty" in capsys.readouterr().err
    (service, *others, options), (plain, _, *defaults) = calls
    assert others == ["secret", "0.0.0.0", 9000]
    assert options["timeout_graceful_shutdown"] == 30
    assert (service.batch_size, service.batch_timeout) == (4, 0.5)
    assert (service.max_bytes, service.max_queue, service.max_per_client, service.classifies) == (100, 3, 2, True)
    models, purifying = built
    assert models.max_pixels == 50
    assert models.names == tuple("0123456789")
    assert fingerprint(models.classifier) == fingerprint(load_classifier("cifar10-resnet20"))
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(models.purifier(images), tiny_run.purifiers["student"](images))
    assert (purifying.classifier, purifying.names, purifying.max_pixels, plain.classifies, defaults[:2]) == (
        None,
        None,
        4_000_000,
        False,
        ["127.0.0.1", 8000],
    )


def test_options_of_app_reach_it(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("purifiers.app.page.serve_page", lambda *given: calls.append(given))
    assert main(["app", str(tiny_run.folder), "--host", "0.0.0.0", "--port", "0", *CPU]) == 0
    defence, host, port, _ = calls[0]
    assert (defence.name, host, port) == ("run", "0.0.0.0", 0)


def test_the_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "purifiers.interop.on_ray", raising=False)
    assert main(["purify", "in", "out", "--purifier", "cifar10", "--engine", "ray"]) == 1
    assert "purifiers[ray]" in capsys.readouterr().err
    assert main(["purify", "in", "out", "--purifier", "cifar10", "--engine", "ray", "--shard", "0/2"]) == 1
