from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from purifiers.attacks import BIM, CW, FGSM, MIFGSM, PGD, SSP, Attack, AutoAttack, FoolboxPGD, Square, show_fraction, titles
from purifiers.attacks.base import frozen
from purifiers.attacks.generate import generate
from purifiers.data import ImageSet
from purifiers.errors import AttackError, ConfigError, InputError
from purifiers.networks import ResNet
from tests.conftest import Linear


class Fixed(Attack):
    """Returns what it was made with."""

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        return RESULT["it"]


RESULT: dict[str, Tensor] = {}


def attack_with(result: Tensor, **options: object) -> Tensor:
    RESULT["it"] = result
    return Fixed(**options)(nn.Identity(), torch.full((1, 3, 2, 2), 0.5), torch.tensor([0]))


@pytest.mark.parametrize("attack", [PGD(num_steps=2), CW(num_steps=2), FoolboxPGD(num_steps=2), Square(num_queries=2)])
def test_images_that_rounding_left_outside_are_attacked(attack: Attack) -> None:
    """As after a normalisation and back."""
    images = torch.full((2, 3, 4, 4), 1.00005)
    images[0] = -0.00005
    adversarial = attack(Linear(3, (3, 4, 4)), images, torch.tensor([0, 1]))
    assert adversarial.min() >= 0 and adversarial.max() <= 1


def test_results_outside_the_threat_model_are_refused() -> None:
    inside = torch.full((1, 3, 2, 2), 0.6)
    assert torch.equal(attack_with(inside, epsilon=0.1), inside)
    with pytest.raises(AttackError, match="beyond epsilon"):
        attack_with(inside, epsilon=0.0999)
    with pytest.raises(AttackError, match="beyond epsilon"):
        attack_with(inside, epsilon=0.34, norm="l2")  # its length is sqrt(12) * 0.1 = 0.346
    assert attack_with(inside, epsilon=0.35, norm="l2") is not None
    for wrong in (inside + 0.5, inside - 0.7, inside * float("nan")):
        with pytest.raises(AttackError, match=r"outside \[0,1\]"):
            attack_with(wrong)
    with pytest.raises(AttackError, match="float64"):
        attack_with(inside.double())


def test_wrong_inputs_are_refused() -> None:
    model, images, labels = ResNet(8), torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    attack = FGSM(epsilon=0.1)
    for bad_images, bad_labels, message in [
        (images * 2, labels, r"in \[0,1\]"),
        (images.half(), labels, "float32"),
        (images, labels.float(), "int64"),
        (images, labels[:1], r"int64 \(2,\)"),
    ]:
        with pytest.raises(InputError, match=message):
            attack(model, bad_images, bad_labels)
    assert attack(model, images[:0], labels[:0]).shape == (0, 3, 8, 8)


class Returns(nn.Module):
    """A classifier that returns what ``change`` makes of its logits."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.change = change

    def forward(self, images: Tensor) -> Any:
        return self.change(-(images[:, 0].mean((1, 2))[:, None] - torch.linspace(0, 1, 10)).square())


@pytest.mark.parametrize("attack", [PGD(num_steps=2), CW(num_steps=2), Square(num_queries=2)])
@pytest.mark.parametrize(
    ("model", "word"),
    [
        (Returns(lambda logits: (logits, None)), "tuple"),
        (Returns(lambda logits: {"logits": logits}), "dict"),
        (Returns(lambda logits: logits[:, 0]), r"shape \(2,\)"),
        (Returns(lambda logits: logits[:, :1]), r"shape \(2, 1\)"),
        (Returns(lambda logits: logits.double()), "float64"),
        (Returns(lambda logits: logits.half()), "float16"),
        (Returns(lambda logits: logits * torch.nan), "NaN"),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), r"fails on images of shape \(2, 3, 4, 4\)"),
        (lambda images: images, "torch.nn.Module"),
    ],
)
def test_a_model_that_returns_no_logits_is_refused(attack: Attack, model: Any, word: str) -> None:
    with pytest.raises((InputError, ConfigError, AttackError), match=word):
        attack(model, torch.rand(2, 3, 4, 4), torch.tensor([0, 1]))


def test_an_image_without_finite_logits_spoils_no_other() -> None:
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    nan = torch.tensor([[0.0], [torch.nan]])
    attack = BIM(num_steps=2)
    assert torch.equal(attack(Returns(lambda logits: logits + nan), images, labels)[0], attack(Labels(), images, labels)[0])


def test_the_model_is_left_as_it_was_found() -> None:
    model = ResNet(8).train()
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(2, 3, 16, 16)
    PGD(epsilon=0.1, step_size=0.05, num_steps=2)(model, images, torch.tensor([0, 1]))
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not images.requires_grad


def test_the_model_is_restored_after_an_error_too() -> None:
    model = ResNet(8).train()
    with pytest.raises(RuntimeError), frozen(model):
        raise RuntimeError
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


class Viewing(nn.Module):
    """A classifier as people write them: view() fails on images that are not dense in the default layout."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.linear = nn.Linear(3 * 64, 5)

    def forward(self, images: Tensor) -> Tensor:
        gradient_layout = self.convolution(images).mean()
        return self.linear(images.view(len(images), -1)) + gradient_layout


@pytest.mark.parametrize(
    "attack", [FGSM(epsilon=0.1), PGD(epsilon=0.1, step_size=0.05, num_steps=2), CW(num_steps=2), AutoAttack(epsilon=0.01)]
)
def test_models_that_flatten_with_view_can_be_attacked(attack: Attack) -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert attack(Viewing(), images, torch.tensor([0, 1, 2])).shape == images.shape


def test_attacks_run_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    model, images = ResNet(8), torch.rand(4, 3, 16, 16)
    labels = torch.arange(4)
    attack = FGSM(epsilon=8 / 255)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attack(model, images, labels)
    assert torch.equal(inside, attack(model, images, labels))


@given(st.integers(1, 254))
def test_lengths_are_read_and_written_as_people_do(levels: int) -> None:
    attack = FGSM.model_validate({"epsilon": f"{levels}/255"})
    assert attack.epsilon == levels / 255
    assert FGSM.model_validate(attack.model_dump(mode="json")) == attack


def test_lengths_that_are_no_numbers_are_refused() -> None:
    assert [show_fraction(value) for value in (8 / 255, 0.1, 0.2, 0.0, 1.0, None)] == ["8/255", "0.1", "0.2", "0.0", "1.0", "-"]
    for wrong in ("8/0", "a lot", "", -0.1, "8/255/2", "8/", "/255", "1e400", "1e999999999", "nan", float("inf")):
        with pytest.raises(ConfigError, match=r"FGSM\.epsilon"):
            FGSM(epsilon=wrong)  # type: ignore[arg-type]


class Labels(nn.Module):
    """Ten classes by the mean of the first channel, with a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return -(images[:, 0].mean((1, 2))[:, None] - torch.linspace(0, 1, 10)).square()


@pytest.mark.parametrize("labels", [[0, 1], torch.tensor([5, 11]), torch.tensor([-1, 0]), torch.tensor([0, 1]).numpy()])
def test_labels_that_are_no_classes_are_refused(labels: object) -> None:
    with pytest.raises(InputError, match="labels"):
        FGSM()(Labels(), torch.rand(2, 3, 4, 4), labels)  # type: ignore[arg-type]


def test_gradients_are_taken_in_whatever_mode_the_caller_is() -> None:
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    expected = FGSM()(Labels(), images, labels)
    with torch.inference_mode():
        assert torch.equal(FGSM()(Labels(), images.clone(), labels.clone()), expected)
    with torch.no_grad():
        assert torch.equal(FGSM()(Labels(), images, labels), expected)


def test_a_model_may_change_its_images_in_place() -> None:
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    before = images.clone()
    PGD(num_steps=2)(nn.Sequential(nn.ReLU(inplace=True), Labels()), images, labels)
    assert torch.equal(images, before)


def test_restarts_keep_what_broke_an_image_and_attack_the_rest_again() -> None:
    torch.manual_seed(0)
    model, images = ResNet(8).eval(), torch.rand(8, 3, 16, 16)
    with torch.no_grad():
        labels = model(images).argmax(1)
    weak = PGD(epsilon=1 / 255, num_steps=1)
    once, thrice = (attack(model, images, labels) for attack in (weak, weak.model_copy(update={"restarts": 3})))
    with torch.no_grad():
        broken, also = (model(found).argmax(1) != labels for found in (once, thrice))
    assert (also >= broken).all()
    assert torch.equal(once[broken], thrice[broken])
    assert not torch.equal(once[~broken], thrice[~broken])


def test_targets_are_never_the_true_class_and_chosen_as_asked() -> None:
    model, images, labels = Labels(), torch.full((4, 3, 4, 4), 0.4), torch.tensor([4, 4, 4, 4])
    aims = {
        how: PGD(targeted=how)._aims(model, images, labels, 0, None).tolist() for how in ("second", "least_likely", "random")
    }
    assert aims["second"] == [3, 3, 3, 3]  # 0.333 is nearer to 0.4 than 0.556, and 0.444 is the true class
    assert aims["least_likely"] == [9, 9, 9, 9]
    assert 4 not in aims["random"]
    with pytest.raises(InputError, match="targeted"):
        PGD()(model, images, labels, targets=labels)
    for targets, message in [
        (labels + 6, "targets go from 10"),
        (labels - 5, "targets go from -1"),
        ([1] * 4, "targets must be"),
    ]:
        with pytest.raises(InputError, match=message):
            PGD(targeted=True)(model, images, labels, targets=targets)  # type: ignore[arg-type]


def test_a_targeted_attack_reaches_its_target() -> None:
    model, images, labels = Labels(), torch.full((2, 3, 4, 4), 0.45), torch.tensor([4, 4])
    targets = torch.tensor([6, 2])
    reached = PGD(epsilon=0.25, targeted=True)(model, images, labels, targets=targets)
    assert model(reached).argmax(1).tolist() == [6, 2]


def test_restarts_of_a_targeted_attack_are_for_images_away_from_their_target() -> None:
    class Halfway(Attack):
        targeted: bool = True

        def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
            # The first run leaves the true class for a third; any further one reaches the target.
            return torch.full_like(images, 0.55 if seed == 0 else labels[0].item() / 9)

    model, images, labels = Labels(), torch.full((2, 3, 4, 4), 0.45), torch.tensor([4, 4])
    targets = torch.tensor([7, 7])
    assert model(Halfway()(model, images, labels, targets=targets)).argmax(1).tolist() == [5, 5]
    assert model(Halfway(restarts=2)(model, images, labels, targets=targets)).argmax(1).tolist() == [7, 7]


def test_the_fields_defaults() -> None:
    assert (PGD().epsilon, PGD().step_size, PGD().num_steps) == (8 / 255, 2 / 255, 20)
    assert PGD(epsilon=4 / 255).step_size == 1 / 255
    assert (AutoAttack().epsilon, FGSM().kind) == (8 / 255, "fgsm")


@pytest.mark.parametrize(
    ("attack", "title"),
    [
        (PGD(), "PGD-20, 8/255"),
        (PGD(epsilon=16 / 255, targeted=True, restarts=5), "PGD-20, targeted, 5 restarts, 16/255"),
        (PGD(norm="l2", epsilon=0.5, num_steps=8), "PGD-8, L2 0.5"),
        (FGSM(epsilon=0.1), "FGSM, 0.1"),
        (MIFGSM(), "MI-FGSM-10, 8/255"),
        (CW(), "CW-40"),
        (AutoAttack(version="rand"), "AutoAttack, rand, 8/255"),
        (Square(), "Square, 5,000 queries, 8/255"),
        (FoolboxPGD(), "foolbox PGD-20, 8/255"),
    ],
)
def test_a_title_has_steps_and_ball(attack: Attack, title: str) -> None:
    assert attack.title == title


def test_of_equal_titles_the_later_has_its_name_too() -> None:
    both = {"BIM": BIM(), "BIM, small steps": BIM(step_size=1 / 255), "CW": CW()}
    assert list(titles(both).values()) == ["BIM-20, 8/255", "BIM-20, 8/255 (BIM, small steps)", "CW-40"]


@pytest.mark.parametrize(
    ("wrong", "match"), [({"restarts": 0}, "PGD.restarts: .*1"), ({"epsilon": 8}, "8/255"), ({"stepsize": 1}, "step_size")]
)
def test_settings_that_cannot_be_are_an_error_of_this_library(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PGD(**wrong)


@pytest.mark.parametrize("attack", [FGSM, BIM, MIFGSM, CW])
def test_restarts_that_would_all_be_the_same_are_refused(attack: type[Attack]) -> None:
    with pytest.raises(ConfigError, match="restarts"):
        attack(restarts=2)


class Steps(nn.Module):
    """Rounds, so that its gradient is zero."""

    def forward(self, images: Tensor) -> Tensor:
        score = (4 * images).round().flatten(1).mean(1) - 2
        return torch.stack([-score, score], 1)


@pytest.mark.parametrize("model", [Steps(), Linear(2, (3, 4, 4))])
def test_a_zero_gradient_is_a_warning(model: nn.Module) -> None:
    images = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ImageSet("x", images, torch.arange(6) % 2, ("a", "b"))
    found = generate(PGD(num_steps=3), model, data, batch_size=3)
    assert ["gradient is zero" in text for text in found.warnings] == [True] * isinstance(model, Steps)
    assert list(found.warnings.values()) == [2] * isinstance(model, Steps)


def test_an_attack_on_features_looks_at_no_label() -> None:
    model, images = Linear(4, (3, 4, 4)), torch.rand(2, 3, 4, 4)
    with pytest.raises(InputError, match="999"):
        PGD(num_steps=1)(model, images, torch.tensor([0, 999]))
    few, many = (SSP(num_steps=1)(model, images, torch.tensor([0, last])) for last in (1, 999))
    assert torch.equal(few, many)
