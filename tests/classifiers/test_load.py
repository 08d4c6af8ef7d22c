import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from purifiers import PurifiedClassifier
from purifiers.classifiers.adapters import LUMA
from purifiers.classifiers.load import load_classifier, watch
from purifiers.data import ImageSet, to_float
from purifiers.errors import ConfigError, InputError, MissingFileError
from purifiers.networks import ResNet
from purifiers.registry import fingerprint, save_network
from purifiers.storage import save_tensors

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

class Output(nn.Module):
    def forward(self, x):
        output = type("ModelOutput", (), {})()
        output.logits = x.flatten(1)[:, :2]
        return output

class Spatial(nn.Module):
    def forward(self, x):
        return x[:, :2]

class Rounded(nn.Module):
    def forward(self, x):
        return torch.round(x * 255).flatten(1)[:, :2] / 255

class Training(nn.Module):
    def __init__(self, tracked):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=tracked)
    def forward(self, x):
        self.norm.train()
        return self.norm(x).amax(dim=(2, 3))[:, :2]

class Dropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x.flatten(1), 0.5, training=True)[:, :2]

class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
    def forward(self, x):
        self.calls += 1
        return x.flatten(1)[:, :2] + self.calls

class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, 2)
    def train(self, mode=True):
        raise NotImplementedError("Calling eval() is not supported yet.")
    def forward(self, x):
        return self.linear(x.flatten(1))

def learning():
    return Training(True)

def mixing():
    return Training(False)

def grey():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 2))

def softmax():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2), nn.Softmax(1))

def good():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))

def many():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 9))

def infinite():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2), nn.Threshold(1e9, float("inf")))

def broken():
    raise RuntimeError("no weights here")

def leaving():
    raise SystemExit(3)

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))

def meta():
    return good().to("meta")

def unusable():
    with torch.inference_mode():
        return good()

class Double(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2].double()

def double():
    return Double()

def number():
    return 3

def scripted():
    return torch.jit.script(good())

def in_place():
    torch.manual_seed(0)
    return nn.Sequential(nn.Threshold(0.5, 0.0, inplace=True), good())
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


def options(network: dict[str, object] | None = None, **given: object) -> dict[str, Any]:
    return {"network": network or {"network": "resnet", "depth": 20}, **given}


def test_a_function_of_the_users_own(module: str, data: ImageSet) -> None:
    classifier = load_classifier(f"{module}:good", data, **options())
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("many", r"9 classes, and the images have 2 \(a, b\)"),
        ("Tuple", "returns a tuple"),
        ("Output", r"ModelOutput.*\.logits"),
        ("Spatial", r"\(2, 2, 16, 16\)"),
        ("Rounded", "no gradient.*round"),
        ("learning", "changes when it is called"),
        ("mixing", "alone and in a batch"),
        ("Dropping", "deterministic"),
        ("Counting", "deterministic"),
        ("Detached", "no gradient"),
        ("Fragile", r"fails on images of shape \(2, 3, 16, 16\): RuntimeError"),
        ("infinite", "finite"),
        ("broken", r"RuntimeError: no weights here \(.*my_classifiers\.py:\d+\)"),
        ("leaving", r"SystemExit: 3 \(.*my_classifiers\.py:\d+\)"),
        ("lazy", "lazy layers"),
        ("number", "is a int"),
        ("meta", "'meta'"),
        ("unusable", "inference_mode"),
        ("double", r"float64.*\.float\(\)"),
        pytest.param("scripted", "TorchScript", marks=pytest.mark.filterwarnings("ignore:.*torch.jit")),
        ("god", "did you mean 'good'"),
    ],
)
def test_what_cannot_be_protected_is_refused(module: str, data: ImageSet, function: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_classifier(f"{module}:{function}", data, **options())


def test_a_module_alone_is_told_from_a_name(module: str, data: ImageSet) -> None:
    for source in (module, f"{module}.py"):
        with pytest.raises(ConfigError, match=f"is a module.*{module}:function"):
            load_classifier(source, data, **options())


def test_probabilities_are_pointed_out(module: str, data: ImageSet, capsys: pytest.CaptureFixture[str]) -> None:
    load_classifier(f"{module}:good", data, **options())
    assert "warning" not in capsys.readouterr().out
    load_classifier(f"{module}:softmax", data, **options())
    said = " ".join(capsys.readouterr().out.split())
    assert "lie in [0,1] and sum to 1: they are probabilities" in said


def test_one_that_refuses_modes_is_taken_as_it_is(module: str, data: ImageSet) -> None:
    classifier = load_classifier(f"{module}:Stubborn", data, **options())
    assert PurifiedClassifier(nn.Identity(), classifier).train()(to_float(data.images)).shape == (6, 2)
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.parametrize("function", ["grey", "flat"])
def test_one_of_grey_images_gets_their_luma(
    module: str, data: ImageSet, function: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    classifier = load_classifier(f"{module}:{function}", data, **options())
    assert capsys.readouterr().out.count("it takes one channel") == 1
    one = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(classifier(one.expand(-1, 3, -1, -1)), classifier.network(one))
    colours = torch.eye(3).view(3, 3, 1, 1).expand(-1, -1, 16, 16)
    torch.testing.assert_close(
        classifier(colours), classifier.network(torch.tensor(LUMA).view(3, 1, 1, 1).expand(-1, 1, 16, 16))
    )
    assert sum(LUMA) == pytest.approx(1, abs=1e-12)


def test_a_normalisation_that_is_given(module: str, data: ImageSet, tmp_path: Path) -> None:
    """For code of the user's before all of it; for weights of our network in the place of its own."""
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    torch.manual_seed(0)
    bare = load_classifier(f"{module}:good", data, **options())
    torch.manual_seed(0)
    given = load_classifier(f"{module}:good", data, **options(mean=mean, std=std))
    images = to_float(data.images)
    wanted = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(given(images), bare(wanted))
    assert fingerprint(given) != fingerprint(bare)
    network = ResNet(8, 2, width=2, mean=mean, std=std)
    save_tensors(tmp_path / "w.safetensors", network.state_dict())
    narrow = {"network": "resnet", "depth": 8, "width": 2}
    loaded = load_classifier(str(tmp_path / "w.safetensors"), data, **options(narrow, mean=mean, std=std))
    assert fingerprint(loaded) == fingerprint(network)
    save_network(tmp_path / "saved", network)
    with pytest.raises(ConfigError, match="has its normalisation inside"):
        load_classifier(str(tmp_path / "saved"), data, **options(mean=mean, std=std))
    one = load_classifier(f"{module}:grey", data, **options(mean=(0.5,), std=(0.25,)))
    assert one(images).shape == (6, 2)
    with pytest.raises(ConfigError, match=r"mean and std have 3 numbers, the images 1 channel"):
        load_classifier(f"{module}:grey", data, **options(mean=mean, std=std))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5] * 3, None, "go together"),
        (None, [0.5] * 3, "go together"),
        ([124, 116, 104], [58, 57, 57], "divide by 255"),
        ([0.5], [0], "std is above 0"),
        ([0.5], [-0.5], "std is above 0"),
        ([0.5] * 2, [0.5] * 2, "three numbers"),
        (0.5, 0.5, "three numbers"),
    ],
)
@pytest.mark.parametrize("source", ["good", "cifar10-resnet56"])
def test_a_normalisation_that_cannot_be(module: str, source: str, mean: Any, std: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_classifier(f"{module}:good" if source == "good" else source, mean=mean, std=std)


def test_arguments_of_other_types_are_refused(data: ImageSet) -> None:
    wrong: list[tuple[Any, Any]] = [(nn.Identity(), data), (None, None), ("a:b", data.images), ("a:b", (1, 2))]
    for source, images in wrong:
        with pytest.raises(InputError, match="a module is used as it is"):
            load_classifier(source, images)
    with pytest.raises(ConfigError, match="there is no device 'gpu'"):
        load_classifier("cifar10-resnet56", device="gpu")
    for device in ("auto", None):
        assert load_classifier("cifar10-resnet56", device=device)(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "pytorch_model.bin", "w.ckpt"])
def test_pickles_are_refused_with_the_way_out(name: str, data: ImageSet, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ConfigError, match=r"is a pickle, which can run code .*save_file.*module:function"):
        load_classifier(str(tmp_path / name), data, **options())


def test_a_classifier_that_changes_while_it_is_used_is_found() -> None:
    classifier = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    unchanged = watch({"the classifier": classifier})
    with torch.no_grad():
        classifier.eval()(torch.rand(2, 3, 4, 4))
        unchanged()
        classifier.train()(torch.rand(2, 3, 4, 4))
    with pytest.raises(InputError, match="the weights or statistics of the classifier changed"):
        unchanged()


def test_files_and_folders(tmp_path: Path, data: ImageSet) -> None:
    torch.manual_seed(0)
    network = ResNet(20, 2)
    save_tensors(tmp_path / "w.safetensors", network.state_dict())
    save_network(tmp_path / "saved", network)
    for source in ("w.safetensors", "saved"):
        assert fingerprint(load_classifier(tmp_path / source, data, **options())) == fingerprint(network)
    with pytest.raises(MissingFileError, match="no weights file"):
        load_classifier(str(tmp_path / "none.safetensors"), data, **options())
    with pytest.raises(ConfigError, match="cannot load a classifier from 'resnet56'"):
        load_classifier("resnet56", data, **options())
    with pytest.raises(ConfigError, match="PYTHONPATH"):
        load_classifier("no_such_module:build", data, **options())


def test_one_that_changes_its_images_in_place(module: str, data: ImageSet) -> None:
    classifier = load_classifier(f"{module}:in_place", data, **options())
    images = to_float(data.images)
    torch.testing.assert_close(classifier(images.clone()), classifier[1](images * (images > 0.5)))
