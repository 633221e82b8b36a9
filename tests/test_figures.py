"""Pictures that texts show are made by `make figures`, and nothing else lies in figures/."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *NOTEBOOKS]
MOST = 15e6  # bytes of all that is kept


@pytest.fixture(scope="module")
def drawn() -> ModuleType:
    spec = importlib.util.spec_from_file_location("drawn", ROOT / "figures" / "drawn.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["drawn"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def shown(path: Path) -> list[str]:
    """The figures that a text shows."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return re.findall(r"\((?:\.\./)?figures/([^)\s]+)\)", text)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_figure_that_a_text_shows_is_made_and_kept(path: Path, drawn: ModuleType) -> None:
    names = shown(path)
    assert names or path not in (TEXTS[0], *NOTEBOOKS)
    for name in names:
        assert name.removesuffix(".svg") in drawn.FIGURES, f"{path.name} shows figures/{name}, which figures/drawn.py does not make"
        assert (ROOT / "figures" / name).is_file()


def test_a_figure_that_nothing_makes_would_be_noticed(tmp_path: Path, drawn: ModuleType) -> None:
    page = tmp_path / "page.md"
    page.write_text("![a](../figures/01_quickstart.svg) ![b](figures/99_lost.svg)")
    assert [name.removesuffix(".svg") in drawn.FIGURES for name in shown(page)] == [True, False]


def test_what_is_kept_is_what_is_made_and_no_more_than_fifteen_megabytes(drawn: ModuleType) -> None:
    kept = [path for path in (ROOT / "figures").iterdir() if path.suffix in (".svg", ".json")]
    assert {path.name for path in kept} == {f"{name}{end}" for name in drawn.FIGURES for end in (".svg", ".json")}
    assert sum(path.stat().st_size for path in kept) < MOST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_first_answers_last_and_keeps_no_output(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    assert cells[0]["cell_type"] == "markdown" and texts[0].startswith("# ") and "?" in texts[0]
    answer = texts.index("## The answer")
    assert cells[answer + 1]["cell_type"] == "code" and "print(" in texts[answer + 1]  # computed, not written
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
