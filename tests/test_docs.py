"""The pages of docs/: each study has one, and what they say can be typed in."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT
from typer.main import get_command

import taia_lens as tl
from taia_lens.cli import app

PAGES = sorted((ROOT / "docs").glob("*.md"))
STUDIES = ("patch", "attribute", "compare", "layers", "heads", "lofit", "transfer", "steer", "anatomy", "drift", "lens", "attention")


def commands_in(text: str) -> list[list[str]]:
    """The arguments of each `taia-lens` line in a page's blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line, comments=True)[1:] for block in blocks for line in block.splitlines() if line.startswith("taia-lens ")]


def test_every_study_has_a_page_and_the_index_names_it() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for study in STUDIES:
        assert f"[{study}]({study}.md)" in index and (ROOT / "docs" / f"{study}.md").is_file()
    for name in re.findall(r"`tl\.([a-z.]+)`", index):
        assert getattr(tl, name.split(".")[0])


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in STUDIES], ids=lambda page: page.stem)
def test_a_page_says_what_it_asks_how_to_read_and_what_fools_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert all(said in text for said in ("**It asks**", "**How to read its figure", "**What fools it.**"))
    lines = commands_in(text)
    assert lines and any(line[0] == page.stem for line in lines)
    known = get_command(app).commands  # type: ignore[attr-defined]
    for line in lines:
        command = known[line[0]] if line[0] != "lofit" else known["lofit"].commands[line[1]]
        options = {opt for param in command.params for opt in param.opts}
        assert {word for word in line if word.startswith("--")} <= options, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
