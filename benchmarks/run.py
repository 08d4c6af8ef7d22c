"""Measure speed, and write docs/performance.md.

    python -m benchmarks.run [--quick] [--only NAME ...]

With --quick everything runs at its smallest, and nothing is written: the page shows the last full run of each benchmark.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import attacks, growth, purification, training
from benchmarks.measure import Benchmark, machine
from purifiers.evaluation.records import versions
from purifiers.storage import write_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RECORDS = ROOT / "benchmarks" / "results.json"
BEGIN, END = "<!-- the tables begin -->\n", "<!-- the tables end -->\n"

BENCHMARKS: dict[str, Benchmark] = {
    **purification.BENCHMARKS,
    **training.BENCHMARKS,
    **attacks.BENCHMARKS,
    **growth.BENCHMARKS,
}


def measured(benchmark: Benchmark, quick: bool, commit: str) -> dict[str, Any]:
    """The record of a benchmark of this ``commit``, as it is kept."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        table = benchmark.run(quick, Path(folder))
    return {**vars(table), "machine": machine(), "seconds": round(time.perf_counter() - begun), "commit": commit}


def section(benchmark: Benchmark, record: dict[str, Any] | None) -> str:
    """A benchmark's part of the page, in Markdown."""
    lines = [f"## {benchmark.title}", "", benchmark.how, ""]
    if record is None:
        return "\n".join([*lines, "Not run yet.", "", ""])
    columns, at = record["columns"], record["machine"]
    lines += [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in record["rows"]]
    lines += ["", *(f"- {text}" for text in (*record["bars"], *record["notes"])), ""]
    lines[-1:] = [] if not (record["bars"] or record["notes"]) else [""]
    threads = "one thread" if at["threads"] == 1 else f"{at['threads']} threads"
    where = f"{at['processor']}, {threads}, torch {at['torch']}: {at['gflops']} GFLOP/s, copies {at['copy']} GB/s"
    return "\n".join([*lines, f"{where}; commit `{record['commit']}`, {record['seconds']} s.", "", ""])


def sections(records: dict[str, Any]) -> str:
    """All of the page that is not written by hand."""
    return "\n" + "".join(section(one, records.get(name)) for name, one in BENCHMARKS.items())


def main() -> int:
    """Measure, print and write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at its smallest, for tests; writes nothing")
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS)
    )
    chosen = parser.parse_args()
    commit = versions()["commit"]  # says whether anything was changed since, as the records below do
    for name in chosen.only:
        record = measured(BENCHMARKS[name], chosen.quick, commit)
        print(section(BENCHMARKS[name], record), flush=True)
        if not chosen.quick:  # at once: a long run may be stopped
            records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
            records[name] = record
            write_text(RECORDS, json.dumps(records, indent=1, sort_keys=True) + "\n")
            before, _, rest = PAGE.read_text().partition(BEGIN)
            write_text(PAGE, before + BEGIN + sections(records) + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
