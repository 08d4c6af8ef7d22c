import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from purifiers import Purifier
from purifiers.baselines import Nothing
from purifiers.errors import DataError, InputError
from purifiers.interop.transforms import PurifyTransform
from purifiers.networks import CAE


class Compose:
    """torchvision's, without torchvision."""

    def __init__(self, transforms: list) -> None:
        self.transforms = transforms

    def __call__(self, image):  # type: ignore[no-untyped-def]
        for transform in self.transforms:
            image = transform(image)
        return image


def normalise(image: torch.Tensor) -> torch.Tensor:
    return (image - 0.5) / 0.5


class Pictures(Dataset):
    def __init__(self, images: torch.Tensor, transform) -> None:  # type: ignore[no-untyped-def]
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.images[index])


@pytest.fixture
def purifier() -> Purifier:
    torch.manual_seed(0)
    return Purifier(CAE(widths=[4, 6], blocks=[1, 1], skip_every=1))


def test_gives_back_what_it_was_given(purifier: Purifier) -> None:
    transform = PurifyTransform(purifier)
    pixels = torch.randint(256, (3, 9, 7), dtype=torch.uint8)
    with torch.no_grad():
        expected = purifier(pixels[None] / 255)[0]
    floats = transform((pixels / 255).requires_grad_(True))
    assert torch.equal(floats, expected)
    assert not floats.requires_grad
    whole = transform(pixels)
    assert whole.dtype == torch.uint8
    assert (whole / 255 - expected).abs().max() <= 0.5 / 255 + 1e-6
    picture = transform(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    assert isinstance(picture, Image.Image)
    assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), whole)
    grey = transform(Image.new("L", (7, 9), 100))
    assert (grey.mode, grey.size) == ("RGB", (7, 9))


def test_a_large_image_is_purified_in_pieces(purifier: Purifier, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(256, (3, 90, 70), dtype=torch.uint8)
    whole = PurifyTransform(purifier)(pixels)
    sizes: list[int] = []
    purifier.network.register_forward_pre_hook(lambda network, inputs: sizes.append(inputs[0][0, 0].numel()))
    monkeypatch.setattr("purifiers.bulk.pieces.WINDOW", 48)
    monkeypatch.setattr("purifiers.bulk.pieces.SMALLEST_STEP", 16)
    found = PurifyTransform(purifier)(pixels)
    assert (found.int() - whole.int()).abs().max() <= 1
    assert max(sizes) < 90 * 70


def test_in_a_compose_in_a_worker_and_pickled(purifier: Purifier) -> None:
    images = torch.rand(4, 3, 8, 8)
    transform = Compose([PurifyTransform(purifier), normalise])
    (batch,) = DataLoader(Pictures(images, transform), batch_size=4, num_workers=1)
    with torch.no_grad():
        expected = purifier(images)
    torch.testing.assert_close(batch, normalise(expected))
    again = pickle.loads(pickle.dumps(transform))
    torch.testing.assert_close(again(images[0]), normalise(expected[0]))


def test_what_is_no_image_is_refused(purifier: Purifier) -> None:
    transform = PurifyTransform(purifier)
    for image, message in [
        (torch.rand(2, 3, 8, 8), r"got a tensor \(2, 3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.uint8), "got a ndarray"),
        (torch.rand(3, 8, 8) * 255, "divide by 255"),
        (torch.rand(1, 8, 8), "3 channels"),
    ]:
        with pytest.raises(InputError, match=message):
            transform(image)  # type: ignore[type-var]
    assert repr(transform) == "PurifyTransform(CAE)"


def test_a_picture_is_seen_as_everywhere_else() -> None:
    transform = PurifyTransform(Purifier(Nothing()))
    grey = transform(Image.fromarray(np.array([[0, 13107, 65535]], np.uint16)))
    assert np.asarray(grey)[0, :, 0].tolist() == [0, 51, 255]
    clear = transform(Image.new("RGBA", (1, 1), (255, 0, 0, 0)))
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(DataError, match="white"):
        transform(Image.fromarray(np.full((2, 2), 0.5, np.float32)))
