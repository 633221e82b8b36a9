"""Make every figure in this folder again, and the README's tables: `make figures`.

SVG, the numbers of each figure (JSON) and the results that it is drawn from (saved/) are kept in git, interactive HTML is not. Figures are
drawn from saved results; `--again` computes all results anew. With `--check` nothing is written: every figure is drawn again from its saved
result, those that are quick to compute from a new one too, and their numbers are held against what is kept.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from drawn import FIGURES, SHARED, Drawn, grid, one_layer, saved
from rich.console import Console

import taia_lens as tl
from taia_lens.cli.patch import print_summary

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
# Sums are taken in another order on another machine; an accuracy moves by whole prompts, a log-probability by rounding.
TOLERANCE = 2e-3


def main_job_text(summary: xr.Dataset) -> str:
    """What `taia-lens patch --component mlp --layer 12` prints on a terminal, but for the run folder's path."""
    out = Console(file=io.StringIO(), width=140, highlight=False)
    print_summary(out, summary)
    return _fenced(out)


def compare_text(summary: xr.Dataset) -> str:
    """The out-of-distribution table of `taia-lens compare`, and its sentences."""
    out = Console(file=io.StringIO(), width=140, highlight=False)
    out.print(tl.tables.grid_tables(summary)[2])
    for sentence in tl.sentences(summary):
        out.print(textwrap.fill(sentence, 140), markup=False)
    return _fenced(out)


def _fenced(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    lines = [line.rstrip() for line in out.file.getvalue().splitlines()]
    return "```\n" + "\n".join(lines) + "\n```\n"


BLOCKS = {"main job": (one_layer, main_job_text), "compare": (grid, compare_text)}


def block(name: str) -> re.Pattern[str]:
    """Where the README shows what a command prints."""
    return re.compile(rf"(?<=<!-- {name}: begin -->\n).*(?=<!-- {name}: end -->)", re.DOTALL)


def same_text(a: str, b: str) -> bool:
    """Equal words, and numbers that are close."""
    number = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?")
    if number.sub("#", a) != number.sub("#", b):
        return False
    return all(close(float(x) / 10, float(y) / 10) for x, y in zip(number.findall(a), number.findall(b), strict=True))


def check_readme(name: str, text: str) -> None:
    kept = block(name).search(README.read_text(encoding="utf-8"))
    # The noise floor is rounding itself and differs from machine to machine.
    ours, theirs = (re.sub(r"noise floor.*", "", t) for t in (text, kept[0] if kept else ""))
    if not same_text(ours, theirs):
        sys.exit(f"README.md does not show what is printed now ({name}); run python figures/make.py --again")
    print(f"README.md, {name}: as kept")


def close(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= TOLERANCE * max(1.0, abs(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def numbers(figure: go.Figure) -> list[dict]:
    """What is drawn, trace by trace."""
    out = []
    for trace in figure.data:
        drawn = {name: trace[name] for name in ("name", "x", "y", "z") if name in trace}
        bars = {f"{end} of {axis}": trace[axis][end] for axis in ("error_x", "error_y") if axis in trace for end in ("array", "arrayminus")}
        out.append({"type": trace.type} | {name: _plain(value) for name, value in (drawn | bars).items() if value is not None})
    return out


def _plain(value: object) -> object:
    """For JSON: six digits, and nothing where there is no number."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def provenance(drawn: Drawn, result: xr.Dataset) -> dict:
    """Where the numbers come from: what was asked, and of the result itself the models, the prompts, the seed and the versions."""
    said = {
        name: _plain(result.attrs[name]) for name in ("study", "fingerprint", "suites", "suite", "seed", "versions") if name in result.attrs
    }
    return {"asked": (drawn.compute.__doc__ or "").split("\n")[0], **said}


def check(name: str, figure: go.Figure) -> None:
    kept = json.loads((HERE / f"{name}.json").read_text())["drawn"]
    if not close(json.loads(json.dumps(numbers(figure))), kept):
        sys.exit(f"figures/{name}.json does not hold what is drawn now; run python figures/make.py --again, and look at the figure")


def write(name: str, drawn: Drawn, result: xr.Dataset, summary: xr.Dataset) -> None:
    figure = drawn.draw(summary)
    (HERE / f"{name}.json").write_text(json.dumps(provenance(drawn, result) | {"drawn": numbers(figure)}) + "\n")
    figure.write_html(HERE / f"{name}.html", include_plotlyjs="directory")
    tl.write_image(figure, HERE / f"{name}.svg")
    print(f"figures/{name}.svg, .json, .html")


def check_shared(name: str) -> bool:
    """Whether the real models and data are here; a machine without them goes on without the figure, CI does not."""
    if SHARED.is_dir():
        return True
    if os.environ.get("CI"):
        sys.exit(f"figures/{name}: no folder shared beside the project")
    print(f"figures/{name}: drawn from the saved result; its model and texts lie in a folder shared beside the project, which is not here")
    return False


def checked() -> None:
    """Draw everything again, and compute again what is quick to compute."""
    kept: dict[str, xr.Dataset] = {}
    computed: dict[str, xr.Dataset] = {}
    for name, drawn in FIGURES.items():
        made_by = drawn.compute.__name__
        if made_by not in kept:
            kept[made_by] = drawn.summarise(saved(drawn, again=False))
        check(name, drawn.draw(kept[made_by]))
        if drawn.quick:
            if made_by not in computed:
                computed[made_by] = drawn.summarise(drawn.compute())
            check(name, drawn.draw(computed[made_by]))
        print(f"figures/{name}: as kept" + ("" if drawn.quick else " (drawn from its saved result, which takes minutes to compute)"))
    for name, text in texts(computed).items():
        check_readme(name, text)


def texts(summaries: Mapping[str, xr.Dataset]) -> dict[str, str]:
    return {name: make_text(summaries[compute.__name__]) for name, (compute, make_text) in BLOCKS.items()}


def made(*, again: bool) -> None:
    """Draw everything, from the results that are kept or from new ones."""
    found: dict[str, tuple[xr.Dataset, xr.Dataset]] = {}
    for name, drawn in FIGURES.items():
        made_by = drawn.compute.__name__
        if made_by not in found:
            result = saved(drawn, again=again and (not drawn.needs_shared or check_shared(name)))
            found[made_by] = result, drawn.summarise(result)
        write(name, drawn, *found[made_by])
    for name, text in texts({made_by: summary for made_by, (_, summary) in found.items()}).items():
        README.write_text(block(name).sub(lambda _, new=text: new, README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    checked() if "--check" in sys.argv[1:] else made(again="--again" in sys.argv[1:])
