"""The house's rules: imports run one way, and what the library promises about itself holds."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import purifiers

SOURCE = Path(purifiers.__file__).parent

# From the top down: a part may import those after it, and its own. Training stands above all that uses what was trained, so
# that serving, exporting, evaluating and auditing import nothing of it.
ORDER = [
    "__main__",
    "cli",
    "training",
    "interop",
    "app",
    "serve",
    "bulk",
    "export",
    "reports",
    "evaluation",
    "runs",
    "recipes",
    "attacks",
    "cache",
    "kinds",
    "purifier",
    "hub",
    "classifiers",
    "baselines",
    "networks",
    "data",
    "registry",
    "forecast",
    "gradient_steps",
    "device",
    "console",
    "storage",
    "shards",
    "weights",
    "seeds",
    "errors",
    "version",
]


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("purifiers.")}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_downward(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    assert part in ORDER, f"{part} has no place in the order of imports"
    upward = {other for other in imported_parts(path) if ORDER.index(other) < ORDER.index(part)}
    assert not upward, f"{path.name} imports upward: {upward}"


SAME_STEM = {
    "load",  # recipes.load reads recipes, classifiers.load opens classifiers: each has its load_... function
}


def test_no_two_modules_have_one_stem() -> None:
    # The command line's modules are named for what their commands do.
    modules = [path for path in SOURCE.rglob("*.py") if part_of(path) != "cli" and path.stem != "__init__"]
    counts = Counter(path.stem for path in modules)
    assert {stem for stem, count in counts.items() if count > 1} <= SAME_STEM


def test_every_public_function_and_class_says_what_it_is() -> None:
    bare = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                bare.append(f"{path.name}: {node.name}")
    assert not bare


def test_texts_have_one_encoding_on_every_system() -> None:
    """Without one Python takes the system's, which on Windows is not the UTF-8 that we write."""
    texts = [
        f"{path.name}:{node.lineno}"
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text")
        if not {"encoding", "errors"} & {keyword.arg for keyword in node.keywords}
    ]
    assert texts == []


PROBE = """
import json, sys

loaded = {}
import purifiers.cli
loaded["cli"] = sorted(sys.modules)
from purifiers import Purifier
loaded["purifier"] = sorted(sys.modules)
import purifiers.serve.endpoints, purifiers.serve.server
Purifier.from_pretrained("cifar10")
loaded["serve"] = sorted(sys.modules)
print(json.dumps(loaded))
"""
HEAVY = {"foolbox", "lightning_fabric", "matplotlib", "pyautoattack", "scipy", "skimage", "sklearn", "torchmetrics"}


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The modules that a new process has loaded after it imported the command line, then the library, then the service."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the same library as this process
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, env=environment)
    return {name: set(modules) for name, modules in json.loads(done.stdout).items()}


def test_the_command_line_answers_before_torch_has_loaded(loaded: dict[str, set[str]]) -> None:
    assert "purifiers.cli" in loaded["cli"]
    assert "torch" not in loaded["cli"]


def test_names_of_the_library_are_loaded_when_they_are_asked_for() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Purifyer'"):
        purifiers.Purifyer  # noqa: B018


def test_importing_the_library_is_light(loaded: dict[str, set[str]]) -> None:
    """A service that only purifies does not pay for what trains, attacks and draws."""
    assert "purifiers.purifier" in loaded["purifier"]
    assert not HEAVY & loaded["purifier"]


def test_serving_imports_nothing_that_trains_or_evaluates(loaded: dict[str, set[str]]) -> None:
    rooms = {name.split(".")[1] for name in loaded["serve"] if name.startswith("purifiers.")}
    assert {"serve", "purifier"} <= rooms
    assert not rooms & {"training", "evaluation", "attacks", "recipes", "reports", "runs"}
    assert not HEAVY & loaded["serve"]
