"""Training by several processes: as one would, and through the death of any of them."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

from promise import Promise, Result

from purifiers.registry import fingerprint
from purifiers.storage import load_state

TOLERANCE = 1e-3
"""Between the losses of different numbers of processes, relative: other roundings may even turn a step of PGD."""
SECONDS = 60  # within which all end after one died
STAGES = ("classifier", "teacher_nt", "teacher_at", "student")
SETTINGS = [
    *("data.limit=96", "data.test_limit=24", "purifier.widths=[4,6]", "purifier.blocks=[1,2]"),
    *(
        "classifier.network.depth=8",
        "classifier.network.width=4",
        "training_attacks.PGD.num_steps=2",
        "evaluation.batch_size=16",
    ),
    # Adam divides gradients that are nothing but rounding by their size.
    "classifier.training={epochs: 2, batch_size: 32, optimizer: sgd, learning_rate: 0.01, crop: 1}",
    *(f"{stage}.{option}" for stage in STAGES[1:] for option in ("epochs=2", "batch_size=32", "optimizer=sgd")),
]

# Each process is forked from one that has loaded the library.
_PROCESSES = get_context("forkserver")
_PROCESSES.set_forkserver_preload(["purifiers.training.pipeline", "torch._dynamo"])


def _train(rank: int, size: int, port: int, folder: Path) -> None:
    """One process of a training in ``folder``; it writes a digest of its weights, or its error, beside it."""
    import torch

    from purifiers.errors import PurifiersError
    from purifiers.recipes.load import load_recipe
    from purifiers.training.distributed import together
    from purifiers.training.pipeline import train_recipe

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    note = folder.with_name(f"{folder.name}-{rank}")
    try:
        with together():
            note.write_text("")
            run = train_recipe(load_recipe("digits", SETTINGS), folder, device="cpu")
        note.write_text(json.dumps([fingerprint(one.network) for one in run.purifiers.values()]))
    except PurifiersError as error:
        note.write_text(str(error))
        raise SystemExit(1) from error


def _started(size: int, folder: Path) -> list:  # type: ignore[type-arg]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [_PROCESSES.Process(target=_train, args=(rank, size, port, folder)) for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def _notes(size: int, folder: Path) -> list[str | None]:
    """What each process has written; None before they have met."""
    files = [folder.with_name(f"{folder.name}-{rank}") for rank in range(size)]
    return [file.read_text() if file.exists() else None for file in files]


def _trained(size: int, folder: Path) -> dict[str, list[float]]:
    """The losses of each stage of a training by ``size`` processes, which must end with the same weights."""
    for process in _started(size, folder):
        process.join()
        assert process.exitcode == 0, f"a process of {size} ended with {process.exitcode}: {_notes(size, folder)}"
    assert len({*_notes(size, folder)}) == 1, f"{size} processes have different weights"
    return _losses(folder)


def _losses(folder: Path) -> dict[str, list[float]]:
    states = {stage: folder / "checkpoints" / stage / "state.safetensors" for stage in STAGES}
    return {stage: [record["loss"] for record in load_state(file)["history"]] for stage, file in states.items()}


def _difference(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    pairs = [pair for stage in STAGES for pair in zip(one[stage], other[stage], strict=True)]
    return max(abs(a - b) / abs(a) for a, b in pairs)


def _by_torchrun(folder: Path) -> dict[str, list[float]]:
    """The command itself, on two nodes of one process each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:29477", "-m", "purifiers", "train", "--recipe=digits", "--device=cpu"]
    command += [f"--output={folder}", *(f"--set={setting}" for setting in SETTINGS)]
    for node in [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]:
        assert node.wait() == 0, "torchrun failed"
    return _losses(folder)


def as_one(count: int, folder: Path) -> Result:
    """Train by 2, 3, ... processes, and once by torchrun on two nodes, and compare with one process."""
    expected, result, most = _trained(1, folder / "one"), Result(count, 0, "trainings"), 0.0
    for number in range(count):
        try:
            found = _by_torchrun(folder / "nodes") if number == 1 else _trained(2 + number, folder / str(number))
        except AssertionError as error:
            result.failures.append(str(error))
            continue
        most = max(most, difference := _difference(expected, found))
        if difference > TOLERANCE:
            result.failures.append(f"training {number}: losses differ by {difference:.1e}")
        else:
            result.survived += 1
    result.figures = f"losses differ by at most {most:.0e}"
    return result


def killed(count: int, folder: Path) -> Result:
    """Kill one of several processes at a random moment, and let another number of them finish."""
    begun = time.monotonic()
    expected, result = _trained(1, folder / "one"), Result(0, 0, "kills")
    whole, draw, slowest, tries = time.monotonic() - begun, random.Random(count), 0.0, 0
    while result.injected < count and (tries := tries + 1) < 10 * count:
        size, others = draw.choice((2, 3)), draw.choice((1, 2, 3))
        output = folder / str(tries)
        processes = _started(size, output)
        while None in _notes(size, output) and all(process.is_alive() for process in processes):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, whole))
        victim = draw.choice(processes)
        if not all(process.is_alive() for process in processes):
            continue  # it was over
        os.kill(victim.pid or 0, signal.SIGKILL)
        result.injected += 1
        begun = time.monotonic()
        for process in processes:
            process.join(max(0, begun + SECONDS - time.monotonic()))
        slowest = max(slowest, time.monotonic() - begun)
        notes = [note for process, note in zip(processes, _notes(size, output), strict=True) if process is not victim]
        try:
            assert not any(process.is_alive() for process in processes), f"a process still waits after {SECONDS} s"
            assert all(process.exitcode for process in processes), "a process ended as if nothing had happened"
            assert all("another one ended" in (note or "") for note in notes), f"no message: {notes}"
            difference = _difference(expected, _trained(others, output))
            assert difference <= TOLERANCE, f"{size} processes, then {others}: losses differ by {difference:.1e}"
            result.survived += 1
        except AssertionError as error:
            result.failures.append(str(error))
        finally:
            for process in processes:
                process.kill()
    result.figures = f"the others end within {slowest:.1f} s"
    return result


PROMISES = {
    "ranks": Promise(
        "Several processes train the purifier that one would.",
        "the whole pipeline by 2 and more processes, and by torchrun on two nodes, against one: same losses, and the same "
        "weights in each process",
        as_one,
        quick=1,
        long=4,
    ),
    "ranks-killed": Promise(
        "A process that dies ends the training with a message, and any number of processes resume it.",
        "SIGKILL to one of 2 or 3 processes at a random moment, then the same training by 1, 2 or 3",
        killed,
        quick=1,
        long=20,
    ),
}
