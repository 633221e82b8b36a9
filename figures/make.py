"""Make every figure in this folder again, and the README's tables: `make figures`.

SVG and meta JSON are kept in git, interactive HTML is not. Figures are drawn from the results in runs/figures; what is missing there is
computed, and everything with `--again`. With `--check` nothing is written: numbers are computed anew and held
against what is kept.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

import xarray as xr
from drawn import FIGURES, SHARED, Drawn, grid, one_layer, saved
from rich.console import Console

import taia_lens as tl
from taia_lens.cli.patch import print_summary

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
# Sums are taken in another order on another machine; an accuracy moves by whole prompts, a log-probability by rounding.
TOLERANCE = 2e-3
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


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
        sys.exit(f"README.md does not show what is printed now ({name}); run make figures")
    print(f"README.md, {name}: as kept")


def close(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (a != a and b != b) or abs(a - b) <= TOLERANCE * max(1.0, abs(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def check(name: str, records: list[dict]) -> None:
    kept = json.loads((HERE / f"{name}.json").read_text())["results"]
    if len(kept) != len(records) or any(not close(new[k], old[k]) for new, old in zip(records, kept, strict=True) for k in old):
        sys.exit(f"figures/{name}.json does not hold what is computed now; run make figures, and look at the figure")
    print(f"figures/{name}: as kept")


def write(name: str, drawn: Drawn, summary: xr.Dataset) -> None:
    figure, records = drawn.draw(summary), drawn.records(summary)
    (HERE / f"{name}.json").write_text(json.dumps({"versions": tl.results.versions(), "results": records}, indent=1) + "\n")
    figure.write_html(HERE / f"{name}.html", include_plotlyjs="directory")
    figure.write_image(HERE / f"{name}.svg", width=900)
    print(f"figures/{name}.svg, .json, .html")


def check_shared(name: str) -> bool:
    """Whether the real models and data are here; a machine without them goes on without the figure, CI does not."""
    if SHARED.is_dir():
        return True
    if os.environ.get("CI"):
        sys.exit(f"figures/{name}: no folder shared beside the project")
    print(f"figures/{name}: left as it is; its model and texts lie in a folder shared beside the project, which is not here")
    return False


def checked() -> None:
    """Compute what is quick to compute, and hold it against what is kept."""
    computed: dict[str, xr.Dataset] = {}
    for name, drawn in FIGURES.items():
        if not drawn.check:
            print(f"figures/{name}: made by make figures; not computed again here, it takes minutes")
            continue
        made_by = drawn.compute.__name__
        if made_by not in computed:
            computed[made_by] = drawn.compute()
        check(name, json.loads(json.dumps(drawn.records(drawn.summarise(computed[made_by])))))
    for name, (compute, make_text) in BLOCKS.items():
        drawn = next(d for d in FIGURES.values() if d.compute is compute)
        check_readme(name, make_text(drawn.summarise(computed[compute.__name__])))


def made(*, again: bool) -> None:
    """Draw everything, from the results that are kept or, where there are none, from new ones."""
    if not any(shutil.which(browser) for browser in BROWSERS):
        sys.exit("SVG files are drawn by Chrome or Chromium, and none is installed; install one (Debian: apt-get install chromium)")
    summaries: dict[str, xr.Dataset] = {}
    for name, drawn in FIGURES.items():
        made_by = drawn.compute.__name__
        if drawn.needs_shared and not check_shared(name):
            continue
        if made_by not in summaries:
            summaries[made_by] = drawn.summarise(saved(drawn, again=again))
        write(name, drawn, summaries[made_by])
    for name, (compute, make_text) in BLOCKS.items():
        text = make_text(summaries[compute.__name__])
        README.write_text(block(name).sub(lambda _, new=text: new, README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    checked() if "--check" in sys.argv[1:] else made(again="--again" in sys.argv[1:])
