"""What the documents say can be typed: every command is one that the command line knows, every name can be imported."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor, nn

from purifiers import PurifiedClassifier, Purifier
from purifiers.attacks import VIEWS
from purifiers.cli import cli
from purifiers.data import DATASETS, load_images, to_float
from purifiers.evaluation.records import Results
from purifiers.recipes.load import load_recipe
from purifiers.registry import build_network

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    """The code blocks of a page, fenced or indented: (language, text)."""
    text = page.read_text()
    fenced = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", text, flags=re.M | re.S)
    rest = re.sub(r"^( *)```\w*\n.*?^\1```", "", text, flags=re.M | re.S)
    indented = re.findall(r"(?:^(?: {4}| {10}).*\n?)+", rest, flags=re.M)
    return [(language, body) for _, language, body in fenced] + [("", body) for body in indented]


def commands(page: Path) -> list[list[str]]:
    """What is typed after ``purifiers``, word by word."""
    found = []
    for language, body in blocks(page):
        if language in ("", "sh", "bash", "console"):
            for line in body.replace("\\\n", " ").splitlines():
                match = re.match(r"\s*(?:\$ )?(?:\w+=\S+ )*purifiers (.*)", line)
                if match:
                    found.append(shlex.split(match[1], comments=True))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one(page: Path) -> None:
    table = typer.main.get_command(cli).commands
    for name, *words in commands(page):
        assert name in table, f"{page.name}: purifiers {name}"
        try:
            parsed = table[name].make_context(name, [word for word in words if word != "&"]).params
        except typer.TyperException as error:
            raise AssertionError(f"{page.name}: purifiers {shlex.join([name, *words])}: {error}") from error
        recipe = parsed.get("recipe") or ("digits" if name == "train" else None)
        if parsed.get("settings") and recipe and not Path(recipe).suffix:
            load_recipe(recipe, parsed["settings"])


def test_commands_are_found() -> None:
    assert len(commands(ROOT / "README.md")) >= 5
    assert len({words[0] for page in PAGES for words in commands(page)}) >= 7


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_the_documents_names_what_exists(page: Path) -> None:
    for language, body in blocks(page):
        if language != "python" and not re.match(r"\s*(from|import) purifiers", body):
            continue
        lines = body.splitlines()
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        for node in ast.walk(ast.parse("\n".join(line[indent:] for line in lines))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("purifiers"):
                module = importlib.import_module(node.module or "")
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{page.name}: {node.module} has no {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or target.startswith("#"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name} links to {target}; there are {sorted(slugs)}"


def python_of(page: Path) -> str:
    return next(body for language, body in blocks(page) if language == "python")


def test_the_lines_of_use_run_as_they_stand() -> None:
    names: dict[str, Any] = {}
    exec(compile(python_of(ROOT / "README.md"), "README.md", "exec"), names)
    assert isinstance(names["model"], PurifiedClassifier)
    change = names["adversarial"] - names["images"]
    assert 0.9 * 8 / 255 < change.abs().max() <= 8 / 255 + 1e-6


@pytest.mark.parametrize("name", ["cifar10/tuned", "cifar10-cpu/strong-cpu"])
def test_the_results_of_the_overview_are_the_measured_ones(name: str) -> None:
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `{name.split('/')[0]}`"))
    cells = [float(match) for match in re.findall(r"\| ([\d.]+)", row)]
    records = [one for one in Results.read(ROOT / "results" / name).records if one.purifier == "student"]
    views = (
        [one for one in records if one.view == "none"],
        [one for one in records if one.view == "blind" and one.norm == "linf" and one.epsilon == pytest.approx(8 / 255)],
        [one for one in records if one.view == "full"],
    )
    assert cells == pytest.approx([100 * min(one.accuracy for one in view) for view in views], abs=0.051)


def test_the_additions_of_the_architecture_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(python_of(ROOT / "docs" / "architecture.md"))
    monkeypatch.chdir(tmp_path)
    for registry in (VIEWS, DATASETS):
        monkeypatch.setattr(registry, "_entries", {name: registry[name] for name in registry})
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    settings = {
        "purifier": "{network: 'mine:Net'}",
        "data": "{name: 'mine:squares'}",
        "baselines": "{few: {kind: untrained, network: {network: 'mine:Posterise', levels: 3}}}",
        "training_attacks": "{Darker: {kind: 'mine:Darker'}}",
        "evaluation.attacks": "{Darker: {kind: 'mine:Darker'}}",
        "evaluation.adaptive_attacks": "[]",
        "evaluation.views": "[second_half]",
    }
    recipe = load_recipe("digits", [f"{key}={value}" for key, value in settings.items()])
    data = load_images(recipe.data.name, "test")
    images = to_float(data.images)
    network = recipe.baselines["few"].network
    assert build_network(network.network, network.arguments)(images).unique().numel() == 3
    torch.manual_seed(0)  # of the network's weights
    model = PurifiedClassifier(Purifier(build_network(recipe.purifier.network, {})), Brightness())
    attack = recipe.evaluation.attacks["Darker"]
    adversarial = attack(VIEWS["second_half"](model), images, data.labels)
    assert (model(adversarial).argmax(1) == data.labels).all()
    torch.testing.assert_close(adversarial, (images - 8 / 255).clamp(0, 1))


class Brightness(nn.Module):
    """Classifies dark and bright images."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)
