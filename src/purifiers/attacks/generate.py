"""Attacking a whole data set: in shards, each cached on disk, so that a kill loses one shard and a rerun none."""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from purifiers.attacks.autoattack import LOGGER
from purifiers.attacks.base import Attack, frozen
from purifiers.classifiers.probes import gradient_at
from purifiers.data import ImageSet, slices, to_float
from purifiers.errors import AttackError, CheckpointError, InputError
from purifiers.registry import fingerprint
from purifiers.seeds import reproducible, seed_for
from purifiers.storage import digest, load_tensors, save_tensors
from purifiers.version import __version__

SHARD = 1000
LIBRARIES = ("torch", "foolbox", "pyautoattack")


@dataclass(frozen=True)
class Adversarial:
    """Adversarial examples of a whole data set.

    Attributes:
        images: (N, 3, H, W), on the data's device: float32 in [0,1], or uint8 where ``quantized`` was asked for.
        warnings: what the attack's library said against the result's trustworthiness -> in how many batches. Numbers
            in the text are those of the first batch that said it.
        batches: the number of batches.
        seconds: time that the attack took when it was run, also where it came from the cache now.
    """

    images: Tensor
    warnings: Mapping[str, int]
    batches: int
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
    saved: Callable[[], None] = lambda: None,
) -> Adversarial:
    """Attack ``model`` on every image of ``data``.

    Args:
        attack: any attack.
        model: what the attacker differentiates.
        data: the images, on the model's device.
        seed: decides every random choice, together with the place of a batch in the data.
        batch_size: images attacked at once.
        cache: folder of finished shards, found again by weights, the model's outputs and gradient on the first images, attack,
            data, seed and the versions of this library and others; None keeps nothing.
        quantized: return uint8, a quarter of the memory, with perturbations rounded towards zero so that they stay
            within epsilon, or to the nearest level where the attack has none. For training only: rounding may undo an attack,
            so results are measured on float.
        advance: called with the number of images after each batch.
        saved: called after each shard that was made now, when it is in the cache: whoever stops there loses nothing.

    Raises:
        InputError: a label is not one of the model's classes, or see :class:`Attack`.
        AttackError: the attack left its threat model.
    """
    parts: list[Tensor] = []
    warnings: dict[str, int] = {}
    batches, seconds = 0, 0.0
    known_by, classes = identity(model, to_float(data.images[:2]), seed)
    low, high = int(data.labels.min()), int(data.labels.max())
    if high >= classes or low < 0:
        raise InputError(f"labels go from {low} to {high}, the model has {classes} classes")
    for shard in slices(len(data), SHARD):
        images, labels = data.images[shard], data.labels[shard]
        key = digest(known_by, attack.model_dump(), images, labels, seed, shard.start, batch_size, quantized)
        path = None if cache is None else cache / f"{attack.kind}-{key[:32]}.safetensors"
        found = _read(path, attack, images, quantized)
        if found is None:
            begun = time.perf_counter()
            with _collected() as noted:
                seed_here = seed_for(seed, shard.start)
                attacked = _attack_shard(attack, model, images, labels, seed_here, batch_size, quantized, advance)
            count = -(-len(images) // batch_size)
            found = Adversarial(attacked, noted, count, time.perf_counter() - begun)
            if path is not None:
                about = {"warnings": found.warnings, "batches": found.batches, "seconds": found.seconds}
                save_tensors(path, {"images": found.images}, about)
            saved()
        else:
            advance(len(images))
        parts.append(found.images)
        for text, times in found.warnings.items():
            _count(warnings, text, times)
        batches += found.batches
        seconds += found.seconds
    return Adversarial(torch.cat(parts), warnings, batches, seconds)


def identity(model: nn.Module, images: Tensor, seed: int) -> tuple[str, int]:
    """What a model's attacks are found by in the cache: its weights, its outputs and gradient on a few ``images``, and the
    versions of the libraries; and its number of classes."""
    # Outputs tell models apart that differ in plain Python attributes only, which no fingerprint of weights sees; the gradient
    # those that differ only in what they pass back.
    with frozen(model):
        with torch.no_grad(), reproducible(seed, images.device):
            outputs = model(images)
        gradient = gradient_at(model, images)
    versions = [__version__, *(version(library) for library in LIBRARIES)]
    return digest(fingerprint(model), outputs, gradient, versions), outputs.shape[-1]


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
        batch_seed = seed_for(seed, batch.start)
        with reproducible(batch_seed, images.device):  # for models that draw random numbers
            adversarial = attack(model, to_float(images[batch]), labels[batch], seed=batch_seed)
        bounded = attack.epsilon is not None
        results.append(_quantize(images[batch], adversarial, bounded) if quantized else adversarial.contiguous())
        advance(len(adversarial))
    return torch.cat(results)


def _quantize(images: Tensor, adversarial: Tensor, bounded: bool) -> Tensor:
    levels = adversarial * 255 - images
    # Of an attack that looks for the smallest perturbation, hardly anything would be left if all were made smaller.
    # A perturbation of exactly 8 levels may stand as 7.9999: the slack is far above rounding and far below a level.
    whole = (levels + 1e-3 * levels.sign()).trunc_() if bounded else levels.round_()
    return (images + whole).clamp_(0, 255).to(torch.uint8).contiguous()


def _read(path: Path | None, attack: Attack, images: Tensor, quantized: bool) -> Adversarial | None:
    if path is None or not path.exists():
        return None
    try:
        tensors, metadata = load_tensors(path)
        found = tensors["images"].to(images.device)
        # A checksum tells that these are the bytes that were written, not that they belong to these images.
        attack.check_result(to_float(images), to_float(found) if quantized else found)
    except (CheckpointError, AttackError):
        return None  # a damaged shard costs its time again, nothing else: it is computed and replaced
    return Adversarial(found, metadata["warnings"], metadata["batches"], metadata["seconds"])


def _count(warnings: dict[str, int], text: str, times: int) -> None:
    """Add to a warning's count; it is the same one where only the figures in it differ."""

    def pattern(message: str) -> str:
        return re.sub(r"[\d.]+", "#", message)

    known = next((other for other in warnings if pattern(other) == pattern(text)), text)
    warnings[known] = warnings.get(known, 0) + times


@contextmanager
def _collected() -> Iterator[dict[str, int]]:
    """Count AutoAttack's warnings instead of printing them: they belong into the results."""
    noted: dict[str, int] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _count(noted, record.getMessage(), 1)

    logger, handler = logging.getLogger(LOGGER), Collector(logging.WARNING)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield noted
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
