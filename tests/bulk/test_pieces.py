import pytest
import torch
from torch import Tensor

from purifiers import Purifier
from purifiers.baselines import Blend, Median
from purifiers.bulk import pieces
from purifiers.bulk.pieces import purify_pixels
from purifiers.errors import InputError
from purifiers.networks import CAE


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def network(**options: object) -> CAE:
    torch.manual_seed(0)
    return CAE(**options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [([4], [2]), ([4, 4], [1, 2]), ([4, 4, 6], [2, 1, 3])])
def test_the_reach_is_how_far_a_pixel_acts(shape: tuple[list[int], list[int]]) -> None:
    """Known from the gradient: what depends on a pixel, over all places of it and a whole neighbourhood."""
    cae = network(widths=shape[0], blocks=shape[1], skip_every=1)
    for module in cae.modules():  # no unit may be off, or an effect would be missed
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_hook(lambda _, inputs, __: inputs[0])
    size = 4 * cae.reach
    furthest = 0
    for at in range(size // 2, size // 2 + cae.stride):
        image = torch.rand(1, 3, size, size, requires_grad=True)
        (gradient,) = torch.autograd.grad(cae(image)[..., at, at].sum(), image)
        rows, columns = gradient[0].abs().sum(0).nonzero(as_tuple=True)
        furthest = max(furthest, *(int((side - at).abs().max()) for side in (rows, columns)))
    assert furthest <= cae.reach
    assert furthest > cae.reach // 2


@pytest.mark.parametrize("size", [(70, 133), (64, 65), (41, 300)])
def test_pieces_give_what_the_whole_gives(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    cae = network(widths=[4, 6, 6], blocks=[1, 1, 2], skip_every=1)
    images = pixels(2, 3, *size)
    purifiers = [Purifier(cae), Purifier(Blend(cae, 0.25))]
    whole = [purify_pixels(purifier, images, torch.float32) for purifier in purifiers]
    monkeypatch.setattr(pieces, "WINDOW", 48)
    monkeypatch.setattr(pieces, "SMALLEST_STEP", 8)
    seen: list[torch.Size] = []
    hook = cae.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    for purifier, expected in zip(purifiers, whole, strict=True):
        assert (purify_pixels(purifier, images, torch.float32) - expected).abs().max() < 1e-5
        assert (purify_pixels(purifier, images).int() - (expected * 255).round().int()).abs().max() <= 1
    hook.remove()
    assert max(max(shape[2:]) for shape in seen) <= 48
    assert len(seen) > 8


def test_a_network_of_unknown_reach_takes_no_more_than_fits() -> None:
    median = Purifier(Median())
    assert purify_pixels(median, pixels(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    with pytest.raises(InputError, match="1100 x 1000 is too large"):
        purify_pixels(median, torch.zeros(1, 3, 1000, 1100, dtype=torch.uint8))


def test_batches_are_cut_to_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BATCH_PIXELS", 130)
    purifier = Purifier(network(widths=[4], blocks=[1]))
    images = pixels(5, 3, 8, 8)
    sizes: list[int] = []
    purifier.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    found = purify_pixels(purifier, images)
    assert sizes == [2, 2, 1]
    assert torch.equal(found, torch.cat([purify_pixels(purifier, image[None]) for image in images]))
