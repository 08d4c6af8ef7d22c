"""Forecasts, with a clock that knows how long everything takes: counts are worked by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import purifiers
from purifiers.attacks import BIM, FGSM, PGD
from purifiers.attacks.generate import generate
from purifiers.cache import Cache
from purifiers.cli import main
from purifiers.data import ImageSet
from purifiers.errors import ConfigError, DataError, MissingFileError
from purifiers.evaluation.certify import Smoothing, certify
from purifiers.evaluation.evaluate import evaluate_run
from purifiers.forecast import Forecast, Line, Pace, amounts, forecast, foreseen
from purifiers.networks import ResNet
from purifiers.recipes.load import changed
from purifiers.recipes.schema import Recipe
from purifiers.runs import Run, open_run
from purifiers.shards import Shard
from purifiers.training.pipeline import train_recipe
from tests.conftest import TINY

SETTINGS = [part for setting in TINY for part in ("--set", setting)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float]], None]:
    """Sets what a pass takes, by the number of its images; the pass itself is still run."""

    def run(seconds: Callable[[int], float]) -> None:
        def timed(work: Callable[[int], object], size: int) -> float:
            work(size)
            return seconds(size)

        monkeypatch.setattr("purifiers.forecast._timed", timed)

    return run


@pytest.fixture
def ticks(clock: Any) -> None:
    """Every batch takes a second, however many images it has."""
    clock(lambda size: 1.0)


def lines(plan: Forecast) -> dict[str, float]:
    return {line.title: round(line.seconds, 6) for line in plan.lines}


@pytest.fixture
def data() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet("noise", images, torch.arange(40) % 4, tuple("abcd"))


@pytest.fixture
def classifier() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(depth=8, width=4, num_classes=4).eval()


def test_a_pace_is_that_of_the_clock(clock: Any) -> None:
    clock(lambda size: 0.01 + 0.002 * size)
    sizes: list[int] = []
    pace = Forecast().pace("some", sizes.append, largest=250)
    assert (pace.batch, pace.image) == (pytest.approx(0.01), pytest.approx(0.002))
    assert max(sizes) < 250  # a smaller sample is enough
    assert pace.seconds(500, 2, passes=3) == pytest.approx(3 * (2 * 0.01 + 500 * 0.002))


def test_what_is_of_one_kind_is_timed_once(ticks: None) -> None:
    plan, calls = Forecast(), []
    for _ in range(3):
        plan.pace("some", calls.append, largest=1)
    assert calls == [1]
    assert amounts(FGSM(epsilon=0.1)) == amounts(FGSM(epsilon=0.2)) != amounts(FGSM(epsilon=0))


def test_the_setting_that_halves() -> None:
    plan = Forecast([Line("training", "data.limit={}", 60.0, 5000), Line("measuring", None, 10.0, 100)])
    option, seconds = plan.halving() or ("", 0.0)
    limit = int(option.removeprefix("data.limit="))
    assert seconds == pytest.approx(10 + 60 * limit / 5000) == pytest.approx(35, rel=0.05)
    assert Forecast([Line("measuring", None, 10.0, 100)]).halving() is None


def test_an_audits_limits_count_only_where_they_are_the_smallest() -> None:
    # Half of 1,000 images saves nothing of the slow attack on 100.
    plan = Forecast([Line("PGD", "--limit {}", 1.0, 1000), Line("AA", "--limit {}", 99.0, 100)])
    option, seconds = plan.halving() or ("", 0.0)
    assert int(option.removeprefix("--limit ")) == 100
    assert seconds == pytest.approx(99.1)


def test_training_by_hand(tiny_recipe: Callable[..., Recipe], tmp_path: Path, ticks: None) -> None:
    plan = forecast(lambda: train_recipe(tiny_recipe(), tmp_path / "run", device="cpu"))
    # 96 images in batches of 32, for 2 epochs; one batch of attacked images, 2 steps.
    stages = dict.fromkeys(("classifier", "teacher_nt", "teacher_at", "student"), 6.0)
    assert lines(plan) == stages | {"attacking training images": 2.0}
    assert plan.seconds == pytest.approx(26)
    assert not (tmp_path / "run").exists()
    assert {line.setting for line in plan.lines} == {"--set data.limit={}"}


def test_what_is_finished_is_not_counted(run_copy: Path, tiny_recipe: Callable[..., Recipe], ticks: None) -> None:
    work = lambda: train_recipe(tiny_recipe(), run_copy, device="cpu")  # noqa: E731
    assert lines(forecast(work)) == {}
    for file in (run_copy / "checkpoints" / "teacher_at").iterdir():
        file.unlink()
    assert lines(forecast(work)) == {"teacher_at": 6.0, "student": 6.0}  # the student's teacher will be another
    more = changed(tiny_recipe(), {"student.epochs": 3})
    assert lines(forecast(lambda: train_recipe(more, run_copy, device="cpu", restart=True)))["student"] == 9.0
    assert (run_copy / "checkpoints" / "student" / "model.safetensors").is_file()


def test_evaluation_by_hand(tiny_run: Run, measured: Path, ticks: None, tmp_path: Path) -> None:
    run = open_run(tiny_run.recipe, tiny_run.folder, "cpu")
    run.cache = tmp_path / "cache"
    found = lines(forecast(lambda: evaluate_run(run)))
    attacks = {name: seconds for name, seconds in found.items() if "(" in name}
    # Blind attacks are made once for all purifiers.
    assert attacks == {"teacher_nt: PGD (blind)": 2.0, "teacher_nt: FGSM (blind)": 1.0, "student: PGD (full)": 2.0}
    assert found["student: purified"] == pytest.approx(4 * 24 / run.recipe.evaluation.batch_size)
    assert not run.cache.exists()
    finished = open_run(tiny_run.recipe, measured, "cpu")
    assert not {"student: PGD (full)", "student: purified"} & lines(forecast(lambda: evaluate_run(finished))).keys()


@pytest.mark.parametrize(("epsilon", "left"), [(0.5, 20), (1e-6, 40)])
def test_a_cascade_spares_what_falls(data: ImageSet, classifier: nn.Module, ticks: None, epsilon: float, left: float) -> None:
    labels = classifier(data.images.float() / 255).argmax(1)
    views = dict.fromkeys(("bpda", "eot", "blind", "transfer", "query"), ()) | {"full": ["PGD", "foolbox PGD"]}
    settings = {"views": views, "images": 40, "check_images": 0, "epsilon": epsilon, "cascade": True}
    plan = forecast(lambda: purifiers.audit(nn.Identity(), classifier, data.images, labels, settings=settings))
    assert sum(seconds for title, seconds in lines(plan).items() if "PGD" in title) == left


@pytest.mark.parametrize(("epsilon", "left"), [(0.5, 0), (1e-6, 1800 + 5900)])
def test_an_audit_of_images_that_fall_or_withstand(
    data: ImageSet, classifier: nn.Module, ticks: None, epsilon: float, left: float
) -> None:
    labels = classifier(data.images.float() / 255).argmax(1)
    views = dict.fromkeys(("bpda", "eot", "blind", "transfer", "query"), ()) | {"full": ["PGD", "AA"]}
    settings = {"views": views, "images": 40, "check_images": 0, "epsilon": epsilon}
    plan = forecast(lambda: purifiers.audit(nn.Identity(), classifier, data.images, labels, settings=settings))
    first = 20 + 101  # PGD; APGD-CE, and a look at what is right
    assert plan.seconds - lines(plan)["purifier: purified"] == pytest.approx(first + left)
    assert PGD(restarts=3).passes(0.5) == [(1.0, 20.0, 0.0), (0.5, 40.0, 0.0)]


def test_what_withstands_is_of_one_norm(data: ImageSet, classifier: nn.Module, ticks: None) -> None:
    labels = classifier(data.images.float() / 255).argmax(1)
    views = dict.fromkeys(("bpda", "eot", "blind", "transfer", "query"), ()) | {"full": ["AA", "AA-L2"]}
    settings = {"views": views, "images": 40, "check_images": 0, "epsilon": 0.5, "epsilon_l2": 1e-6}
    found = lines(forecast(lambda: purifiers.audit(nn.Identity(), classifier, data.images, labels, settings=settings)))
    assert (found["purifier: AA (full)"], found["purifier: AA-L2 (full)"]) == (101, 101 + 1800 + 5900)


def test_certificates_by_hand(data: ImageSet, classifier: nn.Module, ticks: None) -> None:
    few = data.subset(torch.arange(3))
    plan = forecast(lambda: certify(classifier, few, Smoothing(0.25, n0=100, n=900), batch_size=100))
    assert plan.seconds == pytest.approx(3 * 10)


def test_a_dry_run_prints_and_writes_nothing(tmp_path: Path, ticks: None, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    assert main(["train", "--recipe", "digits", *SETTINGS, "--output", str(output), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "forecast" in printed and "teacher_at" in printed and "data.limit" in printed
    assert "epoch" not in printed
    assert not output.exists()


@pytest.mark.parametrize("what", ["--recipe=digit", "--set=student.epochs=-1", "--classifier=nowhere.safetensors"])
def test_a_dry_run_has_the_errors_of_the_run(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", what, "--output", str(tmp_path / "run"), "--dry-run"]) == 1
    assert capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_forecast_that_fails_stops_no_work() -> None:
    calls: list[int] = []

    def work() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError
        return "done"

    assert foreseen(work, dry_run=False) == "done"
    assert foreseen(work, dry_run=True) is None


@pytest.mark.parametrize("error", [ConfigError("no such layer"), DataError("no images"), MissingFileError("no file")])
def test_what_cannot_work_is_found_before_the_work(error: Exception) -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        foreseen(work, dry_run=False)
    assert len(calls) == 1


def test_the_forecast_of_a_shard_is_of_its_share(data: ImageSet, classifier: nn.Module, ticks: None) -> None:
    def seconds(count: int) -> float:
        smoothing = Smoothing(0.25, n0=100, n=900)
        return forecast(lambda: certify(classifier, few, smoothing, cache=Cache(None, Shard(0, count)))).seconds

    few = data.subset(torch.arange(4))
    assert seconds(2) == pytest.approx(seconds(1) / 2)

    def attacking(count: int) -> float:
        cache = Cache(None, Shard(0, count))
        return forecast(lambda: generate(BIM(), classifier, few, batch_size=1, cache=cache)).seconds

    assert attacking(4) < attacking(1)


def test_paces_are_of_seconds() -> None:
    slept = Forecast().pace("sleep", lambda size: torch.ones(size).sum(), largest=4)
    assert isinstance(slept, Pace) and slept.seconds(4, 1) >= 0
