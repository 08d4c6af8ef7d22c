"""evaluate, audit and certify."""

import json
from pathlib import Path

import pytest

from purifiers import Purifier
from purifiers.cli import main
from purifiers.evaluation.audit import attack as audit_module
from purifiers.evaluation.certify import Certificate
from purifiers.evaluation.trust.checks import Check
from purifiers.networks import ResNet
from purifiers.recipes.load import load_recipe, recipe_text
from purifiers.registry import save_network
from purifiers.runs import Run
from purifiers.storage import save_tensors
from tests.conftest import CIFAR10, QUICK_ATTACKS, needs_cifar10

CPU = ["--device", "cpu"]
SETTINGS = [part for setting in QUICK_ATTACKS for part in ("--set", setting)]


@pytest.mark.usefixtures("quick")
def test_evaluate_compares_with_the_baselines_that_it_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [*CPU, "--set", "data.test_limit=4", "--set", "evaluation.views=[blind]", "--set", "baselines.SOAP.test_limit=2"]
    few += ["--set", "evaluation.attacks={FGSM: {kind: fgsm, epsilon: 0.1}}", "--set", "evaluation.adaptive_attacks=[]"]

    def compared(*words: str) -> set[str]:
        assert main(["evaluate", str(run), *few, *words]) == 0
        results = json.loads((run / "results.json").read_text())
        assert {record["n"] for record in results["records"] if record["purifier"] == "student"} == {4}
        return {record["purifier"].removeprefix("baseline: ") for record in results["records"]} & {"JPEG", "NRP", "SOAP"}

    assert compared() == {"JPEG"}
    out = capsys.readouterr().out
    assert "NRP              is left out" in out
    assert "Table 1." in out
    assert compared("--baselines", "none") == set()
    assert compared("--baselines", "all") == {"JPEG", "NRP", "SOAP"}
    assert compared("--baselines", "ready") == {"JPEG", "NRP", "SOAP"}


@pytest.mark.usefixtures("quick")
def test_evaluate_writes_elsewhere_and_in_front_of_another_classifier(run: Path, tmp_path: Path) -> None:
    other, classifier = tmp_path / "other", tmp_path / "net.safetensors"
    save_tensors(classifier, ResNet(8, width=4).state_dict())
    own = [
        "--classifier",
        str(classifier),
        "--set",
        "classifier.network={network: resnet, depth: 8, width: 4}",
        "--mean",
        "0.5",
        "--std",
        "0.25",
        "--baselines",
        "none",
    ]
    few = ["--set", "data.test_limit=4", "--set", "evaluation.views=[blind]"]
    before = sorted(run.rglob("*"))
    assert main(["evaluate", str(run), *CPU, *own, *few, "--output", str(other)]) == 0
    assert sorted(run.rglob("*")) == before
    results = json.loads((other / "results.json").read_text())
    assert {record["classifier"] for record in results["records"]} == {"net"}
    assert results["recipe"]["classifier"]["mean"] == [0.5]
    assert "\n# run\n" in (other / "card.md").read_text()  # of the purifier that is in the run


def test_evaluation_changes_nothing_that_training_used(tiny_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for setting in ("student.epochs=9", "seed=9", "data.limit=9"):
        assert main(["evaluate", str(tiny_run.folder), "--set", setting]) == 1
        assert "training is over" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "audit"])
def test_baselines_are_never_trained_for_another_classifier_than_the_runs(
    tiny_run: Run, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, classifier = str(tiny_run.folder), str(tmp_path / "net")
    save_network(Path(classifier), ResNet(8, width=4))
    for other in (["--classifier", classifier], ["--set", f"classifier.source={classifier}"]):
        assert main([command, run, "--baselines", "all", *other, "--output", str(tmp_path / "out"), *CPU]) == 1
        assert "--baselines all" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "audit", "certify"])
def test_the_network_of_a_trained_classifier_cannot_be_changed(
    tiny_run: Run, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sigma = ["--sigma", "0.1"] if command == "certify" else []
    assert main([command, str(tiny_run.folder), "--set", "classifier.network.depth=32", *sigma, *CPU]) == 1
    assert "classifier.network" in capsys.readouterr().err


def test_a_run_and_its_baselines_in_one_audit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Check(name="a check", status="failed", sentence="Masked.", figures={})
    monkeypatch.setattr(audit_module, "trust_checks", lambda *given, **options: [check])
    surrogate = tmp_path / "other"
    save_network(surrogate, ResNet(8, width=4))
    out = str(tmp_path / "audit")
    surrogates = ["--set", f"audit.surrogates=['{surrogate}', '{run}+{surrogate}']", "--set", "audit.limits.JPGE=5"]
    command = ["audit", str(run), "--output", out, *CPU, "--limit", "6", "--baselines", "ready"]
    assert main([*command, *SETTINGS, *surrogates]) == 0
    printed = capsys.readouterr().out
    for text in ("worst case L-inf", "a check: Masked.", "JPEG", "audit.html", "is left out", "'JPGE'"):
        assert text in printed
    content = json.loads((tmp_path / "audit" / "audit.json").read_text())
    records = content["records"]
    assert {record["purifier"] for record in records} == {"run", "JPEG"}
    assert {record["view"] for record in records} == {"none", "full", "bpda", "blind", "transfer", "query", "worst"}
    assert {record["attack"] for record in records if record["view"] == "transfer"} == {"PGD on other", "PGD on run+other"}
    assert max(record["n"] for record in records) == 6
    assert "Masked." in (tmp_path / "audit" / "audit.md").read_text()
    assert not (run / "audit.json").exists()
    # Again, from the cache: the same numbers.
    assert main([*command, *SETTINGS, *surrogates]) == 0
    again = json.loads((tmp_path / "audit" / "audit.json").read_text())["records"]
    assert again == records


@needs_cifar10
def test_a_shipped_purifier_is_audited_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["audit", "cifar10", "--output", str(tmp_path), *CPU, "--limit", "2", "--no-checks"]
    settings = ["--set", "audit.views={full: FGSM, bpda: [], eot: [], blind: [], transfer: FGSM, query: []}"]
    assert main([*command, *settings, "--data-dir", str(CIFAR10)]) == 0
    records = json.loads((tmp_path / "audit.json").read_text())["records"]
    transfer = {record["attack"] for record in records if record["view"] == "transfer"}
    assert transfer == {f"FGSM on {name}" for name in ("cifar10-resnet20", "cifar10-resnet32", "cifar10+cifar10-resnet20")}
    assert "no trust check" in capsys.readouterr().out
    assert {record["classifier"] for record in records} == {"resnet56"}


def test_what_cannot_be_audited_is_refused(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tiny_run.folder)
    out = ["--output", str(tmp_path / "out"), *CPU]
    twins = [tmp_path / name / "net-0.25" for name in "ab"]
    for twin in twins:
        save_network(twin, ResNet(8, width=4))
    for arguments, word in [
        ([run, "--recipe", "digits"], "--recipe"),
        ([run, run], run),
        ([run, "--set", "student.epochs=3"], "training is over"),
        ([run, "--set", "audit.surrogates=[a+b+c]"], "'a+b+c'"),
        ([run, "--set", "audit.surrogates=[nothing]"], "'nothing'"),
        ([run, "--set", f"audit.surrogates=['{twins[0]}', '{twins[1]}']"], "'net-0.25'"),
        (["cifar10", "--recipe", "digits"], "'digits'"),
    ]:
        assert main(["audit", *arguments, *out]) == 1, arguments
        assert word in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (["audit", "cifar10", "--shard", "4/4"], "0 to 3"),
        (["certify", "cifar10", "--shard", "1"], "such as 0/4"),
        (["audit", "cifar10", "--shard", "0/2", "--baselines", "all"], "--baselines ready"),
        (["train", "--shard", "0/2", "--restart"], "--restart"),
    ],
)
def test_wrong_shards_are_refused(command: list[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 1
    assert fault in capsys.readouterr().err


def test_a_certificate_in_shards_is_that_of_one_process(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(tiny_run.folder), "--sigma", "0.1", "--n", "15", "--n0", "2", "--limit", "3", "--device", "cpu"]
    assert main(["certify", *options, "--output", str(tmp_path / "whole")]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        assert not (tmp_path / "parts" / "certificate.json").exists()
        monkeypatch.setenv("RANK", rank)
        assert main(["certify", *options, "--output", str(tmp_path / "parts")]) == 0
    assert "3 pieces of other shards" in capsys.readouterr().out
    whole, parts = (Certificate.read(tmp_path / name) for name in ("whole", "parts"))
    assert [model.certified_accuracy for model in whole.models] == [model.certified_accuracy for model in parts.models]


def test_a_run_is_certified(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    certify = ["certify", str(run), "--n", "50", "--n0", "5", "--limit", "4", *CPU]
    with monkeypatch.context() as closed:
        closed.setattr("purifiers.runs.open_defended", lambda *arguments: pytest.fail("it was opened first"))
        assert main(certify) == 1
    assert "--sigma" in capsys.readouterr().err
    noisy = recipe_text(load_recipe(run / "recipe.yaml", ["student.noise=0.1"]))  # as if it had been trained on noise
    (run / "recipe.yaml").write_text(noisy)
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
    for wrong in ("--sigma=0", "--n0=0", "--alpha=1", "--n=5"):
        capsys.readouterr()
        assert main([*certify, wrong]) == 1
        assert wrong.strip("-").split("=")[0] in capsys.readouterr().err
    assert main([*certify, "--recipe", "digits"]) == 1
    assert "--recipe" in capsys.readouterr().err

    # The purifier alone, in front of a given classifier.
    saved, classifier = tmp_path / "saved", str(run / "checkpoints" / "classifier")
    Purifier.from_pretrained(run).save_pretrained(saved)
    before = sorted(run.rglob("*"))
    assert main([*certify, "--sigma", "64/255", "--output", str(tmp_path / "elsewhere")]) == 0
    assert sorted(run.rglob("*")) == before
    alone = ["certify", str(saved), *certify[2:], "--sigma", "0.1", "--output", str(tmp_path / "out")]
    assert main(alone) == 1
    assert "--recipe" in capsys.readouterr().err
    assert main([*alone, "--recipe", "digits", "--classifier", classifier, "--set", "data.size=16"]) == 0
    other = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert (other["purifier"], other["dataset"], other["n_images"]) == ("saved", "digits", 4)


@needs_cifar10
def test_a_shipped_purifier_is_certified_with_the_classifier_of_its_recipe(tmp_path: Path) -> None:
    size = ["--sigma", "12.75/255", "--alpha", "0.1", "--n", "12", "--n0", "2", "--limit", "2"]
    assert main(["certify", "cifar10", "--data-dir", str(CIFAR10), "--output", str(tmp_path), *CPU, *size]) == 0
    found = json.loads((tmp_path / "certificate.json").read_text())
    assert (found["purifier"], found["classifier"], found["recipe"]["name"]) == ("cifar10", "resnet56", "strong")
    assert (found["sigma"], found["alpha"]) == (pytest.approx(0.05), 0.1)
