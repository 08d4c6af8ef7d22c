"""Each benchmark runs at its smallest and prints its figures; how high they are is not tested."""

import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALLEST = {
    "attack.py": ("--images", "1", "--depth", "20", "--repeats", "1"),
    "bulk.py": ("--count", "2", "--side", "8", "--repeats", "1"),
    "precision.py": ("--batch-size", "2", "--repeats", "1"),
    "training.py": ("--images", "128", "--size", "8", "--repeats", "1"),
}


def test_every_benchmark_is_listed() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == set(SMALLEST)


@pytest.mark.parametrize("script", SMALLEST)
def test_it_prints_speeds(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [script, *SMALLEST[script]])
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    speeds = [float(number.replace(",", "")) for number in re.findall(r"([\d.,]+) images/s", capsys.readouterr().out)]
    assert speeds
    assert min(speeds) > 0
