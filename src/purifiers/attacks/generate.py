"""Attacking a whole data set: in shards, each cached on disk, so that a kill loses one shard and a rerun none."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from purifiers.attacks.autoattack import LOGGER
from purifiers.attacks.base import Attack
from purifiers.data import ImageSet, slices, to_float
from purifiers.errors import CheckpointError
from purifiers.files import digest, load_tensors, save_tensors
from purifiers.networks import fingerprint
from purifiers.seeds import seed_for

SHARD = 1000


@dataclass(frozen=True)
class Adversarial:
    """Adversarial examples of a whole data set.

    Attributes:
        images: (N, 3, H, W), on the data's device: float32 in [0,1], or uint8 where ``quantized`` was asked for.
        warnings: what the attack's library said against the result's trustworthiness, each once.
        seconds: time that the attack took when it was run, also where it came from the cache now.
    """

    images: Tensor
    warnings: tuple[str, ...]
    seconds: float


def generate(
    attack: Attack,
    model: nn.Module,
    data: ImageSet,
    *,
    seed: int = 0,
    batch_size: int = 250,
    cache: Path | None = None,
    quantized: bool = False,
    advance: Callable[[int], None] = lambda images: None,
) -> Adversarial:
    """Attack ``model`` on every image of ``data``.

    Args:
        attack: any attack.
        model: what the attacker differentiates.
        data: the images, on the model's device.
        seed: decides every random choice, together with the place of a batch in the data.
        batch_size: images attacked at once.
        cache: folder of finished shards, found again by weights, attack, data and seed; None keeps nothing.
        quantized: return uint8, a quarter of the memory, with perturbations rounded towards zero so that they stay
            within epsilon. For training only: rounding may undo an attack, so results are measured on float.
        advance: called with the number of images after each batch.
    """
    parts: list[Tensor] = []
    warnings: dict[str, None] = {}
    seconds = 0.0
    weights = fingerprint(model)
    for shard in slices(len(data), SHARD):
        images, labels = data.images[shard], data.labels[shard]
        key = digest(weights, attack.model_dump(), images, labels, seed, shard.start, batch_size, quantized)
        path = None if cache is None else cache / f"{attack.kind}-{key[:32]}.safetensors"
        found = _read(path)
        if found is None:
            begun = time.perf_counter()
            with _collected() as noted:
                attacked = _attack_shard(
                    attack, model, images, labels, seed_for(seed, shard.start), batch_size, quantized, advance
                )
            found = Adversarial(attacked, tuple(noted), time.perf_counter() - begun)
            if path is not None:
                save_tensors(path, {"images": found.images}, {"warnings": found.warnings, "seconds": found.seconds})
        else:
            advance(len(images))
        parts.append(found.images.to(data.images.device))
        warnings |= dict.fromkeys(found.warnings)
        seconds += found.seconds
    return Adversarial(torch.cat(parts), tuple(warnings), seconds)


def _attack_shard(
    attack: Attack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    seed: int,
    batch_size: int,
    quantized: bool,
    advance: Callable[[int], None],
) -> Tensor:
    results: list[Tensor] = []
    for batch in slices(len(images), batch_size):
        adversarial = attack(model, to_float(images[batch]), labels[batch], seed=seed_for(seed, batch.start))
        results.append(_quantize(images[batch], adversarial) if quantized else adversarial.contiguous())
        advance(len(adversarial))
    return torch.cat(results)


def _quantize(images: Tensor, adversarial: Tensor) -> Tensor:
    levels = adversarial * 255 - images
    # A perturbation of exactly 8 levels may stand as 7.9999: the slack is far above rounding and far below a level.
    whole = (levels + 1e-3 * levels.sign()).trunc_()
    return (images + whole).clamp_(0, 255).to(torch.uint8).contiguous()


def _read(path: Path | None) -> Adversarial | None:
    if path is None or not path.exists():
        return None
    try:
        tensors, metadata = load_tensors(path)
    except CheckpointError:
        return None  # a damaged shard costs its time again, nothing else: it is computed and replaced
    return Adversarial(tensors["images"], tuple(metadata["warnings"]), metadata["seconds"])


@contextmanager
def _collected() -> Iterator[dict[str, None]]:
    """Collect AutoAttack's warnings, each once, instead of printing them: they belong into the results."""
    noted: dict[str, None] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            noted.setdefault(record.getMessage())

    logger, handler = logging.getLogger(LOGGER), Collector(logging.WARNING)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield noted
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
