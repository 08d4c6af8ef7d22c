"""The container file, and the unit in docs/operating.md: what they copy is there, and what they run is a command."""

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from purifiers.cli import cli
from tests.test_install import OPTIONAL

ROOT = Path(__file__).parents[2]
UNIT = next(re.finditer(r"```ini\n(.*?)```", (ROOT / "docs" / "operating.md").read_text(), flags=re.S))[1]
INSTRUCTIONS = [
    (line.partition(" ")[0], line.partition(" ")[2])
    for line in (ROOT / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]


def instruction(name: str) -> list[str]:
    return [rest for found, rest in INSTRUCTIONS if found == name]


def serve(words: list[str]) -> dict[str, object]:
    """The options of a command line, which has to be a valid one of 'purifiers serve'."""
    assert Path(words[0]).name == "purifiers"
    assert words[1] == "serve"
    return dict(typer.main.get_command(cli).commands["serve"].make_context("serve", words[2:]).params)


def test_the_container_copies_what_is_there_and_installs_an_extra_that_exists() -> None:
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in INSTRUCTIONS} <= known
    for rest in instruction("COPY"):
        *sources, _ = rest.split()
        assert all((ROOT / source).exists() for source in sources)
    (run,) = instruction("RUN")
    (extra,) = re.findall(r"\.\[(\w+)\]", run)
    assert extra in OPTIONAL
    assert re.fullmatch(r"python:3\.1[123]-slim", *instruction("FROM"))


def test_the_container_serves_as_an_unprivileged_user_and_looks_at_its_health() -> None:
    names = [name for name, _ in INSTRUCTIONS]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert instruction("USER") != ["root"]
    (entry,), (command,) = map(instruction, ("ENTRYPOINT", "CMD"))
    options = serve([*json.loads(entry), *json.loads(command)])
    assert instruction("EXPOSE") == [str(options["port"])]
    assert f"127.0.0.1:{options['port']}/health" in instruction("HEALTHCHECK")[0]


def test_the_unit_runs_a_command_and_restarts_it() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT)
    serve(shlex.split(unit["Service"]["ExecStart"]))
    assert unit["Service"]["Restart"] == "on-failure"
    with pytest.raises(typer.TyperException):
        serve([*shlex.split(unit["Service"]["ExecStart"]), "--no-such-option"])
