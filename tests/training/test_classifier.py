import sys
from pathlib import Path

import pytest
import torch

from purifiers.data import ImageSet
from purifiers.errors import ConfigError, MissingFileError
from purifiers.files import save_tensors
from purifiers.networks import ResNet
from purifiers.recipes.parts import Network
from purifiers.recipes.schema import Classifier
from purifiers.registry import fingerprint, save_network
from purifiers.training.classifier import accuracy, load_classifier

MODULE = """
import torch
from torch import nn

class Tuple(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2], None

class Detached(nn.Module):
    def forward(self, x):
        return x.detach().flatten(1)[:, :2]

class Fragile(nn.Module):
    def forward(self, x):
        return x @ torch.zeros(5, 5)

def good():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))

def many():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 9))

def infinite():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2), nn.Threshold(1e9, float("inf")))

def broken():
    raise RuntimeError("no weights here")

def number():
    return 3
"""


@pytest.fixture
def data() -> ImageSet:
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet("x", images, torch.arange(6) % 2, ("a", "b"))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_classifiers.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_classifiers", raising=False)
    return "my_classifiers"


def config() -> Classifier:
    return Classifier(source="x", network=Network.model_validate({"network": "resnet", "depth": 20}))


def test_a_function_of_the_users_own(module: str, data: ImageSet) -> None:
    classifier = load_classifier(f"{module}:good", config(), data)
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("many", r"logits \(2, 2\) for 2 images of 2 classes; got shape \(2, 9\)"),
        ("Tuple", "returns a tuple"),
        ("Detached", "no gradient"),
        ("Fragile", r"fails on images \(2, 3, 16, 16\): RuntimeError"),
        ("infinite", "finite"),
        ("broken", r"RuntimeError: no weights here \(.*my_classifiers\.py:27\)"),
        ("number", "returned a int"),
        ("missing", "AttributeError"),
    ],
)
def test_what_cannot_be_protected_is_refused(module: str, data: ImageSet, function: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_classifier(f"{module}:{function}", config(), data)


def test_files_and_folders(tmp_path: Path, data: ImageSet) -> None:
    torch.manual_seed(0)
    network = ResNet(20, 2)
    save_tensors(tmp_path / "w.safetensors", network.state_dict())
    save_network(tmp_path / "saved", network)
    for source in ("w.safetensors", "saved"):
        assert fingerprint(load_classifier(str(tmp_path / source), config(), data)) == fingerprint(network)
    with pytest.raises(MissingFileError, match="no weights file"):
        load_classifier(str(tmp_path / "none.safetensors"), config(), data)
    with pytest.raises(ConfigError, match="cannot load a classifier from 'resnet56'"):
        load_classifier("resnet56", config(), data)
    with pytest.raises(ConfigError, match="put that folder on PYTHONPATH"):
        load_classifier("no_such_module:build", config(), data)


def test_accuracy_counts_matches(data: ImageSet) -> None:
    class First(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)

    assert accuracy(First(), data, batch_size=4) == 0.5
