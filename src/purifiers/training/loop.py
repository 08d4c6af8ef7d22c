"""The training of one stage, in one loop for the classifier, the teachers and the student."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.utils.flop_counter import FlopCounterMode

from purifiers.console import Deadline, Stopwatch, detail, duration, progress, say
from purifiers.data import augmented, shuffled_batches, to_float
from purifiers.device import Precision, memory_for
from purifiers.errors import CheckpointError, TrainingError
from purifiers.forecast import Forecast, amounts, current
from purifiers.kinds import Group
from purifiers.recipes.parts import Optimisation
from purifiers.seeds import generator_for
from purifiers.storage import load_state, save_state
from purifiers.training.cuda_graph import WARM_UP, CapturedStep
from purifiers.training.distributed import averaged, first_only, mine, synchronised, weighted, world_size
from purifiers.training.losses import Losses
from purifiers.training.objectives import StageLosses
from purifiers.training.outcome import SCORED, Outcome, RobustAccuracy, Score

LOST = "this epoch is not saved: try a smaller learning rate"  # the end of an error


def make_fabric(device: torch.device, precision: Precision = "32-true") -> Fabric:
    """Lightning Fabric, which owns the precision of a training, on ``device``."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it announces the precision
    try:
        return Fabric(accelerator=device.type, devices=[device.index or 0] if device.type == "cuda" else 1, precision=precision)
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class Stage:
    """One network's training."""

    name: str  # for messages and the checkpoint's folder
    network: nn.Module  # on the device
    images: Tensor  # uint8 (N, 3 * k, H, W), on the device; what is made from the first three channels is stacked after them
    labels: Tensor  # int64 (N,)
    losses: StageLosses
    optimisation: Optimisation
    behind: nn.Module = nn.Identity()  # noqa: RUF009 - it has no state: between the network and logits, for early stopping
    captured: bool = False  # on a GPU, replay the step as a CUDA graph; for losses that never wait for the device
    compiled: bool = False  # run the network through ``torch.compile``, after a first step without it
    seed: int = 0  # decides order and augmentation: stages of one seed see the same batches
    rows: Tensor | None = None  # int64, of the images those to train on; by default all
    score: Score | None = None  # of the network after each epoch, of which the best is kept
    fingerprint: str = ""  # digest of everything that decides the result; a checkpoint with another one is refused

    @property
    def count(self) -> int:
        """The number of images to train on."""
        return len(self.images if self.rows is None else self.rows)


def fit(stage: Stage, fabric: Fabric, checkpoint: Path, deadline: Deadline | None = None) -> list[dict[str, float]]:
    """Train ``stage.network`` in place, from its last finished epoch if ``checkpoint`` exists, and save every epoch.

    Ctrl-C, and SIGTERM where it raises KeyboardInterrupt, also save the epoch so far. A resumed training gives the same
    weights, bit for bit, as one that was never interrupted. Each epoch checks ``deadline``.
    Several processes train together, and resume what any number of them began; see :mod:`purifiers.training.distributed`.

    Returns:
        The history: for each epoch its mean losses, the learning rate at its end, images/s, floating-point operations of
        an image (matrix products and convolutions, forward and backward, a multiplication and an addition are two) and seconds.

    Raises:
        OutOfTime: the next epoch would not fit into the time limit.
        TrainingError: a loss or weight is not finite; the message names the step. The last good epoch stays on disk.
        CheckpointError: the checkpoint is damaged, of another recipe, or unfinished and of another kind of device.
        ConfigError: a batch has fewer images than there are processes.
    """
    # Fabric makes the images' GPU the current one: on a machine with several, the caller's is restored.
    with torch.cuda.device_of(stage.images), synchronised(stage.network) as network:
        return _fit(stage, network, fabric, checkpoint, deadline or Deadline())


def _fit(stage: Stage, network: nn.Module, fabric: Fabric, checkpoint: Path, deadline: Deadline) -> list[dict[str, float]]:
    optimisation, device = stage.optimisation, stage.images.device
    steps = max(1, stage.count // optimisation.batch_size)  # as many as shuffled_batches gives
    # A captured step is not compiled too: that takes longer than it saves. Processes that wait for each other do neither.
    alone = world_size() == 1
    captured = stage.captured and device.type == "cuda" and alone
    optimizer = _optimizer(optimisation, stage.network, captured)
    scheduler = _scheduler(optimisation, optimizer, steps)
    generator = generator_for(stage.seed, "order", device=device)
    eager, optimizer = fabric.setup(network, optimizer)
    plan = current()
    compiled = stage.compiled and alone and not captured and plan is None  # a sample would take a minute to compile
    model = cast(nn.Module, torch.compile(eager)) if compiled else eager
    outcome = Outcome(stage.network, optimisation.ema, stage.score)
    history: list[dict[str, float]] = []
    part: dict[str, Any] | None = None  # of an epoch that was interrupted
    if state := first_only(lambda: _load(checkpoint, stage) if checkpoint.exists() else {}):
        stage.network.load_state_dict(state["network"])
        outcome.load_state_dict(state["outcome"])
        history = state["history"]
        if len(history) < optimisation.epochs:
            _resume(optimizer, state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            generator.set_state(state["generator"])
            part = state.get("part")
            say(f"{stage.name:<16} resumes after epoch {len(history)}/{optimisation.epochs}")
        else:
            say(f"{stage.name:<16} is trained already")
    per_epoch = steps * min(optimisation.batch_size, stage.count)
    left = optimisation.epochs - len(history)
    if left and plan is None:
        expected = history[-1]["seconds"] if history else 0.0
        first_only(lambda: deadline.check(f"what comes before {stage.name}", expected, finished=False))
    # Counted in the very first step, which is not compiled: the counter does not see into compiled code.
    counter, flops = FlopCounterMode(display=False), int((history or [part or {}])[0].get("flops_per_image", 0))

    def step(chosen: Tensor) -> Losses:
        nonlocal flops
        batch = augmented(stage.images[chosen], generator, flip=optimisation.flip, crop=optimisation.crop)
        with counter if not flops else nullcontext():
            losses = stage.losses(model if flops else eager, to_float(batch), stage.labels[chosen], generator)
            losses = weighted(losses, len(chosen))
            fabric.backward(losses["loss"])
        flops = flops or counter.get_total_flops() // len(mine(chosen))
        optimizer.step()
        optimizer.zero_grad()
        return {name: value.detach() for name, value in losses.items()}

    def save(part: dict[str, Any] | None) -> None:
        parts = {"network": stage.network, "outcome": outcome, "optimizer": optimizer, "scheduler": scheduler}
        state: dict[str, Any] = {name: one.state_dict() for name, one in parts.items()}
        state |= {"generator": generator.get_state(), "device": device.type, "threads": torch.get_num_threads()}
        state |= {"fingerprint": stage.fingerprint, "history": history, "part": part}
        first_only(partial(save_state, checkpoint, state))

    take = CapturedStep(step, generator) if captured else step
    if left and plan is not None:
        eager.train()
        _foresee(plan, stage, take, left * steps - (len(part["records"]) if part else 0), captured)
        return history
    with progress(stage.name, left * per_epoch) as advance:
        for epoch in range(len(history) + 1, optimisation.epochs + 1):
            watch = Stopwatch()
            eager.train()
            begun, order, before = generator.get_state(), generator, 0.0
            records: list[Losses] = []
            if part is not None:
                begun, order, before = part["begun"], torch.Generator(device), part["seconds"]
                order.set_state(begun)
                records = [{key: value.to(device) for key, value in record.items()} for record in part["records"]]
            batches = list(shuffled_batches(stage.count, optimisation.batch_size, order))
            batches = batches if stage.rows is None else [stage.rows[chosen] for chosen in batches]
            try:
                for chosen in batches[len(records) :]:
                    with _uninterrupted(), memory_for(f"a step of {stage.name}: take a smaller batch_size"):
                        records.append(take(chosen))
                        scheduler.step()
                        outcome.after_step()
                    advance(len(chosen))
                means = _mean_losses(records, stage, epoch)
                learning = before + watch.seconds
                means |= outcome.after_epoch(stage.name)
            except KeyboardInterrupt:
                seconds = before + watch.seconds
                if alone and records and _mean_losses(records, stage, epoch):  # they are finite
                    save({"begun": begun, "records": records, "seconds": seconds, "flops_per_image": flops})
                raise
            seconds, part = before + watch.seconds, None
            record = {"epoch": epoch, **means, "learning_rate": float(scheduler.get_last_lr()[0])}
            speed = {"images_per_second": per_epoch / learning, "flops_per_image": flops, "seconds": seconds}
            with _uninterrupted():
                history.append(record | speed)
                save(None)
            values = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
            rate = f"{per_epoch / learning:,.0f} images/s"
            detail(f"{stage.name:<16} epoch {epoch}/{optimisation.epochs}  {values}  {rate}")
            if epoch < optimisation.epochs:
                done = f"epoch {epoch}/{optimisation.epochs} of {stage.name}"
                first_only(partial(deadline.check, done, seconds))
    if left:
        say(f"{stage.name:<16} trained in {duration(sum(record['seconds'] for record in history))}")
    outcome.load_best()
    stage.network.eval()
    return history


def _foresee(plan: Forecast, stage: Stage, take: Callable[[Tensor], Losses], steps: int, captured: bool) -> None:
    """Note what so many ``steps`` will take, each of which is done by ``take``."""
    count, device = stage.count, stage.images.device
    size = min(stage.optimisation.batch_size, count)
    # Students differ in what their losses use: settings, and more or fewer networks.
    used = [cell.cell_contents for cell in getattr(stage.losses, "__closure__", None) or ()]
    settings = [amounts(one) if isinstance(one, Group) else repr(one) for one in (stage.optimisation, *used)]
    kind = stage.losses.__qualname__, repr(stage.network), stage.images.shape[1:], size, *settings
    least = size if captured else min(2, size)
    for _ in range(WARM_UP if captured else 1):
        take(torch.arange(least, device=device))
    pace = plan.pace(kind, lambda some: take(torch.arange(some, device=device)), size, least)
    plan.note(pace.seconds(size, 1, steps), count, stage.name)
    network = stage.network.eval()
    if isinstance(score := stage.score, RobustAccuracy):
        every, epochs = len(score.images), steps // max(1, count // stage.optimisation.batch_size)
        pace = plan.pace((*kind, "score"), partial(score, network), min(every, SCORED))
        plan.note(pace.seconds(every, -(-every // SCORED), epochs), count, stage.name)
    plan.stand_ins.append(network)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect after the work within."""
    caught: list[int] = []
    own = threading.current_thread() is threading.main_thread()  # others get no signals
    before = {one: handler for one in (signal.SIGINT, signal.SIGTERM) if own and (handler := signal.getsignal(one)) is not None}
    try:
        for one in before:
            signal.signal(one, lambda number, _: caught.append(number))
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    for number in caught[:1]:
        signal.raise_signal(number)


def _load(checkpoint: Path, stage: Stage) -> dict[str, Any]:
    state = load_state(checkpoint)
    advice = f"delete {checkpoint.parent} to train this part again, or restart to discard all"
    if state.get("fingerprint") != stage.fingerprint:
        fault = f"{checkpoint} was trained with another recipe, seed or data"
        raise CheckpointError(f"{fault}; choose another output folder, {advice}")
    # Any machine may read a finished one, but generators of different devices draw different numbers.
    started, here = state["device"], stage.images.device.type
    if len(state["history"]) < stage.optimisation.epochs and started != here:
        fault = f"{checkpoint} was started on {started} and cannot resume on {here}"
        raise CheckpointError(f"{fault}: choose {started} as device, {advice}")
    return state


def _mean_losses(records: list[Losses], stage: Stage, epoch: int) -> dict[str, float]:
    """The mean losses of an epoch; raises TrainingError if one of them, or a weight after it, is not finite."""
    # One wait for the device, at the end of the epoch: all its losses at once.
    table = {key: averaged(torch.stack([record[key] for record in records])) for key in records[0]}
    finite = torch.stack([values.isfinite() for values in table.values()]).all(0).tolist()
    if not all(finite):
        step = finite.index(False)
        values = ", ".join(f"{key} = {value[step].item()}" for key, value in table.items())
        where = f"epoch {epoch}, step {step + 1} of {len(records)}"
        raise TrainingError(f"{stage.name}: a loss is not finite at {where} ({values}); {LOST}")
    # The last step's loss was measured before its update.
    state = stage.network.state_dict()
    finite = torch.stack([value.isfinite().all() for value in state.values()]).tolist()
    if not all(finite):
        broken = list(state)[finite.index(False)]
        raise TrainingError(f"{stage.name}: the last step of epoch {epoch} left weights that are not finite ({broken}); {LOST}")
    return {key: value.mean().item() for key, value in table.items()}


def _optimizer(optimisation: Optimisation, network: nn.Module, captured: bool) -> torch.optim.Optimizer:
    weights, decay = list(network.parameters()), optimisation.weight_decay
    # A learning rate that is a number would be captured with the step.
    rate = torch.tensor(optimisation.learning_rate, device=weights[0].device) if captured else optimisation.learning_rate
    if optimisation.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True, fused=captured or None)
    kind = torch.optim.Adam if optimisation.optimizer == "adam" else torch.optim.AdamW
    return kind(weights, lr=rate, weight_decay=decay, fused=captured or None, capturable=captured)


def _resume(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the ``state`` of an optimizer, of a captured step or not, into one that may be for the other."""
    own = [
        (group["lr"], {key: group[key] for key in ("fused", "capturable") if key in group}) for group in optimizer.param_groups
    ]
    groups = [saved | flags for saved, (_, flags) in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict(state | {"param_groups": groups})
    for group, (rate, _) in zip(optimizer.param_groups, own, strict=True):
        value = float(group["lr"])
        group["lr"] = rate.fill_(value) if isinstance(rate, Tensor) else value
    # Fused kernels assume that moments have the memory layout of the parameters.
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(moment)


def _scheduler(optimisation: Optimisation, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    if optimisation.schedule == "constant":
        return LambdaLR(optimizer, lambda step: 1.0)
    total = max(1, steps * optimisation.epochs)
    return OneCycleLR(optimizer, optimisation.learning_rate, total_steps=total, cycle_momentum=False)
