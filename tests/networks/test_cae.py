import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from purifiers.errors import InputError
from purifiers.networks import CAE
from purifiers.networks.cae import Verdict

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
    unshuffle=st.integers(1, 4),
)
def test_any_size_keeps_its_shape_and_range(
    height: int, width: int, skip_every: int, residual: bool, training: bool, unshuffle: int
) -> None:
    torch.manual_seed(0)
    network = CAE(**SMALL, skip_every=skip_every, residual=residual, unshuffle=unshuffle).train(training)
    images = torch.rand(2, 3, height, width)
    output = network(images)
    assert output.shape == images.shape
    assert output.dtype == torch.float32
    assert output.min() >= 0 and output.max() <= 1


@pytest.mark.parametrize("unshuffle", [1, 4])
def test_padding_is_cropped_on_the_side_where_it_was_added(unshuffle: int) -> None:
    """With a residual and no learned change the output is the input, pixel for pixel, whatever the padding."""
    network = CAE(**SMALL, residual=True, unshuffle=unshuffle).eval()
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
    [
        *({"widths": [4], "blocks": [1, 1]}, {"widths": [], "blocks": []}, {"widths": [0], "blocks": [1]}, {"unshuffle": 0}),
        *({"skip_every": -1}, {"shortcuts": -1}, {"last_block": "relu"}, {"last_block": "relu_tanh", "residual": True}),
        *({"activation": "step"}, {"classes": -1}),
    ],
)
def test_impossible_networks_are_refused(arguments: dict) -> None:
    with pytest.raises(InputError, match="a CAE needs"):
        CAE(**arguments)


@pytest.mark.parametrize(("name", "kind"), [("silu", nn.SiLU), ("softplus", nn.Softplus), ("gelu", nn.GELU)])
def test_the_activation_is_after_every_block_but_the_last(name: str, kind: type[nn.Module]) -> None:
    modules = list(CAE(**SMALL, activation=name).modules())  # type: ignore[arg-type]
    assert not [one for one in modules if isinstance(one, nn.ReLU)]
    assert sum(isinstance(one, kind) for one in modules) == sum(isinstance(one, nn.BatchNorm2d) for one in modules)
    assert list(CAE(**SMALL, activation=name).state_dict()) == list(CAE(**SMALL).state_dict())  # type: ignore[arg-type]


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


def test_shortcuts_add_the_input_of_every_k_blocks_that_keep_their_shape() -> None:
    """With every block's last scale at zero, what is left of such blocks is their input."""
    torch.manual_seed(0)
    network = CAE(widths=[4], blocks=[5], skip_every=0, shortcuts=2).eval()
    for block in network.encoder[1:]:
        nn.init.zeros_(block[1].weight)  # of the batch normalisation; its bias is 0
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(network.latent(images), network.encoder[0](images * 2 - 1))
    for block in network.decoder[:-1]:
        nn.init.zeros_(block[1].weight)
    expected = (network.decoder[-1](network.encoder[0](images * 2 - 1)).tanh() + 1) / 2
    torch.testing.assert_close(network(images), expected)


def test_shortcuts_leave_the_weights_names_as_they_are() -> None:
    assert CAE(**SMALL, shortcuts=1).state_dict().keys() == CAE(**SMALL).state_dict().keys()


def test_with_classes_the_decoder_is_told_what_the_mean_of_the_latent_shows() -> None:
    """The mean of the latent points at class 1 beyond doubt, so its vector is added, everywhere alike."""
    network = CAE(widths=[4], blocks=[1], skip_every=0, classes=2)
    assert network.verdict is not None and network.reach is None  # the mean is of the whole image
    with torch.no_grad():
        network.verdict.head.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [90, 0, 0, 0]]))
        network.verdict.head.bias.zero_()
        network.verdict.vectors.weight.copy_(torch.tensor([[5.0, 1], [0, 2], [0, 3], [0, 4]]))
    latent = torch.rand(3, 4, 5, 6) + 1
    torch.testing.assert_close(network.verdict.logits(latent)[:, 1], 90 * latent[:, 0].mean((1, 2)))
    torch.testing.assert_close(network.verdict(latent), latent + torch.tensor([1.0, 2, 3, 4])[:, None, None])
    images = torch.rand(2, 3, 8, 8)
    features = network.decoder[0](network.verdict(network.latent(images)))
    torch.testing.assert_close(network(images), (features.tanh() + 1) / 2)


def test_where_no_class_is_sure_all_are_told_by_their_shares() -> None:
    verdict = Verdict(1, 2)
    with torch.no_grad():
        verdict.head.weight.zero_()
        verdict.head.bias.copy_(torch.tensor([1.0, 3.0]).log() / Verdict.SHARPNESS)
        verdict.vectors.weight.copy_(torch.tensor([[4.0, 8.0]]))
    torch.testing.assert_close(verdict(torch.zeros(1, 1, 2, 2)), torch.full((1, 1, 2, 2), 7.0))  # a quarter of 4, the rest of 8


def test_without_classes_there_is_nothing_to_learn_of_them() -> None:
    assert CAE(**SMALL).verdict is None and not [name for name in CAE(**SMALL).state_dict() if "verdict" in name]


def test_skips_from_a_stage_on_leave_out_the_finer_ones() -> None:
    """Blocks 1 to 3 are at full resolution, 4 to 8 at half, 9 to 15 at a quarter; the latent needs no skip."""
    skips = {stage: sorted(CAE(skips_from=stage).skips) for stage in range(4)}
    assert skips == {0: [2, 4, 6, 8, 10, 12, 14], 1: [4, 6, 8, 10, 12, 14], 2: [10, 12, 14], 3: []}
    assert CAE(skips_from=3).redraws and not CAE(skips_from=2).redraws


def test_the_last_block_as_the_paper_draws_it_works_in_unit_range() -> None:
    torch.manual_seed(0)
    network = CAE(**SMALL, last_block="relu_tanh")
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.decoder.modules()) == 4
    output = network(torch.rand(4, 3, 16, 16))
    assert 0 == output.min() < 0.1 < 0.5 < output.max() < 1


def test_unshuffled_pixels_return_to_their_places() -> None:
    """With blocks that pass every channel on as it is, the output is the input: what comes apart is what was put together."""
    network = CAE(widths=[12], blocks=[1], skip_every=0, unshuffle=2).eval()
    for convolution in (network.encoder[0][0], network.decoder[0]):
        nn.init.dirac_(convolution.weight)
    nn.init.zeros_(network.decoder[0].bias)
    images = torch.rand(1, 3, 6, 4) / 2 + 0.5  # [0,1] inside, which ReLU passes
    expected = (torch.tanh((images * 2 - 1) / (1 + 1e-5) ** 0.5) + 1) / 2
    torch.testing.assert_close(network(images), expected)


def test_reach_with_unshuffling_is_the_distance_over_which_a_pixel_acts() -> None:
    torch.manual_seed(0)
    network = CAE(widths=[4, 4], blocks=[1, 1], unshuffle=3).eval()
    images = torch.rand(1, 3, 60, 60, requires_grad=True)
    network(images)[0, :, 30, 30].sum().backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    reached = max(30 - int(rows[0]), int(rows[-1]) - 30)
    assert network.stride <= reached <= network.reach < network.stride * 3


def test_unshuffling_makes_large_images_cheap() -> None:
    """15 + 15 blocks on 224 pixels in fewer operations than a small ImageNet classifier's 0.8 G."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        CAE(widths=[24, 48, 80], blocks=[2, 3, 10], residual=True, unshuffle=4).eval()(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() < 0.8e9


def test_an_image_is_not_padded_to_one_that_fills_the_memory() -> None:
    with pytest.raises(InputError, match="1/32768"):
        CAE(widths=[1] * 16, blocks=[1] * 16)
