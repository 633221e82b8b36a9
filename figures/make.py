"""Make every figure in this folder again, and the README's table: `make figures`.

SVG and meta JSON are kept in git, interactive HTML is not. With `--check` nothing is written: the numbers are computed again and
held against what is kept.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

import taia_lens as tl
from taia_lens.cli.patch import print_summary

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BLOCK = re.compile(r"(?<=<!-- main job: begin -->\n).*(?=<!-- main job: end -->)", re.DOTALL)
# Sums are taken in another order on another machine; an accuracy moves by whole prompts, a log-probability by rounding.
TOLERANCE = 2e-3
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def quickstart() -> tuple[go.Figure, list[dict]]:
    """The figure of notebooks/01_quickstart.ipynb and of the README: the main job."""
    summary = tl.summary(tl.patch(tl.demo_pair(), tl.demo_suite(), component="mlp", layers=12))
    return tl.patch_figure(summary), tl.tables.records(summary)


def layers() -> tuple[go.Figure, list[dict]]:
    """The same over all layers, attention and FFN."""
    summary = tl.summary(tl.patch(tl.demo_pair(), tl.demo_suite(), component=["attn", "mlp"]))
    return tl.patch_figure(summary), tl.tables.records(summary)


FIGURES = {"01_quickstart": quickstart, "01_quickstart_layers": layers}


def main_job_text() -> str:
    """What `taia-lens patch --component mlp --layer 12` prints on a terminal, but for the run folder's path."""
    out = Console(file=io.StringIO(), width=140, highlight=False)
    print_summary(out, tl.summary(tl.patch(tl.demo_pair(), tl.demo_suite(), component="mlp", layers=12)))
    assert isinstance(out.file, io.StringIO)
    lines = [line.rstrip() for line in out.file.getvalue().splitlines()]
    return "```\n" + "\n".join(lines) + "\n```\n"


def same_text(a: str, b: str) -> bool:
    """Equal words, and numbers that are close."""
    number = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?")
    if number.sub("#", a) != number.sub("#", b):
        return False
    return all(close(float(x) / 10, float(y) / 10) for x, y in zip(number.findall(a), number.findall(b), strict=True))


def check_readme(text: str) -> None:
    kept = BLOCK.search(README.read_text(encoding="utf-8"))
    # The noise floor is rounding itself and differs from machine to machine.
    ours, theirs = (re.sub(r"noise floor.*", "", t) for t in (text, kept[0] if kept else ""))
    if not same_text(ours, theirs):
        sys.exit("README.md does not show what the main job prints now; run make figures")
    print("README.md: as kept")


def close(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= TOLERANCE * max(1.0, abs(b))
    return a == b


def check(name: str, records: list[dict]) -> None:
    kept = json.loads((HERE / f"{name}.json").read_text())["results"]
    if len(kept) != len(records) or any(not close(new[k], old[k]) for new, old in zip(records, kept, strict=True) for k in old):
        sys.exit(f"figures/{name}.json does not hold what is computed now; run make figures, and look at the figure")
    print(f"figures/{name}: as kept")


def write(name: str, figure: go.Figure, records: list[dict]) -> None:
    (HERE / f"{name}.json").write_text(json.dumps({"versions": tl.results.versions(), "results": records}, indent=1) + "\n")
    figure.write_html(HERE / f"{name}.html", include_plotlyjs=True)
    if not any(shutil.which(browser) for browser in BROWSERS):
        sys.exit("SVG files are drawn by Chrome or Chromium, and none is installed; install one (Debian: apt-get install chromium)")
    figure.write_image(HERE / f"{name}.svg", width=900)
    print(f"figures/{name}.svg, .json, .html")


def main() -> None:
    text = main_job_text()
    if "--check" in sys.argv[1:]:
        check_readme(text)
    else:
        README.write_text(BLOCK.sub(lambda _: text, README.read_text(encoding="utf-8")), encoding="utf-8")
    for name, make in FIGURES.items():
        figure, records = make()
        if "--check" in sys.argv[1:]:
            check(name, records)
        else:
            write(name, figure, records)


if __name__ == "__main__":
    main()
