"""The examples, as they stand, in an empty folder: one as a process of its own, the others in this one and at a smaller size."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from purifiers.data import ImageSet, load_images
from purifiers.recipes.load import load_recipe
from purifiers.recipes.schema import Recipe
from tests.docs.test_documents import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example that the test names, which trains with the test's overrides besides its own, and tests on 50 images."""
    name, *overrides = request.param

    def smaller_recipe(recipe: str, own: list[str]) -> Recipe:
        return load_recipe(recipe, [*own, *overrides])

    def fewer_images(dataset: str, split: str, **options: int) -> ImageSet:
        images = load_images(dataset, split, **options)
        return images.limited(50, seed=0) if split == "test" else images

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("purifiers.recipes.load.load_recipe", smaller_recipe)
    monkeypatch.setattr("purifiers.data.load_images", fewer_images)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def shares(text: str, label: str) -> list[float]:
    """The percentages of the lines that hold ``label``."""
    return [float(number) for line in text.splitlines() if label in line for number in re.findall(r"([\d.]+)%", line)]


def test_there_is_a_test_for_each() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == [
        "audit_my_own_defence",
        "protect_my_classifier",
        "what_the_attacker_knows",
    ]


@pytest.mark.parametrize(
    "example",
    [
        (
            "protect_my_classifier",
            "purifier={network: cae, widths: [8, 12], blocks: [1, 1], residual: true}",
            "training_attacks.PGD.num_steps=4",
            *("data.limit=700", "teacher_at.epochs=4", "teacher_at.batch_size=64", "student.epochs=3", "student.batch_size=64"),
        )
    ],
    indirect=True,
    ids=["small"],
)
def test_a_purifier_for_a_classifier_of_ones_own(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    printed = "\n".join(capsys.readouterr().out.splitlines()[-5:])
    alone, purified, attacked, defended, known = shares(printed, "%")
    assert min(alone, purified) > 90 and attacked < 30  # a classifier, and an attack that breaks it
    assert defended > 80 and known < defended


def test_a_defence_that_only_seems_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "audit_my_own_defence.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (seeming,), (worst,) = shares(done.stdout, "  full PGD"), shares(done.stdout, " worst all attacks")
    assert seeming > 80 and worst < 40
    assert "do not believe what gradients alone say. gradients exist" in done.stdout


SMALL = (
    "classifier.network={network: resnet, depth: 8, width: 8}",
    *("data.limit=500", "student.epochs=2"),
    *(f"{stage}.batch_size=32" for stage in ("classifier.training", "teacher_at", "student")),
)


@pytest.mark.parametrize("example", [("what_the_attacker_knows", *SMALL)], indirect=True)
def test_the_more_an_attacker_knows_the_less_is_left(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "EPSILONS", (0.1,))
    example.main()
    printed = capsys.readouterr().out
    left = {view: sum(shares(printed, f"{view}: ")) for view in ("blind", "bpda", "full")}
    assert left["blind"] > left["full"] + 25
    assert (tmp_path / "attackers.png").stat().st_size > 1000


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_notebooks_too(path: Path) -> None:
    assert path.read_text().startswith("# %% [markdown]\n# # ")
