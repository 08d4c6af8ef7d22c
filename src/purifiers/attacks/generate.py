"""Attacking a whole data set, in batches that are kept on disk, so that a kill loses one batch and a rerun none."""

import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.attacks.base import LOGGER, Attack, frozen, show_fraction
from purifiers.attacks.gradient import PGD
from purifiers.attacks.libraries import Square
from purifiers.cache import Cache, State
from purifiers.data import ImageSet, to_float
from purifiers.data.large import empty
from purifiers.device import in_parts
from purifiers.errors import AttackError, InputError
from purifiers.forecast import Forecast, current
from purifiers.seeds import reproducible, seed_for

FEW = 4
"""Images that a forecast takes for all."""
BLOCK = 1000
"""Batches are counted anew in every so many images, so that the first images of a large data set are attacked alike."""
Parts = tuple[Tensor, int]
"""Indices of the images in a larger set, int64 (N,), ascending, and the size of its parts. No batch spans two parts."""


@dataclass(frozen=True)
class Adversarial:
    """Adversarial examples of a whole data set."""

    images: Tensor  # (N, 3, H, W), on the data's device: float32 in [0,1], or uint8 if ``quantized``
    warnings: Mapping[str, int] = field(default_factory=dict)  # from the attack's library, by text -> in how many batches
    batches: int = 0
    seconds: float = 0.0  # time of the attack when it was run, also if the result came from the cache
    left: Tensor | None = None  # bool (N,), on the CPU: images left to other processes; ``images`` has their originals


def generate(
    attack: Attack,
    model: nn.Module,
    data: ImageSet,
    *,
    seed: int = 0,
    batch_size: int = 250,
    cache: Cache | Path | str | None = None,
    quantized: bool = False,
    parts: Parts | None = None,
    some: tuple[Tensor, Tensor] | None = None,
    advance: Callable[[int], None] = lambda images: None,
    saved: Callable[[], None] = lambda: None,
) -> Adversarial:
    """Attack ``model`` on every image of ``data``.

    Args:
        attack, model, data: any attack, what the attacker differentiates, and the images, on the model's device.
        seed: decides every random choice, together with the place of a batch in the data.
        batch_size: images attacked at once.
        cache: where finished batches are kept, or its folder; None keeps nothing. Batches of other shards are left out.
        quantized: return uint8, a quarter of the memory, with perturbations rounded towards zero so that they stay within
            epsilon, or to the nearest level where the attack has none. For training only: rounding may undo an attack.
        parts: where the images stand in a larger set, that is attacked in parts; a part belongs to one shard in every call.
        some: the indices of the images to attack, int64 (N,), and where the adversarial examples are put, at these indices.
        advance: called with the number of images after each batch.
        saved: called after each batch that was computed now, once it is in the cache: stopping there loses nothing.

    Raises:
        InputError: a label is not one of the model's classes, or see :class:`Attack`.
        AttackError: the attack left its threat model, or less than half of a perturbation is left when it is quantised.
    """
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    found: list[Adversarial] = []
    left, plan = None, current()
    unknown = plan is not None and not cache.has("adversarial")
    dtype, device = torch.uint8 if quantized else torch.float32, data.images.device
    chosen, result = some or (None, empty(data.images.shape, dtype, cache.folder, device=device))
    count = len(data if chosen is None else chosen)
    for batch, number, *place in _batches(count, batch_size, parts, cache):
        these = batch if chosen is None else chosen[batch]
        images, labels = data.images[these], data.labels[these]

        def checked(state: State, images: Tensor = images) -> Adversarial | str:
            if "error" in state:
                return str(state["error"])
            one = Adversarial(**state | {"images": state["images"].to(images.device)})
            # A checksum shows that these are the bytes that were written, not that they belong to these images.
            attack.check_result(to_float(images), to_float(one.images) if quantized else one.images)
            return one

        own_seed = seed_for(seed_for(seed, place[0]), place[1])
        key = "" if unknown else cache.key(model, images, attack, labels, own_seed, quantized)
        one = None if unknown else cache.load("adversarial", key, checked)
        if one is None and plan:  # those after it are not made either
            whole = data if chosen is None else data.subset(chosen)
            own_share = cache.shard.share(count - batch.start)
            _foresee(plan, attack, model, whole, own_share, batch_size, again=some is not None)
            result[slice(None) if chosen is None else chosen] = whole.images if quantized else to_float(whole.images)
            return Adversarial(result, batches=1)
        if one is None and cache.left("adversarial", key, number):
            one = Adversarial(images if quantized else to_float(images))
            left = torch.zeros(count, dtype=torch.bool) if left is None else left
            left[batch] = True
        elif one is None:
            begun = time.perf_counter()
            try:
                with _collected() as noted, reproducible(own_seed, images.device):  # for models that draw random numbers
                    adversarial = in_parts(partial(attack, model, seed=own_seed), to_float(images), labels)
                adversarial = _quantize(images, adversarial, attack) if quantized else adversarial.contiguous()
            except (AttackError, InputError) as error:
                if cache.shard.count > 1:  # the others hear of it
                    cache.save("adversarial", key, {"error": str(error)})
                raise
            warnings = _counted(record.getMessage() for record in noted)
            one = Adversarial(adversarial, warnings, 1, time.perf_counter() - begun)
            cache.save("adversarial", key, vars(one))
            saved()
        elif isinstance(one, str):
            raise AttackError(one)
        advance(len(images))
        result[these] = one.images
        found.append(replace(one, images=images[:0]))
    warnings = _counted(text for one in found for text in Counter(one.warnings).elements())
    return Adversarial(result, warnings, len(found), sum(one.seconds for one in found), left)


def withstood_by(model: nn.Module, attack: Attack) -> tuple[Hashable, ...]:
    """Where a forecast keeps the share of images that withstand a short attack like this one."""
    return model, attack.needs_gradients, attack.norm, attack.epsilon


def _foresee(
    plan: Forecast, attack: Attack, model: nn.Module, data: ImageSet, count: int, batch_size: int, again: bool
) -> None:
    """Note what attacking ``count`` images of ``data`` will take, unless that was noted before and is not done ``again``."""
    images, labels = to_float(data.images[:FEW]), data.labels[:FEW]
    ball: dict[str, Any] = {"norm": attack.norm, "epsilon": attack.epsilon or 8 / 255}

    def withstanding() -> float:
        if not attack.uses_labels or any(part in plan.stand_ins for part in model.modules()):
            return 0.0  # features have no classes, and an untrained model is right on nothing
        quick = PGD(**ball, num_steps=5) if attack.needs_gradients else Square(**ball, num_queries=50)
        with torch.no_grad():
            share = (model(quick(model, images, labels)).argmax(1) == labels).float().mean().item()
        # Queries are too few here to tell: of those that withstand them, half may fall to more.
        return share if attack.needs_gradients else share / 2

    count = count if again else plan.fresh(count, model, repr(attack), data.images.shape[1:])
    share = 0.0 if again else plan.once(withstood_by(model, attack), withstanding)
    with frozen(model):
        for part, gradients, queries in attack.passes(share):
            for gradient, passes in ((True, gradients), (False, queries)):
                if count and part and passes:
                    pace = plan.passes(model, images, batch_size, gradient=gradient)
                    plan.note(pace.seconds(part * count, -(-count // batch_size), passes), len(data))


def _batches(count: int, size: int, parts: Parts | None, cache: Cache) -> Iterator[tuple[slice, int, int, int]]:
    """The images of each batch, the number by which it belongs to a shard, and where its block starts, and it in that."""
    places, block = parts or (torch.arange(count), BLOCK)
    each, end = -(-block // size), 0  # batches of a block
    numbers, counts = torch.unique_consecutive(places.cpu() // block * each + places.cpu() % block // size, return_counts=True)
    first = cache.shard.begin(len(numbers)) if parts is None else 0
    for number, images in zip(numbers.tolist(), counts.tolist(), strict=True):
        part, batch = divmod(number, each)
        yield slice(end, end := end + images), number + first if parts is None else part, part * block, batch * size


def _quantize(images: Tensor, adversarial: Tensor, attack: Attack) -> Tensor:
    levels = adversarial * 255 - images
    # Of an attack that looks for the smallest perturbation, hardly anything would be left if all were made smaller.
    # A perturbation of exactly 8 levels may stand as 7.9999: the slack is far above rounding and far below a level.
    whole = levels.round() if attack.epsilon is None else (levels + 1e-3 * levels.sign()).trunc_()
    if whole.norm() < levels.norm() / 2:
        larger = "another attack" if attack.epsilon is None else f"a larger epsilon than {show_fraction(attack.epsilon)}"
        raise AttackError(
            f"{attack.kind}: most of the perturbation is below one grey level, and training images have 8 bits: take "
            f"{larger}, or an attack in every step (teacher_at.attack, student.attack)"
        )
    return (images + whole).clamp_(0, 255).to(torch.uint8).contiguous()


def _counted(warnings: Iterable[str]) -> dict[str, int]:
    """How often each came; those that differ in their figures only are one."""
    alike: dict[str, list[str]] = {}
    for text in warnings:
        alike.setdefault(re.sub(r"[\d.]+", "#", text), []).append(text)
    return {texts[0]: len(texts) for texts in alike.values()}


@contextmanager
def _collected() -> Iterator[list[logging.LogRecord]]:
    """Collect AutoAttack's warnings instead of printing them: they belong in the results."""
    logger, handler = logging.getLogger(LOGGER), BufferingHandler(sys.maxsize)
    handler.setLevel(logging.WARNING)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler.buffer
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
