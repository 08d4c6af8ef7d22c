"""What all tests share: a linear model with known optima, the smallest complete recipe, and runs trained with it once."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from torch import Tensor, nn

from purifiers.attacks.libraries import make_reference
from purifiers.cli import main
from purifiers.forecast import foreseen
from purifiers.networks import inference
from purifiers.recipes.load import load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.runs import Run
from purifiers.training.pipeline import train_recipe

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # one worker per core: more threads would only fight


@pytest.fixture(autouse=True)
def _without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds to start; tests/networks/test_inference.py has it back."""
    monkeypatch.setattr(inference, "find_spec", lambda name: None)


# No test gates on a wall clock: a busy machine is not a defect.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

SHARED = Path(__file__).parents[2] / "shared"
CIFAR10 = SHARED / "data" / "cifar-10-batches-py"
PHOTOS = SHARED / "data" / "photos"
EFFICIENTNET = SHARED / "reference" / "efficientnet-lite0.safetensors"
REFERENCE = SHARED / "reference" / "resnet56-cifar10.safetensors"

needs_cifar10 = pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"CIFAR-10 is not at {CIFAR10}")
needs_photos = pytest.mark.skipif(
    not (PHOTOS.is_dir() and EFFICIENTNET.is_file()), reason=f"no photographs at {PHOTOS}, or no classifier of them"
)
needs_reference = pytest.mark.skipif(not REFERENCE.is_file(), reason=f"no reference ResNet-56 at {REFERENCE}")

TINY = (
    "data.limit=96",
    "data.test_limit=24",
    "purifier.widths=[4,6]",
    "purifier.blocks=[1,2]",
    "classifier.network.depth=8",
    "classifier.network.width=4",
    "classifier.training.epochs=2",
    "training_attacks.PGD.num_steps=2",
    "teacher_at.epochs=2",
    "teacher_nt.epochs=2",
    "student.epochs=2",
    "teacher_at.batch_size=32",
    "teacher_nt.batch_size=32",
    "student.batch_size=32",
    "classifier.training.batch_size=32",
    "baselines={NRP: {kind: nrp, network: {network: nrp, blocks: 1, features: 4, growth: 2}, critic_width: 2, feature_layer: layer3,"
    " attack: {kind: ssp, epsilon: 0.1, step_size: 0.05, num_steps: 2}, training: {epochs: 1, batch_size: 32}},"
    " SOAP: {kind: soap, network: {network: soap, num_steps: 2, classifier: {network: resnet, depth: 8, width: 4}},"
    " training: {epochs: 1, batch_size: 32}, test_limit: 12}, JPEG: {kind: untrained, network: {network: jpeg}}}",
    "evaluation.attacks={PGD: {kind: pgd, epsilon: 0.1, step_size: 0.05, num_steps: 2}, FGSM: {kind: fgsm, epsilon: 0.1}}",
)
"""Overrides of the digits recipe that leave every part in and take seconds."""

QUICK_ATTACKS = (
    "audit.views={full: [FGSM, PGD, PGD-L2], bpda: PGD, eot: PGD, blind: PGD, transfer: PGD, query: [Square, HopSkipJump]}",
    "audit.attacks.PGD.num_steps=2",
    "audit.attacks.PGD-L2.num_steps=2",
    "audit.attacks.Square.num_queries=3",
    "audit.attacks.HopSkipJump.num_steps=1",
    "audit.attacks.HopSkipJump.num_evaluations=2",
    "audit.draws=2",
)
"""Overrides that leave an audit an attack or two of every sort."""
TINY_AUDIT = ("audit.images=6", "audit.check_images=2", *QUICK_ATTACKS)
"""Overrides that make an audit of it take seconds."""


class Linear(nn.Module):
    """Logits ``W x + b`` of the flattened image: the loss's gradient is the same everywhere, up to a factor."""

    def __init__(self, classes: int, shape: tuple[int, int, int], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.shape = shape
        self.weight = nn.Parameter(torch.randn(classes, torch.Size(shape).numel(), generator=generator))
        self.bias = nn.Parameter(torch.randn(classes, generator=generator) * 0.1)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


@pytest.fixture(scope="session", autouse=True)
def brief_timing() -> Iterator[None]:
    """Speeds are measured, but briefly: how high they are is not tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("purifiers.evaluation.metrics.LEAST_SECONDS", 0.01)
        patch.setattr("purifiers.evaluation.metrics.SIZE", {"cpu": 256})
        yield


@pytest.fixture(scope="session", autouse=True)
def no_forecast() -> Iterator[None]:
    """Commands begin at once, as a forecast takes longer than their work here; it has tests of its own."""

    def begin(work: Callable[[], Any], dry_run: bool, brief: bool = True) -> Any:
        return foreseen(work, dry_run, brief=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("purifiers.forecast.foreseen", begin)
        yield


@pytest.fixture
def brief_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAttack with 50 queries of Square instead of 5,000, for images that withstand it anyway."""

    def brief(*arguments: Any) -> Any:
        reference = make_reference(*arguments)
        reference.square.n_queries = 50
        return reference

    monkeypatch.setattr("purifiers.attacks.libraries.make_reference", brief)


@pytest.fixture
def linear() -> Callable[..., Linear]:
    return Linear


@pytest.fixture
def tiny_recipe() -> Callable[..., Recipe]:
    """The digits recipe at its smallest, with further overrides."""
    return lambda *overrides: load_recipe("digits", [*TINY, *overrides])


Shared = Callable[[str], AbstractContextManager[Path]]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """A folder by name that all processes of a test run share, locked while it is filled: who comes second finds it filled."""
    own = tmp_path_factory.getbasetemp()
    base = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    @contextmanager
    def locked(name: str) -> Iterator[Path]:
        with FileLock(base / f"{name}.lock"):
            yield base / name

    return locked


@pytest.fixture(scope="session")
def tiny_run(shared: Shared) -> Run:
    """A run of the tiny recipe with the ablation, without baselines and results; tests must not write into its folder."""
    with shared("tiny") as folder:
        return train_recipe(load_recipe("digits", TINY), folder / "run", device="cpu", ablation=True)


@pytest.fixture
def run_copy(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy of the folder of ``tiny_run``, to write into."""
    return copied(tiny_run.folder, tmp_path)


@pytest.fixture(scope="session")
def measured(tiny_run: Run, shared: Shared) -> Path:
    """A copy of the folder of ``tiny_run``, with its baselines trained, evaluated and audited: results.json, audit.json, reports.
    Tests must not write into it."""
    with shared("measured") as folder:
        run = folder / "run"
        if not run.is_dir():
            filled = str(copied(tiny_run.folder, folder / "unfinished"))
            audit = [part for override in TINY_AUDIT for part in ("--set", override)]
            assert main(["evaluate", filled, "--device", "cpu", "--baselines", "all"]) == 0
            assert main(["audit", filled, "--device", "cpu", *audit]) == 0
            Path(filled).rename(run)
        return run


@pytest.fixture
def measured_copy(measured: Path, tmp_path: Path) -> Path:
    """A copy of ``measured``, to write into."""
    return copied(measured, tmp_path)


def copied(run: Path, parent: Path) -> Path:
    return Path(shutil.copytree(run, parent / "run"))
