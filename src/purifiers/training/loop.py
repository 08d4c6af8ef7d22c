"""The training loop, the same for the classifier, the teachers and the student."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.utils.flop_counter import FlopCounterMode

from purifiers.console import Deadline, Stopwatch, detail, duration, progress, say
from purifiers.data import augmented, shuffled_batches, to_float
from purifiers.device import Precision
from purifiers.errors import CheckpointError, TrainingError
from purifiers.recipes.parts import Optimisation
from purifiers.seeds import generator_for
from purifiers.storage import load_state, save_state
from purifiers.training.cuda_graph import CapturedStep
from purifiers.training.losses import Losses


def make_fabric(device: torch.device, precision: Precision = "32-true") -> Fabric:
    """Lightning Fabric, which owns the precision of a training, on ``device``."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision
    return Fabric(accelerator=device.type, devices=[device.index or 0] if device.type == "cuda" else 1, precision=precision)


@dataclass(frozen=True)
class Stage:
    """One network's training.

    Attributes:
        name: for messages and the checkpoint's folder.
        fingerprint: digest of everything that decides the result; a checkpoint with another one is refused.
        network: what is trained, on the device.
        images: uint8 (N, C, H, W), on the device; an image and its adversarial example are stacked along C.
        labels: int64 (N,).
        losses: (network, float images, labels, source of randomness on the device) -> losses.
        seed: decides order and augmentation: stages of one seed see the same batches.
        compiled: run the network through ``torch.compile``, after a first step without it.
        captured: on a GPU, replay the step as a CUDA graph instead; for losses that never wait for the device.
    """

    name: str
    fingerprint: str
    network: nn.Module
    images: Tensor
    labels: Tensor
    losses: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Losses]
    optimisation: Optimisation
    seed: int
    compiled: bool = False
    captured: bool = False


def fit(stage: Stage, fabric: Fabric, checkpoint: Path, deadline: Deadline | None = None) -> list[dict[str, float]]:
    """Train ``stage.network`` in place, from its last finished epoch if ``checkpoint`` exists, and save every epoch.

    A resumed training gives the same weights, bit for bit, as one that was never interrupted. ``deadline`` is checked after
    every epoch: does another one fit?

    Returns:
        The history: for each epoch its mean losses, the learning rate at its end, images/s, floating-point operations of
        an image (matrix products and convolutions, forward and backward, a multiplication and an addition are two) and seconds.

    Raises:
        OutOfTime: the next epoch would not fit into the time limit.
        TrainingError: a loss or weight is not finite; the message names the step. The last good epoch stays on disk.
        CheckpointError: the checkpoint is damaged, of another recipe, or unfinished and of another kind of device.
    """
    optimisation, device = stage.optimisation, stage.images.device
    steps = max(1, len(stage.images) // optimisation.batch_size)  # as many as shuffled_batches gives
    # A captured step is not compiled too: that takes longer than it saves.
    captured = stage.captured and device.type == "cuda"
    optimizer = _optimizer(optimisation, stage.network, captured)
    scheduler = _scheduler(optimisation, optimizer, steps)
    generator = generator_for(stage.seed, "order", device=device)
    eager, optimizer = fabric.setup(stage.network, optimizer)
    model = compiled(eager) if stage.compiled and not captured else eager
    history: list[dict[str, float]] = []
    deadline = deadline or Deadline()
    if checkpoint.exists():
        state = _load(checkpoint, stage)
        stage.network.load_state_dict(state["network"])
        history = state["history"]
        if len(history) < optimisation.epochs:
            optimizer.load_state_dict(state["optimizer"])
            _to_device(optimizer)
            scheduler.load_state_dict(state["scheduler"])
            generator.set_state(state["generator"])
        finished = len(history) == optimisation.epochs
        status = "is trained already" if finished else f"resumes after epoch {len(history)}/{optimisation.epochs}"
        say(f"{stage.name:<16} {status}")
    per_epoch = steps * min(optimisation.batch_size, len(stage.images))
    left = optimisation.epochs - len(history)
    if left:
        deadline.check(f"what comes before {stage.name}", history[-1]["seconds"] if history else 0.0, finished=False)
    # Counted in the very first step, which is not compiled: the counter does not see into compiled code.
    counter, flops = FlopCounterMode(display=False), int(history[0].get("flops_per_image", 0)) if history else 0

    def step(chosen: Tensor) -> Losses:
        nonlocal flops
        batch = augmented(stage.images[chosen], generator, flip=optimisation.flip, crop=optimisation.crop)
        with counter if not flops else nullcontext():
            losses = stage.losses(model if flops else eager, to_float(batch), stage.labels[chosen], generator)
            fabric.backward(losses["loss"])
        flops = flops or counter.get_total_flops() // len(chosen)
        optimizer.step()
        optimizer.zero_grad()
        return {name: value.detach() for name, value in losses.items()}

    take = CapturedStep(step, generator) if captured else step
    with progress(stage.name, left * per_epoch) as advance:
        for epoch in range(len(history) + 1, optimisation.epochs + 1):
            watch = Stopwatch()
            eager.train()
            records: list[Losses] = []
            for chosen in shuffled_batches(len(stage.images), optimisation.batch_size, generator):
                records.append(take(chosen))
                scheduler.step()
                advance(len(chosen))
            means = _mean_losses(records, stage.name, epoch)
            _check_weights(stage, epoch)
            record = {"epoch": epoch, **means, "learning_rate": float(scheduler.get_last_lr()[0])}
            speed = {"images_per_second": per_epoch / watch.seconds, "flops_per_image": flops, "seconds": watch.seconds}
            history.append(record | speed)
            parts = {"network": stage.network, "optimizer": optimizer, "scheduler": scheduler}
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"generator": generator.get_state(), "device": device.type, "threads": torch.get_num_threads()}
            save_state(checkpoint, {"fingerprint": stage.fingerprint, **state, "history": history})
            values = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
            rate = f"{per_epoch / watch.seconds:,.0f} images/s"
            detail(f"{stage.name:<16} epoch {epoch}/{optimisation.epochs}  {values}  {rate}")
            if epoch < optimisation.epochs:
                deadline.check(f"epoch {epoch}/{optimisation.epochs} of {stage.name}", watch.seconds)
    if left:
        say(f"{stage.name:<16} trained in {duration(sum(record['seconds'] for record in history))}")
    stage.network.eval()
    return history


def compiled(module: nn.Module) -> nn.Module:
    """``module`` through ``torch.compile``."""
    return cast(nn.Module, torch.compile(module))


def _load(checkpoint: Path, stage: Stage) -> dict[str, Any]:
    state = load_state(checkpoint)
    if state.get("fingerprint") != stage.fingerprint:
        raise CheckpointError(
            f"{checkpoint} was trained with another recipe, seed or data; "
            f"choose another output folder, delete {checkpoint.parent} to train this part again, or restart to discard all"
        )
    # Any machine may read a finished one, but generators of different devices draw different numbers.
    started, here = state["device"], stage.images.device.type
    if len(state["history"]) < stage.optimisation.epochs and started != here:
        raise CheckpointError(
            f"{checkpoint} was started on {started} and cannot resume on {here}: choose {started} as device, "
            f"delete {checkpoint.parent} to train this part again, or restart to discard all"
        )
    return state


def _mean_losses(records: list[Losses], name: str, epoch: int) -> dict[str, float]:
    # One wait for the device, at the end of the epoch: all its losses at once.
    table = {key: torch.stack([record[key] for record in records]) for key in records[0]}
    finite = torch.stack([values.isfinite() for values in table.values()]).all(0).tolist()
    if not all(finite):
        step = finite.index(False)
        values = ", ".join(f"{key} = {value[step].item()}" for key, value in table.items())
        raise TrainingError(
            f"{name}: a loss is not finite at epoch {epoch}, step {step + 1} of {len(records)} ({values}); "
            "this epoch is not saved: try a smaller learning rate"
        )
    return {key: value.mean().item() for key, value in table.items()}


def _check_weights(stage: Stage, epoch: int) -> None:
    # The last step's loss was measured before its update.
    state = stage.network.state_dict()
    finite = torch.stack([value.isfinite().all() for value in state.values()]).tolist()
    if not all(finite):
        broken = list(state)[finite.index(False)]
        raise TrainingError(
            f"{stage.name}: the last step of epoch {epoch} left weights that are not finite ({broken}); "
            "this epoch is not saved: try a smaller learning rate"
        )


def _optimizer(optimisation: Optimisation, network: nn.Module, captured: bool) -> torch.optim.Optimizer:
    weights, decay = list(network.parameters()), optimisation.weight_decay
    # A learning rate that is a number would be captured with the step.
    rate = torch.tensor(optimisation.learning_rate, device=weights[0].device) if captured else optimisation.learning_rate
    if optimisation.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True, fused=captured or None)
    kind = torch.optim.Adam if optimisation.optimizer == "adam" else torch.optim.AdamW
    return kind(weights, lr=rate, weight_decay=decay, fused=captured or None, capturable=captured)


def _to_device(optimizer: torch.optim.Optimizer) -> None:
    """Move a loaded learning rate to the parameters' device, and moments to their memory layout, which fused kernels assume."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].to(group["params"][0].device)
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


def _scheduler(optimisation: Optimisation, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    if optimisation.schedule == "constant":
        return LambdaLR(optimizer, lambda step: 1.0)
    total = max(1, steps * optimisation.epochs)
    return OneCycleLR(optimizer, optimisation.learning_rate, total_steps=total, cycle_momentum=False)
