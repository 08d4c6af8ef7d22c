"""The examples, as they stand, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_documents import ROOT

EXAMPLES = ROOT / "examples"


def run(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(folder)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shares(text: str, label: str) -> list[float]:
    """The percentages of the lines that hold ``label``."""
    return [float(number) for line in text.splitlines() if label in line for number in re.findall(r"([\d.]+)%", line)]


def test_there_is_a_test_for_each() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == [
        "audit_my_own_defence",
        "protect_my_classifier",
        "what_the_attacker_knows",
    ]


def test_a_purifier_for_a_classifier_of_ones_own(tmp_path: Path) -> None:
    told = "\n".join(run("protect_my_classifier", tmp_path).splitlines()[-5:])
    alone, purified, attacked, defended, known = shares(told, "%")
    assert min(alone, purified) > 90 and attacked < 30  # a classifier, and an attack that breaks it
    assert defended > 80 and known < defended


def test_a_defence_that_only_seems_one(tmp_path: Path) -> None:
    told = run("audit_my_own_defence", tmp_path)
    (seeming,), (worst,) = shares(told, "  full PGD"), shares(told, " worst all attacks")
    assert seeming > 80 and worst < 40
    assert "do not believe what gradients alone say. gradients exist" in told


def test_the_more_an_attacker_knows_the_less_is_left(tmp_path: Path) -> None:
    told = run("what_the_attacker_knows", tmp_path)
    left = {view: sum(shares(told, f"{view}: ")) for view in ("blind", "bpda", "full")}
    assert left["blind"] > left["full"] + 50
    assert (tmp_path / "attackers.png").stat().st_size > 1000


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_notebooks_too(path: Path) -> None:
    assert path.read_text().startswith("# %% [markdown]\n# # ")
