import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from purifiers.errors import InputError
from purifiers.networks import CAE

SMALL = {"widths": [4, 6, 8], "blocks": [1, 2, 1]}


def test_the_default_is_the_papers_fifteen_and_fifteen_blocks_with_tanh() -> None:
    network = CAE()
    convolutions = [m for m in network.encoder.modules() if isinstance(m, nn.Conv2d)]
    transposed = [m for m in network.decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert len(convolutions) == len(transposed) == 15
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.encoder.modules()) == 15
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.decoder.modules()) == 14  # the last block ends in Tanh


@settings(max_examples=25)
@given(
    height=st.integers(1, 41),
    width=st.integers(1, 41),
    skip_every=st.integers(0, 3),
    residual=st.booleans(),
    training=st.booleans(),
)
def test_any_size_keeps_its_shape_and_range(height: int, width: int, skip_every: int, residual: bool, training: bool) -> None:
    torch.manual_seed(0)
    network = CAE(**SMALL, skip_every=skip_every, residual=residual).train(training)
    images = torch.rand(2, 3, height, width)
    output = network(images)
    assert output.shape == images.shape
    assert output.dtype == torch.float32
    assert output.min() >= 0 and output.max() <= 1


def test_padding_is_cropped_on_the_side_where_it_was_added() -> None:
    """With a residual and no learned change the output is the input, pixel for pixel, whatever the padding."""
    network = CAE(**SMALL, residual=True).eval()
    images = torch.rand(1, 3, 13, 9)
    torch.testing.assert_close(network(images), images)


@pytest.mark.parametrize("size", [(16, 16), (14, 15)])
def test_output_is_dense_in_the_default_layout(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert CAE(**SMALL).to(memory_format=layout).eval()(images).is_contiguous()


def test_resolution_halves_once_for_each_further_stage() -> None:
    network = CAE(**SMALL).eval()
    features = torch.rand(1, 3, 16, 16)
    sizes = []
    for block in network.encoder:
        features = block(features)
        sizes.append((features.shape[1], features.shape[2]))
    assert sizes == [(4, 16), (6, 8), (6, 8), (8, 4)]


def test_without_skips_everything_passes_through_the_latent() -> None:
    """Silencing the latent leaves an output that does not depend on the image; with skips it still does."""
    torch.manual_seed(0)
    for skip_every, depends in ((0, False), (1, True)):
        network = CAE(**SMALL, skip_every=skip_every).eval()
        nn.init.zeros_(network.encoder[-1][0].weight)
        outputs = network(torch.rand(2, 3, 16, 16))
        assert torch.equal(outputs[0], outputs[1]) is not depends


def test_output_can_be_darker_than_mid_grey() -> None:
    """It could not if the last block ended in ReLU before Tanh, as the paper draws it."""
    torch.manual_seed(0)
    assert CAE(**SMALL)(torch.rand(4, 3, 16, 16)).min() < 0.5


@pytest.mark.parametrize(
    "arguments",
    [{"widths": [4], "blocks": [1, 1]}, {"widths": [], "blocks": []}, {"widths": [0], "blocks": [1]}, {"skip_every": -1}],
)
def test_impossible_networks_are_refused(arguments: dict) -> None:
    with pytest.raises(InputError, match="a CAE needs"):
        CAE(**arguments)


def test_without_skips_the_latent_decides_the_output() -> None:
    torch.manual_seed(0)
    network = CAE(**SMALL, skip_every=0).eval()
    images = torch.rand(2, 3, 10, 9)
    latent = network.latent(images)
    assert latent.shape == (2, 8, 3, 3)
    features = latent
    for block in network.decoder:
        features = block(features)
    torch.testing.assert_close(network(images), ((features.tanh() + 1) / 2)[..., :10, :9])
