import pytest
import torch

from purifiers.data import load_images
from purifiers.errors import InputError
from purifiers.evaluation import metrics
from purifiers.networks import ResNet
from purifiers.registry import load_weights
from tests.conftest import CIFAR10, REFERENCE, needs_cifar10, needs_reference


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameters_are_those_of_the_original_paper(depth: int, millions: float) -> None:
    """He et al. 2016, table 6."""
    count = sum(parameter.numel() for parameter in ResNet(depth).parameters())
    assert round(count / 1e6, 2 if millions < 1 else 1) == millions


def test_normalisation_is_inside_and_not_part_of_the_weights() -> None:
    torch.manual_seed(0)
    plain = ResNet(20, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    inside = ResNet(20, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    inside.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(inside(images), plain(normalised))
    assert not any(key == "mean" or key == "std" for key in inside.state_dict())


@needs_cifar10
@needs_reference
def test_reference_weights_load_unchanged_and_give_their_accuracy() -> None:
    network = ResNet(56, 10, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    load_weights(network, REFERENCE)
    network.eval().to(memory_format=torch.channels_last)
    data = load_images("cifar10", "test", path=str(CIFAR10)).limited(500, seed=0)
    right = metrics.matches(metrics.predict(network, data.images, 250), data.labels) / len(data)
    assert right == pytest.approx(0.9339, abs=0.03)  # of all 10,000: three standard errors


def test_impossible_networks_are_refused() -> None:
    for depth in (57, 2):
        with pytest.raises(InputError, match=f"depth {depth}"):
            ResNet(depth)
    with pytest.raises(InputError, match="width of at least 1"):
        ResNet(20, width=0)
    with pytest.raises(InputError, match="three channels"):
        ResNet(20, mean=(0.5,))


def test_width_multiplies_every_stage() -> None:
    wide = ResNet(20, width=32)
    assert [wide.conv1.out_channels, wide.linear.in_features] == [32, 128]
    counts = [sum(p.numel() for p in ResNet(20, width=width).parameters()) for width in (16, 32)]
    assert counts[0] == 269_722  # the paper's 0.27 million
    assert 3.9 < counts[1] / counts[0] < 4.0
    assert wide(torch.rand(2, 3, 32, 32)).shape == (2, 10)
