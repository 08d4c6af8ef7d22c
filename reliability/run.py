"""Test the promises of docs/reliability.md, and write there what was found.

    python reliability/run.py [--quick] [--only NAME ...] [--count N]

With --quick nothing is written: the page shows the last long run of each promise. Exits with status 1 if a promise is broken.
"""

import argparse
import faulthandler
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import cluster
import faults
import fuzz
import load
import odd_requests
import odd_tensors
import ranks
import shards
from promise import Promise, Result

from purifiers.evaluation.records import versions
from purifiers.storage import write_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RECORDS = ROOT / "reliability" / "results.json"
BEGIN, END = "<!-- the table begins -->\n", "<!-- the table ends -->\n"
HANGS = {True: 120, False: 4 * 3600}
"""Seconds after which a promise that is still being tested is a hang: all stacks are printed, and the run ends."""

PROMISES: dict[str, Promise] = {
    **cluster.PROMISES,
    **faults.PROMISES,
    **fuzz.PROMISES,
    **load.PROMISES,
    **odd_requests.PROMISES,
    **odd_tensors.PROMISES,
    **ranks.PROMISES,
    **shards.PROMISES,
}


def tested(promise: Promise, count: int, quick: bool) -> dict[str, Any]:
    """The record of one test, as it is kept."""
    begun = time.perf_counter()
    faulthandler.dump_traceback_later(HANGS[quick], exit=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = promise.test(count, Path(folder))
        except Exception:
            result = Result(count, 0, "", failures=[traceback.format_exc()])
    faulthandler.cancel_dump_traceback_later()
    seconds = round(time.perf_counter() - begun, 1)
    return {**vars(result), "kept": result.kept, "seconds": seconds, "commit": versions()["commit"]}


def table(records: dict[str, Any]) -> str:
    """The table of the page, in Markdown."""
    lines = ["| promise | how it is tested | last run | seconds | commit |", "|---|---|---|---:|---|"]
    for name, promise in PROMISES.items():
        cells = ["not run yet", "", ""]
        if found := records.get(name):
            last = f"{found['survived']:,} of {found['injected']:,} {found['unit']}"
            last += f"; {found['figures']}" if found["figures"] else ""
            cells = [last if found["kept"] else f"**broken**: {last}", f"{found['seconds']:,.0f}", f"`{found['commit']}`"]
        lines.append(f"| {promise.title} | {promise.how} (`{name}`) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Test, print and write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts, for CI; writes nothing")
    parser.add_argument("--only", nargs="+", choices=PROMISES, default=list(PROMISES), metavar="NAME", help=", ".join(PROMISES))
    parser.add_argument("--count", type=int, help="in place of each promise's own")
    chosen = parser.parse_args()
    broken = 0
    for name in chosen.only:
        promise = PROMISES[name]
        record = tested(promise, chosen.count or (promise.quick if chosen.quick else promise.long), chosen.quick)
        if record["skipped"]:
            print(f"skipped {name}: {record['skipped']}", flush=True)
            continue
        verdict = "kept" if record["kept"] else "BROKEN"
        numbers = f"{record['survived']:,} of {record['injected']:,} {record['unit']}, {record['seconds']:g} s"
        print(f"{verdict:7} {name}: {numbers}", record["figures"], sep="; " if record["figures"] else "", flush=True)
        for failure in record["failures"][:20]:
            print(f"        {failure}", flush=True)
        broken += not record["kept"]
        if not chosen.quick:  # at once: a long run may be stopped
            records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
            write_text(RECORDS, json.dumps({**records, name: record}, indent=1, sort_keys=True) + "\n")
            before, _, rest = PAGE.read_text().partition(BEGIN)
            write_text(PAGE, before + BEGIN + table(json.loads(RECORDS.read_text())) + END + rest.partition(END)[2])
    print(f"{len(chosen.only) - broken} of {len(chosen.only)} promises kept")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
