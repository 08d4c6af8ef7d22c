"""A PurifiedClassifier as any other model, in the hands of attack libraries and of PyTorch."""

import sys

import torch
from torch import nn

from purifiers import PurifiedClassifier, Purifier
from purifiers.attacks import BIM
from purifiers.errors import require
from purifiers.networks import CAE
from tests.conftest import Linear

EPSILON = 8 / 255


def parts() -> tuple[Purifier, Linear, torch.Tensor]:
    torch.manual_seed(0)
    return Purifier(CAE(widths=[4, 6], blocks=[1, 1], skip_every=1)), Linear(4, (3, 8, 8)), torch.rand(6, 3, 8, 8)


def test_foolbox_attacks_the_whole() -> None:
    foolbox = require("foolbox")
    purifier, classifier, images = parts()
    defended = PurifiedClassifier(purifier, classifier)
    labels = defended(images).argmax(1)
    model = foolbox.PyTorchModel(defended, bounds=(0, 1))
    assert foolbox.utils.accuracy(model, images, labels) == 1
    attack = foolbox.attacks.LinfPGD(abs_stepsize=2 / 255, steps=3, random_start=False)
    _, found, _ = attack(model, images, labels, epsilons=EPSILON)
    ours = BIM(epsilon=EPSILON, step_size=2 / 255, num_steps=3)(defended, images, labels)
    torch.testing.assert_close(found, ours, atol=1e-6, rtol=0)


def test_autoattack_attacks_the_whole() -> None:
    from pyautoattack import AutoAttack

    purifier, classifier, images = parts()
    defended = PurifiedClassifier(purifier, classifier)
    labels = defended(images).argmax(1)
    attack = AutoAttack(defended, norm="Linf", eps=EPSILON, version="custom", attacks=["apgd-ce"], seed=0, device="cpu")
    tracer = sys.gettrace()
    try:
        found = attack.run_standard_evaluation(images, labels, batch_size=6)[0]
    finally:
        sys.settrace(tracer)  # it ends tracing, and with it the measuring of coverage
    assert 0 < (found - images).abs().max() <= EPSILON + 1e-6
    assert (defended(found).argmax(1) == labels).float().mean() < 1


def test_a_purifier_is_a_layer() -> None:
    purifier, classifier, images = parts()
    assert torch.equal(nn.Sequential(purifier, classifier)(images), PurifiedClassifier(purifier, classifier)(images))
