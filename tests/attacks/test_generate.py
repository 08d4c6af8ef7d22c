import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from purifiers.attacks import BIM, FGSM, PGD, VIEWS, Attack
from purifiers.attacks import generate as module
from purifiers.attacks.generate import generate
from purifiers.data import ImageSet, to_float
from purifiers.errors import AttackError, InputError
from purifiers.networks import CAE, ResNet
from purifiers.purifier import PurifiedClassifier, Purifier
from purifiers.storage import load_state, save_state
from tests.conftest import Linear

SHAPE = (3, 4, 4)


@pytest.fixture
def data() -> ImageSet:
    images = torch.randint(256, (10, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet("x", images, torch.arange(10) % 2, ("a", "b"))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)


class Counting(FGSM):
    """FGSM that counts its calls and warns as AutoAttack does."""

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        CALLS.append(len(images))
        logging.getLogger("auto-attack").warning(f"suspicious: {len(images)} %")
        return super().perturb(model, images, labels, seed)


CALLS: list[int] = []


def test_a_finished_batch_is_never_computed_again(data: ImageSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    CALLS.clear()
    attack, model = Counting(epsilon=0.1), Linear(2, SHAPE)
    first = generate(attack, model, data, batch_size=3, cache=tmp_path)
    assert CALLS == [3, 1, 3, 1, 2]
    again = generate(attack, model, data, batch_size=3, cache=tmp_path)
    assert CALLS == [3, 1, 3, 1, 2]
    assert torch.equal(first.images, again.images)
    assert first.warnings == again.warnings == {"suspicious: 3 %": 5}
    assert first.batches == again.batches == 5
    assert first.seconds == again.seconds > 0
    assert "suspicious" not in "".join(capfd.readouterr())
    # A kill in the middle of a later batch, or a damaged file, costs that batch alone.
    middle = sorted(tmp_path.iterdir())[1]
    middle.write_bytes(middle.read_bytes()[:-5])
    assert torch.equal(generate(attack, model, data, batch_size=3, cache=tmp_path).images, first.images)
    assert len(CALLS) == 6


def test_a_batch_that_does_not_belong_to_its_images_is_made_again(data: ImageSet, tmp_path: Path) -> None:
    attack, model = FGSM(epsilon=0.1), Linear(2, SHAPE)
    for quantized in (False, True):
        first = generate(attack, model, data, cache=tmp_path, quantized=quantized).images
        for path in tmp_path.iterdir():
            state = load_state(path)
            save_state(path, state | {"images": state["images"].flip(0)})  # its checksum is right
        assert torch.equal(generate(attack, model, data, cache=tmp_path, quantized=quantized).images, first)


def test_whoever_stops_after_a_batch_finds_it_again(data: ImageSet, tmp_path: Path) -> None:
    CALLS.clear()
    attack, model = Counting(epsilon=0.1), Linear(2, SHAPE)

    def stop() -> None:
        raise KeyboardInterrupt

    for batches in (1, 2, 3, 4, 5):
        with pytest.raises(KeyboardInterrupt):
            generate(attack, model, data, batch_size=3, cache=tmp_path, saved=stop)
        assert len(list(tmp_path.iterdir())) == batches
    generate(attack, model, data, batch_size=3, cache=tmp_path, saved=stop)
    assert CALLS == [3, 1, 3, 1, 2]


def test_a_model_that_differs_in_an_attribute_alone_is_another(data: ImageSet, tmp_path: Path) -> None:
    class Scaled(Linear):
        scale = 1.0

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * self.scale

    model = Scaled(2, SHAPE)
    generate(FGSM(epsilon=0.1), model, data, cache=tmp_path)
    count = len(list(tmp_path.iterdir()))
    model.scale = -1.0
    generate(FGSM(epsilon=0.1), model, data, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * count


def test_a_model_that_differs_in_its_gradient_alone_is_another(data: ImageSet, tmp_path: Path) -> None:
    """A purifier whose gradient was mended: the old attack must not be shown for the new one."""

    class Detachable(nn.Module):
        detached = True

        def forward(self, images: Tensor) -> Tensor:
            return images.detach() + 0 * images if self.detached else images

    purifier = Detachable()
    defended = PurifiedClassifier(purifier, Linear(2, SHAPE))
    first = generate(FGSM(epsilon=0.1), defended, data, cache=tmp_path).images
    assert torch.equal(first, to_float(data.images))
    purifier.detached = False
    assert not torch.equal(generate(FGSM(epsilon=0.1), defended, data, cache=tmp_path).images, first)


def test_labels_beyond_the_models_classes_are_refused(data: ImageSet) -> None:
    labels = ImageSet("x", data.images, data.labels + 1, ("a", "b", "c"))
    with pytest.raises(InputError, match="labels go from 1 to 2, the model has 2 classes"):
        generate(FGSM(epsilon=0.1), Linear(2, SHAPE), labels)


def test_anything_that_matters_changes_the_key(data: ImageSet, tmp_path: Path) -> None:
    torch.manual_seed(0)
    attack, model = PGD(epsilon=0.1, step_size=0.05, num_steps=1), Linear(2, SHAPE)
    generate(attack, model, data, cache=tmp_path)
    count = len(list(tmp_path.iterdir()))
    other_data = ImageSet("x", data.images.flip(0), data.labels, data.classes)
    other_labels = ImageSet("x", data.images, 1 - data.labels, data.classes)
    variations = [
        (PGD(epsilon=0.1, step_size=0.05, num_steps=2), model, data, {}),
        (BIM(epsilon=0.1, step_size=0.05, num_steps=1), model, data, {}),
        (attack, Linear(2, SHAPE, seed=1), data, {}),
        (attack, model, other_data, {}),
        (attack, model, other_labels, {}),
        (attack, model, data, {"seed": 1}),
        (attack, model, data, {"quantized": True}),
    ]
    for number, (an_attack, a_model, some_data, options) in enumerate(variations, start=2):
        generate(an_attack, a_model, some_data, cache=tmp_path, **options)
        assert len(list(tmp_path.iterdir())) == number * count


def test_every_image_meets_its_attack(data: ImageSet) -> None:
    """Sharded and batched, the result is that of one call, for an attack without randomness."""
    attack, model = FGSM(epsilon=0.1), Linear(2, SHAPE)
    seen = []
    result = generate(attack, model, data, batch_size=3, advance=seen.append)
    torch.testing.assert_close(result.images, attack(model, to_float(data.images), data.labels))
    assert sum(seen) == len(data)


def test_random_starts_differ_between_batches(data: ImageSet) -> None:
    same = ImageSet("x", data.images[:1].repeat(10, 1, 1, 1), torch.zeros(10, dtype=torch.int64), data.classes)
    attack = PGD(epsilon=0.1, step_size=0.0, num_steps=1)
    result = generate(attack, Linear(2, SHAPE), same, batch_size=2)
    assert len({bytes(image.numpy().tobytes()) for image in result.images}) == 10


def test_quantised_examples_stay_within_epsilon_and_keep_whole_levels(data: ImageSet) -> None:
    model = Linear(2, SHAPE)
    for levels in (8, 25.5):
        attack = FGSM(epsilon=levels / 255)
        quantised = generate(attack, model, data, quantized=True).images
        moved = (quantised.int() - data.images.int()).abs()
        assert quantised.dtype == torch.uint8
        assert moved.max() == int(levels)
        exact = generate(attack, model, data).images
        assert (quantised / 255 - exact).abs().max() < 1 / 255


@pytest.mark.parametrize("attack", [FGSM(epsilon=0.9 / 255), FGSM(epsilon=3 / 255, norm="l2")])
def test_a_perturbation_that_eight_bits_cannot_hold_is_refused(data: ImageSet, attack: Attack) -> None:
    """In L2 as well: spread over 48 values, 3 levels are less than half of one each."""
    with pytest.raises(AttackError, match="8 bits"):
        generate(attack, Linear(2, SHAPE), data, quantized=True)


def test_of_an_attack_without_an_epsilon_whole_levels_are_the_nearest(data: ImageSet) -> None:
    """Rounded towards zero the smallest perturbation that is found would hardly be one."""

    class Small(FGSM):
        epsilon: None = None  # type: ignore[assignment]

        def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
            return (images + 0.6 / 255).clamp(0, 1)

    whole = generate(Small(), Linear(2, SHAPE), data, quantized=True).images
    assert torch.equal(whole.int(), (data.images.int() + 1).clamp(max=255))


def test_views_differ_in_what_the_attacker_knows() -> None:
    torch.manual_seed(0)
    defended = PurifiedClassifier(Purifier(CAE(widths=[4], blocks=[2], skip_every=0)), ResNet(8))
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(VIEWS["blind"](defended)(images), defended.classifier(images))
    torch.testing.assert_close(VIEWS["full"](defended)(images), defended(images))
    labels = torch.tensor([0, 1])
    attack: Attack = FGSM(epsilon=0.1)
    blind, full = (attack(VIEWS[name](defended), images, labels) for name in ("blind", "full"))
    assert not torch.equal(blind, full)
