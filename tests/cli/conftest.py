"""What the tests of the command line share."""

import shutil
from pathlib import Path

import pytest

from purifiers.runs import Run


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy of the tiny run, in which a test may write."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures and without the machine's peak, which take most of their time."""
    monkeypatch.setattr("purifiers.reports.pages.save_figures", lambda *_: [])
    monkeypatch.setattr("purifiers.evaluation.evaluate.peak_flops", lambda *_: 1e9)
