"""Make every figure in this folder again: `make figures`. SVG and meta JSON are kept in git, interactive HTML is not.

With `--check` nothing is written: the numbers are computed again and held against the kept meta JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import plotly.graph_objects as go

import taia_lens as tl
from taia_lens import tables
from taia_lens.results import versions

HERE = Path(__file__).parent
# Sums are taken in another order on another machine; an accuracy moves by whole prompts, a log-probability by rounding.
TOLERANCE = 2e-3


def quickstart() -> tuple[go.Figure, list[dict]]:
    """The figure of notebooks/01_quickstart.ipynb and of the README: the main job."""
    summary = tl.summary(tl.patch(tl.demo_pair(), tl.demo_suite(), component="mlp", layers=12))
    return tl.patch_figure(summary), tables.records(summary)


def layers() -> tuple[go.Figure, list[dict]]:
    """The same over all layers, attention and FFN."""
    summary = tl.summary(tl.patch(tl.demo_pair(), tl.demo_suite(), component=["attn", "mlp"]))
    return tl.patch_figure(summary), tables.records(summary)


FIGURES = {"01_quickstart": quickstart, "01_quickstart_layers": layers}


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
    (HERE / f"{name}.json").write_text(json.dumps({"versions": versions(), "results": records}, indent=1) + "\n")
    figure.write_html(HERE / f"{name}.html", include_plotlyjs=True)
    figure.write_image(HERE / f"{name}.svg", width=900)
    print(f"figures/{name}.svg, .json, .html")


def main() -> None:
    for name, make in FIGURES.items():
        figure, records = make()
        if "--check" in sys.argv[1:]:
            check(name, records)
        else:
            write(name, figure, records)


if __name__ == "__main__":
    main()
