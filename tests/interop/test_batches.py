import io
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from purifiers import Purifier
from purifiers.errors import DataError, InputError
from purifiers.interop.batches import PurifyBatch


@pytest.fixture(scope="module")
def purify() -> PurifyBatch:
    return PurifyBatch("cifar10", device="cpu")


def pixels(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_images_come_back_as_they_came_and_purified_alike(purify: PurifyBatch) -> None:
    """Of two sizes; every form has the same pixels."""
    images = [pixels(0), pixels(1, 5, 9), pixels(2)]
    arrays = purify({"image": images, "label": [3, 4, 5]})
    assert arrays["label"] == [3, 4, 5]
    assert [one.shape for one in arrays["image"]] == [one.shape for one in images]
    alone = purify({"image": images[1:2]})["image"][0]
    assert np.array_equal(arrays["image"][1], alone) and not np.array_equal(alone, images[1])
    forms: list[tuple[Any, Any]] = [
        ([Image.fromarray(one) for one in images], np.asarray),
        ([encoded(one) for one in images], opened),
        ([{"bytes": encoded(one), "path": "a.png"} for one in images], lambda one: opened(one["bytes"])),
    ]
    for given, read in forms:
        found = purify({"image": given})["image"]
        assert [type(one) for one in found] == [type(one) for one in given]
        for one, expected in zip(found, arrays["image"], strict=True):
            assert np.array_equal(read(one), expected)


def test_arrays_as_ray_and_spark_pass_them(purify: PurifyBatch) -> None:
    stacked = np.stack([pixels(0), pixels(1)])
    found = purify({"image": stacked})["image"]
    assert found.dtype == np.uint8 and found.shape == stacked.shape
    column = np.empty(2, object)
    column[:] = [encoded(one) for one in stacked]
    # Spark passes the column alone, and wants an array of as many values.
    alone = purify(column)
    assert isinstance(alone, np.ndarray) and alone.shape == (2,)
    assert np.array_equal(opened(alone[1]), found[1])
    # numpy's own bytes have the length of the longest that came.
    short = np.array([encoded(one) for one in np.zeros_like(stacked)])
    assert max(len(one) for one in purify(short)) > short.itemsize
    assert all(opened(one).shape == (8, 8, 3) for one in purify(short))


def test_it_can_be_pickled_before_and_after_use(purify: PurifyBatch) -> None:
    image = [pixels(0)]
    expected = purify({"image": image})["image"][0]
    content = pickle.dumps(purify)
    assert len(content) < 1000  # the name of the purifier, not its weights
    assert np.array_equal(pickle.loads(content)({"image": image})["image"][0], expected)
    object_itself = PurifyBatch(Purifier.from_pretrained("cifar10"), "picture", "cpu")
    assert np.array_equal(pickle.loads(pickle.dumps(object_itself))({"picture": image})["picture"][0], expected)


def test_transparency_is_kept(purify: PurifyBatch) -> None:
    image = Image.fromarray(pixels(0))
    image.putalpha(100)
    (found,) = purify({"image": [image]})["image"]
    assert found.mode == "RGBA" and set(found.getchannel("A").get_flattened_data()) == {100}


def test_what_is_said_of_a_picture_is_kept(purify: PurifyBatch) -> None:
    text = PngInfo()
    text.add_text("Author", "Ada")
    buffer = io.BytesIO()
    Image.fromarray(pixels(0)).save(buffer, "PNG", dpi=(300, 300), pnginfo=text)
    (found,) = purify({"image": [buffer.getvalue()]})["image"]
    image = Image.open(io.BytesIO(found))
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert image.info["Author"] == "Ada"


def test_what_is_no_image_is_refused(purify: PurifyBatch) -> None:
    with pytest.raises(InputError, match="label"):
        purify({"label": [1]})
    with pytest.raises(InputError, match="NoneType"):
        purify({"image": [None]})
    with pytest.raises(DataError, match="damaged"):
        purify({"image": [encoded(pixels(0))[:-30]]})
    with pytest.raises(DataError, match="pixels"):
        PurifyBatch("cifar10", device="cpu", max_pixels=10)({"image": [encoded(pixels(0))]})
    good, bad = purify.results([pixels(0), b"no image"])
    assert isinstance(good, np.ndarray) and isinstance(bad, DataError)
