import sys
from pathlib import Path

import pytest

from purifiers.cli import main
from purifiers.errors import EXTRAS, ConfigError, explain_missing, require


def test_a_missing_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"onnx, which is not installed: pip install 'purifiers\[onnx\]'"):
        require("onnx")
    with pytest.raises(ConfigError, match=r"purifiers\[research\]"), explain_missing():
        raise ModuleNotFoundError("No module named 'foolbox'", name="foolbox")
    assert require("html").escape("<") == "&lt;"


def test_an_installed_package_that_lacks_something_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        require("half_there")


def test_the_command_line_prints_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> int:
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr("purifiers.purifier.Purifier.from_pretrained", fail)
    assert main(["purify", "in", "out", "--purifier", "cifar10"]) == 1
    printed = capsys.readouterr().err
    assert "purifiers[research]" in printed
    assert printed.count("\n") == 1


def test_each_package_has_one_extra() -> None:
    packages = [package for modules in EXTRAS.values() for package in modules]
    assert len(packages) == len(set(packages))
