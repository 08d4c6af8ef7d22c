"""What an install brings: the wheel in a fresh environment, and the library without the packages of its extras."""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tomllib
import venv
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import purifiers
from purifiers.errors import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL: dict[str, list[str]] = PROJECT["optional-dependencies"]
SITE = sysconfig.get_paths()["purelib"]


# Both read the metadata of every installed package.
owners_of_modules = cache(packages_distributions)


@cache
def requires(name: str) -> list[str]:
    return distribution(name).requires or []


def closure(requirements: list[str]) -> set[str]:
    """The names of all distributions that pip would install for these requirements, as installed here."""
    found: set[str] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name == "purifiers":
            todo += [Requirement(text) for extra in requirement.extras for text in OPTIONAL[extra]]
        elif name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found.add(name)
            todo += [Requirement(text) for text in requires(name)]
    return found


def modules_of(names: set[str]) -> set[str]:
    """The top-level modules that these distributions install."""
    installed = {re.sub(r"[-_.]+", "-", name).lower(): set() for name in names}
    for module, owners in owners_of_modules().items():
        for owner in owners:
            installed.setdefault(re.sub(r"[-_.]+", "-", owner).lower(), set()).add(module)
    return set().union(*(installed[name] for name in names))


CORE = closure(PROJECT["dependencies"])
TORCH = closure(["torch"])


def test_the_core_is_light() -> None:
    beside = CORE - TORCH
    assert len(beside) <= 11, f"with purifiers itself more than 12 packages: {sorted(beside)}"
    size = sum(Path(file.locate()).stat().st_size for name in beside for file in distribution(name).files or [])
    assert size < 120e6


def test_every_package_that_is_imported_comes_with_the_core_or_an_extra() -> None:
    known = {*sys.stdlib_module_names, "purifiers", *modules_of(closure(PROJECT["dependencies"])), *sum(EXTRAS.values(), ())}
    found = set()
    for path in Path(purifiers.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {name.split(".")[0] for name in names}
    assert found <= known, "add the package to an extra in pyproject.toml and to EXTRAS in errors.py"


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_installs_the_packages_that_it_is_named_for(extra: str) -> None:
    try:
        modules = modules_of(closure([*PROJECT["dependencies"], f"purifiers[{extra}]"]))
    except PackageNotFoundError as error:
        pytest.skip(f"{error} is not installed")
    assert set(EXTRAS[extra]) <= modules


def test_the_extra_all_has_all_of_them_but_the_large_ones() -> None:
    (everything,) = OPTIONAL["all"]
    assert set(OPTIONAL) - {"all", "dev", "docs"} == set(EXTRAS)
    assert Requirement(everything).extras == set(EXTRAS) - {"openvino", "ray"}
    assert {Requirement(text).name for text in OPTIONAL["dev"]} >= {"purifiers", "pytest", "ruff"}


HIDE = """
import sys
from importlib.machinery import PathFinder

class OnlyCore(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        known = name.partition(".")[0] in {allowed} or name.startswith("_sysconfigdata")
        return PathFinder.find_spec(name, path, target) if known else None

sys.meta_path[:] = [OnlyCore if finder is PathFinder else finder for finder in sys.meta_path]
"""


def run_with(code: str, *extras: str) -> subprocess.CompletedProcess[str]:
    """Run Python code where only the core and what these extras install can be imported."""
    packages = closure([*PROJECT["dependencies"], *(f"purifiers[{extra}]" for extra in extras)])
    allowed = {*modules_of(packages), *sys.stdlib_module_names, "purifiers"}
    environment = os.environ | {"PYTHONPATH": str(Path(purifiers.__file__).parents[1])}
    command = [sys.executable, "-c", HIDE.format(allowed=allowed) + code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_shipped_purifier_works_with_the_core_alone_and_what_is_missing_is_named(tmp_path: Path) -> None:
    done = run_with(f"""
import sys
from pathlib import Path

import torch
from PIL import Image

import purifiers
from purifiers import PurifiedClassifier, Purifier
from purifiers.cli import main
from purifiers.errors import ConfigError

model = PurifiedClassifier(Purifier.from_pretrained("cifar10"), torch.nn.Flatten())
assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3 * 32 * 32)

folder = Path({str(tmp_path)!r})
model.purifier.save_pretrained(folder / "saved")
Purifier.from_pretrained(folder / "saved")
(folder / "in").mkdir()
Image.new("RGB", (32, 32), "orange").save(folder / "in" / "a.png")
assert main(["purify", str(folder / "in"), str(folder / "out"), "--purifier", "cifar10"]) == 0
assert (folder / "out" / "a.png").is_file()

print("what is missing", flush=True)
print("what is missing", file=sys.stderr, flush=True)
for name in ("attacks", "train", "evaluate", "audit"):
    try:
        getattr(purifiers, name)
    except ConfigError as error:
        print(error)
sys.exit(10 + sum(main(command) for command in (["demo"], ["train"], ["audit", "cifar10"], ["serve", "cifar10"], ["app"])))
""")
    assert done.returncode == 10 + 5, done.stderr  # on the command line
    (_, out), (_, errors) = (text.split("what is missing\n") for text in (done.stdout, done.stderr))
    assert out.count("pip install 'purifiers[research]'") == 4, done.stderr  # in Python
    sentences = errors.splitlines()
    assert len(sentences) == 5
    assert ["purifiers[research]" in sentence for sentence in sentences[:3]] == [True] * 3
    assert all("which is not installed: pip install" in sentence for sentence in sentences)


def test_the_extra_onnx_is_enough_to_export(tmp_path: Path) -> None:
    target = tmp_path / "purifier.onnx"
    done = run_with(
        f"from purifiers.cli import main; raise SystemExit(main(['export', 'cifar10-cpu', {str(target)!r}]))", "onnx"
    )
    assert done.returncode == 0, done.stderr
    assert target.is_file()


def test_the_extra_serve_is_enough_to_serve() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = run_with(
        f"""
import os, signal, threading, time, urllib.request
from purifiers.cli import main

def stop():  # once it answers
    while True:
        try:
            urllib.request.urlopen("http://127.0.0.1:{port}/health")
            return os.kill(os.getpid(), signal.SIGTERM)
        except OSError:
            time.sleep(0.1)

threading.Thread(target=stop, daemon=True).start()
raise SystemExit(main(["serve", "cifar10-cpu", "--port", "{port}"]))
""",
        "serve",
    )
    assert done.returncode == 0, done.stderr


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints in an environment that knows nothing of this source tree."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a fresh environment with our wheel, which finds the other packages in this one."""
    folder = tmp_path_factory.mktemp("install")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src" / "purifiers", folder / "src" / "purifiers", ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", ".", cwd=folder)
    venv.create(folder / "venv", with_pip=False)
    commands = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", commands / "python", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (next((folder / "venv").rglob("site-packages")) / "others.pth").write_text(SITE)
    return commands


def test_the_wheel_works_elsewhere(installed: Path) -> None:
    assert run(installed / "purifiers", "--version", cwd=installed).split() == ["purifiers", purifiers.__version__]
    code = "from purifiers import Purifier; Purifier.from_pretrained('cifar10'); import purifiers; print(purifiers.__file__)"
    where = run(installed / "python", "-c", code, cwd=installed).strip()
    assert Path(where).is_relative_to(installed.parent)


def test_the_wheel_has_every_file_of_the_package(installed: Path) -> None:
    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}

    (package,) = installed.parent.rglob("site-packages/purifiers")
    assert files(package) == files(ROOT / "src" / "purifiers")
    assert {path.suffix for path in files(package)} >= {".py", ".yaml", ".j2", ".css", ".safetensors", ".json", ".md"}
