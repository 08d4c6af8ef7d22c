"""``purifiers.train``: a purifier for a module and images in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import purifiers
from purifiers import Purifier
from purifiers.errors import CheckpointError, ConfigError, DataError, InputError, TrainingError
from purifiers.forecast import forecast
from purifiers.recipes.load import load_recipe
from purifiers.registry import fingerprint
from purifiers.runs import open_run
from purifiers.storage import locked

STAGE = {"epochs": 1, "batch_size": 8}
SMALL = {
    "companions": [],
    "purifier": {"network": "cae", "widths": [3], "blocks": [1]},
    "training_attacks": {"FGSM": {"kind": "fgsm", "epsilon": 0.1}},
    "teacher_nt": STAGE,
    "teacher_at": STAGE,
    "student": STAGE,
}
IMAGES = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 3


class Own(nn.Module):
    """Behaves differently in training mode, and holds gradients and a frozen part."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(36, 4)
        self.conv.requires_grad_(False)
        self.norm.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).relu().flatten(1))


def state(module: nn.Module) -> tuple[object, ...]:
    modes = [part.training for part in module.modules()]
    return fingerprint(module), modes, [parameter.requires_grad for parameter in module.parameters()]


def test_tensors_then_the_same_again_from_a_loader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier, output = Own(), tmp_path / "mine"
    before = state(classifier)
    trained = purifiers.train(classifier, IMAGES, LABELS, output=output, settings=SMALL, seed=3)
    assert state(classifier) == before
    loaded = Purifier.from_pretrained(output)
    assert torch.equal(trained(IMAGES), loaded(IMAGES))
    assert load_recipe(output / "recipe.yaml").seed == 3
    capsys.readouterr()
    batches = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5)
    again = purifiers.train(classifier, batches, output=output, settings=SMALL, seed=3)
    assert capsys.readouterr().out.count("is trained already") == 3
    assert fingerprint(again) == fingerprint(trained)
    with pytest.raises(CheckpointError):
        purifiers.train(classifier, IMAGES.flip(0), LABELS, output=output, settings=SMALL, seed=3)
    with pytest.raises(DataError, match="Python"):
        open_run(load_recipe(output / "recipe.yaml"), output, "cpu")


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"classifier": "resnet"}, ConfigError, "Module"),
        ({"classifier": Own(2)}, ConfigError, "Own"),
        ({"labels": LABELS + 2}, InputError, "from 0 to 3"),
        ({"settings": {"student.epoch": 1}}, ConfigError, "did you mean 'epochs'"),
        ({"device": "cuda:99"}, ConfigError, "device"),
        ({"recipe": None}, InputError, "recipe"),
        ({"output": None}, InputError, "output"),
        ({"settings": {5: 1}}, ConfigError, "string"),
        ({"settings": SMALL | {"classifier.mean": [0.5] * 3, "classifier.std": [0.2] * 3}}, ConfigError, "classifier.mean"),
        ({"settings": SMALL | {"classifier": {"source": "cifar10-resnet56"}}}, ConfigError, "no effect"),
        ({"settings": SMALL | {"data.name": "cifar10", "data.size": 8}}, ConfigError, "data.name"),
        ({"classifier": Own().to("meta")}, ConfigError, "'meta'"),
        ({"settings": SMALL | {"data.crops": {"size": 4}}}, ConfigError, "Own"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    change: dict[str, object], error: type[Exception], word: str, tmp_path: Path
) -> None:
    usual = {"classifier": Own(), "images": IMAGES, "labels": LABELS, "settings": SMALL, "output": tmp_path / "mine"}
    with pytest.raises(error, match=word):
        purifiers.train(**{**usual, **change})  # type: ignore[arg-type]
    assert not (tmp_path / "mine").exists()


def test_crops_are_those_of_the_settings(tmp_path: Path) -> None:
    classifier = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # of any size
    trained = purifiers.train(classifier, IMAGES, LABELS, output=tmp_path, settings=SMALL | {"data.crops": {"size": 4}})
    assert trained(IMAGES).shape == IMAGES.shape
    assert load_recipe(tmp_path / "recipe.yaml").data.crops is not None


def test_the_forecast_of_a_training_in_memory_writes_nothing(tmp_path: Path) -> None:
    plan = forecast(lambda: purifiers.train(Own(), IMAGES, LABELS, output=tmp_path / "mine", settings=SMALL))
    assert {"teacher_nt", "teacher_at", "student"} <= {line.title for line in plan.lines}
    assert not (tmp_path / "mine").exists()


def test_the_precision_is_chosen_while_no_other_process_can_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards that start together would choose differently if their machines differ."""
    held: list[Path] = []

    @contextmanager
    def noted(folder: Path, wait: bool = False) -> Iterator[None]:
        with locked(folder, wait=wait):
            held.append(folder)
            yield
            held.remove(folder)

    def fastest(device: torch.device) -> str:
        assert held == [tmp_path]
        return "32-true"

    monkeypatch.setattr("purifiers.training.pipeline.locked", noted)
    monkeypatch.setattr("purifiers.training.starting.fastest_precision", fastest)
    purifiers.train(Own(), IMAGES, LABELS, output=tmp_path, settings=SMALL | {"precision": "auto"})
    assert load_recipe(tmp_path / "recipe.yaml").precision == "32-true"


def test_a_second_training_in_a_folder_is_refused_while_one_is_at_work(tmp_path: Path) -> None:
    with locked(tmp_path / "mine"), pytest.raises(TrainingError, match="another"):
        purifiers.train(Own(), IMAGES, LABELS, output=tmp_path / "mine", settings=SMALL)
    assert not [*(tmp_path / "mine").iterdir()]
    with locked(tmp_path / "mine"), locked(tmp_path / "other"):
        pass


def test_a_forecast_discards_nothing(tmp_path: Path) -> None:
    work = lambda: purifiers.train(Own(), IMAGES, LABELS, output=tmp_path / "mine", settings=SMALL, restart=True)  # noqa: E731
    assert forecast(work).lines and not (tmp_path / "mine").exists()
    work()
    kept = {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    assert {line.title for line in forecast(work).lines} >= {"teacher_at", "student"}, "all of it is to be done again"
    assert {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()} == kept
