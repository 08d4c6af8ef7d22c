import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader, TensorDataset

from purifiers.data import ImageSet, as_image_set, augmented, load_images, shuffled_batches, to_float, to_uint8
from purifiers.data.images import blurred
from purifiers.errors import ConfigError, InputError

IMAGES = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 5)
LABELS = torch.tensor([2, 0, 1])


def image_set(count: int = 10) -> ImageSet:
    images = torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet("x", images, torch.arange(count) % 3, ("a", "b", "c"))


def test_bytes_survive_the_way_to_float_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_float(every).dtype == torch.float32
    assert (to_float(every).min(), to_float(every).max()) == (0, 1)


@given(count=st.integers(1, 300), batch_size=st.integers(1, 100))
def test_an_epoch_sees_every_image_at_most_once(count: int, batch_size: int) -> None:
    batches = list(shuffled_batches(count, batch_size, torch.Generator().manual_seed(1)))
    seen = torch.cat(batches)
    assert len(seen) == len(seen.unique()) == max(count - count % batch_size, min(count, batch_size))
    assert len(batches) == max(1, count // batch_size)


def test_a_limit_draws_by_seed_and_keeps_pairs() -> None:
    data = image_set()
    some = data.limited(4, seed=3)
    assert len(some) == 4
    assert some.fingerprint() == data.limited(4, seed=3).fingerprint() != data.limited(4, seed=4).fingerprint()
    for image, label in zip(some.images, some.labels, strict=True):
        (place,) = (data.images == image).all(dim=(1, 2, 3)).nonzero().flatten().tolist()
        assert data.labels[place] == label
    assert data.limited(None, 0) is data and data.limited(99, 0) is data


def test_augmentation_gives_every_shift_and_mirror_and_nothing_else() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    padded = torch.zeros(5, 5, dtype=torch.uint8)
    padded[1:4, 1:4] = image
    allowed = {
        tuple(view.flatten().tolist())
        for dy in range(3)
        for dx in range(3)
        for view in (padded[dy : dy + 3, dx : dx + 3], padded[dy : dy + 3, dx : dx + 3].flip(1))
    }
    result = augmented(image.repeat(600, 1, 1, 1), torch.Generator().manual_seed(0), flip=True, crop=1)
    assert {tuple(one.flatten().tolist()) for one in result} == allowed


def test_stacked_images_move_alike() -> None:
    data = image_set(50).images
    pairs = augmented(torch.cat([data, data], 1), torch.Generator().manual_seed(0), flip=True, crop=2)
    assert torch.equal(pairs[:, :3], pairs[:, 3:])
    assert not torch.equal(pairs[:, :3], data)


def test_nothing_asked_is_nothing_changed() -> None:
    data = image_set().images
    assert augmented(data, torch.Generator(), flip=False, crop=0) is data


def test_each_image_gets_its_own_blur() -> None:
    images = torch.rand(3, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    sigmas = [0.4, 1.0, 1.3]
    found = blurred(images, torch.tensor(sigmas).view(3, 1, 1, 1), radius=4)
    for image, one, sigma in zip(images, found, sigmas, strict=True):
        expected = gaussian_filter(image.double().numpy(), sigma, axes=(1, 2), radius=4, mode="nearest")
        np.testing.assert_allclose(one.numpy(), expected, atol=1e-6)
    assert torch.equal(blurred(images, torch.zeros(3, 1, 1, 1), radius=4), images)


def test_malformed_sets_are_refused() -> None:
    good = image_set()
    for images, labels in [
        (good.images.float(), good.labels),
        (good.images[:, :1], good.labels),
        (good.images, good.labels[:3]),
        (good.images, good.labels.int()),
        (good.images[:0], good.labels[:0]),
    ]:
        with pytest.raises(InputError):
            ImageSet("x", images, labels, good.classes)


def test_sources_are_found_by_name_and_take_only_their_options() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_images("digit", "train")
    with pytest.raises(ConfigError, match="train or test"):
        load_images("digits", "val")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'digits' takes no data\.path"):
        load_images("digits", "train", path="x", size=None)


@pytest.mark.parametrize("images", [IMAGES, (IMAGES * 255).round().to(torch.uint8)])
def test_tensors_and_batches_of_them(images: torch.Tensor) -> None:
    for data in (as_image_set(images, LABELS), as_image_set(DataLoader(TensorDataset(images, LABELS), batch_size=2))):
        assert data.images[:, 0, 0, 0].tolist() == [0, 128, 255]
        assert data.images.shape == (3, 3, 4, 5)
        assert torch.equal(data.labels, LABELS)
        assert data.classes == ()
        assert as_image_set(data) is data
    empty = (images[:0], LABELS[:0])
    assert torch.equal(as_image_set([empty, (images, LABELS), empty]).labels, LABELS)


def test_the_number_of_classes() -> None:
    assert as_image_set(IMAGES, LABELS, classes=5).classes == ("0", "1", "2", "3", "4")
    unnamed = ImageSet("mine", torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ())
    assert as_image_set(unnamed, classes=2).classes == ("0", "1")


def test_images_without_labels() -> None:
    data = as_image_set(IMAGES, classes=5)
    assert data.unlabelled and data.subset(torch.tensor([1])).labels_predicted and len(data.classes) == 5


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((IMAGES, LABELS.int()), "int64"),
        ((IMAGES, [2, 0, 1]), "int64"),
        ((IMAGES, LABELS[:2]), r"shape \(3,\)"),
        ((IMAGES, torch.tensor([0, -1, 2])), "got -1 to 2"),
        ((IMAGES[:0], LABELS[:0]), "no images"),
        ((to_uint8(IMAGES)[..., :0], LABELS), "pixel"),
        ((to_uint8(IMAGES).to("meta"), LABELS), "meta"),
        ((to_uint8(IMAGES), LABELS.to("meta")), "meta"),
        ((IMAGES * 255, LABELS), "divide by 255"),
        ((IMAGES - 0.5, LABELS), "do not normalise"),
        ((IMAGES * torch.nan, LABELS), "NaN"),
        ((IMAGES[0], LABELS[:1]), "unsqueeze"),
        (([(IMAGES[0], 2), (IMAGES[1], 0)], None), "DataLoader"),
        ((to_uint8(IMAGES).permute(0, 2, 3, 1), LABELS), "permute"),
        ((IMAGES.double(), LABELS), "float"),
        ((IMAGES[:, :1], LABELS), "grey"),
        ((IMAGES.numpy(), LABELS), "leave out labels"),
        ((5,), "DataLoader"),
        (([],), "no images"),
        (([IMAGES],), "images and labels.* Tensor"),
        (([(IMAGES, LABELS, LABELS)],), "images and labels.* 3"),
        (([(IMAGES[:0], LABELS[:0])],), "no images"),
        (([(IMAGES, LABELS), (IMAGES[..., :2], LABELS)],), "several sizes"),
        ((as_image_set(IMAGES, LABELS), LABELS), "leave out labels"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments: tuple[object, ...], word: str) -> None:
    with pytest.raises(InputError, match=word):
        as_image_set(*arguments)  # type: ignore[arg-type]


def test_labels_beyond_the_classes_are_refused() -> None:
    for images in ((IMAGES, LABELS), (as_image_set(IMAGES, LABELS),)):
        with pytest.raises(InputError, match="0 to 1"):
            as_image_set(*images, classes=2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_does_not_become_8_bits(value: float) -> None:
    assert to_uint8(torch.tensor([-0.1, 0.5, 1.1])).tolist() == [0, 128, 255]
    with pytest.raises(InputError, match="NaN"):
        to_uint8(torch.tensor([0.5, value]))
