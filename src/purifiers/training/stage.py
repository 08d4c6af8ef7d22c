"""One stage of a run: its untrained network, and its training, saved and resumed in the stage's folder."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from purifiers.recipes.parts import Optimisation
from purifiers.registry import fingerprint, place, save_network
from purifiers.runs import STATE_FILE, Run
from purifiers.seeds import seed_for
from purifiers.storage import digest
from purifiers.training.loop import Stage, fit, make_fabric
from purifiers.training.objectives import StageLosses


def seeded(run: Run, stream: str, build: Callable[[], nn.Module]) -> nn.Module:
    """What ``build`` builds, on the run's device, with initial weights drawn by the recipe's seed for ``stream``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(run.recipe.seed, stream, "initial weights"))
        network = build()
    return place(network, run.device)


def fit_stage(
    run: Run,
    name: str,
    stream: str,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    losses: StageLosses,
    optimisation: Optimisation,
    parents: Sequence[nn.Module] = (),
    made_from: object = (),
    kept: nn.Module | None = None,
    captured: bool = False,
) -> None:
    """Train ``network`` in place, or read it where it is trained already: a :class:`purifiers.training.loop.Stage` of ``run``.

    Args:
        stream: stages of one stream see the same batches.
        images: uint8 (N, 3 * k, H, W); from the fourth channel on they are made from the first three.
        parents: the frozen networks that the losses use or that ``network`` starts from: others make another training.
        made_from: what else the further channels are made from; JSON-able.
        kept: the part of ``network`` that is saved as the stage's result, by default all.
        captured: whether the step can be one CUDA graph, where the recipe compiles.
    """
    # Adversarial examples are keyed by what they are made from, not by their pixels: made again, on another machine or after
    # the cache was deleted, they may differ in a bit. The start is one of the parents, wherever it lies.
    settings = optimisation.model_dump(exclude={"start"})
    frozen = [fingerprint(parent) for parent in parents]
    key = digest(repr(network), images[:, :3], labels, made_from, settings, run.recipe.precision, run.recipe.seed, frozen)
    seed = seed_for(run.recipe.seed, stream)
    # What is not one network, such as two that play against each other, is not compiled.
    compiled = run.recipe.compiled and kept is None
    stage = Stage(name, key, network, images, labels, losses, optimisation, seed, compiled, compiled and captured)
    folder = run.checkpoint(name)
    run.histories[name] = fit(stage, make_fabric(run.device, run.recipe.precision), folder / STATE_FILE, run.deadline)
    save_network(folder, network if kept is None else kept)
