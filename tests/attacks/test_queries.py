"""Square and HopSkipJump, which only ask, foolbox's PGD, and AutoAttack's version for random models: on linear models, whose
answer is known."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from purifiers.attacks import PGD, Attack, AutoAttack, FoolboxPGD, HopSkipJump, Square, distances
from purifiers.attacks.generate import generate
from purifiers.attacks.libraries import fits_square, make_reference, run_reference
from purifiers.attacks.views import Queries
from purifiers.baselines import Noisy, Nothing
from purifiers.data import ImageSet
from purifiers.errors import AttackError
from tests.attacks.test_libraries import boundary_distances, linear_problem
from tests.conftest import Linear

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
SHAPE = (3, 3, 3)


def halfway(model: Linear, images: Tensor, labels: Tensor, norm: str) -> tuple[float, Tensor]:
    """An epsilon that breaks about every second image, and the exact distances."""
    exact = boundary_distances(model, images, labels, norm)
    return exact.median().item(), exact


@NORMS
def test_foolbox_pgd_is_right_on_every_image_of_a_linear_model_and_breaks_the_same_as_ours(norm: Any) -> None:
    model, images, labels = linear_problem(2, 40)
    epsilon, exact = halfway(model, images, labels, norm)
    steps = {"epsilon": epsilon, "step_size": epsilon / 4, "num_steps": 20, "norm": norm}
    theirs, ours = (kind(**steps)(model, images, labels).clone() for kind in (FoolboxPGD, PGD))
    clear = (exact - epsilon).abs() > 1e-3
    fooled = model(theirs).argmax(1) != labels
    assert torch.equal(fooled[clear], (exact < epsilon)[clear])
    assert torch.equal(fooled[clear], (model(ours).argmax(1) != labels)[clear])


@NORMS
def test_hop_skip_jump_nears_the_boundary_by_labels_alone(norm: Any) -> None:
    model, images, labels = linear_problem(5, 10)
    epsilon, exact = halfway(model, images, labels, norm)
    far = HopSkipJump(epsilon=1.0 if norm == "linf" else 5.0, norm=norm, num_steps=6, num_evaluations=60)
    adversarial = far(Queries(model), images, labels)
    found = distances(images, adversarial, norm)
    assert (model(adversarial).argmax(1) != labels).all()
    assert (found >= exact - 1e-5).all()
    assert (found / exact).median() < 1.6
    # The same attack with an epsilon: what is farther away comes back as it was.
    near = HopSkipJump(epsilon=epsilon, norm=norm, num_steps=6, num_evaluations=60)(Queries(model), images, labels)
    kept = found <= epsilon
    assert torch.equal(near[kept], adversarial[kept])
    assert torch.equal(near[~kept], images[~kept])
    assert not kept.all()


def test_hop_skip_jump_leaves_alone_what_is_wrong_already_and_what_nothing_fools() -> None:
    model, images, labels = linear_problem(5, 4)
    wrong = (labels + 1) % 5
    attack = HopSkipJump(epsilon=1.0, num_steps=1, num_evaluations=4)
    assert torch.equal(attack(Queries(model), images, wrong), images)

    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0]).expand(len(images), 2)

    assert torch.equal(attack(Constant(), images, torch.zeros(4, dtype=torch.int64)), images)


def test_hop_skip_jump_starts_from_other_images_where_all_noise_is_of_the_images_class() -> None:
    class Contrast(nn.Module):
        """Class 1 for smooth images only, so that no noise is of it."""

        def forward(self, images: Tensor) -> Tensor:
            spread = images.flatten(1).std(1)
            return torch.stack([spread - 0.1, 0.1 - spread], 1)

    noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.cat([noise, torch.full((1, 3, 8, 8), 0.5)])
    labels = torch.tensor([0, 1])
    adversarial = HopSkipJump(epsilon=1.0, num_steps=2, num_evaluations=10)(Contrast(), images, labels)
    assert (Contrast()(adversarial).argmax(1) != labels).all()


def test_hop_skip_jump_says_that_it_found_no_start() -> None:
    class Always(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)

    data = ImageSet("grey", torch.full((3, 3, 8, 8), 100, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), ("a", "b"))
    found = generate(HopSkipJump(epsilon=0.1, num_steps=1, num_evaluations=4), Always(), data)
    assert ["starting point" in text for text in found.warnings] == [True]
    wrong = ImageSet("grey", data.images, data.labels + 1, data.classes)  # these need none
    assert not generate(HopSkipJump(epsilon=0.1, num_steps=1, num_evaluations=4), Always(), wrong).warnings


def test_hop_skip_jump_holds_the_draws_of_a_random_model() -> None:
    """Without that it would go on for ever."""
    model, images, labels = linear_problem(5, 6)
    noisy = nn.Sequential(Noisy(Nothing(), sigma=0.05, epsilon=1), model)
    attack = HopSkipJump(epsilon=1.0, num_steps=3, num_evaluations=20)
    first = attack(Queries(noisy), images, labels, seed=1)
    assert torch.equal(first, attack(Queries(noisy), images, labels, seed=1))
    assert (model(first).argmax(1) != labels).any()


@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_hop_skip_jump_holds_them_where_only_some_images_are_right(sigma: float) -> None:
    """An image's draw depends on the batch that it is in; starting points have to be of the batch that is attacked."""
    model, images, labels = linear_problem(5, 30)
    labels[::3] = (labels[::3] + 1) % 5
    noisy = nn.Sequential(Noisy(Nothing(), sigma=sigma, epsilon=1), model)
    adversarial = HopSkipJump(epsilon=1.0, num_steps=2, num_evaluations=10)(Queries(noisy), images, labels, seed=1)
    assert (adversarial != images).flatten(1).any(1).sum() >= 10


def test_what_hop_skip_jump_finds_breaks_images_in_other_batches_too() -> None:
    """At the boundary itself the rounding of another batch size would decide."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 8 * 8, 10)).eval()
    images = torch.rand(12, 3, 16, 16)
    labels = network(images).argmax(1).detach()
    adversarial = HopSkipJump(epsilon=1.0, num_steps=3, num_evaluations=10)(Queries(network), images, labels)
    assert (network(adversarial).argmax(1) != labels).all()
    assert all(network(one[None]).argmax(1) != label for one, label in zip(adversarial, labels, strict=True))


def test_hop_skip_jump_says_when_draws_cannot_be_held() -> None:
    model, images, labels = linear_problem(5, 2)

    class Elsewhere(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return model(images) + float(np.random.default_rng().random())

    with pytest.raises(AttackError, match="the same logits for the same images"):
        HopSkipJump(epsilon=0.1)(Elsewhere(), images, labels)


@NORMS
def test_square_breaks_what_can_be_broken_and_nothing_else(norm: Any) -> None:
    model = Linear(2, (3, 8, 8))
    with torch.no_grad():  # brightness, which squares can change; the L-inf distance is that of the mean from one half
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand_as(model.weight) / 192)
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    images = torch.linspace(0.3, 0.5, 24).view(-1, 1, 1, 1).expand(24, 3, 8, 8).contiguous()
    labels = model(images).argmax(1).detach()
    epsilon, exact = halfway(model, images, labels, norm)
    fooled = model(Square(epsilon=epsilon, norm=norm, num_queries=400)(Queries(model), images, labels)).argmax(1) != labels
    assert not fooled[exact > epsilon + 1e-4].any()
    assert fooled[exact < epsilon / {"linf": 2, "l2": 5}[norm]].all()
    assert fooled.sum() >= 3


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("size", [(24, 24), (4, 40)])
def test_sizes_that_squares_in_l2_cannot_tile_are_refused_and_left_out(
    size: tuple[int, int], classes: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, images, labels = linear_problem(classes, 2, (3, *size))
    with pytest.raises(AttackError, match=f"does not work on images of {size[0]} by {size[1]}; L-inf does"):
        Square(epsilon=0.1, norm="l2", num_queries=3)(Queries(model), images, labels)
    assert Square(epsilon=0.01, num_queries=3)(Queries(model), images, labels).shape == images.shape
    AutoAttack(epsilon=1e-4, norm="l2")(model, images[:1], labels[:1])
    assert f"images of {size[0]} by {size[1]}: Square left out (not the standard version)" in caplog.text


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(5, 60))
def test_square_in_l2_is_refused_where_it_fails_and_nowhere_else(height: int, width: int) -> None:
    model, images, labels = linear_problem(2, 1, (3, height, width))
    reference = make_reference(Square(epsilon=1e-3, norm="l2"), model, images, 0, ["square"])
    reference.square.n_queries = 2
    if fits_square(images):
        assert run_reference(reference, images, labels, 1).shape == images.shape
    else:
        with pytest.raises((RuntimeError, ZeroDivisionError)):
            run_reference(reference, images, labels, 1)


def test_what_autoattack_saw_of_one_model_is_not_said_of_the_next(caplog: pytest.LogCaptureFixture) -> None:
    class Descending(nn.Module):
        """Asks for a gradient of its own, as a purifier does that optimises: a dynamic defence to AutoAttack."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            with torch.enable_grad():
                given = images.detach().requires_grad_(True)
                torch.autograd.grad(given.sum(), given)
            return self.model(images)

    model, images, labels = linear_problem(5, 2)
    attack = AutoAttack(epsilon=0.3)
    attack(Descending(model), images, labels)
    assert "dynamic defense" in caplog.text
    caplog.clear()
    attack(model, images, labels)
    assert "dynamic defense" not in caplog.text


@pytest.mark.parametrize("classes", [2, 5])
def test_autoattacks_rand_version_averages_over_draws(classes: int, caplog: pytest.LogCaptureFixture) -> None:
    """With noise that is small beside epsilon the answer is that of the linear model without it."""
    model, images, labels = linear_problem(classes, 4)
    noisy = nn.Sequential(Noisy(Nothing(), sigma=1e-4, epsilon=1), model)
    epsilon, exact = halfway(model, images, labels, "linf")
    adversarial = AutoAttack(epsilon=epsilon, version="rand")(noisy, images, labels)
    fooled = model(adversarial).argmax(1) != labels
    clear = (exact - epsilon).abs() > 5e-3
    assert torch.equal(fooled[clear], (exact < epsilon)[clear])
    assert ("APGD-DLR left out" in caplog.text) == (classes < 3)
    assert "randomized" not in caplog.text


def test_both_versions_are_written_and_read() -> None:
    standard, rand = AutoAttack(epsilon=8 / 255), AutoAttack(epsilon=8 / 255, version="rand")
    assert (standard.model_dump()["kind"], standard.model_dump()["version"]) == ("autoattack", "standard")
    assert rand.model_dump()["version"] == "rand"
    for attack in (standard, rand):
        assert AutoAttack.model_validate(attack.model_dump(mode="json")) == attack


@settings(max_examples=12)
@given(
    st.sampled_from(["linf", "l2"]),
    st.floats(0.001, 0.5),
    st.sampled_from([Square, HopSkipJump, FoolboxPGD]),
    st.integers(0, 2**31),
)
def test_every_attack_stays_in_the_ball_and_in_range(norm: str, epsilon: float, kind: type[Attack], seed: int) -> None:
    """`Attack` itself refuses results outside; here the measure is our own."""
    numbers = {
        Square: {"num_queries": 10},
        HopSkipJump: {"num_steps": 2, "num_evaluations": 6},
        FoolboxPGD: {"step_size": epsilon / 2, "num_steps": 3},
    }
    shape = (3, 6, 6)
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(seed))
    model = Linear(4, shape, seed=seed)
    attack = kind(norm=norm, epsilon=epsilon, **numbers[kind])
    state = torch.get_rng_state()
    adversarial = attack(Queries(model) if kind is not FoolboxPGD else model, images, model(images).argmax(1), seed=seed)
    assert torch.equal(state, torch.get_rng_state())
    assert adversarial.shape == images.shape and adversarial.dtype == torch.float32
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    moved = (adversarial - images).flatten(1).double()
    length = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    assert length.max() <= epsilon + (1e-6 if norm == "linf" else 1e-5)
