"""The commands as a user types them."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from purifiers import Purifier
from purifiers.cli import main
from purifiers.recipes.load import NAMES
from purifiers.runs import Run
from tests.conftest import CIFAR10, REFERENCE, TINY, needs_cifar10, needs_reference

SETTINGS = [part for override in TINY for part in ("--set", override)]


def test_the_demo_from_start_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attacks = "evaluation.attacks.AA={kind: autoattack, epsilon: 0.1}"
    assert main(["demo", "--output", str(tmp_path / "run"), "--device", "cpu", *SETTINGS, "--set", attacks]) == 0
    out = capsys.readouterr().out
    for text in (
        "Table 1.",
        "Table 1 in detail",
        "What was compared",
        "In the mean over attacks ours has",
        "Table 2.",
        "threat model",
        "clean images",
        "same, NT sees adversarial",
        "report.html",
    ):
        assert text in out
    records = json.loads((tmp_path / "run" / "results.json").read_text())["records"]
    assert {record["attack"] for record in records} == {"none", "PGD", "FGSM", "AA"}
    assert Purifier.from_pretrained(tmp_path / "run")


def test_train_then_evaluate_then_purify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, device = str(tmp_path / "run"), ["--device", "cpu"]
    assert main(["train", "--recipe", "digits", "--output", run, *device, *SETTINGS, "--seed", "3"]) == 0
    assert f"purifiers evaluate {run}" in capsys.readouterr().out
    assert main(["evaluate", run, *device, "--set", "data.test_limit=10"]) == 0
    out = capsys.readouterr().out
    assert "Table 1." in out
    assert "Table 2." not in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["seed"] == 3
    assert {record["n"] for record in results["records"]} == {10}
    other = tmp_path / "other"
    assert main(["evaluate", run, *device, "--output", str(other), "--set", "evaluation.views=[blind]"]) == 0
    assert (other / "report.html").is_file()
    assert "\n# run\n" in (other / "card.md").read_text()  # of the purifier that is in the run
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "in" / "a.png")
    assert main(["purify", str(tmp_path / "in"), str(tmp_path / "out"), "--purifier", run, *device]) == 0
    (tmp_path / "in" / "bad.png").write_text("x")
    assert main(["purify", str(tmp_path / "in"), str(tmp_path / "out"), "--purifier", run, *device]) == 1
    captured = capsys.readouterr()
    assert "0 purified, 1 there already, 1 failed" in captured.out
    assert "bad.png" in captured.err


def test_own_classifier_and_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's third way in: a frozen classifier from a function, images from a folder."""
    random = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 128)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(random.integers(low, low + 128, (12, 12, 3), dtype=np.uint8)).save(
                tmp_path / "images" / name / f"{i}.png"
            )
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
    results = json.loads((Path(run) / "results.json").read_text())
    clean = results["records"][0]
    assert (clean["dataset"], clean["classifier"]) == ("images", "own_module:build")
    assert 2 <= clean["n"] <= 30
    assert results["recipe"]["training_attacks"]["PGD"]["epsilon"] == "8/255"
    assert results["recipe"]["data"]["size"] is None
    assert clean["accuracy_undefended"] == 1.0
    assert not (Path(run) / "checkpoints" / "classifier").exists()


@needs_cifar10
@needs_reference
def test_cifar10_end_to_end_on_a_subset(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    settings = [
        "data.limit=64", "data.test_limit=16", "training_attacks.PGD.num_steps=2", "purifier.widths=[4,6,8]", "teacher_at.epochs=1",
        "teacher_nt.epochs=1", "student.epochs=1", "evaluation.attacks={PGD8: {kind: pgd, epsilon: 8/255, step_size: 2/255, num_steps: 20}}",
        "classifier.network.mean=[0.485,0.456,0.406]", "classifier.network.std=[0.229,0.224,0.225]",
    ]  # fmt: skip
    overrides = [part for setting in settings for part in ("--set", setting)]
    own = ["--data-dir", str(CIFAR10), "--classifier", str(REFERENCE)]
    assert (
        main(["reproduce", "--recipe", "paper", "--output", run, "--device", "cpu", "--baselines", "ready", *own, *overrides])
        == 0
    )
    report = (Path(run) / "report.md").read_text()
    assert "paper's SOAP" in report
    assert "40.20" in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--recipe", "digit"], "did you mean 'digits'"),
        (["train", "--set", "student.epoch=1"], "did you mean 'epochs'"),
        (["demo", "--device", "tpu"], "no device 'tpu'"),
        (["evaluate", "nowhere"], "holds no recipe.yaml"),
        (["evaluate", "cifar10"], "'purifiers reproduce --recipe strong --from-weights' measures it"),
        (["audit", "cifar10-resnet56"], "'cifar10-resnet56' is a classifier; a purifier is needed here"),
        (
            ["certify", "cifar10", "--sigma", "64/255", "--set", "audit.imags=3"],
            "strong, with what is set besides, is not valid",
        ),
        (["purify", "a", "b", "--purifier", "nowhere"], "no purifier at 'nowhere'"),
        (["certify", "cifar-10"], "neither a run nor a purifier at 'cifar-10'; did you mean 'cifar10'"),
        (["certify", "cifar10", "--set", "student.epochs=1"], "training is over"),
        (["certify", "cifar10", "--recipe", "digits"], "the classifier of the recipe 'digits' does not come with the library"),
        (["train", "--images", "no: where #1"], "no folder no: where #1"),
        (["train", "--classifier", "nowhere.safetensors"], "no weights file"),
        (["reproduce", "--data-dir", "/nowhere"], "no CIFAR-10 batches in /nowhere"),
    ],
)
def test_mistakes_are_one_clear_line_and_status_1(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("purifiers: error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing was written"


def test_evaluation_cannot_pretend_to_train(tiny_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for setting in ("student.epochs=9", "seed=9", "data.limit=9"):
        assert main(["evaluate", str(tiny_run.folder), "--set", setting]) == 1
        assert "training is over; here only evaluation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--recipee", "x"], "did you mean '--recipe'"),
        (["evaluate", "x", "--clasifier", "y"], "did you mean '--classifier'"),
        (["purify", "a", "b"], "required: --purifier"),
        ([], "required: COMMAND"),
        (["train", "--seed", "x"], "invalid int value"),
        (["certify", "cifar10", "--sigma", "wide"], "'wide' is not a number; write 0.1 or 8/255"),
    ],
)
def test_mistyped_commands_are_status_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "reproduce", "certify", "purify", "serve"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert len(out) > 400
    if command == "train":
        assert all(name in out for name in NAMES)


def test_results_of_another_run_are_never_replaced(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("name: other")
    assert main(["evaluate", str(tiny_run.folder), "--output", str(tmp_path)]) == 1
    assert "is a run of its own" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    for command in (["evaluate", str(tiny_run.folder)], ["train"]):
        assert main([*command, "--output", str(tmp_path / "file")]) == 1
        assert "is a file; give a folder" in capsys.readouterr().err


def test_a_broken_test_image_is_found_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "images" / split / name / "0.png")
    (tmp_path / "images" / "test" / "a" / "0.png").write_text("broken")
    assert main(["train", "--images", str(tmp_path / "images"), "--output", str(tmp_path / "run")]) == 1
    assert "1 of 4 images cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_data_in_the_environment_is_not_kept_in_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr(
        "purifiers.training.pipeline.train_recipe", lambda recipe, *_, **__: seen.append(recipe.data.path) or sys.exit(0)
    )
    monkeypatch.setenv("PURIFIERS_DATA", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["train", "--recipe", "paper"])
    assert seen == [None]


def test_a_damaged_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = ["train", "--output", str(run), "--device", "cpu", *SETTINGS]
    assert main(command) == 0
    state = run / "checkpoints" / "teacher_at" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-20])
    assert main(command) == 1
    assert f"{state} is damaged" in capsys.readouterr().err
    state.unlink()
    assert main(command) == 0


def test_ctrl_c_says_that_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("purifiers.training.pipeline.train_recipe", interrupt)
    assert main(["train", "--output", str(tmp_path)]) == 130
    assert "nothing finished is lost: the same command (without --restart) goes on" in capsys.readouterr().err
    monkeypatch.setattr("purifiers.runs.open_defended", interrupt)
    assert main(["certify", "cifar10", "--output", str(tmp_path)]) == 130
    assert "nothing finished is lost: the same command goes on" in capsys.readouterr().err


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk: the first file larger than it cannot be written."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "purifiers", "train", "--output", str(run), "--device", "cpu", *SETTINGS]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "File too large; free some space" in done.stderr
    assert "Traceback" not in done.stderr
    left = [path for path in run.rglob("*") if path.is_file() and path.name != "recipe.yaml"]
    assert not left
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0


def test_a_training_in_pieces_ends_like_one_in_one_piece(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = ["train", "--output", str(run), "--device", "cpu", *SETTINGS]
    statuses = []
    while not statuses or statuses[-1] == 3:
        statuses.append(main([*command, "--minutes", "0.003"]))
        assert "Traceback" not in capsys.readouterr().err
        if len(statuses) > 1:  # 0.18 seconds are for several calls; the rest need not be cut
            statuses.append(main(command))
    assert statuses[0] == 3
    assert statuses[-1] == 0
    assert (run / "model.safetensors").is_file()


def test_tables_and_minutes_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--tables", "4"], ["--tables", "one"], ["--minutes", "0"], ["--minutes", "soon"]):
        with pytest.raises(SystemExit) as stopped:
            main(["reproduce", *words])
        assert stopped.value.code == 2
        assert words[0] in capsys.readouterr().err


def test_a_recipe_without_shipped_weights_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--recipe", "digits", "--from-weights", "--output", str(tmp_path / "x")]) == 1
    assert "no weights of the recipe 'digits' come with the library" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "5"], "--from-weights takes ours as it is: not with --seed"),
        (["--restart"], "--from-weights takes ours as it is"),
        (["--minutes", "9"], "--from-weights trains nothing without --baselines all"),
        (["--tables", "1,2"], "--from-weights takes ours as it is"),
        (["--set", "student.epochs=100"], "--set student.epochs=100: training is over"),
    ],
)
def test_shipped_weights_take_no_training_settings(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "--recipe", "strong-cpu", "--from-weights", "--output", str(tmp_path / "x")]
    assert main([*command, *words]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_baselines_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    train = ["train", "--recipe", "digits", "--output", run, "--device", "cpu", *SETTINGS]
    assert main(train) == 0

    def compared(*words: str) -> set[str]:
        assert main([*words, "--device", "cpu"]) == 0
        records = json.loads((tmp_path / "run" / "results.json").read_text())["records"]
        return {record["purifier"] for record in records if record["purifier"].startswith("baseline: ")}

    assert compared("evaluate", run) == {"baseline: JPEG"}
    assert "NRP              is left out" in capsys.readouterr().out
    assert compared("evaluate", run, "--baselines", "none") == set()
    assert "Table 1. Purification against" in capsys.readouterr().out
    assert compared("evaluate", run, "--baselines", "all") == {"baseline: JPEG", "baseline: NRP", "baseline: SOAP"}
    assert compared("evaluate", run) == {"baseline: JPEG", "baseline: NRP", "baseline: SOAP"}
    assert compared("evaluate", run, "--set", "baselines={}") == set()
    assert main(["evaluate", run, "--baselines", "all", "--classifier", run]) == 1
    assert "not together" in capsys.readouterr().err


def test_table_2_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = ["reproduce", "--recipe", "digits", "--output", str(run), "--device", "cpu", *SETTINGS, "--seeds", "0,1"]
    assert main(command) == 0
    assert "The paper's claim" in capsys.readouterr().out
    assert "Table 2 over 2 seeds" in (run / "table2.md").read_text()
    seeds = [json.loads((run / f"seed-{seed}" / "results.json").read_text())["seed"] for seed in (0, 1)]
    assert seeds == [0, 1]
    assert main([*command, "--seed", "3"]) == 1
    assert "--seeds is for Table 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["reproduce", "--seeds", "1,1"])
    assert "several different seeds, please" in capsys.readouterr().err


def test_a_denoiser_from_training_to_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, device = tmp_path / "run", ["--device", "cpu"]
    noise = ["--set", "training_attacks={}", "--set", "teacher_at.noise=0.1", "--set", "student.noise=0.1"]
    assert main(["train", "--recipe", "digits", "--output", str(run), *device, *SETTINGS, *noise]) == 0
    assert "attack " not in capsys.readouterr().out
    certify = ["certify", str(run), "--n", "50", "--n0", "5", "--images", "4", *device]
    assert main(certify) == 0
    out = capsys.readouterr().out
    for text in (
        "Certified accuracy by radius",
        "classifier alone",
        "noise sigma 0.1",
        "4 test images of digits",
        "certificate.md",
    ):
        assert text in out
    assert "95 % interval" not in out
    found = json.loads((run / "certificate.json").read_text())
    assert (found["sigma"], found["n0"], found["n"], found["alpha"], found["n_images"]) == (0.1, 5, 50, 0.001, 4)
    page = (run / "certificate.md").read_text()
    assert "95 % interval" in page
    assert "(figures/certificate.svg)" in page
    assert (run / "figures" / "certificate.svg").read_text().count("<svg") == 1
    # Again: nothing is drawn anew, and nothing else comes out.
    assert main(certify) == 0
    assert json.loads((run / "certificate.json").read_text()) == found
    for wrong, said in (
        ("--sigma=0", "sigma must be above 0"),
        ("--n0=0", "n0, a number"),
        ("--alpha=1", "alpha, a prob"),
        ("--n=5", "n must be"),
    ):
        assert main([*certify, wrong]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*certify, "--images", "0"])
    assert "a number of 1 or more" in capsys.readouterr().err
    assert main([*certify, "--recipe", "digits"]) == 1
    assert "which has its own recipe" in capsys.readouterr().err

    # The purifier alone, in front of a classifier that is given.
    saved, classifier = tmp_path / "saved", str(run / "checkpoints" / "classifier")
    Purifier.from_pretrained(run).save_pretrained(saved)
    alone = ["certify", str(saved), *certify[2:], "--sigma", "0.1", "--output", str(tmp_path / "out")]
    assert main(alone) == 1
    assert "is a purifier without a run: name the recipe" in capsys.readouterr().err
    assert main([*alone, "--recipe", "digits", "--classifier", classifier, "--set", "data.size=16"]) == 0
    other = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert (other["purifier"], other["dataset"], other["n_images"]) == ("saved", "digits", 4)
    assert main([*alone[:-1], str(run), "--recipe", "digits", "--classifier", classifier]) == 1
    assert "is a run of its own" in capsys.readouterr().err


def test_a_purifier_that_met_no_noise_needs_a_sigma(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", str(tiny_run.folder), "--output", str(tmp_path), "--device", "cpu"]) == 1
    assert "was not trained on Gaussian noise (student.noise): give the smoothing's --sigma" in capsys.readouterr().err


@needs_cifar10
def test_a_shipped_purifier_is_certified_with_the_classifier_of_its_recipe(tmp_path: Path) -> None:
    size = ["--sigma", "0.05", "--n", "12", "--n0", "2", "--images", "2"]
    assert main(["certify", "cifar10", "--data-dir", str(CIFAR10), "--output", str(tmp_path), "--device", "cpu", *size]) == 0
    found = json.loads((tmp_path / "certificate.json").read_text())
    assert (found["purifier"], found["classifier"], found["recipe"]["name"]) == ("cifar10", "resnet56", "strong")
