"""PGD on a linear model, where the best perturbation is known exactly, and against foolbox to the last digit."""

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from purifiers.attacks import BIM, CW, FGSM, MIFGSM, NFGSM, PGD, SSP, Attack, distances
from purifiers.attacks.views import Features
from purifiers.gradient_steps import pgd
from purifiers.networks import ResNet
from tests.conftest import Linear

SHAPE = (3, 4, 4)


def two_classes() -> tuple[Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A two-class linear model, mid-grey images (no clipping), labels, and the direction of steepest ascent for each."""
    model = Linear(2, SHAPE)
    images = torch.full((6, *SHAPE), 0.5) + torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1)) * 0.02
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    towards = (model.weight[1] - model.weight[0]).detach().view(1, *SHAPE)
    return model, images, labels, torch.where((labels == 0).view(-1, 1, 1, 1), towards, -towards)


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(epsilon=0.1),
        BIM(epsilon=0.1, step_size=0.03, num_steps=4),
        MIFGSM(epsilon=0.1, step_size=0.01, num_steps=10),
        PGD(epsilon=0.1, step_size=0.05, num_steps=5),  # 0.25 crosses the whole ball from wherever it starts
    ],
)
def test_linf_optimum_of_a_linear_model(attack: FGSM) -> None:
    model, images, labels, direction = two_classes()
    torch.testing.assert_close(attack(model, images, labels), images + 0.1 * direction.sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "attack",
    [FGSM(epsilon=0.3, norm="l2"), BIM(epsilon=0.3, step_size=0.1, num_steps=4, norm="l2")],
)
def test_l2_optimum_of_a_linear_model(attack: FGSM) -> None:
    model, images, labels, direction = two_classes()
    optimum = images + 0.3 * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(attack(model, images, labels), optimum, rtol=0, atol=1e-6)


def test_l2_from_a_random_start_nears_the_optimum() -> None:
    model, images, labels, direction = two_classes()
    attack = PGD(epsilon=0.3, step_size=0.1, num_steps=50, norm="l2")
    optimum = images + 0.3 * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(attack(model, images, labels), optimum, rtol=0, atol=1e-3)


@settings(max_examples=30)
@given(
    epsilon=st.floats(0, 1),
    step_size=st.floats(0, 1),
    norm=st.sampled_from(["linf", "l2"]),
    kind=st.sampled_from([PGD, BIM, MIFGSM, NFGSM]),
    seed=st.integers(0, 5),
)
def test_every_result_is_in_the_ball_and_in_range(epsilon: float, step_size: float, norm: str, kind: type, seed: int) -> None:
    """The base class asserts it on every batch; this looks for parameters that break it, at the corners of [0,1]."""
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(seed)).round()
    steps = {"step_size": min(step_size, epsilon)} if kind is NFGSM else {"step_size": step_size, "num_steps": 3}
    attack = kind(epsilon=epsilon, norm=norm, **steps)
    result = attack(Linear(5, SHAPE), images, torch.tensor([0, 1, 2]), seed=seed)
    assert result.min() >= 0
    assert result.max() <= 1
    assert distances(images, result, norm).max() <= epsilon + 1e-5  # type: ignore[arg-type]


def test_the_random_start_fills_the_ball_and_depends_on_the_seed_alone() -> None:
    model, images = Linear(2, SHAPE), torch.full((2000, *SHAPE), 0.5)
    labels = torch.zeros(2000, dtype=torch.int64)
    for norm in ("linf", "l2"):
        start = PGD(epsilon=0.2, step_size=0.0, num_steps=1, norm=norm)
        first = start(model, images, labels, seed=1)
        assert torch.equal(first, start(model, images, labels, seed=1))
        assert torch.equal(first, start(model, images.contiguous(memory_format=torch.channels_last), labels, seed=1))
        assert not torch.equal(first, start(model, images, labels, seed=2))
        radii = distances(images, first, norm)  # type: ignore[arg-type]
        assert radii.max() <= 0.2 + 1e-6
        assert radii.mean() > 0.18  # most of a high-dimensional ball lies near its surface
        assert (first - images).mean().abs() < 0.005


def test_n_fgsm_steps_from_noise_that_stays() -> None:
    """On a linear model each pixel goes one step the same way, from noise in two thirds of the ball."""
    model, images = Linear(2, SHAPE), torch.full((2000, *SHAPE), 0.5)
    labels = torch.zeros(2000, dtype=torch.int64)
    step = FGSM(epsilon=0.1)(model, images, labels) - images
    noise = NFGSM(epsilon=0.3)(model, images, labels, seed=1) - images - step
    assert noise.abs().max().item() == pytest.approx(0.2, abs=1e-4)
    assert noise.abs().mean().item() == pytest.approx(0.1, abs=1e-3)
    assert NFGSM().title == "N-FGSM, 24/255"


def test_momentum_is_that_of_dong_et_al() -> None:
    """Equations 6 and 7 of their paper, step by step in float64, on a model whose gradient changes on the way."""

    class Bowl(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bowl = ((images - centre.to(images)) ** 2 * scale.to(images)).flatten(1).sum(1)
            return torch.stack([bowl, -bowl], 1)

    generator = torch.Generator().manual_seed(0)
    centre, scale = torch.rand(2, 1, *SHAPE, generator=generator) * 0.1 + 0.45
    scale = scale * torch.randn(1, *SHAPE, generator=generator).sign()
    images, labels = torch.full((2, *SHAPE), 0.5), torch.tensor([0, 1])
    for momentum in (1.0, 0.5):
        x, gathered = images.double(), torch.zeros(2, *SHAPE, dtype=torch.float64)
        for _ in range(6):
            x = x.requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(Bowl()(x), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            l1 = gradient.abs().flatten(1).sum(1).view(-1, 1, 1, 1)
            gathered = momentum * gathered + gradient / l1
            x = (x.detach() + 0.02 * gathered.sign()).clamp(0.45, 0.55).clamp(0, 1)
        ours = MIFGSM(epsilon=0.05, step_size=0.02, num_steps=6, momentum=momentum)(Bowl(), images, labels)
        torch.testing.assert_close(ours.double(), x, rtol=0, atol=1e-6)
    plain = BIM(epsilon=0.05, step_size=0.02, num_steps=6)(Bowl(), images, labels)
    assert not torch.allclose(plain, ours)


def test_more_steps_never_leave_the_graph_behind() -> None:
    """Memory does not grow with the number of steps: the result carries no history."""
    model, images, labels, _ = two_classes()
    result = pgd(
        lambda x: F.cross_entropy(model(x), labels, reduction="sum"),
        images,
        epsilon=0.1,
        step_size=0.01,
        num_steps=3,
    )
    assert result.grad_fn is None
    assert not result.requires_grad


@pytest.mark.parametrize("attack", [PGD(), PGD(norm="l2", epsilon=0.5, restarts=2), MIFGSM(), CW(num_steps=5)])
def test_a_large_batch_goes_through_in_parts_and_gives_the_same(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sizes: list[int] = []
    model, images, labels = ResNet(8).eval(), torch.rand(7, 3, 16, 16), torch.randint(10, (7,))
    whole = attack(model, images, labels)
    monkeypatch.setattr("purifiers.device.LARGE", 0)
    monkeypatch.setattr("purifiers.device._fastest", lambda *_: 3)
    monkeypatch.setattr("purifiers.device._sizes", {})
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    torch.testing.assert_close(attack(model, images, labels), whole, rtol=0, atol=1e-5)
    assert set(sizes) <= {1, 2, 3}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_agrees_with_foolbox_to_the_last_digit(norm: str) -> None:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox

    torch.manual_seed(0)
    model = ResNet(8).eval()
    images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attacks = foolbox.attacks
    one, many = {
        "linf": (attacks.LinfFastGradientAttack, attacks.LinfBasicIterativeAttack),
        "l2": (attacks.L2FastGradientAttack, attacks.L2BasicIterativeAttack),
    }[norm]
    epsilon, step = (8 / 255, 2 / 255) if norm == "linf" else (0.5, 0.1)
    _, fgsm, _ = one()(wrapped, images, labels, epsilons=epsilon)
    _, bim, _ = many(abs_stepsize=step, steps=10)(wrapped, images, labels, epsilons=epsilon)
    # In L2 foolbox computes lengths by powers and roots, which may differ in the last bit.
    tolerance = {"rtol": 0, "atol": 0 if norm == "linf" else 1e-6}
    torch.testing.assert_close(FGSM(epsilon=epsilon, norm=norm)(model, images, labels), fgsm, **tolerance)
    ours = BIM(epsilon=epsilon, step_size=step, num_steps=10, norm=norm)(model, images, labels)
    torch.testing.assert_close(ours, bim, **tolerance)


def test_ssp_goes_to_a_corner_of_the_ball() -> None:
    """Of one linear feature, here twice, the squared distance grows to both sides: the farthest points are the two corners."""
    model = Linear(2, SHAPE)
    model.weight.data[1] = model.weight.data[0]
    images = torch.full((6, *SHAPE), 0.5)
    corner = 0.1 * model.weight.detach()[:1].sign().view(1, *SHAPE)
    attack = SSP(epsilon=0.1, step_size=0.05, num_steps=8)
    moved = attack(Features(model, None), images, torch.zeros(6, dtype=torch.int64), seed=1) - images
    for one in moved:
        torch.testing.assert_close(one.abs(), corner[0].abs())
        assert torch.allclose(one, corner[0], atol=1e-6) or torch.allclose(one, -corner[0], atol=1e-6)


def test_ssp_needs_a_random_start_to_have_a_gradient_and_no_labels() -> None:
    model = Linear(4, SHAPE)
    images, labels = torch.full((2, *SHAPE), 0.5), torch.tensor([0, 3])
    attack = SSP(epsilon=0.1, step_size=0.05, num_steps=3)
    first, same, other = (attack(model, images, given, seed=2) for given in (labels, labels.flip(0), labels))
    assert torch.equal(first, same) and torch.equal(first, other)  # labels count nothing
    with torch.no_grad():
        assert (model(first) - model(images)).square().mean() > (0.05 * model.weight).square().mean()
