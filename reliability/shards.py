"""Work that several processes share in one folder, against one process."""

import json
import shutil
from functools import partial
from pathlib import Path

from faults import WORKS, Survival, ended, expected, forked, prepared, train, works
from promise import Promise, Result

from purifiers.shards import Shard

SHARED = ("training", "evaluation", "audit", "certificates", "files")


def shared(count: int, folder: Path) -> Result:
    """Each work by 2, 3, ... processes at once: whoever completes it has the result of one process."""
    survival = Survival("works")
    for number, name in enumerate(works(count, SHARED)):
        processes, output = 2 + number % 4, folder / str(number) / "out"
        output.parent.mkdir()
        function, _ = WORKS[name]
        work = train if function is train else partial(function, prepared())
        notes = [output.with_name(f"{index}.json") for index in range(processes)]
        children = [forked(partial(work, output, shard=Shard(index, processes)), note) for index, note in enumerate(notes)]
        statuses = [ended(child) for child in children]
        logs = [note.with_suffix(".log").read_text() for note in notes]
        finished = [json.loads(note.read_text()) for note in notes if note.exists()]
        left = all(status == 0 or "errors.Unfinished" in log for status, log in zip(statuses, logs, strict=True))
        # Of files each process has its own share, and the last has all.
        kept = expected(name) in finished if name == "files" else finished and all(one == expected(name) for one in finished)
        lists = [*output.rglob("failed-*")]  # joined by the last one
        survival.judge(f"{name} by {processes}", left and kept and not lists, "\n".join([*logs, *map(str, lists)]))
        shutil.rmtree(output.parent)
    survival.result.figures = "by 2 to 5 processes"
    return survival.result


PROMISES = {
    "shards": Promise(
        "Work that several processes share in one folder gives the result of one, to the last digit.",
        "training, evaluation, audit, certification and bulk cleaning by 2 to 5 processes that start at once (`--shard`)",
        shared,
        quick=5,
        long=60,
    ),
}
