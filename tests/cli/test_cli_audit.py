"""purifiers audit, as a user types it."""

import json
from pathlib import Path

import pytest
import torch

from purifiers.cli import main
from purifiers.evaluation.audit import run as audit_module
from purifiers.evaluation.trust import Check
from purifiers.networks import ResNet
from purifiers.registry import save_network
from purifiers.runs import Run
from tests.conftest import CIFAR10, needs_cifar10

FEW = (
    "audit.views={full: [FGSM, PGD, PGD-L2], bpda: PGD, eot: PGD, blind: PGD, transfer: PGD, query: [Square, HopSkipJump]}",
    "audit.attacks.PGD.num_steps=2",
    "audit.attacks.PGD-L2.num_steps=2",
    "audit.attacks.Square.num_queries=3",
    "audit.attacks.HopSkipJump.num_steps=1",
    "audit.attacks.HopSkipJump.num_evaluations=2",
    "audit.draws=2",
)
SETTINGS = [part for setting in FEW for part in ("--set", setting)]


def test_a_run_and_its_baselines_in_one_table(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        audit_module,
        "trust_checks",
        lambda *given, **options: [Check(name="a check", status="failed", sentence="Masked.", figures={})],
    )
    surrogate = tmp_path / "other"
    save_network(surrogate, ResNet(20, width=4))
    out = str(tmp_path / "audit")
    surrogates = ["--set", f"audit.surrogates=['{surrogate}', '{tiny_run.folder}+{surrogate}']", "--set", "audit.limits.JPGE=5"]
    command = ["audit", str(tiny_run.folder), "--output", out, "--device", "cpu", "--images", "6", "--baselines", "ready"]
    assert main([*command, *SETTINGS, *surrogates]) == 0
    printed = capsys.readouterr().out
    for text in (
        "worst case L-inf",
        "a check: Masked.",
        "run: under the worst of",
        "JPEG",
        "audit.html",
        "is left out: not trained",
        "audit.limits: no attack or purifier is called 'JPGE'",
    ):
        assert text in printed
    content = json.loads((tmp_path / "audit" / "audit.json").read_text())
    records = content["records"]
    assert {record["purifier"] for record in records} == {"run", "JPEG"}
    assert {record["view"] for record in records} == {"none", "full", "bpda", "blind", "transfer", "query", "worst"}
    assert {record["attack"] for record in records if record["view"] == "transfer"} == {"PGD on other", "PGD on run+other"}
    assert max(record["n"] for record in records) == 6
    assert "Masked." in (tmp_path / "audit" / "audit.md").read_text()
    assert not (tiny_run.folder / "audit.json").exists()
    # Again, from the cache: the same numbers.
    assert main([*command, *SETTINGS, *surrogates]) == 0
    again = json.loads((tmp_path / "audit" / "audit.json").read_text())["records"]
    assert again == records


@needs_cifar10
def test_a_shipped_purifier_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["audit", "cifar10", "--output", str(tmp_path), "--device", "cpu", "--images", "2", "--no-checks"]
    settings = ["--set", "audit.views={full: FGSM, bpda: [], eot: [], blind: [], transfer: FGSM, query: []}"]
    assert main([*command, *settings, "--data-dir", str(CIFAR10)]) == 0
    records = json.loads((tmp_path / "audit.json").read_text())["records"]
    transfer = {record["attack"] for record in records if record["view"] == "transfer"}
    assert transfer == {f"FGSM on {name}" for name in ("cifar10-resnet20", "cifar10-resnet32", "cifar10+cifar10-resnet20")}
    assert "no trust check was made" in capsys.readouterr().out
    assert torch.get_num_threads() >= 1


def test_what_cannot_be_audited_is_told(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tiny_run.folder)
    out = ["--output", str(tmp_path / "out"), "--device", "cpu"]
    twins = [tmp_path / name / "net-0.25" for name in "ab"]
    for twin in twins:
        save_network(twin, ResNet(20, width=4))
    for arguments, message in [
        ([run, "--recipe", "digits"], "a run brings its own"),
        ([run, run], "duplicate"),
        ([run, "--set", "student.epochs=3"], "training is over"),
        ([run, "--set", "audit.surrogates=[a+b+c]"], "a classifier, or PURIFIER+CLASSIFIER; got 'a+b+c'"),
        ([run, "--set", "audit.surrogates=[nothing]"], "cannot load a classifier from 'nothing'"),
        ([run, "--set", f"audit.surrogates=['{twins[0]}', '{twins[1]}']"], "two surrogates are called 'net-0.25'"),
        (["cifar10", "--recipe", "digits"], "of the recipe 'digits' does not come with the library"),
        ([run, "--baselines", "all", "--classifier", "cifar10-resnet20"], "not together"),
    ]:
        assert main(["audit", *arguments, *out]) == 1, arguments
        assert message in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "recipe.yaml").write_text("name: other\n")
    assert main(["audit", run, "--output", str(other), "--device", "cpu"]) == 1
    assert "is a run of its own" in capsys.readouterr().err
    for wrong in ("0", "x"):
        with pytest.raises(SystemExit):
            main(["audit", run, "--images", wrong])
    assert not (tmp_path / "out").exists()
