"""Tensors of every shape, type, range and layout, by Hypothesis: the right answer, or the library's own error."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from promise import Promise, Result
from torch import Tensor, nn

from purifiers import PurifiedClassifier, Purifier
from purifiers.attacks import PGD
from purifiers.data.images import DTYPES, TOLERANCE, as_image_set
from purifiers.errors import PurifiersError
from purifiers.networks import CAE, ResNet

KINDS = [torch.float32, *DTYPES[1:], torch.float64, torch.uint8, torch.int64, torch.bool, torch.complex64]
LAYOUTS = ("plain", "channels last", "transposed", "every second", "expanded", "sparse", "meta", "needs gradient", "flipped")
PER_SEED = 20_000


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    """A tensor, most often one that could be a batch of images; or no tensor."""
    if draw(st.integers(0, 60)) == 0:
        return draw(st.sampled_from([None, 3, "image", [[1.0]], torch.nn.Identity()]))
    usual = draw(st.integers(0, 2)) > 0
    sides = st.integers(1, 12) if usual else st.integers(0, 12)
    shape = [draw(st.integers(0 if not usual else 1, 3)), 3, draw(sides), draw(sides)]
    if not usual:
        shape[1] = draw(st.integers(0, 4))
        shape = shape[: draw(st.integers(0, 4))] if draw(st.booleans()) else [*shape, *draw(st.lists(sides, max_size=1))]
    kind = draw(st.sampled_from(KINDS[:1] if usual else KINDS))
    low, high = draw(st.sampled_from([(0, 1), (0, 1), (0, 1), (0, 0), (1, 1), (-1, 1), (0, 255), (0, 1e38), (-1e-5, 1 + 1e-5)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = (torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low).to(kind)
    if values.numel() and values.is_floating_point() and draw(st.integers(0, 9)) == 0:
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
    return laid_out(values, draw(st.sampled_from(LAYOUTS)))


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values in another place of memory, or of another kind of tensor."""
    match layout:
        case "channels last" if values.ndim == 4:
            return values.contiguous(memory_format=torch.channels_last)
        case "transposed" if values.ndim > 1:
            return values.transpose(-1, -2).contiguous().transpose(-1, -2)
        case "every second" if values.ndim:
            return values.repeat_interleave(2, -1)[..., ::2]
        case "expanded" if values.ndim:
            return values[:1].expand(values.shape) if len(values) else values
        case "sparse":
            return values.to_sparse()
        case "meta":
            return values.to("meta")
        case "needs gradient" if values.is_floating_point():
            return values.requires_grad_()
        case "flipped" if values.ndim:
            return values.flip(-1)
    return values


def is_valid(images: Any) -> bool:
    """What the documentation calls images: float32 (N, 3, H, W) in [0,1], on the device of the purifier."""
    if not isinstance(images, Tensor) or images.layout is not torch.strided or images.device.type != "cpu":
        return False
    if images.dtype != torch.float32 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        return False
    low, high = images.min().item(), images.max().item()
    return low >= -TOLERANCE and high <= 1 + TOLERANCE


def odd_tensors(count: int, _: Path) -> Result:
    """Tensors through a purifier, a purified classifier, an attack and the constructor of a data set."""
    torch.manual_seed(0)
    purifier = Purifier(CAE(widths=[4, 6], blocks=[1, 1], skip_every=1))
    classifier: nn.Module = ResNet(depth=8, width=4).eval()
    model = PurifiedClassifier(purifier, classifier)
    attack = PGD(num_steps=1)
    done = survived = 0
    failures: list[str] = []

    def check(images: Any, labels: Tensor) -> None:
        before = images.clone() if isinstance(images, Tensor) and images.layout is torch.strided else None
        valid = is_valid(images)
        outputs: dict[str, Any] = {}
        calls: dict[str, Callable[[], Any]] = {
            "purifier": lambda: purifier(images),
            "model": lambda: model(images),
            "attack": lambda: attack(model, images, labels),
            "image set": lambda: as_image_set(images, labels),
        }
        for name, call in calls.items():
            try:
                outputs[name] = call()
            except PurifiersError:
                assert not valid or (name in ("attack", "image set") and bool((labels < 0).any())), f"{name} refused images"
        if not valid:
            return
        with torch.no_grad():
            alone = torch.cat([purifier(image.detach().clone().contiguous()[None]) for image in images])
            torch.testing.assert_close(outputs["purifier"].detach(), alone, atol=1e-5, rtol=0)
            torch.testing.assert_close(outputs["model"].detach(), classifier(outputs["purifier"]), atol=1e-4, rtol=1e-4)
        assert outputs["purifier"].shape == images.shape
        assert 0 <= outputs["purifier"].min() <= outputs["purifier"].max() <= 1
        assert before is not None
        assert torch.equal(before, images), "changed in place"
        if "attack" in outputs:
            assert (outputs["attack"] - images).abs().max() <= attack.epsilon + 1e-6

    def test(images: Any, data: st.DataObject) -> None:
        nonlocal done, survived
        size = len(images) if isinstance(images, Tensor) and images.ndim else 1
        low = data.draw(st.sampled_from([0, 0, 0, 0, -1]))
        labels = torch.tensor(data.draw(st.lists(st.integers(low, 9), min_size=size, max_size=size)))
        done += 1
        check(images, labels.long())
        survived += 1

    for number in range(-(-count // PER_SEED)):
        chosen = settings(
            max_examples=min(PER_SEED, count - number * PER_SEED),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        try:
            seed(number)(chosen(given(tensors(), st.data())(test)))()
        except Exception as error:
            failures += ["".join(traceback.format_exception(one))[-1500:] for one in getattr(error, "exceptions", [error])]
            break
    return Result(done, survived if not failures else min(survived, done - 1), "tensors", "", failures)


PROMISES = {
    "odd-tensors": Promise(
        "A purifier, a defended classifier, an attack and a data set take images of every layout, and refuse what is no image.",
        "shape, type, range, layout, device and labels drawn by Hypothesis; each answer is compared with that of one image",
        odd_tensors,
        300,
        20_000,
    ),
}
