"""Kills, full disks, damaged files, two runs at once, and too little memory: no fault costs finished work or changes a number.

Every run is a process forked from this one, which has loaded the library already, so that thousands of them take minutes.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
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
from purifiers.data import load_images
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
    try:
        torch.set_num_threads(1)
        with note.with_suffix(".log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
            console.file = log
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            content = json.dumps(work())
            note.with_suffix(".part").write_text(content)
            note.with_suffix(".part").rename(note)
            status = 0
    except BaseException:
        import traceback

        note.with_suffix(".log").open("a").write(traceback.format_exc())
    finally:
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


def train(folder: Path) -> Any:
    """The whole training; its weights and losses."""
    run = train_recipe(load_recipe("digits", SETTINGS), folder, device="cpu")
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


def evaluate(base: Path, folder: Path) -> Any:
    """The measurements of a run."""
    results, _ = evaluate_run(_copy(base, folder))
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
    return {file.name: len(file.read_text()) for file in folder.iterdir() if file.suffix in (".md", ".html")}


def clean(base: Path, folder: Path) -> Any:
    """Twelve image files purified, and each compared; what is in the files."""
    purifier = Purifier.from_pretrained(str(base))
    purify_files(purifier, base.parents[1] / "pictures", folder / "out", compare=folder / "compared")
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(folder)): np.asarray(Image.open(file)).astype(int).sum().item() for file in files}


def prepared(folder: Path) -> Path:
    """A trained run in ``folder``, and pictures beside it."""
    torch.set_num_threads(1)
    metrics.LEAST_SECONDS, metrics.SIZE = 0.001, {"cpu": 256}  # times are not compared
    load_images("digits", "train", size=16)  # imports what reads them
    draw = np.random.default_rng(0)
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


def work_of(name: str, base: Path) -> Work:
    """One of ``WORKS``; all but the training are about the trained run ``base``."""
    function, _ = WORKS[name]
    return function if function is train else partial(function, base)


# Promises -------------------------------------------------------------------------------------------------------------------


def kills(count: int, folder: Path) -> Result:
    """SIGKILL at a random moment; then the same again, undisturbed."""
    base, draw, result = prepared(folder), random.Random(count), Result(0, 0, "kills")
    shares = [name for name, (_, share) in WORKS.items() for _ in range(share)]
    for name in WORKS:
        own = len(range(count)[shares.index(name) :: len(shares)]) * shares.count(name)
        work = work_of(name, base)
        undisturbed(work, folder / "first")  # imports, and what is kept in the run
        begun = time.monotonic()
        expected = undisturbed(work, folder / "whole")
        seconds = time.monotonic() - begun
        for number in range(own):
            output = folder / f"{name}-{number}"
            while True:  # until it is killed before it ends
                child = forked(partial(work, output / "out"), output.with_name(f"{output.name}.json"))
                time.sleep(draw.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
                if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL:
                    break
                shutil.rmtree(output, ignore_errors=True)
            result.injected += 1
            status, found, log = done(work, output)
            if status == 0 and found == expected:
                result.survived += 1
            else:
                result.failures.append(f"{name}, kill {number}: status {status}, same {found == expected}: {log[-300:]}")
            shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(folder / "first", ignore_errors=True)
        shutil.rmtree(folder / "whole", ignore_errors=True)
    result.figures = "of " + ", ".join(WORKS)
    return result


PROMISES = {
    "kills": Promise(
        "A process that is killed loses no finished work, and the next run ends with the same results",
        "SIGKILL at a random moment of training, attacks, evaluation, audit, certification, page writing and bulk cleaning; the "
        "next run is compared with an undisturbed one, to the last digit",
        kills,
        quick=12,
        long=1000,
    ),
}
