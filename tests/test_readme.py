"""What the README says can be typed in."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from conftest import ROOT
from typer.main import get_command

from taia_lens.cli import app
from taia_lens.suite import make_suite

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_example_runs_word_for_word() -> None:
    code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names: dict[str, object] = {}
    exec(code, names)
    assert {"pair", "suite", "result", "summary"} <= names.keys()


def test_the_suite_example_is_a_suite() -> None:
    (rows,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert len(make_suite("readme", [json.loads(line) for line in rows.splitlines()])) == 2


def test_every_option_and_command_it_names_exists() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = {
        o
        for c in (*commands.values(), *(sub for group in ("demo", "suite", "lofit") for sub in commands[group].commands.values()))
        for p in c.params
        for o in p.opts
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert named and named <= options | {"--help"}
    used = set(re.findall(r"taia-lens ([a-z]+)", TEXT)) - {"takes"}
    assert used == set(commands)


def test_the_tours_commands_lack_nothing_that_they_need() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    tour = TEXT[TEXT.index("## A one-minute tour") :].split("\n## ")[0]
    lines = [shlex.split(line) for line in re.findall(r"`taia-lens ([^`]+)`", tour)]
    assert len(lines) >= 8
    for line in lines:
        command = commands[line[0]].commands[line[1]] if line[0] == "lofit" else commands[line[0]]
        options = {option for param in command.params for option in param.opts}
        assert {word for word in line if word.startswith("-")} <= options, line
        for param in command.params:
            assert not param.required or param.param_type_name == "argument" or set(param.opts) & set(line), (line, param.name)
