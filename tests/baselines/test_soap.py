"""SOAP: its errors by hand in float64, and its purification on an error whose minimum is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from purifiers import Purifier
from purifiers.baselines import SOAP, Noisy, Nothing
from purifiers.baselines.classical import Wrapper
from purifiers.baselines.soap import consistency_error, reconstruction_error, rotation_error
from purifiers.errors import InputError
from purifiers.gradient_steps import pgd
from purifiers.networks import ResNet
from purifiers.runs.comparison import own_classifier


def soap(**arguments: object) -> SOAP:
    torch.manual_seed(0)
    return SOAP(ResNet(depth=8, num_classes=3, width=4), **arguments).eval()  # type: ignore[arg-type]


class Target(SOAP):
    """The auxiliary error is the distance to a grey of the image's own: 0.30, 0.52 and 0.5."""

    def error(self, images: Tensor) -> Tensor:
        target = images.new_tensor([0.3, 0.52, 0.5]).view(3, 1, 1, 1)
        target = target.repeat(len(images) // 3, 1, 1, 1)  # several descents at once
        return (images - target).square().flatten(1).mean(1)


def test_the_errors_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, 0.0, 0.0]], dtype=torch.float64)
    # Softmax: quarters, and a half with three sixths.
    expected = [(0.75**2 + 3 * 0.25**2) / 4, (0.5**2 + (5 / 6) ** 2 + 2 * (1 / 6) ** 2) / 4]
    assert rotation_error(logits, torch.tensor([2, 1])).tolist() == pytest.approx(expected, abs=1e-12)
    first = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    assert consistency_error(first, second).tolist() == pytest.approx([2.0, 12.5], abs=1e-12)
    images = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    assert reconstruction_error(images + 0.5, images).tolist() == pytest.approx([0.25], abs=1e-12)


def test_each_image_keeps_the_epsilon_of_its_lowest_error() -> None:
    network = Target(ResNet(depth=8, num_classes=3, width=4), num_steps=3, step_size=0.04, epsilon_step=0.04)
    images = torch.full((3, 3, 8, 8), 0.5)
    purified = network(images)
    # The first is 0.2 away: three steps of the largest epsilon that they reach. The second is 0.02 away: a step of 0.04 would be
    # as far beyond, and no better. The third is there already.
    expected = torch.tensor([0.38, 0.5, 0.5]).view(3, 1, 1, 1).expand_as(images)
    torch.testing.assert_close(purified, expected)


def test_epsilons_beyond_the_steps_reach_are_not_tried() -> None:
    assert soap().levels == 5  # 5 steps of 4/255 reach 20/255, whatever 40/255 allows
    assert soap(num_steps=20).levels == 10
    assert soap(step_size=1 / 255).levels == 2  # 5/255 is beyond one epsilon and within two
    assert soap(num_epsilons=1).levels == 1


@pytest.mark.parametrize("task", ["reconstruction", "rotation", "consistency"])
@pytest.mark.parametrize("size", [(32, 32), (18, 14)])
def test_every_task_lowers_its_own_error(task: str, size: tuple[int, int]) -> None:
    network = soap(task=task)
    images = torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        purified = Purifier(network)(images)
        before, after = network.error(images), network.error(purified)
    assert purified.shape == images.shape and purified.min() >= 0 and purified.max() <= 1
    assert (after <= before).all() and (after < before).any()
    assert (purified - images).abs().max() <= 20 / 255 + 1e-6


def test_gradients_are_the_identitys_and_weights_stay() -> None:
    network = soap()
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    network(images).sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_view_at_test_time_is_the_mirrored_middle() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    places = (4 + (torch.arange(32) + 0.5) * 24 / 32).floor().long()  # each pixel's nearest in the middle 24
    middle = images[..., places, :][..., places]
    torch.testing.assert_close(soap(mirrored=False).view(images), middle)
    torch.testing.assert_close(soap().view(images), middle.flip(3))


def test_a_held_view_is_a_constant_of_the_descent() -> None:
    """Both have the same error; of the held one the gradient is that of the distance to fixed logits."""
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)).requires_grad_(True)
    held, whole = soap(task="consistency", held=True), soap(task="consistency")
    whole.load_state_dict(held.state_dict())
    torch.testing.assert_close(held.error(images), whole.error(images))
    fixed = held.auxiliary(held.view(images)).detach()
    (expected,) = torch.autograd.grad((held.auxiliary(images) - fixed).square().mean(1).sum(), images)
    torch.testing.assert_close(torch.autograd.grad(held.error(images).sum(), images)[0], expected)
    other = torch.autograd.grad(whole.error(images).sum(), images)[0]
    assert (other - expected).abs().max() > 0.01 * expected.abs().max()


def test_training_views_zoom_within_the_image_and_mirror_where_that_is_allowed() -> None:
    # The value tells the place: views are affine in it.
    ramp = torch.linspace(-1, 1, 32).expand(64, 3, 32, 32).contiguous()
    slopes = soap().view(ramp, torch.Generator().manual_seed(0)).diff(dim=3)[..., 5:25].mean((1, 2, 3)) / (2 / 31)
    assert slopes.abs().min() > 0.7 and slopes.abs().max() < 1.06 and slopes.abs().std() > 0.05
    assert 0.3 < (slopes < 0).float().mean() < 0.7
    kept = soap(mirrored=False).view(ramp, torch.Generator().manual_seed(0)).diff(dim=3)[..., 5:25].mean((1, 2, 3))
    assert (kept > 0).all()
    first, second = (soap().view(ramp, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"task": "jigsaw"}, "tasks reconstruction"), ({"num_steps": 0}, "at least one step"), ({"epsilon_step": 0.0}, "above 0")],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        soap(**arguments)


def test_another_classifier_is_refused() -> None:
    with pytest.raises(InputError, match="built around a 'resnet'"):
        SOAP(nn.Flatten())


def test_descents_that_go_together_are_those_that_go_alone() -> None:
    """The shared gradients give what a descent for each epsilon by itself gives."""
    network = soap(task="rotation", num_steps=5, step_size=0.02, epsilon_step=0.03)
    start = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    assert network.levels == 4
    for level, end in enumerate(network._descents(start), start=1):
        alone = pgd(lambda moved: -network.error(moved).sum(), start, epsilon=level * 0.03, step_size=0.02, num_steps=5)
        torch.testing.assert_close(end, alone)


def test_a_wrapper_of_anybodys_around_it_is_measured_with_its_classifier() -> None:
    class Mirrored(Wrapper):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.base(images.flip(3)).flip(3)

    network = soap()
    found = own_classifier("SOAP", Purifier(Noisy(Mirrored(network), sigma=0.1)))
    assert found is not None and found[0] is network.classifier
    assert own_classifier("nothing", Purifier(Mirrored(Nothing()))) is None
