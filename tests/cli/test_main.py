"""Help, mistakes and exit codes of all commands."""

import re
import resource
from pathlib import Path

import pytest
import typer

from purifiers.cli import cli, main
from purifiers.recipes.load import NAMES
from purifiers.runs import Run
from purifiers.version import __version__
from tests.conftest import TINY

COMMANDS = typer.main.get_command(cli).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_page(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"purifiers {command}" in page
    assert not [line for line in page.splitlines() if len(line) > 80]
    for parameter in COMMANDS[command].params:
        described = re.search(
            rf"^  {re.escape(parameter.opts[0] if parameter.param_type_name == 'option' else parameter.metavar)} (.*)",
            page,
            re.M,
        )
        assert described, parameter.name
    if command == "train":
        assert all(name in re.sub(r"\s+", "", page) for name in NAMES)


def test_the_first_page_lists_the_commands_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert re.findall(r"^  (\w+)  +[A-Z].*\.$", page, re.M) == list(COMMANDS)
    assert "cifar10-robust" in page
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"purifiers {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["command"]),
        (["trian"], ["'trian'", "'train'"]),
        (["train", "--recipee", "x"], ["--recipee", "--recipe)"]),
        (["evaluate", "x", "--clasifier", "y"], ["--clasifier", "--classifier)"]),
        (["purify", "a", "b"], ["--purifier"]),
        (["evaluate"], ["RUN"]),
        (["evaluate", "a", "b"], ["(b)"]),
        (["train", "--seed", "x"], ["--seed", "'x'"]),
        (["train", "--mean", "grey"], ["--mean", "commas", "'grey'"]),
        (["demo", "--baselines", "some"], ["--baselines", "'ready'"]),
        (["certify", "cifar10", "--sigma", "wide"], ["--sigma", "64/255", "'wide'"]),
        (["certify", "cifar10", "--limit", "0"], ["--limit", "x>=1"]),
        (["audit", "cifar10", "--limit", "0"], ["--limit", "x>=1"]),
        (["audit", "cifar10", "--limit", "x"], ["--limit", "'x'"]),
        (["reproduce", "--tables", "4"], ["--tables", "1 to 3", "'4'"]),
        (["reproduce", "--tables", "one"], ["--tables", "1 to 3", "'one'"]),
        (["reproduce", "--seeds", "1,1"], ["--seeds", "different", "'1,1'"]),
        (["reproduce", "--seeds", "1"], ["--seeds", "different", "'1'"]),
        *((["reproduce", "--minutes", value], ["--minutes", "above 0", f"'{value}'"]) for value in ("0", "-1", "soon", "inf", "nan")),
        (["serve", "cifar10", "--batch-timeout", "11"], ["--batch-timeout", "10"]),
        (["serve", "cifar10", "--batch-timeout", "nan"], ["--batch-timeout", "10"]),
        (["export", "cifar10", "x.onnx", "--format", "tf"], ["--format", "'torch'"]),
    ],
)  # fmt: skip
def test_mistyped_commands_are_status_2(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    message, help_line = capsys.readouterr().err.splitlines()
    assert message.startswith("purifiers: ")
    assert all(word in message for word in words), message
    assert (
        help_line
        == f"Try '{' '.join(['purifiers', *arguments[:1]][: 1 + (arguments[:1] in [[name] for name in COMMANDS])])} --help'."
    )


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["train", "--recipe", "digit"], "'digits'"),
        (["train", "--recipe", ":bug:[1] [/red]"], ":bug:[1] [/red]"),
        (["train", "--set", "student.epoch=1"], "'epochs'"),
        (["train", "--images", "no: where #1"], "no: where #1"),
        (["train", "--images", "a", "--data-dir", "b"], "--data-dir"),
        (["train", "--classifier", "nowhere.safetensors"], "nowhere.safetensors"),
        (["demo", "--device", "tpu"], "'tpu'"),
        (["evaluate", "nowhere"], "recipe.yaml"),
        (["evaluate", "cifar10"], "reproduce --recipe strong --from-weights"),
        (["audit", "cifar10-resnet56"], "is a classifier"),
        (["certify", "cifar10", "--sigma", "64/255", "--set", "audit.imags=3"], "'images'"),
        (["certify", "cifar10", "--set", "student.epochs=1"], "training is over"),
        (["certify", "cifar10", "--recipe", "digits", "--sigma", "0.1"], "'digits'"),
        (["certify", "cifar-10"], "'cifar10'"),
        (["purify", "a", "b", "--purifier", "nowhere"], "'nowhere'"),
        (["serve", "cifar10", "--data-dir", "x"], "--data-dir has no effect"),
        (["reproduce", "--data-dir", "/nowhere"], "/nowhere"),
        (["reproduce", "--recipe", "digits", "--from-weights"], "'digits'"),
        (["reproduce", "--seeds", "0,1", "--seed", "3"], "--seeds"),
        (["reproduce", "--seeds", "0,1", "--tables", "1,3"], "--seeds"),
        (["reproduce", "--seeds", "0,1", "--from-weights"], "--seeds"),
        (["reproduce", "--from-weights", "--seed", "5"], "--from-weights"),
        (["reproduce", "--from-weights", "--restart"], "--from-weights"),
        (["reproduce", "--from-weights", "--tables", "1,2"], "--from-weights"),
        (["reproduce", "--from-weights", "--minutes", "9"], "--minutes"),
        (["reproduce", "--from-weights", "--set", "student.epochs=100"], "training is over"),
    ],
)
def test_mistakes_are_one_clear_line_and_status_1(
    arguments: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("purifiers: ")
    assert word in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing was written"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--output", ""],
        ["train", "--output="],
        ["train", "--images", ""],
        ["purify", "x", "", "--purifier", "cifar10"],
        ["evaluate", ""],
        ["export", "cifar10", "x.onnx", "--classifier", ""],
    ],
)
def test_an_unset_shell_variable_is_not_the_working_directory(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "shell variable" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_results_never_replace_a_file_or_another_run(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "recipe.yaml").write_text("name: other")
    (tmp_path / "file").write_text("mine")
    run = str(tiny_run.folder)
    for command in (["evaluate", run], ["audit", run], ["certify", run], ["reproduce", "--recipe", "strong", "--from-weights"]):
        assert main([*command, "--output", str(tmp_path / "other")]) == 1
        assert "would be replaced" in capsys.readouterr().err
    for command in (["evaluate", run], ["audit", run], ["certify", run], ["train"], ["demo"]):
        assert main([*command, "--output", str(tmp_path / "file")]) == 1
        assert "is a file" in capsys.readouterr().err
    for command in (["evaluate", run], ["audit", run], ["certify", run]):  # before anything is measured
        assert main([*command, "--output", str(tmp_path / "file" / "below")]) == 1
        assert "is a file" in capsys.readouterr().err
    for command, name in (("evaluate", "report.md"), ("audit", "audit.json"), ("certify", "certificate.md")):
        (mine := tmp_path / "mine" / name).parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        assert main([command, run, "--output", str(mine.parent)]) == 1
        assert name in capsys.readouterr().err
        assert mine.read_text() == "mine"
        mine.unlink()
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["recipe.yaml"]


def test_ctrl_c_tells_how_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("purifiers.training.pipeline.train_recipe", interrupt)
    monkeypatch.setattr("purifiers.runs.open_defended", interrupt)
    for command, restarts in (
        (["train"], False),
        (["train", "--restart"], True),
        (["certify", "cifar10", "--sigma", "0.1"], False),
    ):
        assert main([*command, "--output", str(tmp_path)]) == 130
        message = capsys.readouterr().err
        assert "resume" in message
        assert ("without --restart" in message) == restarts


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file-size limit stands in for the full disk: the first file larger than it cannot be written."""
    run = tmp_path / "run"
    settings = [part for setting in TINY for part in ("--set", setting)]
    command = ["train", "--output", str(run), "--device", "cpu", *settings]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        status = main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert status == 1
    assert "File too large; free some space" in error
    assert "Traceback" not in error
    assert not [path for path in run.rglob("*") if path.is_file() and path.name != "recipe.yaml"]
    assert main(command) == 0
