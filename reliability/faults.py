"""Kills, full disks, damaged files, two runs at once, and too little memory: no fault costs finished work or changes a number.

Every run is a process forked from this one, which has loaded the library already, so that thousands of them take minutes.
"""

import atexit
import errno
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from promise import Promise, Result

from purifiers.attacks.generate import generate
from purifiers.bulk.purify_files import purify_files
from purifiers.cache import Cache
from purifiers.console import console
from purifiers.data import load_images, to_float
from purifiers.evaluation import metrics
from purifiers.evaluation.audit.run import audit_by_name
from purifiers.evaluation.certify import Smoothing, certify_run
from purifiers.evaluation.evaluate import evaluate_run
from purifiers.purifier import Purifier
from purifiers.recipes.load import load_recipe
from purifiers.registry import fingerprint
from purifiers.reports.pages import write_report
from purifiers.runs import RECIPE_FILE, Run, open_run
from purifiers.shards import Shard
from purifiers.training import loop
from purifiers.training.pipeline import train_recipe

SETTINGS = [
    *("data.limit=48", "data.test_limit=24", "purifier.widths=[4,6]", "purifier.blocks=[1,1]", "evaluation.batch_size=8"),
    *("classifier.network.depth=8", "classifier.network.width=4", "training_attacks.PGD.num_steps=2", "baselines={}"),
    *("classifier.training.epochs=2", "classifier.training.batch_size=16"),
    *(f"{stage}.{option}" for stage in ("teacher_at", "teacher_nt", "student") for option in ("epochs=2", "batch_size=16")),
    "evaluation.attacks={PGD: {kind: pgd, epsilon: 0.1, step_size: 0.05, num_steps: 2}, FGSM: {kind: fgsm, epsilon: 0.1}}",
    "audit.views={full: [PGD, FGSM], bpda: [PGD], eot: [], blind: [PGD], transfer: [], query: []}",
    *("audit.attacks.PGD.num_steps=2", "audit.images=24", "audit.check_images=0", "audit.cascade=true"),
]
"""A recipe that takes a second, all in all."""
SECONDS = 600  # after which a run that does not end is a failure
TIMES = {"seconds", "images_per_second", "peak_flops", "commit"}
"""What differs from run to run."""
Work = Callable[[Path], Any]
"""What a process does in its folder; what it returns is compared."""


# Processes ------------------------------------------------------------------------------------------------------------------


def forked(work: Callable[[], Any], note: Path) -> int:
    """Start ``work`` in a process of its own, which writes what it returns, as JSON, and what it prints beside ``note``."""
    note.unlink(missing_ok=True)
    if child := os.fork():
        return child
    os.setsid()
    status = 1
    with note.with_suffix(".log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            torch.set_num_threads(1)
            console.file = log
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line has it
            content = json.dumps(work())
            note.with_suffix(".part").write_text(content)
            note.with_suffix(".part").rename(note)
            status = 0
        except BaseException:
            traceback.print_exc()
        log.flush()
        os._exit(status)


def ended(child: int, seconds: float = SECONDS) -> int | None:
    """The exit status of a process; None if it had to be killed."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if (found := os.waitpid(child, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(found[1])
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def done(work: Work, folder: Path) -> tuple[int | None, Any, str]:
    """Run ``work`` in ``folder``: its exit status, what it returned, and what it printed."""
    note = folder.with_name(f"{folder.name}.json")
    status = ended(forked(partial(work, folder / "out"), note))  # its name stands in some results
    return status, json.loads(note.read_text()) if note.exists() else None, note.with_suffix(".log").read_text()


def undisturbed(work: Work, folder: Path) -> Any:
    """What ``work`` returns if nothing goes wrong."""
    status, found, log = done(work, folder)
    assert status == 0, log
    return found


def plain(value: Any) -> Any:
    """A result without times."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in TIMES}
    return [plain(item) for item in value] if isinstance(value, list) else value


# Works ----------------------------------------------------------------------------------------------------------------------


def train(folder: Path, shard: Shard | None = None) -> Any:
    """The whole training; its weights and losses."""
    run = train_recipe(load_recipe("digits", SETTINGS), folder, device="cpu", shard=shard)
    return [plain(run.histories), {name: fingerprint(one.network) for name, one in run.purifiers.items()}]


def _copy(base: Path, folder: Path) -> Run:
    """A trained run, whose results go to ``folder``."""
    run = open_run(load_recipe(base / RECIPE_FILE), base, "cpu")
    run.cache = folder / "cache"
    return run


def attack(base: Path, folder: Path) -> Any:
    """Adversarial examples of a data set."""
    run = _copy(base, folder)
    (pgd, *_) = run.recipe.evaluation.attacks.values()
    found = generate(pgd, run.classifier, run.images("test"), batch_size=4, cache=Cache(run.cache))
    return found.images.flatten().tolist()[::50]


def evaluate(base: Path, folder: Path, shard: Shard | None = None) -> Any:
    """The measurements of a run."""
    run = _copy(base, folder)
    run.shard = shard or Shard()
    results, _ = run.shard.finish(lambda: evaluate_run(run))
    results.write(folder)
    return plain(json.loads((folder / "results.json").read_text()))


def audit(base: Path, folder: Path, shard: Shard | None = None) -> Any:
    """An audit in a cascade, with trust checks."""
    found = audit_by_name([str(base)], [], folder, device="cpu", shard=shard)
    found.write(folder)
    return plain(json.loads((folder / "audit.json").read_text()))


def certify(base: Path, folder: Path, shard: Shard | None = None) -> Any:
    """Certificates of a few images."""
    run = _copy(base, folder)
    run.shard = shard or Shard()
    found = run.shard.finish(lambda: certify_run(run, "x", Smoothing(0.1, n0=4, n=20), 6))
    found.write(folder)
    return plain(json.loads((folder / "certificate.json").read_text()))


def report(base: Path, folder: Path) -> Any:
    """The pages of one evaluation, of which the measurements are given."""
    results, examples = evaluate_run(_copy(base, base / "measured"))
    fixed = results.model_copy(update={"seconds": {"training": 1.0, "evaluation": 1.0}, "costs": {}, "peak_flops": None})
    write_report(fixed, examples, folder)
    return {file.name: len(file.read_text()) for file in folder.glob("[!.]*") if file.suffix in (".md", ".html")}


def clean(base: Path, folder: Path, shard: Shard | None = None) -> Any:
    """Twelve image files purified, and each compared; what is in the files."""
    purifier = Purifier.from_pretrained(str(base))
    purify_files(purifier, base.parents[1] / "pictures", folder / "out", compare=folder / "compared", shard=shard)
    # Other shards list their failures until the last one joins the lists.
    files = [file for file in sorted(folder.rglob("[!.]*")) if file.is_file() and not file.match("failed-*-of-*.txt")]
    return {str(file.relative_to(folder)): np.asarray(Image.open(file)).astype(int).sum().item() for file in files}


@cache
def prepared() -> Path:
    """A trained run, and pictures two folders above it."""
    torch.set_num_threads(1)
    metrics.LEAST_SECONDS, metrics.SIZE = 0.001, {"cpu": 256}  # times are not compared
    load_images("digits", "train", size=16)  # imports what reads them
    folder, draw = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    (folder / "pictures").mkdir()
    for number in range(12):
        pixels = draw.integers(0, 256, (20 + number % 2, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    undisturbed(train, folder / "base")
    return folder / "base" / "out"


WORKS: dict[str, tuple[Callable[..., Any], int]] = {
    "training": (train, 3),
    "attacks": (attack, 3),
    "evaluation": (evaluate, 2),
    "audit": (audit, 1),
    "certificates": (certify, 1),
    "pages": (report, 1),
    "files": (clean, 3),
}
"""What is killed, and its share of the kills."""


def work_of(name: str) -> Work:
    """One of ``WORKS``; all but the training are about the trained run."""
    function, _ = WORKS[name]
    return function if function is train else partial(function, prepared())


@cache
def expected(name: str) -> Any:
    """What a work returns if nothing goes wrong."""
    with tempfile.TemporaryDirectory() as folder:
        return undisturbed(work_of(name), Path(folder) / "x")


def works(count: int, names: Sequence[str] = tuple(WORKS)) -> list[str]:
    """The works of ``count`` faults, by their shares."""
    shares = [name for turn in range(count) for name in names if turn < WORKS[name][1]]
    found = sorted((shares[number % len(shares)] for number in range(count)), key=names.index)
    for name in {*found}:
        expected(name)  # and its imports, for all processes
    return found


# Promises -------------------------------------------------------------------------------------------------------------------


class Survival:
    """Counts faults, and whether all was as promised after each."""

    def __init__(self, unit: str) -> None:
        self.result = Result(0, 0, unit)

    def judge(self, what: str, kept: object, log: str = "") -> None:
        """Count one fault."""
        self.result.injected += 1
        self.result.survived += bool(kept)
        if not kept:
            self.result.failures.append(f"{what}: {log.strip()[-600:]}")

    def same_again(self, name: str, output: Path, what: str, kept: object = True, log: str = "") -> None:
        """Count one fault of a work, which must end as undisturbed when it is done again in the same folder."""
        status, found, after = done(work_of(name), output)
        same = status == 0 and found == expected(name)
        self.judge(f"{name}, {what}", kept and same, log if not kept else f"afterwards status {status}: {after}")
        shutil.rmtree(output, ignore_errors=True)


def killed(name: str, output: Path, seconds: float, number: int, draw: random.Random) -> float | None:
    """Start a work and send it a signal at a random moment: how long it took to end; None if it was over before."""
    child = forked(partial(work_of(name), output / "out"), output.with_name(f"{output.name}.json"))
    time.sleep(draw.uniform(0, seconds))
    os.kill(child, number)
    begun = time.monotonic()
    status = ended(child)
    return time.monotonic() - begun if status == (-number if number == signal.SIGKILL else 1) else None


def _signals(number: int, unit: str, names: list[str], folder: Path) -> Result:
    survival, draw, slowest = Survival(unit), random.Random(len(names)), 0.0
    for name, group in groupby(names):
        begun = time.monotonic()
        undisturbed(work_of(name), folder / "whole")
        seconds = time.monotonic() - begun
        for one, _ in enumerate(group):
            output = folder / f"{name}-{one}"
            while (took := killed(name, output, seconds, number, draw)) is None:
                shutil.rmtree(output, ignore_errors=True)
            slowest = max(slowest, took)
            survival.same_again(name, output, f"{unit} {one}")
        shutil.rmtree(folder / "whole")
    survival.result.figures = "of " + ", ".join(dict.fromkeys(names))
    if number == signal.SIGTERM:
        survival.result.figures += f"; it ended within {slowest:.1f} s"
    return survival.result


def kills(count: int, folder: Path) -> Result:
    """SIGKILL at a random moment; then the same again, undisturbed."""
    return _signals(signal.SIGKILL, "kills", works(count), folder)


def terminations(count: int, folder: Path) -> Result:
    """SIGTERM at a random moment of a training, which then saves the epoch so far."""
    return _signals(signal.SIGTERM, "signals", works(count, ["training", "files"]), folder)


def full_disk(count: int, folder: Path) -> Result:
    """The k-th file cannot be written, or no file longer than k bytes can."""
    survival, draw = Survival("full disks"), random.Random(count)

    def run(name: str, output: Path) -> Any:
        if draw.random() < 0.3:
            size = draw.randrange(4096, 65536)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        else:
            calls, last, sync = iter(range(10**6)), draw.randrange(20), os.fsync

            def fails(handle: int) -> None:
                if next(calls) >= last:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                sync(handle)

            os.fsync = fails  # type: ignore[assignment]
        return work_of(name)(output)

    for number, name in enumerate(works(count)):
        draw.seed(f"{count}/{number}")
        status, found, log = done(partial(run, name), folder / str(number))
        kept = (status == 0 and found == expected(name)) or "No space left" in log or "File too large" in log
        survival.same_again(name, folder / str(number), f"full disk {number}", kept, log)
    return survival.result


def read_only(count: int, folder: Path) -> Result:
    """An output folder without the permission to write."""
    survival = Survival("read-only folders")
    folder.chmod(0o777)

    def run(name: str, output: Path) -> Any:
        if os.geteuid() == 0:  # whom permissions do not stop
            os.setgid(65534)
            os.setuid(65534)
        return work_of(name)(output)

    for number, name in enumerate(works(count)):
        output = folder / str(number)
        (output / "out").mkdir(parents=True)
        (output / "out").chmod(0o555)
        status, found, log = done(partial(run, name), output)
        # The bulk cleaning lists every file as a failure.
        kept = (
            "Permission denied" in log.splitlines()[-1:][0] if status else found == {} and not any((output / "out").iterdir())
        )
        (output / "out").chmod(0o755)
        survival.same_again(name, output, f"read-only folder {number}", kept, log)
    return survival.result


def _refused(status: int | None, log: str) -> bool:
    """Whether a process ended with an error of the library's own."""
    return status == 1 and log.splitlines()[-1].startswith("purifiers.errors.")


def damage(count: int, folder: Path) -> Result:
    """A bit flipped, or the end cut, in a checkpoint, weights or a cached file."""
    survival, draw, refused = Survival("damaged files"), random.Random(count), 0
    undisturbed(work_of("evaluation"), folder / "measured")
    for number in range(count):
        output = folder / f"run-{number}"
        shutil.copytree(prepared(), output / "out")
        shutil.copytree(folder / "measured", folder / f"measured-{number}")
        kept_by = {
            "training": [*output.rglob("state.safetensors"), *(output / "out" / "cache").iterdir()],
            "evaluation": [*(folder / f"measured-{number}").rglob("*.safetensors")],
            "networks": [*output.rglob("model.safetensors"), *output.rglob("config.json")],
        }
        kind = draw.choice(list(kept_by))
        file = draw.choice(sorted(kept_by[kind]))
        content = bytearray(file.read_bytes())
        if draw.random() < 0.5:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            del content[draw.randrange(len(content)) :]
        file.write_bytes(content)
        if kind == "training":
            status, found, log = done(train, output)
        elif kind == "evaluation":
            status, found, log = done(work_of(kind), folder / f"measured-{number}")
        else:
            status, found, log = done(partial(evaluate, output / "out"), folder / f"other-{number}")
        own = expected("training" if kind == "training" else "evaluation")
        same = status == 0 and json.dumps(found).replace(str(output / "out"), str(prepared())) == json.dumps(own)
        refused += _refused(status, log)
        survival.judge(f"{file.relative_to(folder)}, file {number}", same or _refused(status, log), log)
        for rest in (output, folder / f"measured-{number}", folder / f"other-{number}"):
            shutil.rmtree(rest, ignore_errors=True)
    survival.result.figures = f"{refused} refused, {survival.result.survived - refused} made again or without effect"
    return survival.result


def cut(count: int, folder: Path) -> Result:
    """A checkpoint cut at each hundredth of its length."""
    survival = Survival("cut checkpoints")
    for number in range(count):
        output, percent = folder / str(number), 100 * number // count
        shutil.copytree(prepared(), output / "out")
        file = output / "out" / "checkpoints" / "student" / "state.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[: len(content) * percent // 100])
        status, _, log = done(train, output)
        shutil.rmtree(file.parent)  # as the message advises
        survival.same_again("training", output, f"{percent} %", _refused(status, log) and "student" in log, log)
    return survival.result


def two_at_once(count: int, folder: Path) -> Result:
    """Two processes with one output: a second training is refused, all else ends as usual."""
    survival = Survival("pairs")
    for number, name in enumerate(works(count)):
        output, logs = folder / str(number), []
        notes = [folder / f"{number}-{one}.json" for one in "ab"]
        statuses = [ended(child) for child in [forked(partial(work_of(name), output / "out"), note) for note in notes]]
        for status, note in zip(statuses, notes, strict=True):
            log = note.with_suffix(".log").read_text()
            good = json.loads(note.read_text()) == expected(name) if status == 0 else "another process trains" in log
            logs += [] if good else [f"status {status}: {log}"]
        survival.same_again(name, output, f"pair {number}", not logs and 0 in statuses, "".join(logs))
    return survival.result


def not_finite(count: int, folder: Path) -> Result:
    """A step whose images are NaN, as after a fault of the device."""
    survival = Survival("steps")

    def run(last: int, output: Path) -> Any:
        calls = iter(range(10**6))
        vars(loop)["to_float"] = lambda batch: to_float(batch) * (float("nan") if next(calls) == last else 1.0)
        return train(output)

    for number in range(count):
        status, _, log = done(partial(run, number % 24), folder / str(number))
        kept = _refused(status, log) and "not finite" in log
        survival.same_again("training", folder / str(number), f"step {number}", kept, log)
    return survival.result


def memory(count: int, folder: Path) -> Result:
    """A device whose memory is too small for more than a few images at once."""
    survival = Survival("runs")

    def run(name: str, most: int, output: Path) -> Any:
        def small(module: torch.nn.Module, inputs: Any) -> None:
            if len(inputs) and isinstance(inputs[0], torch.Tensor) and inputs[0].ndim == 4 and len(inputs[0]) > most:
                raise torch.OutOfMemoryError("a small device")

        torch.nn.modules.module.register_module_forward_pre_hook(small)
        return work_of(name)(output)

    for number, name in enumerate(works(count, ["attacks", "evaluation", "certificates", "files"])):
        status, found, log = done(partial(run, name, 2 + number % 2), folder / str(number))
        # In smaller parts an attack rounds differently.
        alike = found == expected(name) if name in ("certificates", "files") else found is not None
        survival.judge(f"{name}, run {number}", status == 0 and alike and "too little memory" in log, log)
        shutil.rmtree(folder / str(number), ignore_errors=True)
    return survival.result


PROMISES = {
    "kills": Promise(
        "A process that is killed loses no finished work, and the next run ends with the same results.",
        "SIGKILL at a random moment of training, attacks, evaluation, audit, certification, page writing and bulk cleaning; "
        "the next run is compared with an undisturbed one, to the last digit",
        kills,
        quick=7,
        long=1000,
    ),
    "terminations": Promise(
        "SIGTERM ends a command within seconds, with a checkpoint.",
        "SIGTERM at a random moment of training and bulk cleaning; the next run as above",
        terminations,
        quick=1,
        long=50,
    ),
    "full-disk": Promise(
        "A full disk ends a command with a message, or costs the cache only; the next run ends with the same results.",
        "writing fails from the k-th file on, or beyond k bytes of a file",
        full_disk,
        quick=4,
        long=40,
    ),
    "read-only": Promise(
        "A read-only output folder is an error, and nothing is written elsewhere.",
        "every command with a folder that its user may not write to",
        read_only,
        quick=3,
        long=14,
    ),
    "damage": Promise(
        "A damaged checkpoint or weights file is refused, a damaged file of the cache made again; no number changes.",
        "one bit flipped or the end cut, in a random file of a run or its cache",
        damage,
        quick=4,
        long=100,
    ),
    "cut-checkpoints": Promise(
        "A checkpoint that is cut off is refused, and its stage trained again as the message advises.",
        "cut at every hundredth of its length",
        cut,
        quick=2,
        long=100,
    ),
    "two-at-once": Promise(
        "Two runs with one output do not harm each other: a second training is refused, all else gives the same results.",
        "two processes started at the same moment, and a third run afterwards",
        two_at_once,
        quick=4,
        long=40,
    ),
    "not-finite": Promise(
        "A loss that is not finite ends the training with a message, and the next run resumes before it.",
        "one step with images that are NaN, at each step in turn",
        not_finite,
        quick=1,
        long=24,
    ),
    "memory": Promise(
        "Where memory is too small for a batch, its halves are processed, and a line says so.",
        "out of memory for more than 2 or 3 images of batches of 4 and 8; certificates and files stay the same",
        memory,
        quick=2,
        long=40,
    ),
}
