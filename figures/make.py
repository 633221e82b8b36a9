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
import textwrap
from functools import cache
from pathlib import Path

import plotly.graph_objects as go
import xarray as xr
from rich.console import Console

import taia_lens as tl
from taia_lens.cli.patch import print_summary

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
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


@cache
def grid() -> xr.Dataset:
    """What `taia-lens compare` computes on the demo pair."""
    return tl.grid_summary(tl.compare(tl.demo_pair(), tl.demo_suite(), batch_size=128))


def compared() -> tuple[go.Figure, list[dict]]:
    """TAIA, its mirror and its controls."""
    return tl.compare_figure(grid()), tl.tables.grid_records(grid())


def plane() -> tuple[go.Figure, list[dict]]:
    """The same recipes, in distribution against out of it."""
    return tl.plane_figure(grid()), tl.tables.grid_records(grid())


@cache
def credit() -> xr.Dataset:
    """What `taia-lens layers --limit 150 --budget 248` computes on the demo pair; takes a minute or two."""
    rows = tl.demo_suite().limit(150, seed=0)
    return tl.layers_summary(tl.layers(tl.demo_pair(), rows, sampling=tl.Sampling(budget=248), batch_size=128))


def credited() -> tuple[go.Figure, list[dict]]:
    """Every view of every layer."""
    return tl.layers_figure(credit()), tl.tables.layers_records(credit())


def gains() -> tuple[go.Figure, list[dict]]:
    """Shapley values out of and in distribution, and their difference."""
    return tl.gains_figure(credit(), view="shapley"), tl.tables.layers_records(credit())


def shapley() -> tuple[go.Figure, list[dict]]:
    """Shapley values by layer, stacked, with the sum that they come to."""
    return tl.shapley_figure(credit()), tl.tables.layers_records(credit())


def lens() -> tuple[go.Figure, list[dict]]:
    """What base, vanilla and TAIA say after each layer, on the first prompt out of distribution."""
    row = next(row for row in tl.demo_suite().rows if row.domain == "ood")
    result = tl.lens(tl.demo_pair(), row)
    return tl.lens_figure(result), result.logprob.to_dataframe().reset_index()[["recipe", "layer", "logprob"]].to_dict("records")


FIGURES = {
    "01_quickstart": quickstart,
    "01_quickstart_layers": layers,
    "02_compare": compared,
    "02_plane": plane,
    "02_layers": credited,
    "02_gains": gains,
    "02_shapley": shapley,
    "03_lens": lens,
}
SLOW = ("02_layers", "02_gains", "02_shapley")


def main_job_text() -> str:
    """What `taia-lens patch --component mlp --layer 12` prints on a terminal, but for the run folder's path."""
    out = Console(file=io.StringIO(), width=140, highlight=False)
    print_summary(out, tl.summary(tl.patch(tl.demo_pair(), tl.demo_suite(), component="mlp", layers=12)))
    return _fenced(out)


def compare_text() -> str:
    """The out-of-distribution table of `taia-lens compare`, and its sentences."""
    out = Console(file=io.StringIO(), width=140, highlight=False)
    out.print(tl.tables.grid_tables(grid())[2])
    for sentence in tl.sentences(grid()):
        out.print(textwrap.fill(sentence, 140), markup=False)
    return _fenced(out)


def _fenced(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    lines = [line.rstrip() for line in out.file.getvalue().splitlines()]
    return "```\n" + "\n".join(lines) + "\n```\n"


BLOCKS = {"main job": main_job_text, "compare": compare_text}


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
        return abs(a - b) <= TOLERANCE * max(1.0, abs(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    return a == b


def check(name: str, records: list[dict]) -> None:
    kept = json.loads((HERE / f"{name}.json").read_text())["results"]
    if len(kept) != len(records) or any(not close(new[k], old[k]) for new, old in zip(records, kept, strict=True) for k in old):
        sys.exit(f"figures/{name}.json does not hold what is computed now; run make figures, and look at the figure")
    print(f"figures/{name}: as kept")


def write(name: str, figure: go.Figure, records: list[dict]) -> None:
    (HERE / f"{name}.json").write_text(json.dumps({"versions": tl.results.versions(), "results": records}, indent=1) + "\n")
    figure.write_html(HERE / f"{name}.html", include_plotlyjs="directory")
    if not any(shutil.which(browser) for browser in BROWSERS):
        sys.exit("SVG files are drawn by Chrome or Chromium, and none is installed; install one (Debian: apt-get install chromium)")
    figure.write_image(HERE / f"{name}.svg", width=900)
    print(f"figures/{name}.svg, .json, .html")


def main() -> None:
    checking = "--check" in sys.argv[1:]
    for name, make_text in BLOCKS.items():
        text = make_text()
        if checking:
            check_readme(name, text)
        else:
            README.write_text(block(name).sub(lambda _, new=text: new, README.read_text(encoding="utf-8")), encoding="utf-8")
    for name, make in FIGURES.items():
        if checking and name in SLOW:
            print(f"figures/{name}: made by make figures; not computed again here, it takes minutes")
            continue
        figure, records = make()
        if checking:
            check(name, records)
        else:
            write(name, figure, records)


if __name__ == "__main__":
    main()
