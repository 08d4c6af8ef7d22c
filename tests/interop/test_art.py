"""With the real Adversarial Robustness Toolbox."""

import sys
import tempfile

import numpy as np
import pytest
import torch
from torch import nn

from purifiers import PurifiedClassifier, Purifier
from purifiers.attacks import BIM
from purifiers.errors import ConfigError
from purifiers.networks import CAE
from tests.conftest import Linear

# When imported, ART looks twice for a settings file in the home folder, and fails where another process of the tests writes it
# between the two looks. So each process gives it a home of its own.
with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
    for variable in ("HOME", "USERPROFILE"):
        patch.setenv(variable, home)
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    from purifiers.interop.art import PurifierPreprocessor

EPSILON = 8 / 255


@pytest.fixture
def parts() -> tuple[Purifier, Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    purifier = Purifier(CAE(widths=[4, 6], blocks=[1, 1], skip_every=1))
    # Away from the edges of [0,1], so that no step is clipped.
    return purifier, Linear(3, (3, 8, 8)), 0.2 + 0.6 * torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


def estimator(classifier: nn.Module, *defences: PurifierPreprocessor) -> PyTorchClassifier:
    return PyTorchClassifier(
        model=classifier,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, 8, 8),
        nb_classes=3,
        clip_values=(0.0, 1.0),
        preprocessing_defences=list(defences),
        device_type="cpu",
    )


def gradient(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    images = images.clone().requires_grad_(True)
    return torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), images)[0]


def test_art_predicts_and_differentiates_as_the_purified_classifier(parts) -> None:  # type: ignore[no-untyped-def]
    purifier, classifier, images, labels = parts
    defended = PurifiedClassifier(purifier, classifier)
    art = estimator(classifier, PurifierPreprocessor(purifier))
    np.testing.assert_allclose(art.predict(images.numpy()), defended(images).detach().numpy(), atol=1e-6)

    expected = gradient(defended, images, labels)
    found = art.loss_gradient(images.numpy(), np.eye(3, dtype=np.float32)[labels])  # which takes no plain labels
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-7)
    # FGSM's step is the gradient's sign: a white-box attack.
    attacked = FastGradientMethod(art, eps=EPSILON).generate(images.numpy(), labels.numpy())
    np.testing.assert_allclose(attacked, (images + EPSILON * expected.sign()).numpy(), atol=1e-6)
    pgd = ProjectedGradientDescent(art, eps=EPSILON, eps_step=2 / 255, max_iter=3, num_random_init=0, verbose=False)
    ours = BIM(epsilon=EPSILON, step_size=2 / 255, num_steps=3)(defended, images, labels)
    np.testing.assert_allclose(pgd.generate(images.numpy(), labels.numpy()), ours.numpy(), atol=1e-6)


def test_blind_is_an_estimator_without_it(parts) -> None:  # type: ignore[no-untyped-def]
    purifier, classifier, images, labels = parts
    blind = FastGradientMethod(estimator(classifier), eps=EPSILON).generate(images.numpy(), labels.numpy())
    np.testing.assert_allclose(blind, (images + EPSILON * gradient(classifier, images, labels).sign()).numpy(), atol=1e-6)
    knowing = FastGradientMethod(estimator(classifier, PurifierPreprocessor(purifier)), eps=EPSILON)
    assert not np.allclose(blind, knowing.generate(images.numpy(), labels.numpy()))


def test_used_alone_it_purifies_arrays(parts) -> None:  # type: ignore[no-untyped-def]
    purifier, _, images, labels = parts
    defence = PurifierPreprocessor(purifier)
    purified, same = defence(images.numpy(), labels.numpy())
    np.testing.assert_allclose(purified, purifier(images).detach().numpy(), atol=1e-6)
    assert np.array_equal(same, labels.numpy())
    assert (defence.apply_fit, defence.apply_predict) == (False, True)


def test_art_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("art.") or name == "purifiers.interop.art"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "art", None)
    with pytest.raises(ConfigError, match=r"pip install 'purifiers\[art\]'"):
        import purifiers.interop.art  # noqa: F401
