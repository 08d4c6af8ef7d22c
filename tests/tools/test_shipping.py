"""The maintainers' scripts, run at their smallest into folders of their own."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import purifiers
import purifiers.weights
from purifiers import Purifier
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.records import Results
from purifiers.storage import load_tensors, save_tensors
from tests.conftest import copied

TOOLS = Path(__file__).parents[2] / "tools"
Tool = Callable[..., None]
COMMIT = "0123456789ab"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tool]:
    """Run a script, as if the repository and the library's weights were in ``tmp_path``."""
    shutil.copytree(TOOLS, tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("results", "weights"):
        (tmp_path / folder).mkdir()
    (tmp_path / "results" / "shipped.json").write_text("{}")
    monkeypatch.setattr(purifiers.weights, "__file__", str(tmp_path / "weights" / "__init__.py"))
    changed = (tmp_path / "results" / "tiny").exists  # by what the script itself writes, as git sees it
    monkeypatch.setattr("purifiers.evaluation.records._commit", lambda: COMMIT + "-dirty" * changed())
    monkeypatch.syspath_prepend(tmp_path / "tools")

    def run(name: str, *arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(tmp_path / "tools" / name), run_name="__main__")

    yield run
    sys.modules.pop("keep_results", None)


@pytest.fixture(scope="module")
def evaluated(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained and measured, from a source tree without changes."""
    folder = copied(measured, tmp_path_factory.mktemp("shipping")).rename(tmp_path_factory.mktemp("runs") / "tiny")
    results = Results.read(folder)
    results.versions["commit"] = COMMIT
    results.write(folder)
    return folder


def test_results_are_kept_without_the_places_of_files(evaluated: Path, tool: Tool, tmp_path: Path) -> None:
    kept = tmp_path / "results" / "tiny"
    tool("keep_results.py", evaluated, kept)
    assert {path.name for path in kept.iterdir()} == {"results.json", "tables.md"}
    assert str(tmp_path) not in (kept / "results.json").read_text()
    measured, copied = (json.loads((folder / "results.json").read_text())["records"] for folder in (evaluated, kept))
    assert copied == measured
    assert "PGD" in (kept / "tables.md").read_text()


def test_no_place_is_left_in_any_key(evaluated: Path, tool: Tool, tmp_path: Path) -> None:
    results = Results.read(evaluated)
    home = str(tmp_path / "home")
    results.recipe["audit"]["surrogates"] = [f"{home}/mine+cifar10-resnet20", f"hf:{home}/theirs"]
    results.recipe["variants"] = {"other": {"student.start": f"{home}/start"}}
    results.write(tmp_path)
    tool("keep_results.py", tmp_path, tmp_path / "kept")
    recipe = Results.read(tmp_path / "kept").recipe
    assert home not in json.dumps(recipe)
    assert recipe["audit"]["surrogates"] == ["mine+cifar10-resnet20", "hf:theirs"]


def test_results_of_changed_sources_are_not_kept(evaluated: Path, tool: Tool, tmp_path: Path) -> None:
    results = (evaluated / "results.json").read_text().replace(COMMIT, f"{COMMIT}-dirty")
    (tmp_path / "results.json").write_text(results)
    with pytest.raises(SystemExit, match="uncommitted"):
        tool("keep_results.py", tmp_path, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_the_cards_that_ship_are_those_of_the_kept_results(tool: Tool, tmp_path: Path) -> None:
    shipped = Path(purifiers.__file__).parent / "weights"
    for name, source in (("weights", shipped), ("results", TOOLS.parent / "results")):
        shutil.copytree(source, tmp_path / name, dirs_exist_ok=True)
    tool("ship_weights.py", "--cards")
    cards = [*shipped.glob("*/README.md")]
    assert len(cards) > 5
    for card in cards:
        assert (tmp_path / "weights" / card.parent.name / card.name).read_text() == card.read_text(), card


def test_a_purifier_and_its_classifier_ship_with_cards(evaluated: Path, tool: Tool, tmp_path: Path) -> None:
    tool("ship_weights.py", evaluated, "tiny", "--classifiers", "classifier=tiny-resnet", "--note", "Only a test.", "--rows")
    for name in ("tiny", "tiny-resnet"):
        folder = tmp_path / "weights" / name
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
        assert "Only a test." in (folder / "README.md").read_text()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shipped, own = (Purifier.from_pretrained(folder)(images) for folder in (tmp_path / "weights" / "tiny", evaluated))
    torch.testing.assert_close(shipped, own, atol=0.1 / 255, rtol=0)
    halved, full = (folder / "model.safetensors" for folder in (tmp_path / "weights" / "tiny", evaluated))
    assert halved.stat().st_size < 0.75 * full.stat().st_size
    kept = tmp_path / "results" / "tiny"
    assert (kept / "tiny" / "results.json").is_file()
    networks = kept / "weights" / evaluated.name
    rows = {path.name for path in networks.iterdir()}
    assert rows >= {"teacher_at", "teacher_nt", "student_at", "student_nt"} and "student" not in rows
    row, own = (Purifier.from_pretrained(folder / "teacher_at")(images) for folder in (networks, evaluated / "checkpoints"))
    torch.testing.assert_close(row, own, atol=0.1 / 255, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--audit", "dirty"], "audit"), (["--also", "one/same", "other/same"], "same"), (["--also", "audit"], "audit")],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    evaluated: Path, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    audit = Audit.read(evaluated)
    audit.versions["commit"] = f"{COMMIT}-dirty"
    audit.write(tmp_path / "dirty")
    with pytest.raises(SystemExit) as refused:
        tool("ship_weights.py", evaluated, "tiny", *(one if one[0] == "-" else tmp_path / one for one in arguments))
    assert named in f"{refused.value}{capsys.readouterr().err}"
    assert not list((tmp_path / "results").glob("*/")) and not list((tmp_path / "weights").iterdir())


def test_what_rounding_spoils_is_refused_before_anything_is_written(evaluated: Path, tool: Tool, tmp_path: Path) -> None:
    run = copied(evaluated, tmp_path)
    tensors, _ = load_tensors(run / "model.safetensors")
    kernel = next(tensor for tensor in tensors.values() if tensor.ndim > 1)
    kernel[:] *= 1e5 / kernel.abs().max()  # infinite in float16
    save_tensors(run / "model.safetensors", tensors)
    with pytest.raises(SystemExit, match="float32"):
        tool("ship_weights.py", run, "tiny")
    assert not list((tmp_path / "results").glob("*/")) and not list((tmp_path / "weights").iterdir())


def test_an_audit_is_kept_without_the_places_of_files(evaluated: Path, tool: Tool, tmp_path: Path) -> None:
    audit, home = Audit.read(evaluated), str(tmp_path / "home")
    audit.versions["commit"] = COMMIT
    audit.settings["surrogates"] = [f"{home}/mine+cifar10-resnet20"]
    audit.write(tmp_path / "measured")
    tool("ship_weights.py", evaluated, "tiny", "--audit", tmp_path / "measured")
    kept = Audit.read(tmp_path / "results" / "tiny" / "audit")
    assert kept.settings["surrogates"] == ["mine+cifar10-resnet20"]
    assert kept.records == audit.records


def test_links_to_the_repository_become_links_within_the_site() -> None:
    hook = runpy.run_path(str(TOOLS / "docs_hooks.py"))["on_page_markdown"]
    root = TOOLS.parent
    files = SimpleNamespace(get_file_from_path={"results/README.md", "limits.md", "readme.md"}.__contains__)

    def on(page: str, markdown: str) -> str:
        place = page.removeprefix("docs/")
        return hook(markdown, page=SimpleNamespace(file=SimpleNamespace(abs_src_path=root / page, src_uri=place)), files=files)

    assert on("docs/audit.md", "[a](../results/README.md#b) [c](limits.md)") == "[a](results/README.md#b) [c](limits.md)"
    assert on("results/README.md", "[a](../docs/limits.md) [b](../README.md)") == "[a](../limits.md) [b](../readme.md)"
    assert on("docs/audit.md", "[a](../LICENSE), [b](https://x.org/y) [c](#d)") == "a, [b](https://x.org/y) [c](#d)"


def test_cross_references_become_plain_names() -> None:
    hook = runpy.run_path(str(TOOLS / "docs_hooks.py"))["on_page_content"]
    assert hook("see :class:<code>Purifier</code>, :meth: <code>save</code>") == "see <code>Purifier</code>, <code>save</code>"
