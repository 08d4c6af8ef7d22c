import pytest
import torch

from purifiers.data import load_images
from purifiers.errors import ConfigError


@pytest.mark.parametrize("size", [16, 32])
def test_the_split_is_fixed_stratified_and_complete(size: int) -> None:
    train, test = (load_images("digits", split, size=size) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (3, size, size)
    for labels in (train.labels, test.labels):
        shares = labels.bincount() / len(labels)
        assert shares.min() > 0.095 and shares.max() < 0.105
    assert load_images("digits", "test", size=size).fingerprint() == test.fingerprint()
    rows = {bytes(image.flatten().numpy()) for image in train.images}
    assert sum(bytes(image.flatten().numpy()) in rows for image in test.images) == 0
    assert torch.equal(train.images[:, 0], train.images[:, 2])


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"16 and 32; got data\.size=20"):
        load_images("digits", "train", size=20)
