"""Attacking a whole data set, in shards that are kept on disk, so that a kill loses one shard and a rerun none."""

import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from logging.handlers import BufferingHandler
from pathlib import Path

import torch
from torch import Tensor, nn

from purifiers.attacks.base import Attack, show_fraction
from purifiers.attacks.libraries import LOGGER
from purifiers.cache import Cache, State
from purifiers.data import ImageSet, slices, to_float
from purifiers.data.large import empty
from purifiers.errors import AttackError
from purifiers.seeds import reproducible, seed_for

SHARD = 1000


@dataclass(frozen=True)
class Adversarial:
    """Adversarial examples of a whole data set."""

    images: Tensor  # (N, 3, H, W), on the data's device: float32 in [0,1], or uint8 if ``quantized``
    warnings: Mapping[str, int] = field(default_factory=dict)  # from the attack's library, by text -> in how many batches
    batches: int = 0
    seconds: float = 0.0  # time of the attack when it was run, also if the result came from the cache


def generate(
    attack: Attack,
    model: nn.Module,
    data: ImageSet,
    *,
    seed: int = 0,
    batch_size: int = 250,
    cache: Cache | Path | str | None = None,
    quantized: bool = False,
    offset: int = 0,
    advance: Callable[[int], None] = lambda images: None,
    saved: Callable[[], None] = lambda: None,
) -> Adversarial:
    """Attack ``model`` on every image of ``data``.

    Args:
        attack, model, data: any attack, what the attacker differentiates, and the images, on the model's device.
        seed: decides every random choice, together with the place of a batch in the data.
        batch_size: images attacked at once.
        cache: where finished shards are kept, or its folder; None keeps nothing.
        quantized: return uint8, a quarter of the memory, with perturbations rounded towards zero so that they stay within
            epsilon, or to the nearest level where the attack has none. For training only: rounding may undo an attack.
        offset: where ``data`` begins in the whole that it is a part of, a multiple of ``SHARD``.
        advance: called with the number of images after each batch.
        saved: called after each shard that was computed now, once it is in the cache: stopping there loses nothing.

    Raises:
        InputError: a label is not one of the model's classes, or see :class:`Attack`.
        AttackError: the attack left its threat model, or less than half of a perturbation is left when it is quantised.
    """
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    shards, images = [], data.images
    result = empty(images.shape, torch.uint8 if quantized else torch.float32, cache.folder, device=images.device)
    for shard in slices(len(data), SHARD):
        images, labels = data.images[shard], data.labels[shard]

        def checked(state: State, images: Tensor = images) -> Adversarial:
            found = Adversarial(**state | {"images": state["images"].to(images.device)})
            # A checksum shows that these are the bytes that were written, not that they belong to these images.
            attack.check_result(to_float(images), to_float(found.images) if quantized else found.images)
            return found

        key = cache.key(model, images, attack, labels, seed, offset + shard.start, batch_size, quantized)
        found = cache.load("adversarial", key, checked)
        if found is None:
            results: list[Tensor] = []
            begun = time.perf_counter()
            with _collected() as noted:
                for batch in slices(len(images), batch_size):
                    own_seed = seed_for(seed_for(seed, offset + shard.start), batch.start)
                    with reproducible(own_seed, images.device):  # for models that draw random numbers
                        adversarial = attack(model, to_float(images[batch]), labels[batch], seed=own_seed)
                    results.append(_quantize(images[batch], adversarial, attack) if quantized else adversarial.contiguous())
                    advance(len(adversarial))
            seconds, warnings = time.perf_counter() - begun, _counted(record.getMessage() for record in noted)
            found = Adversarial(torch.cat(results), warnings, len(results), seconds)
            cache.save("adversarial", key, vars(found))
            saved()
        else:
            advance(len(images))
        result[shard] = found.images
        shards.append(replace(found, images=images[:0]))
    warnings = _counted(text for found in shards for text in Counter(found.warnings).elements())
    return Adversarial(result, warnings, sum(found.batches for found in shards), sum(found.seconds for found in shards))


def _quantize(images: Tensor, adversarial: Tensor, attack: Attack) -> Tensor:
    levels = adversarial * 255 - images
    # Of an attack that looks for the smallest perturbation, hardly anything would be left if all were made smaller.
    # A perturbation of exactly 8 levels may stand as 7.9999: the slack is far above rounding and far below a level.
    whole = levels.round() if attack.epsilon is None else (levels + 1e-3 * levels.sign()).trunc_()
    if whole.norm() < levels.norm() / 2:
        raise AttackError(
            f"{attack.kind}: most of the perturbation is below one grey level, and training images have 8 bits: take a larger "
            f"epsilon than {show_fraction(attack.epsilon)}, or an attack in every step (teacher_at.attack, student.attack)"
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
