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
    """Reports without figures, which take most of their time."""
    monkeypatch.setattr("purifiers.reports.pages.save_figures", lambda *_: [])
