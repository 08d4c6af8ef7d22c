import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from purifiers.data import ImageSet, as_image_set
from purifiers.errors import InputError

IMAGES = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 5)
LABELS = torch.tensor([2, 0, 1])


@pytest.mark.parametrize("images", [IMAGES, (IMAGES * 255).round().to(torch.uint8)])
def test_tensors_and_batches_of_them(images: torch.Tensor) -> None:
    for data in (as_image_set(images, LABELS), as_image_set(DataLoader(TensorDataset(images, LABELS), batch_size=2))):
        assert data.images[:, 0, 0, 0].tolist() == [0, 128, 255]
        assert data.images.shape == (3, 3, 4, 5)
        assert torch.equal(data.labels, LABELS)
        assert data.classes == ()
        assert as_image_set(data) is data


def test_the_number_of_classes() -> None:
    assert as_image_set(IMAGES, LABELS, classes=5).classes == ("0", "1", "2", "3", "4")
    unnamed = ImageSet("mine", torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ())
    assert as_image_set(unnamed, classes=2).classes == ("0", "1")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((IMAGES,), "labels are missing"),
        ((IMAGES, LABELS.int()), "int64"),
        ((IMAGES, [2, 0, 1]), "int64"),
        ((IMAGES, LABELS[:2]), r"shape \(3,\)"),
        ((IMAGES, torch.tensor([0, -1, 2])), "got -1 to 2"),
        ((IMAGES[:0], LABELS[:0]), "no images"),
        ((IMAGES * 255, LABELS), "divide by 255"),
        ((IMAGES - 0.5, LABELS), "do not normalise"),
        ((IMAGES * torch.nan, LABELS), "NaN"),
        ((IMAGES[0], LABELS[:1]), "unsqueeze"),
        ((IMAGES.double(), LABELS), "float"),
        ((IMAGES[:, :1], LABELS), "grey"),
        ((IMAGES.numpy(), LABELS), "leave out labels"),
        ((5,), "DataLoader"),
        (([],), "no images"),
        (([IMAGES],), "are labels missing"),
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
