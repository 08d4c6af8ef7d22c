"""What a record says of the code that ran."""

import shutil
import subprocess
from pathlib import Path

import pytest

from purifiers.evaluation import records
from purifiers.evaluation.records import versions


def test_the_commit_is_of_the_library_and_never_of_a_project_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the library is installed into a virtual environment inside somebody's repository."""
    inside = tmp_path / "venv" / "records.py"
    inside.parent.mkdir()
    shutil.copy(records.__file__, inside)
    monkeypatch.setattr(records, "__file__", str(inside))
    as_somebody = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*as_somebody, "init", "--quiet"], check=True)
    subprocess.run([*as_somebody, "commit", "--quiet", "--allow-empty", "--message=theirs"], check=True)
    assert versions()["commit"] == "none (installed from a package)"
    subprocess.run([*as_somebody, "add", "venv"], check=True)
    subprocess.run([*as_somebody, "commit", "--quiet", "--message=ours"], check=True)
    assert len(versions()["commit"]) == 12
