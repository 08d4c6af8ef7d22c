"""A network, an attack, a view and a data set from a file outside of the package, through training, evaluation and audit."""

import json
import sys
from pathlib import Path

import pytest
import torch

from purifiers import PurifiedClassifier, Purifier
from purifiers.cli import main
from purifiers.errors import CheckpointError, ConfigError
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.records import Results
from purifiers.registry import NETWORKS, build_network, load_network, save_network

MODULE = '''
import torch
from torch import nn

from purifiers.attacks import ATTACKS, VIEWS, Attack
from purifiers.data import DATASETS, ImageSet
from purifiers.networks import Network


class Net(Network):
    """One convolution on the residual."""

    trainable = True
    channels = 3

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, images):
        return (images + self.layers(images)).clamp(0, 1)


class Darker(Attack):
    """Every pixel as dark as epsilon allows."""

    needs_gradients = False
    epsilon: float = 0.1

    def perturb(self, model, images, labels, seed):
        return (images - self.epsilon).clamp(0, 1)


@VIEWS.register("outside_half", group="gray-box", attacker="knows half of the purifier")
def half(defended):
    """The classifier on the mean of the image and the purified image."""
    return Half(defended)


class Half(nn.Module):
    def __init__(self, defended):
        super().__init__()
        self.purifier, self.classifier = defended.purifier, defended.classifier

    def forward(self, images):
        return self.classifier((images + self.purifier(images)) / 2)


@DATASETS.register(classes=("dark", "bright"), size=16)
def squares(split, size=16):
    """Dark and bright images with noise."""
    generator = torch.Generator().manual_seed(int(split == "test"))
    labels = torch.arange(64 if split == "train" else 16) % 2
    noise = torch.randint(0, 100, (len(labels), 3, size, size), generator=generator)
    return ImageSet("squares", (noise + 150 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, ("dark", "bright"))
'''

SETTINGS = (
    "data={name: 'outside_module:squares'}",
    "purifier={network: 'outside_module:Net', width: 5}",
    "training_attacks={Darker: {kind: 'outside_module:Darker', epsilon: 0.2}}",
    "classifier.network={network: resnet, depth: 8, width: 4}",
    "classifier.training={epochs: 2, batch_size: 16}",
    "teacher_at={epochs: 1, batch_size: 16}",
    "teacher_nt={epochs: 1, batch_size: 16}",
    "student={epochs: 1, batch_size: 16}",
    "baselines={}",
    "evaluation.attacks={Darker: {kind: 'outside_module:Darker'}, FGSM: {kind: fgsm, epsilon: 0.1}}",
    "evaluation.adaptive_attacks=[]",
    "evaluation.views=[blind, outside_half]",
    "audit={images: 8, check_images: 0, attacks: {Darker: {kind: 'outside_module:Darker'}}, "
    "views: {full: null, bpda: null, eot: null, blind: [Darker], transfer: null, query: null, outside_half: [FGSM]}}",
)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "outside_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_module", raising=False)
    return tmp_path


def test_a_file_outside_of_the_package_adds_all_of_them(outside: Path) -> None:
    # The view is registered under a short name, which is known once its module is imported, as the others do.
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    assert main(["train", "--output", "run", *settings]) == 0
    assert str(outside) not in sys.path
    config = json.loads((outside / "run" / "config.json").read_text())
    assert (config["network"], config["arguments"]) == ("outside_module:Net", {"width": 5})
    assert main(["evaluate", "run"]) == 0
    measured = {(record.attack, record.view) for record in Results.read(outside / "run").records}
    assert {("Darker", "outside_half"), ("FGSM", "outside_half"), ("Darker", "blind")} <= measured
    assert main(["audit", "run"]) == 0
    audit = Audit.read(outside / "run")
    (name,) = audit.purifiers
    worst = audit.worst(name, "linf", "gray-box")
    assert worst is not None and worst.n == 8
    images = torch.rand(2, 3, 16, 16)
    purifier = Purifier.from_pretrained(outside / "run")
    defended = PurifiedClassifier(purifier, load_network(outside / "run" / "checkpoints" / "classifier"))
    assert defended(images).shape == (2, 2)


def test_what_is_not_a_network_is_not_built(outside: Path) -> None:
    """A config.json may come from anywhere: it must not call any function that can be imported."""
    for place in ("os:getcwd", "outside_module:squares", "outside_module:Darker"):
        with pytest.raises(ConfigError, match="network"):
            build_network(place, {})
        assert place not in NETWORKS
    save_network(outside / "net", build_network("outside_module:Net", {"width": 3}))
    config = json.loads((outside / "net" / "config.json").read_text())
    del config["sha256"]
    (outside / "net" / "config.json").write_text(json.dumps({**config, "network": "no_such_module:Net"}))
    with pytest.raises(CheckpointError, match="no_such_module"):
        load_network(outside / "net")
