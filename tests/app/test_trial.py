from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from purifiers.app.trial import ATTACKS, Prediction, Trial, attack_image
from purifiers.attacks import FGSM, PGD
from purifiers.purifier import PurifiedClassifier

SHAPE = (3, 4, 4)
EPSILON = 0.1


class Negative(nn.Module):
    """A purifier that shows the classifier the opposite: through it, every gradient turns round."""

    def forward(self, images: Tensor) -> Tensor:
        return 1 - images


class Random(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images + 0.01 * torch.randn_like(images)).clamp(0, 1)


@pytest.fixture
def image() -> Tensor:
    """Far enough from black and white that no step is clipped."""
    return 0.3 + 0.4 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_reaches_the_optimum_of_a_linear_classifier(
    name: str, image: Tensor, linear: Callable[..., nn.Module]
) -> None:
    """Of two classes: epsilon along the sign of the difference of their weights. The purifier negates, so that an attacker
    who looks through it goes the other way than one who does not know it."""
    classifier = linear(2, SHAPE)
    defended = PurifiedClassifier(Negative(), classifier)
    logits = classifier(image[None])[0].detach()
    label = int(logits.argmax())
    away = (classifier.weight[1 - label] - classifier.weight[label]).sign().view(SHAPE).detach()
    for view, sign in (("blind", 1), ("full", -1)):
        trial = attack_image(defended, image, ATTACKS[name](epsilon=EPSILON), view)
        expected = image + sign * EPSILON * away
        torch.testing.assert_close(trial.attacked.image, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(trial.purified.image, 1 - expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(trial.original.scores, logits.softmax(0))
        torch.testing.assert_close(trial.attacked.scores, classifier(expected[None])[0].softmax(0).detach())
        torch.testing.assert_close(trial.unattacked.scores, classifier(1 - image[None])[0].softmax(0).detach())
        shown, factor = trial.amplified()
        assert factor == 5
        torch.testing.assert_close(shown, 0.5 + 0.5 * sign * away, atol=1e-5, rtol=0)


def test_the_amplification_is_the_largest_whole_one_that_cuts_nothing_off() -> None:
    grey = Prediction(torch.full(SHAPE, 0.5), torch.tensor([1.0]))
    for largest, factor in ((8 / 255, 15), (0.1, 5), (0.25, 2), (0.5, 1), (1.0, 1), (0.0, 1)):
        moved = grey.image.clone()
        moved[0, 0, 0] -= largest
        shown, found = Trial("blind", grey, Prediction(moved, grey.scores), grey, grey).amplified()
        assert found == factor
        assert shown[0, 0, 0].item() == pytest.approx(max(0.0, 0.5 - factor * largest), abs=1e-6)
        assert (shown.flatten()[1:] == 0.5).all()


def test_no_epsilon_is_no_attack(image: Tensor, linear: Callable[..., nn.Module]) -> None:
    for name in ATTACKS:
        trial = attack_image(PurifiedClassifier(nn.Identity(), linear(3, SHAPE)), image, ATTACKS[name](epsilon=0), "full")
        assert torch.equal(trial.attacked.image, image)


def test_the_same_seed_gives_the_same_trial(image: Tensor, linear: Callable[..., nn.Module]) -> None:
    """Of attacks and of purifiers that draw; and the model is left as it was."""
    defended = PurifiedClassifier(Random(), linear(3, SHAPE))

    def purified(seed: int) -> Tensor:
        # One step from a random start is not yet at the corner that all starts lead to.
        attack = PGD(epsilon=EPSILON, step_size=EPSILON / 4, num_steps=1)
        return attack_image(defended, image, attack, "full", seed).purified.image

    first = purified(0)
    torch.rand(5)
    assert torch.equal(first, purified(0))
    assert not torch.equal(first, purified(1))
    assert defended.classifier.weight.requires_grad


def test_at_8_255_pgd_is_the_papers() -> None:
    attack = ATTACKS["PGD"](epsilon=8 / 255)
    assert isinstance(attack, PGD)
    assert (attack.step_size, attack.num_steps) == (pytest.approx(2 / 255), 20)
    assert ATTACKS["FGSM"](epsilon=0.1) == FGSM(epsilon=0.1)
