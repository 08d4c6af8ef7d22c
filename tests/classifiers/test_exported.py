"""Classifiers as torch.export writes them, by the real thing."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from purifiers import PurifiedClassifier
from purifiers.attacks import PGD
from purifiers.classifiers.exported import load_exported
from purifiers.classifiers.load import load_classifier
from purifiers.data import ImageSet, to_float
from purifiers.errors import CheckpointError, ConfigError, MissingFileError
from purifiers.registry import fingerprint

DYNAMIC = ({0: torch.export.Dim("batch")},)
# Of torch.export itself, on its way to leaf functions that it renames.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return layers.eval()


def export(path: Path, module: nn.Module, shapes: object = DYNAMIC, images: Tensor | None = None) -> str:
    given = torch.rand(2, 3, 16, 16) if images is None else images
    torch.export.save(torch.export.export(module, (given,), dynamic_shapes=shapes), path)  # type: ignore[arg-type]
    return str(path)


@pytest.fixture
def data() -> ImageSet:
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet("x", images, torch.arange(6) % 2, ("a", "b"))


def test_an_exported_classifier_is_the_classifier(tmp_path: Path, data: ImageSet) -> None:
    original = network()
    source = export(tmp_path / "c.pt2", original)
    classifier = load_classifier(source, data)
    defended = PurifiedClassifier(nn.Identity(), classifier)
    for count in (1, 2, 5):
        images = torch.rand(count, 3, 16, 16, requires_grad=True)
        torch.testing.assert_close(defended.train()(images), original(images))
    images = to_float(data.images)
    before = fingerprint(classifier)
    attack = PGD(kind="pgd", epsilon=0.1, step_size=0.05, num_steps=2)
    torch.testing.assert_close(attack(classifier, images, data.labels), attack(original, images, data.labels))
    assert fingerprint(classifier) == before == fingerprint(load_classifier(source, data))
    given = load_classifier(source, data, mean=(0.5,), std=(0.25,))
    torch.testing.assert_close(given(images), original((images - 0.5) / 0.25))


def test_how_not_to_export(tmp_path: Path, data: ImageSet) -> None:
    class Tuple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return self.network(images), images

    class Two(Tuple):
        def forward(self, images: Tensor, more: Tensor) -> Tensor:  # type: ignore[override]
            return self.network(images + more)

    few, many = (({0: torch.export.Dim("batch", **limit)},) for limit in ({"max": 64}, {"min": 4}))
    two = torch.export.export(Two().eval(), (torch.rand(2, 3, 16, 16),) * 2)
    torch.export.save(two, tmp_path / "two.pt2")
    for source, message in (
        (export(tmp_path / "fixed.pt2", network(), None), r"for batches of exactly 2.*torch\.export\.Dim"),
        (export(tmp_path / "few.pt2", network(), few), "for batches of at most 64"),
        (export(tmp_path / "many.pt2", network(), many, images=torch.rand(5, 3, 16, 16)), "for batches of at least 4"),
        (export(tmp_path / "train.pt2", network().train()), r"changes when it is called.*export it after eval"),
        (export(tmp_path / "tuple.pt2", Tuple().eval()), "returns a tuple"),
        (
            export(tmp_path / "large.pt2", network(), images=torch.rand(2, 3, 20, 20)),
            r"fails on images of shape \(2, 3, 16, 16\).*== 20.*that shape: see --set data\.size",
        ),
        (str(tmp_path / "two.pt2"), "takes 2 inputs"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_classifier(source, data)


def test_what_is_no_exported_classifier(tmp_path: Path) -> None:
    export(tmp_path / "c.pt2", network())
    content = (tmp_path / "c.pt2").read_bytes()
    for name, damaged in (("half", content[: len(content) // 2]), ("text", b"weights"), ("empty", b"")):
        (tmp_path / f"{name}.pt2").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"is damaged, or was not written by torch\.export\.save"):
            load_exported(tmp_path / f"{name}.pt2")
    with pytest.raises(MissingFileError, match="no exported classifier"):
        load_exported(tmp_path / "none.pt2")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_no_pickle_in_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.export.load falls back to unpickling anything, and opens objects beside the weights."""
    monkeypatch.chdir(tmp_path)
    export(tmp_path / "c.pt2", network())

    def copy(name: str, changes: dict[str, bytes]) -> Path:
        with zipfile.ZipFile("c.pt2") as old, zipfile.ZipFile(name, "w") as new:
            files = {entry.filename: old.read(entry) for entry in old.infolist()}
            root = next(iter(files)).split("/")[0]
            for file, content in (files | {f"{root}/{file}": content for file, content in changes.items()}).items():
                new.writestr(file, content)
        return tmp_path / name

    torch.save(_Evil(), "evil")
    inputs = copy("inputs.pt2", {"data/sample_inputs/model.pt": Path("evil").read_bytes()})
    with pytest.raises(CheckpointError, match="is damaged"):
        load_exported(inputs)
    objects = copy("objects.pt2", {"data/constants/opaque_obj_0": pickle.dumps(_Evil())})
    with pytest.raises(CheckpointError, match="holds pickled objects"):
        load_exported(objects)
    assert not Path("ran").exists()
