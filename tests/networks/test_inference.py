"""Networks for inference compute what those that they were made from do."""

import time
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from purifiers import Purifier, load_classifier
from purifiers.errors import InputError
from purifiers.networks import CAE, inference
from purifiers.networks.inference import Optimised, fused

SMALL = {"widths": [4, 6], "blocks": [2, 2], "skip_every": 1}
KINDS = [{"residual": True}, {"last_block": "relu_tanh"}, {"shortcuts": 1}, {"unshuffle": 2}, {"classes": 3}]


def trained(**arguments: object) -> CAE:
    """A network whose statistics are not those of the start."""
    torch.manual_seed(0)
    network = CAE(**SMALL, **arguments)
    nn.init.normal_(network.decoder[-1].weight if hasattr(network.decoder[-1], "weight") else network.decoder[-1][0].weight)
    for _ in range(2):
        network(torch.rand(4, 3, 16, 16))
    return network.eval()


@pytest.mark.parametrize("arguments", KINDS, ids=str)
def test_no_normalisation_is_left_and_the_output_is_the_same(arguments: dict[str, object]) -> None:
    network, images = trained(**arguments), torch.rand(2, 3, 17, 12)
    faster = fused(network, torch.rand(2, 3, 16, 16))
    kinds = [type(part) for part in faster.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.ConvTranspose2d) == 1  # that of stride 2
    torch.testing.assert_close(faster(images), network(images).detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("runtime", [False, True])
def test_predictions_of_a_shipped_purifier_stay(runtime: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if runtime:
        pytest.importorskip("openvino")
        monkeypatch.setattr(inference, "find_spec", find_spec)
    purifier, classifier = Purifier.from_pretrained("cifar10-cpu"), load_classifier("cifar10-resnet20")
    images, state = torch.rand(18, 3, 32, 32), torch.get_rng_state()
    fast = purifier.optimize()
    assert torch.equal(torch.get_rng_state(), state)
    assert (fast.network.runtime is not None) == runtime
    with torch.no_grad():
        assert (classifier(fast(images)) - classifier(purifier(images))).abs().max() < 1e-3


def test_of_two_ways_the_faster_on_the_batch_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(images: Any) -> Any:
        time.sleep(0.1)
        return [images]

    monkeypatch.setattr(inference, "find_spec", lambda name: True)
    monkeypatch.setattr(inference, "_openvino", lambda network, images: slow)
    assert Optimised(trained(), torch.rand(1, 3, 8, 8)).runtime is None
    assert Optimised(trained()).runtime is slow


def test_gradients_and_what_the_network_says_of_itself_stay() -> None:
    purifier = Purifier(trained(residual=True))
    fast, images = purifier.optimize(), torch.rand(2, 3, 16, 16, requires_grad=True)
    expected, found = (torch.autograd.grad(one(images).square().sum(), images)[0] for one in (purifier, fast))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for name in ("channels", "stride", "reach", "redraws"):
        assert getattr(fast.network, name) == getattr(purifier.network, name)


class Peculiar(CAE):
    """Uses a normalisation without the convolution before it."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder[0][0](images)
        return images * self.encoder[0][1](features + 1).mean()


class Noise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images + torch.rand_like(images)


def test_what_would_compute_something_else_stays_as_it_is() -> None:
    images = torch.rand(2, 3, 8, 8)
    peculiar = Peculiar(**SMALL).eval()
    torch.testing.assert_close(fused(peculiar, images)(images), peculiar(images).detach())
    noise = Noise()
    assert Optimised(noise).network is noise
    sized = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 8, 8)))
    torch.testing.assert_close(Optimised(sized)(images), images)


def test_a_copy_for_inference_is_not_saved(tmp_path: object) -> None:
    with pytest.raises(InputError, match="inference"):
        Purifier(trained()).optimize().save_pretrained(f"{tmp_path}/out")


@pytest.mark.parametrize("images", ["batch", torch.rand(2, 1, 8, 8), torch.full((1, 3, 8, 8), 7.0)], ids=type)
def test_a_batch_that_is_none_is_refused(images: object) -> None:
    with pytest.raises(InputError):
        Purifier(trained()).optimize(images)  # type: ignore[arg-type]


def test_the_shape_in_an_error_is_that_of_the_images() -> None:
    with pytest.raises(InputError, match=r"\(3, 8, 8\)"):
        Purifier(trained()).optimize(torch.rand(3, 8, 8))
