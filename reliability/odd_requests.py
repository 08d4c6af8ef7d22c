"""Requests that schemathesis draws from the service's own description of its interface."""

import re
import subprocess
import sys
from pathlib import Path

from load import serving
from promise import Promise, Result

LEFT_OUT = "positive_data_acceptance"  # random bytes are a valid body, but no image
OPERATIONS = 4


def odd_requests(count: int, folder: Path) -> Result:
    """About ``count`` requests."""
    with serving(folder, "--classifier", "cifar10-resnet20") as server:
        words = ["run", f"http://127.0.0.1:{server.port}/openapi.json", "--checks", "all", "--exclude-checks", LEFT_OUT]
        words += [
            "--max-examples",
            str(max(1, count // OPERATIONS)),
            "--seed",
            "0",
            "--no-color",
            "--generation-database",
            "none",
        ]
        run = subprocess.run(
            [Path(sys.executable).with_name("schemathesis"), *words], cwd=folder, capture_output=True, text=True
        )
    log = (folder / "log").read_text()
    failures = [] if run.returncode == 0 else [run.stdout[-3000:] + run.stderr[-500:]]
    failures += [log[-1000:]] if "Traceback" in log else []
    found = re.search(r"(\d+) generated, (\d+) passed", run.stdout)
    done, passed = map(int, found.groups()) if found else (count, 0)
    return Result(done, passed, "requests", "", failures)


PROMISES = {
    "odd-requests": Promise(
        "The service answers any request as its OpenAPI description says.",
        "requests drawn by schemathesis, valid and not, to every route; status, headers and content are checked",
        odd_requests,
        20,
        2_000,
    ),
}
