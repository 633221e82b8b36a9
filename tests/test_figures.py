"""Pictures that texts show are made by `make figures`, and nothing else lies in figures/."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT

from taia_lens import results
from taia_lens.summaries import attribution_summary

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *NOTEBOOKS]
MOST = 15e6  # bytes of all that is kept


def script(name: str) -> ModuleType:
    """A file of figures/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "figures" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclass looks itself up there, and one imports the other
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn() -> ModuleType:
    return script("drawn")


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


def test_a_figure_that_is_drawn_otherwise_than_it_was_would_be_noticed(drawn: ModuleType) -> None:
    make, figure = script("make"), drawn.FIGURES["04_compare"]
    picture = figure.draw(figure.summarise(drawn.saved(figure, again=False)))
    make.check("04_compare", picture)
    trace = next(trace for trace in picture.data if trace.error_x.array is not None)
    trace.error_x.array = [2 * number for number in trace.error_x.array]
    with pytest.raises(SystemExit, match=r"04_compare\.json does not hold what is drawn now"):
        make.check("04_compare", picture)


def test_what_is_kept_is_what_is_made_and_no_more_than_fifteen_megabytes(drawn: ModuleType) -> None:
    kept = [path for path in (ROOT / "figures").rglob("*") if path.suffix in (".svg", ".json", ".nc")]
    wanted = {f"{name}{end}" for name in drawn.FIGURES for end in (".svg", ".json")}
    assert {path.name for path in kept} == wanted | {f"{figure.compute.__name__}.nc" for figure in drawn.FIGURES.values()}
    assert sum(path.stat().st_size for path in kept) < MOST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_first_answers_last_and_keeps_no_output(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    assert cells[0]["cell_type"] == "markdown" and texts[0].startswith("# ") and "?" in texts[0]
    answer = texts.index("## The answer")
    assert cells[answer + 1]["cell_type"] == "code" and "print(" in texts[answer + 1]  # computed, not written
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def test_what_the_readme_says_of_attribution_is_what_was_found() -> None:
    summary = attribution_summary(results.load(ROOT / "figures" / "saved" / "attributed.nc"))
    assert f"by {float(summary.off.sel(among='all')):.0%} of what patching does" in TEXTS[0].read_text(encoding="utf-8")
    said, found = (
        summary.check.values[np.argsort(-abs(summary[f"check_{name}"]).values)][:2].tolist() for name in ("attributed", "patched")
    )
    assert said == found[::-1]  # "the right two, in the wrong order"
