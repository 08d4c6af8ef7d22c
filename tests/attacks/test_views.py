"""The views: what an attacker differentiates or asks, checked against gradients worked out otherwise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from purifiers import PurifiedClassifier
from purifiers.attacks import PGD, VIEWS
from purifiers.attacks.views import Expectation, Queries, StraightThrough
from purifiers.baselines import Noisy, Nothing
from purifiers.classifiers.probes import gradient_at, is_random
from purifiers.errors import InputError
from purifiers.seeds import reproducible
from tests.conftest import Linear

SHAPE = (3, 4, 4)
IMAGES = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))


class Square(nn.Module):
    """A purifier whose own gradient is 2x, and not the identity's."""

    def forward(self, images: Tensor) -> Tensor:
        return images**2


def gradient(function: Callable[[Tensor], Tensor], images: Tensor = IMAGES) -> Tensor:
    point = images.clone().requires_grad_(True)
    return torch.autograd.grad(function(point).sum(), point)[0]


def test_bpda_is_the_purifier_forward_and_the_identity_backward() -> None:
    model, weights = Linear(4, SHAPE), torch.rand(5, *SHAPE)
    defended = PurifiedClassifier(Square(), model)
    assert torch.equal(VIEWS["bpda"](defended)(IMAGES), defended(IMAGES))
    assert torch.equal(gradient(lambda x: weights * StraightThrough(Square())(x)), weights)
    assert not torch.allclose(gradient(lambda x: weights * Square()(x)), weights)
    # Of a linear classifier the gradient does not depend on where it is taken: it is the classifier's own.
    torch.testing.assert_close(gradient(VIEWS["bpda"](defended)), gradient(model))


def test_bpda_refuses_a_purifier_that_changes_the_shape() -> None:
    with pytest.raises(InputError, match="the view bpda needs images of one shape"):
        StraightThrough(nn.Upsample(scale_factor=2))(IMAGES)


def test_the_gradient_of_eot_is_the_mean_of_the_gradients_of_the_draws() -> None:
    """With a purifier that scales by a random number r the gradient of a linear model's logits is r times its own."""

    class Scaled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.rand(()) * images

    model = Linear(4, SHAPE)
    defended = PurifiedClassifier(Scaled(), model)
    with reproducible(3, IMAGES.device):
        draws = torch.stack([torch.rand(()) for _ in range(7)])
    with reproducible(3, IMAGES.device):
        found = gradient(Expectation(defended, draws=7))
    torch.testing.assert_close(found, draws.mean() * gradient(model))
    with reproducible(3, IMAGES.device):
        logits = Expectation(defended, draws=7)(IMAGES)
    expected = torch.stack([model(draw * IMAGES) for draw in draws]).mean(0)
    torch.testing.assert_close(logits, expected)


def test_eot_of_logits_is_eot_of_log_probabilities_for_the_cross_entropy() -> None:
    """As its docstring says: both have the same gradient, as they differ by a number for each image."""
    logits = torch.randn(6, 5, 4, dtype=torch.float64)  # draws, images, classes
    labels = torch.arange(5) % 4

    def loss(drawn: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
        return nn.functional.cross_entropy(average(drawn), labels, reduction="sum")

    torch.testing.assert_close(
        gradient(lambda z: loss(z, lambda drawn: drawn.mean(0)), logits),
        gradient(lambda z: loss(z, lambda drawn: drawn.log_softmax(-1).mean(0)), logits),
    )


def test_eot_needs_a_draw() -> None:
    with pytest.raises(InputError, match="at least one draw; got 0"):
        Expectation(nn.Identity(), draws=0)


def test_the_number_of_draws_is_a_part_of_what_cached_examples_are_found_by() -> None:
    assert repr(Expectation(nn.Identity(), 2)) != repr(Expectation(nn.Identity(), 3))


def test_queries_have_no_history_and_refuse_gradients() -> None:
    model = Linear(4, SHAPE)
    asked = VIEWS["query"](PurifiedClassifier(nn.Identity(), model))
    answers = asked(IMAGES)
    assert torch.equal(answers, model(IMAGES))
    assert answers.grad_fn is None and not answers.requires_grad
    with pytest.raises(InputError, match="the view query passes no gradients"):
        PGD(epsilon=0.1, step_size=0.1, num_steps=1)(asked, IMAGES, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(InputError, match="square or hop_skip_jump"):
        Queries(model)(IMAGES.clone().requires_grad_(True))


def test_the_gradient_is_zero_where_there_is_none_and_other_errors_are_not_hidden() -> None:
    model, images = Linear(3, SHAPE), torch.rand(2, *SHAPE)
    expected = (torch.tensor([-1.0, 0.5, 2.0]) @ model.weight).view(1, *SHAPE).expand(2, *SHAPE)
    torch.testing.assert_close(gradient_at(model, images), expected)
    assert gradient_at(nn.Sequential(model, nn.Softmax(1)), images).abs().max() > 0
    assert not gradient_at(Queries(model), images).any()
    with torch.no_grad():
        constant = model(images)

    class Deaf(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return constant

    assert not gradient_at(Deaf(), images).any()

    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        gradient_at(Broken(), images)


def test_random_models_are_found_out() -> None:
    assert is_random(Noisy(Nothing(), sigma=0.1, epsilon=1), IMAGES)
    assert not is_random(Square(), IMAGES)
    # Rounding is no randomness: the trust checks have the same limit.
    for sigma, random in ((1e-6, False), (1e-3, True)):
        assert is_random(Noisy(Nothing(), sigma=sigma, epsilon=1), IMAGES) is random


def test_a_model_that_refuses_gradients_has_none() -> None:
    class Numpy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.from_numpy(images.numpy()).flatten(1)

    assert not gradient_at(Numpy(), torch.rand(2, 3, 4, 4)).any()
