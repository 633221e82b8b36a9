"""The picture of a run: each contender's time as a multiple of the limit, one row a model and sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from side_by_side.report import OURS, Record, median, to_limit
from taia_lens import write_image
from taia_lens.errors import ResultError

# Okabe and Ito's colours, which people who see few colours can tell apart too; ours is black.
COLOURS = ("#000000", "#999999", "#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#56B4E9")
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
SYMBOLS = ("diamond", "circle", "square", "triangle-up", "triangle-down", "cross", "x", "star")


def figure(records: Sequence[Record]) -> go.Figure:
    """Dots on a log scale; 1 is the plan's work at the plain forward's throughput."""
    names = list(dict.fromkeys(name for one in records for name in one["contenders"]))
    made = go.Figure()
    for i, name in reversed(list(enumerate(names))):  # ours, the first, is drawn over the others
        some = [one for one in records if median(one, name) is not None]
        made.add_scatter(
            x=[to_limit(one, name) for one in some],
            y=[_row(one) for one in some],
            customdata=[median(one, name) for one in some],
            mode="markers",
            name=name,
            marker={"color": COLOURS[i % 8], "symbol": SYMBOLS[i % 8], "size": 12 if name == OURS else 9},
            hovertemplate="%{y}<br>%{x:.2f} x the limit, %{customdata:.3g} s<extra>" + name + "</extra>",
        )
    made.add_vline(x=1, line={"color": "#666", "dash": "dash"})
    # On a log axis an annotation stands at the logarithm.
    made.add_annotation(x=0, y=1, yref="paper", text="limit", showarrow=False, yanchor="bottom")
    rows = list(dict.fromkeys(_row(one) for one in records))
    made.update_xaxes(
        type="log", title="time, as a multiple of the limit", gridcolor="#ddd", tickvals=TICKS, ticktext=[f"{tick:g}" for tick in TICKS]
    )
    made.update_yaxes(categoryorder="array", categoryarray=rows[::-1], gridcolor="#eee", automargin=True)
    legend = {"orientation": "h", "y": -90 / (30 * len(rows) + 160), "yanchor": "top", "traceorder": "reversed"}
    return made.update_layout(template="plotly_white", height=30 * len(rows) + 220, width=1000, legend=legend, margin={"t": 40})


def _row(one: Record) -> str:
    card = "" if one["machine"]["device"] == "cpu" else f" ({one['machine']['name']})"
    return f"{one['model']}{card}: {one['words']}"


def write(records: Sequence[Record], folder: Path, runs: Path) -> Path:
    """An SVG in `folder` where a browser can draw it, else a page in `runs`."""
    made = figure(records)
    try:
        return write_image(made, folder / "sweeps.svg", width=1000)
    except ResultError:  # no browser, or no kaleido
        runs.mkdir(exist_ok=True)
        made.write_html(runs / "sweeps.html", include_plotlyjs=True)
        return runs / "sweeps.html"
