"""train, demo and reproduce."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from purifiers import Purifier
from purifiers.cli import main
from purifiers.recipes.load import load_recipe
from purifiers.runs import Run
from tests.conftest import CIFAR10, REFERENCE, TINY, needs_cifar10, needs_reference

SETTINGS = [part for setting in TINY for part in ("--set", setting)]
FAST = [*SETTINGS, "--set", "data.limit=32", "--set", "evaluation.views=[blind]", "--device", "cpu"]


def results_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What training is called with, instead of training."""
    found: list[tuple[Any, ...]] = []

    def record(recipe: Any, folder: Path, **options: Any) -> None:
        found.append((recipe, folder, options))
        raise KeyboardInterrupt

    monkeypatch.setattr("purifiers.training.pipeline.train_recipe", record)
    return found


def test_options_of_training_reach_it(calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    words = ["--shipped-classifiers", "--data-dir", str(tmp_path), "--seed", "3", "--set", "student.epochs=5"]
    assert main(["train", "--recipe", "strong", *words, "--minutes", "2", "--restart", "--device", "cuda:1"]) == 130
    own = ["--classifier", "a:b", "--mean", "0.1,0.2,0.3", "--std", "1"]
    assert main(["reproduce", *own[:4], "--std", "1,1,1", "--output", str(tmp_path), "--tables", "1"]) == 130
    assert main(["demo"]) == 130
    (recipe, folder, options), (other, second, of_reproduce), (digits, third, of_demo) = calls
    assert (folder, second, third) == (Path("runs/strong"), tmp_path, Path("runs/demo"))
    assert (recipe.classifier.source, recipe.data.path) == ("cifar10-resnet56", str(tmp_path))
    assert (recipe.seed, recipe.student.epochs) == (3, 5)
    assert (options["restart"], options["device"]) == (True, "cuda:1")
    assert options["deadline"]._limit == 120
    assert (other.name, digits.name) == ("paper", "digits")
    assert other.classifier.options()["mean"] == (0.1, 0.2, 0.3)
    assert (of_reproduce["ablation"], of_demo["ablation"]) == (False, True)
    assert of_demo["deadline"]._limit is None


@pytest.mark.usefixtures("quick")
def test_own_classifier_and_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen classifier from a function, images from a folder."""
    random = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 128)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(15):
            pixels = random.integers(low, low + 128, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "own_module.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Mean(nn.Module):\n    def forward(self, x):\n"
        "        m = x.mean(dim=(1, 2, 3))\n        return 20 * torch.stack([0.5 - m, m - 0.5], 1)\n\ndef build():\n    return Mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    run = str(tmp_path / "my-purifier")
    own = ["--classifier", "own_module:build", "--images", "images", "--output", run]
    adaptive = ["--set", "evaluation.adaptive_attacks=[PGD]"]
    assert main(["train", *own, "--device", "cpu", *SETTINGS, "--set", "data.limit=null", *adaptive]) == 0
    assert main(["evaluate", run, "--device", "cpu", "--set", "data.test_limit=null"]) == 0
    results = results_in(Path(run))
    clean = results["records"][0]
    assert (clean["dataset"], clean["classifier"]) == ("images", "own_module:build")
    assert 2 <= clean["n"] <= 15
    assert results["recipe"]["training_attacks"]["PGD"]["epsilon"] == "8/255"
    assert results["recipe"]["data"]["size"] is None
    assert clean["accuracy_undefended"] == 1.0
    assert not (Path(run) / "checkpoints" / "classifier").exists()


def test_a_broken_test_image_is_found_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "images" / split / name / "0.png")
    (tmp_path / "images" / "test" / "a" / "0.png").write_text("broken")
    assert main(["train", "--images", str(tmp_path / "images"), "--output", str(tmp_path / "run")]) == 1
    assert "1 of 4 images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--output", str(run), "--device", "cpu", *SETTINGS]
    state = run / "checkpoints" / "teacher_at" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-20])
    assert main(command) == 1
    assert f"{state} is damaged" in capsys.readouterr().err
    state.unlink()
    assert main(command) == 0
    assert f"purifiers evaluate {run}" in capsys.readouterr().out


def test_a_training_in_pieces_ends_like_one_in_one_piece(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--output", str(tmp_path / "run"), "--device", "cpu", *SETTINGS]
    # 0.18 seconds are for several calls; the rest need not be cut
    statuses = [main([*command, "--minutes", "0.003"]), main([*command, "--minutes", "0.003"]), main(command)]
    assert "Traceback" not in capsys.readouterr().err
    assert statuses[0] == 3
    assert statuses[1] in (0, 3)
    assert statuses[2] == 0
    weights = "model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tiny_run.folder / weights).read_bytes()


@pytest.mark.parametrize("key", ["classifier.source", "teacher_at.start", "student.start"])
def test_restart_never_deletes_what_it_starts_from(run: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = run / "checkpoints" / "classifier" if key == "classifier.source" else run
    command = ["train", "--output", str(run), "--restart", "--device", "cpu", *SETTINGS]
    assert main([*command, "--set", f"{key}={source}"]) == 1
    assert "restart would discard" in capsys.readouterr().err
    assert (run / "checkpoints" / "classifier" / "model.safetensors").is_file()
    assert (run / "model.safetensors").is_file()


@pytest.mark.usefixtures("brief_square")
def test_the_demo_writes_all_tables_and_a_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attacks = "evaluation.attacks.AA={kind: autoattack, epsilon: 0.1}"
    few = ["--set", "data.test_limit=4", "--set", attacks, "--set", "evaluation.adaptive_attacks=[PGD]"]
    few += ["--set", "variants={plain: {student.epochs: 1}}"]
    few += ["--set", "baselines={JPEG: {kind: untrained, network: {network: jpeg}}}"]
    assert main(["demo", "--output", str(run), "--device", "cpu", *SETTINGS, *few]) == 0
    out = capsys.readouterr().out
    for text in (
        "Table 1.",
        "Table 1 in detail",
        "Table 2.",
        "threat model",
        "Table 3.",
        "the student of this run",
        "report.html",
    ):
        assert text in out
    assert {record["attack"] for record in results_in(run)["records"]} == {"none", "PGD", "FGSM", "AA"}
    assert load_recipe(run / "variants" / "plain" / "recipe.yaml").student.epochs == 1
    assert Purifier.from_pretrained(run)


@pytest.mark.usefixtures("quick")
def test_table_2_over_seeds(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "seeds"
    shutil.copytree(run, folder / "seed-0")  # is trained already
    few = ["--set", "data.test_limit=4", "--set", "evaluation.views=[blind]", "--baselines", "none"]
    few += ["--set", "evaluation.attacks={FGSM: {kind: fgsm, epsilon: 0.1}}", "--set", "evaluation.adaptive_attacks=[]"]
    command = ["reproduce", "--recipe", "digits", "--output", str(folder), "--device", "cpu", *SETTINGS, *few]
    assert main([*command, "--seeds", "0,1", "--tables", "2"]) == 0
    out = capsys.readouterr().out
    assert "seed 0" in out
    assert "Table 2 over 2 seeds" in out
    assert "Table 2 over 2 seeds" in (folder / "table2.md").read_text()
    assert [results_in(folder / f"seed-{seed}")["seed"] for seed in (0, 1)] == [0, 1]
    weights = [(folder / f"seed-{seed}" / "model.safetensors").read_bytes() for seed in (0, 1)]
    assert weights[0] == (run / "model.safetensors").read_bytes() != weights[1]


@pytest.mark.usefixtures("quick")
def test_weights_are_measured_without_training(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe |= {"name": "mine", "weights": {"student": str(run), "classifier": str(run / "checkpoints" / "classifier")}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    folder = tmp_path / "out"
    command = ["reproduce", "--recipe", str(tmp_path / "mine.yaml"), "--from-weights", "--output", str(folder)]
    assert main([*command, "--set", "data.test_limit=5", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "Table 1." in out
    assert "Table 2." not in out
    records = results_in(folder)["records"]
    assert {record["n"] for record in records} == {5}
    assert "baseline: JPEG" in {record["purifier"] for record in records}
    assert not (folder / "recipe.yaml").exists(), "nothing was trained"


@needs_cifar10
@needs_reference
@pytest.mark.usefixtures("quick")
def test_the_papers_numbers_stand_beside_those_on_cifar10(tmp_path: Path) -> None:
    settings = [
        "data.limit=16", "data.test_limit=2", "training_attacks.PGD.num_steps=1", "purifier.widths=[4,6,8]", "teacher_at.epochs=1",
        "teacher_nt.epochs=1", "student.epochs=1", "evaluation.attacks={PGD8: {kind: pgd, epsilon: 8/255, step_size: 2/255, num_steps: 20}}",
        "evaluation.views=[blind]", "classifier.network.mean=[0.485,0.456,0.406]", "classifier.network.std=[0.229,0.224,0.225]",
    ]  # fmt: skip
    overrides = [part for setting in settings for part in ("--set", setting)]
    own = ["--data-dir", str(CIFAR10), "--classifier", str(REFERENCE), "--tables", "1", "--baselines", "none"]
    assert main(["reproduce", "--output", str(tmp_path / "run"), "--device", "cpu", *own, *overrides]) == 0
    report = (tmp_path / "run" / "report.md").read_text()
    assert "paper's SOAP" in report
    assert "40.20" in report
