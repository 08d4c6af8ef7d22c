"""What the documents say can be typed: every command is one that the command line knows, every name can be imported."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

from purifiers.cli import cli
from purifiers.recipes.load import load_recipe
from purifiers.registry import load_network
from purifiers.weights import locate

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


def test_the_first_python_of_the_readme_runs() -> None:
    body = next(body for language, body in blocks(ROOT / "README.md") if language == "python")
    names = {"classifier": load_network(locate("cifar10-resnet20")), "images": torch.rand(2, 3, 32, 32)}
    exec(body, names)
    assert names["logits"].shape == (2, 10)


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
