"""What a record says of the code that ran."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from purifiers.evaluation import records
from purifiers.evaluation.evaluate import evaluate
from purifiers.evaluation.records import Results, versions


def test_a_table_has_the_classifier_alone_where_the_attack_was_made_on_it() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.rand(5, 3, 4, 4)
    found = evaluate(nn.Identity(), model, images, attacks={"FGSM": "fgsm"}, views=["blind", "full"])
    header, clean, blind, full = (line.split("  ") for line in str(found).splitlines()[:4])
    rows = [[cell.strip() for cell in row if cell.strip()] for row in (header, clean, blind, full)]
    column = rows[0].index("undefended")
    assert [row[column].endswith("%") for row in rows[1:]] == [True, True, False]
    assert rows[3][column] == "-"


def test_a_name_in_any_script_is_read_again(tmp_path: Path) -> None:
    found = evaluate(nn.Identity(), nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.rand(2, 3, 4, 4), attacks={})
    named = found.model_copy(update={"records": [one.model_copy(update={"dataset": "Käfer, Tōkyō"}) for one in found.records]})
    named.write(tmp_path)
    assert Results.read(tmp_path).records[0].dataset == "Käfer, Tōkyō"


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
