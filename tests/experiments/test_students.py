"""The script that draws accuracy against time: its times are shares, and its curve has all that was measured."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiments.students import TEACHER, curve, shares
from purifiers.reports.figures import save_figure


def test_times_are_shares_of_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(nn.Module):
        """The first pass, which does not count, takes a hundred times as long."""

        def __init__(self, *seconds: float) -> None:
            super().__init__()
            self.left = [100.0, *seconds]

        def forward(self, images: Tensor) -> Tensor:
            clock[0] += self.left.pop(0) if len(self.left) > 1 else self.left[0]
            return images

    monkeypatch.setattr("experiments.students.time.perf_counter", lambda: clock[0])
    assert shares({"one": Slow(6, 4), "other": Slow(15, 12, 18)}, torch.zeros(1), "one") == {"one": 1, "other": 3}


def test_the_curve_has_a_point_for_every_purifier(tmp_path: Path) -> None:
    rows = {"tiny": {"clean": 90.04, "worst": 70, "time": 9}, TEACHER: {"clean": 93, "worst": 87, "time": 150}}
    figure = curve(rows)
    assert [list(line.get_ydata()) for line in figure.axes[0].lines[:2]] == [[90.04, 93], [70, 87]]
    save_figure(figure, tmp_path / "students.svg")
    assert "<svg" in (tmp_path / "students.svg").read_text()
