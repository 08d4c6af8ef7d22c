"""A stage of a run: its initial weights, its folder, and what decides its result."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from purifiers.errors import ConfigError, TrainingError
from purifiers.forecast import current
from purifiers.recipes.training_settings import HeldOut
from purifiers.registry import fingerprint, place, save_network
from purifiers.runs import STATE_FILE, Run
from purifiers.seeds import generator_for, seed_for
from purifiers.storage import digest
from purifiers.training.distributed import first_only
from purifiers.training.loop import Stage, fit, make_fabric
from purifiers.training.outcome import RobustAccuracy


def seeded(run: Run, stream: str, build: Callable[[], nn.Module]) -> nn.Module:
    """What ``build`` builds, on the run's device, with initial weights drawn by the recipe's seed for ``stream``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(run.recipe.seed, stream, "initial weights"))
        network = build()
    return place(network, run.device)


def fit_stage(
    run: Run, stage: Stage, parents: Sequence[nn.Module] = (), made_from: object = None, kept: nn.Module | None = None
) -> None:
    """Train a stage's network in place, or read it where it is trained already, in the run's folder of the stage.

    Args:
        stage: fingerprint and compilation come from ``run``, and the seed if it has none.
        parents: the frozen networks that the losses use or that training starts from; they are part of the fingerprint.
        made_from: what the channels after the first three were made with, as JSON; by default the training attacks.
        kept: the part of the network that is saved as the stage's result, by default all.
    """
    recipe, network, optimisation, folder = run.recipe, stage.network, stage.optimisation, run.checkpoint(stage.name)
    # The key has the settings of the training attacks instead of their pixels, which may differ in a bit on another machine or
    # without the cache. The start is one of the parents, whatever its path, and the network is there itself.
    if made_from is None and stage.images.shape[1] > 3:
        made_from = {name: attack.model_dump() for name, attack in recipe.training_attacks.items()}, recipe.attack_rounds
    settings = optimisation.model_dump(exclude={"start", "network"})
    checkpoint, key, plan = folder / STATE_FILE, "", current()
    if plan and (not checkpoint.exists() or any(parent in plan.stand_ins for parent in parents)):
        checkpoint = folder / "none"
    else:
        frozen = [fingerprint(parent) for parent in parents]
        images = stage.images[:, :3]
        key = digest(repr(network), images, stage.labels, made_from or [], settings, run.precision, recipe.seed, frozen)
    if first_only(lambda: key) != key:
        raise TrainingError(f"{stage.name}: the processes have different images, recipes or networks: start all alike")
    # What is not one network, such as two that play against each other, is not compiled.
    compiled = recipe.compiled and kept is None
    seed = stage.seed or seed_for(recipe.seed, stage.name)
    if held_out := getattr(optimisation, "held_out", None):
        stage = _hold_out(run, stage, held_out)
    stage = replace(stage, fingerprint=key, seed=seed, compiled=compiled, captured=compiled and stage.captured)
    run.histories[stage.name] = fit(stage, make_fabric(run.device, run.precision), checkpoint, run.deadline)
    first_only(lambda: save_network(folder, network if kept is None else kept))


def held_out_count(run: Run, name: str, held_out: HeldOut, images: int) -> tuple[int, int]:
    """How many of so many training images early stopping looks at, and how many crops each stands for; the count is of whole
    images. Raises ConfigError if the training ``name`` would have none left."""
    crops = run.recipe.data.crops
    each = crops.count if crops else 1
    count = held_out.images // each
    if not 0 < count < images // each:
        fault = f"{name}: held_out.images={held_out.images} of {images} images"
        raise ConfigError(f"{fault} leaves none to train on, or none held out: take another number, or more data")
    return count, each


def _hold_out(run: Run, stage: Stage, held_out: HeldOut) -> Stage:
    """``stage`` without the images that early stopping looks at: the same for all stages, as one may start from another, and no
    crops of one image on either side."""
    count, each = held_out_count(run, stage.name, held_out, len(stage.images))
    device = stage.images.device
    drawn = torch.randperm(len(stage.images) // each, generator=generator_for(run.recipe.seed, "held out"))
    apart, rows = (
        (each * part[:, None] + torch.arange(each)).flatten().sort().values.to(device)
        for part in (drawn[:count], drawn[count:])
    )
    images, labels = stage.images[apart][:, :3], stage.labels[apart]
    score = RobustAccuracy(held_out.attack, images, labels, stage.behind, run.recipe.seed)
    return replace(stage, rows=rows, score=score)
