"""CW and AutoAttack come from libraries; here: that we call them right, on models whose answer is known."""

import logging
import sys

import pytest
import torch

from purifiers.attacks import CW, AutoAttack
from tests.conftest import Linear

SHAPE = (3, 3, 3)


def boundary_distances(model: Linear, images: torch.Tensor, labels: torch.Tensor, norm: str) -> torch.Tensor:
    """Exact distance of each image to the nearest other class of a linear model, negative if misclassified already."""
    with torch.no_grad():
        logits = model(images)
        nearest = []
        for logit, label in zip(logits, labels.tolist(), strict=True):
            others = [k for k in range(len(logit)) if k != label]
            gaps = model.weight[label] - model.weight[others]
            lengths = gaps.abs().sum(1) if norm == "linf" else gaps.norm(dim=1)
            nearest.append(((logit[label] - logit[others]) / lengths).min())
        return torch.stack(nearest)


def linear_problem(classes: int, count: int, shape: tuple[int, int, int] = SHAPE) -> tuple[Linear, torch.Tensor, torch.Tensor]:
    model = Linear(classes, shape)
    images = 0.5 + 0.1 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(3)).clamp(-2, 2)
    return model, images, model(images).argmax(1).detach()


def test_cw_nears_the_smallest_perturbation_of_a_linear_model() -> None:
    model, images, labels = linear_problem(5, 12)
    exact = boundary_distances(model, images, labels, "l2")
    adversarial = CW(num_steps=400, learning_rate=0.005, constant=5.0)(model, images, labels)
    found = (adversarial - images).flatten(1).norm(dim=1)
    assert (model(adversarial).argmax(1) != labels).all()
    assert (found >= exact - 1e-5).all()
    assert (found <= 1.1 * exact + 0.01).all()


def test_cw_returns_the_image_where_it_finds_nothing() -> None:
    """foolbox has zeros there: a black image would count as a success."""
    model, images, labels = linear_problem(5, 4)
    assert torch.equal(CW(num_steps=1, learning_rate=1e-6, constant=1e-6)(model, images, labels), images)


@pytest.mark.usefixtures("brief_square")
@pytest.mark.parametrize("classes", [3, 6, 10])
def test_autoattack_is_right_on_every_image_of_a_linear_model(classes: int, caplog: pytest.LogCaptureFixture) -> None:
    model, images, labels = linear_problem(classes, 40)
    exact = boundary_distances(model, images, labels, "linf")
    # Images that withstand it are slow: some of ten classes have to, those of fewer classes must all break.
    epsilon = exact.median().item() if classes == 10 else 1.1 * exact.max().item()
    clear = (exact - epsilon).abs() > 1e-3  # those at the very boundary may fall either way
    with caplog.at_level(logging.WARNING, "auto-attack"):
        adversarial = AutoAttack(epsilon=epsilon)(model, images, labels)
    fooled = model(adversarial).argmax(1) != labels
    assert torch.equal(fooled[clear], (exact < epsilon)[clear])
    assert 0 < fooled.sum() < 40 or classes < 10
    reduced = [record for record in caplog.records if "classes:" in record.getMessage()]
    assert len(reduced) == (classes < 10)


def test_autoattack_leaves_the_trace_function_alone() -> None:
    model, images, labels = linear_problem(10, 2)
    calls = []

    def tracer(frame: object, event: str, arg: object) -> None:
        calls.append(event)

    previous = sys.gettrace()
    sys.settrace(tracer)
    try:
        AutoAttack(epsilon=1.0)(model, images, labels)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(previous)


def test_autoattack_leaves_the_global_random_state_alone() -> None:
    model, images, labels = linear_problem(10, 2)
    state = torch.get_rng_state()
    AutoAttack(epsilon=1.0)(model, images, labels)
    assert torch.equal(state, torch.get_rng_state())
