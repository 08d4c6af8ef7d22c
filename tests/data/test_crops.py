from pathlib import Path

import torch

from purifiers.data import ImageSet
from purifiers.data.crops import random_crops
from purifiers.data.labels import UNKNOWN
from purifiers.recipes.load import load_recipe
from purifiers.runs import Run


def test_crops_are_squares_of_their_image_at_one_size() -> None:
    """Each image is a ramp along its width, so a crop is one too: it is as steep as its side is long."""
    ramp = torch.arange(60, dtype=torch.uint8).expand(2, 3, 40, 60).clone()
    ramp[1] += 100
    data = ImageSet("x", ramp, torch.tensor([4, 2]), ())
    crops = random_crops(data, size=20, count=30, smallest=0.5, seed=0)
    assert crops.images.shape == (60, 3, 20, 20)
    assert crops.labels.tolist() == [4] * 30 + [2] * 30
    assert crops.images[:30].max() < 60 and crops.images[30:].min() >= 100
    sides = (crops.images[..., 0, 15].double() - crops.images[..., 0, 5].double())[:, 0] * 2
    assert 19 <= sides.min() < 25 and 35 < sides.max() <= 41
    assert torch.equal(crops.images, random_crops(data, size=20, count=30, smallest=0.5, seed=0).images)
    whole = random_crops(ImageSet("x", ramp[..., :40].contiguous(), data.labels, ()), size=40, count=1, smallest=1, seed=0)
    assert torch.equal(whole.images, ramp[..., :40])


def test_a_crop_has_a_pixel_at_least() -> None:
    data = ImageSet("x", torch.full((1, 3, 8, 8), 7, dtype=torch.uint8), torch.tensor([0]), ())
    assert random_crops(data, size=4, count=9, smallest=0.01, seed=0).images.eq(7).all()


def test_a_crop_has_a_prediction_of_its_own() -> None:
    data = ImageSet("x", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([4, 2]), (), labels_predicted=True)
    assert random_crops(data, size=4, count=2, smallest=0.5, seed=0).labels.tolist() == [UNKNOWN] * 4


def test_a_run_trains_on_crops_and_tests_on_whole_images(tmp_path: Path) -> None:
    recipe = load_recipe("digits", ["data.limit=5", "data.crops={size: 12, count: 3}"])
    run = Run(recipe, tmp_path, torch.device("cpu"), tmp_path)
    assert run.images("train").images.shape == (15, 3, 12, 12)
    assert run.images("test").images.shape[2:] == (16, 16)
