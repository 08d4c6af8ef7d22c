"""Evaluating modules in memory: what is passed, what is refused, what comes back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import purifiers
from purifiers.attacks import FGSM, PGD
from purifiers.classifiers.load import adapt_classifier
from purifiers.data import ImageSet, to_float
from purifiers.errors import AttackError, ConfigError, InputError
from purifiers.evaluation.records import Results
from purifiers.recipes.audit_settings import STANDARD_VIEWS
from tests.conftest import Linear

SHAPE = (3, 4, 4)
FAST = {"FGSM": FGSM(epsilon=0.1), "second": "fgsm"}


@pytest.fixture
def data() -> ImageSet:
    model = Linear(3, SHAPE)
    images = torch.randint(256, (12, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        return ImageSet("images", images, model(to_float(images)).argmax(1), ("a", "b", "c"))


def test_records_of_every_view_and_attack(data: ImageSet, tmp_path: Path) -> None:
    views = ("blind", "full")
    found = purifiers.evaluate(nn.Identity(), Linear(3, SHAPE), data, attacks=FAST, views=views, limits={"second": 5}, seed=3)
    assert [(record.view, record.attack, record.n) for record in found.records] == [
        ("none", "none", 12), ("blind", "FGSM", 12), ("blind", "second", 5), ("full", "FGSM", 12), ("full", "second", 5),
    ]  # fmt: skip
    clean, blind, _, full, _ = found.records
    assert (clean.accuracy, clean.agreement, clean.purifier, clean.classifier) == (1, 1, "purifier", "classifier")
    assert blind.accuracy == full.accuracy == blind.accuracy_undefended < 1  # the purifier does nothing
    table = str(found)
    assert len(table.splitlines()) == 6
    assert all(word in table for word in ("purifier", "blind", "FGSM, 8/255", f"{blind.accuracy:.1%}"))
    found.write(tmp_path)
    assert Results.read(tmp_path) == found


def test_by_default_the_attacks_of_the_paper_that_are_quick(data: ImageSet) -> None:
    found = purifiers.evaluate(nn.Identity(), Linear(3, SHAPE), data.subset(torch.arange(2)))
    assert {record.attack for record in found.records} == {"none", "PGD", "FGSM", "BIM", "CW"}
    assert {record.epsilon for record in found.records} == {None, 8 / 255}


def test_images_in_any_form_give_the_same_numbers(data: ImageSet) -> None:
    model = Linear(3, SHAPE)

    def numbers(images: Any, labels: Tensor | None = None) -> list[tuple[float, float]]:
        found = purifiers.evaluate(nn.Identity(), model, images, labels, attacks=FAST, batch_size=5)
        return [(record.accuracy, record.l2) for record in found.records]

    floats = to_float(data.images)
    first = numbers(data)
    assert numbers(data.images, data.labels) == numbers(floats, data.labels) == first
    assert numbers(DataLoader(TensorDataset(floats, data.labels), batch_size=5)) == first
    with torch.inference_mode():
        assert numbers(floats, data.labels) == first


def test_the_users_modules_keep_their_modes_and_gradients(data: ImageSet) -> None:
    purifier = nn.Sequential(nn.BatchNorm2d(3), nn.Sigmoid()).train()
    classifier = nn.Sequential(nn.Dropout(), Linear(3, SHAPE)).train()
    classifier[1].bias.requires_grad_(False)
    purifiers.evaluate(purifier, classifier, data, attacks=FAST, views=("full",))
    assert all(module.training for network in (purifier, classifier) for module in network.modules())
    assert purifier[0].num_batches_tracked == 0
    assert [parameter.requires_grad for parameter in classifier.parameters()] == [True, False]


def test_a_second_evaluation_comes_from_the_cache(data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated() -> Results:
        return purifiers.evaluate(nn.Identity(), Linear(3, SHAPE), data, attacks=FAST, cache=str(tmp_path))

    first = evaluated()
    monkeypatch.setattr(FGSM, "perturb", None)  # never called again
    assert evaluated().records == first.records


NAMES = ("purifier_name", "classifier_name")


class Returns(nn.Module):
    """A classifier that returns something made of its logits."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self.classifier = Linear(3, SHAPE)

    def forward(self, images: Tensor) -> Any:
        return self.kind(self.classifier(images))


def test_what_cannot_be_evaluated_is_refused(data: ImageSet) -> None:
    model, floats = Linear(3, SHAPE), to_float(data.images)
    nan = floats.clone()
    nan[3, 0, 0, 0] = torch.nan
    for arguments, error, message in [
        ((data, data.labels), InputError, "labels"),
        ((floats * 255, data.labels), InputError, "255"),
        ((nan, data.labels), InputError, "NaN"),
        ((floats, data.labels[:2]), InputError, "labels"),
        ((floats, data.labels.float()), InputError, "int64"),
        ((floats, data.labels.int()), InputError, "int64"),
        ((floats, data.labels + 3), InputError, "labels must be from 0 to 2"),
        ((floats, data.labels - 3), InputError, "labels"),
        ((floats[:0], data.labels[:0]), InputError, "no images"),
        (([], None), InputError, "no images"),
        (([floats], None), InputError, "DataLoader"),
        ((floats[:, :1], data.labels), InputError, "grey"),
        ((3, None), InputError, "images"),
    ]:
        with pytest.raises(error, match=message):
            purifiers.evaluate(nn.Identity(), model, *arguments, attacks=FAST)
    for classifier, message in [
        (Returns(lambda logits: (logits,)), "tuple"),
        (Returns(lambda logits: {"logits": logits}), "dict"),
        (Returns(lambda logits: logits * torch.nan), "NaN"),
        (Returns(lambda logits: logits[0]), "shape"),
        (Linear(3, (3, 5, 5)), "fails"),
    ]:
        with pytest.raises(ConfigError, match=message):
            purifiers.evaluate(nn.Identity(), classifier, data, attacks=FAST)
    options: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"attacks": {"x": "pgdd"}}, InputError, "did you mean 'pgd'"),
        ({"attacks": ["pgd"]}, InputError, "attacks"),
        ({"attacks": {"x": 3}}, InputError, "kind"),
        ({"limits": {"FGMS": 3}}, InputError, "did you mean 'FGSM'"),
        ({"limits": {"FGSM": 0}}, InputError, "at least 1 image"),
        *(({"seed": seed}, InputError, "seed must be a whole number") for seed in ("a", None, 1.5, -1, True)),
        *(({"batch_size": size}, InputError, "batch_size must be") for size in (0, "8", 2.5)),
        *(({"views": views}, InputError, "views is") for views in (5, None)),
        *(({key: name}, InputError, "name must be a string") for key in NAMES for name in (5, None)),
        ({"cache": 5}, InputError, "cache is the path"),
        ({"limits": ["FGSM"]}, InputError, "limits is a mapping"),
        ({"views": ("ful",)}, ConfigError, "did you mean 'full'"),
        ({"views": ("query",)}, InputError, "gradients"),
    ]
    for given, error, message in options:
        with pytest.raises(error, match=message):
            purifiers.evaluate(nn.Identity(), model, data, **{"attacks": FAST, **given})
    with pytest.raises(AttackError, match="passes none"):
        purifiers.evaluate(Detached(), model, data, attacks={"PGD": PGD(num_steps=1)}, views="full")
    found = purifiers.evaluate(nn.Identity(), model, data, attacks=FAST, views=["full", "full"])
    assert [record.attack for record in found.records] == ["none", *FAST]


class Detached(nn.Module):
    """A purifier through which no gradient passes."""

    def forward(self, images: Tensor) -> Tensor:
        return images.detach().clone()


class Mixing(nn.Module):
    """A classifier whose logits for an image depend on the batch: by its mean, or by statistics that it learns."""

    def __init__(self, learning: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=learning)
        self.classifier = Linear(3, SHAPE)

    def forward(self, images: Tensor) -> Tensor:
        self.norm.train()
        return self.classifier(self.norm(images))


class Late(Linear):
    """A classifier that begins to change itself after it was checked."""

    def __init__(self) -> None:
        super().__init__(3, SHAPE)
        self.register_buffer("calls", torch.zeros(()))
        self.patience = 12

    def forward(self, images: Tensor) -> Tensor:
        self.patience -= 1
        if self.patience < 0:
            self.calls += 1
        return super().forward(images)


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


def inference() -> nn.Module:
    with torch.inference_mode():
        return Linear(3, SHAPE)


@pytest.mark.parametrize("measure", [purifiers.evaluate, purifiers.audit])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_classifier_that_cannot_be_attacked_is_refused(data: ImageSet, measure: Callable[..., Any]) -> None:
    traced = torch.jit.trace(Linear(3, SHAPE).eval(), torch.rand(2, *SHAPE))
    random = Returns(lambda logits: nn.functional.dropout(logits, 0.5, training=True))
    for classifier, message in [
        (Mixing(True), "changes when it is called"),
        (Mixing(False), "alone and in a batch"),
        (random, "deterministic"),
        (Returns(lambda logits: logits.detach()), "no gradient"),
        (traced, "TorchScript"),
        (torch.jit.freeze(traced), "TorchScript"),
        (lazy(), "lazy"),
        (inference(), "inference_mode"),
        (Linear(3, SHAPE).to("meta"), "'meta'"),
        (Linear(2, SHAPE), "2 classes"),
    ]:
        with pytest.raises(ConfigError, match=message):
            measure(nn.Identity(), classifier, data)
    with pytest.raises(InputError, match=r"classifier.* changed while it was used"):
        measure(nn.Identity(), Late(), data, **({"attacks": FAST} if measure is purifiers.evaluate else AUDIT))


AUDIT = {
    "settings": {
        "images": 2,
        "check_images": 0,
        "attacks.PGD": {"num_steps": 1},
        "views": {view: [] for view in STANDARD_VIEWS} | {"full": "PGD"},
    }
}


def test_probabilities_are_pointed_out(data: ImageSet, capsys: pytest.CaptureFixture[str]) -> None:
    purifiers.evaluate(nn.Identity(), Returns(lambda logits: logits.softmax(1)), data, attacks=FAST)
    assert "they are probabilities" in " ".join(capsys.readouterr().out.split())


def test_grey_and_exported_classifiers_are_adapted(data: ImageSet) -> None:
    grey = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    adapted = adapt_classifier(grey.eval(), "grey", data)
    found = purifiers.evaluate(nn.Identity(), grey, data, attacks=FAST).records[0]
    right = (adapted(to_float(data.images)).argmax(1) == data.labels).float().mean().item()
    assert found.accuracy == found.accuracy_undefended == pytest.approx(right)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Linear(3, SHAPE).eval(), (to_float(data.images),), dynamic_shapes=batch).module()
    records = purifiers.evaluate(nn.Identity(), program, data, attacks=FAST).records
    assert [one.accuracy for one in records] == [
        one.accuracy for one in purifiers.evaluate(nn.Identity(), Linear(3, SHAPE), data, attacks=FAST).records
    ]
