"""The picture of the steering study: the metric against alpha, in and out of distribution, with learnt scales as lines across."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.look import ALPHA, COLOURS, framed, shown
from taia_lens.plots.stacks import TITLE_ROW, Panels, Stack, at, axis_title, models, plain

DASHES = ("dash", "dashdot", "longdash", "dot")
HEIGHT = 240


def steering_figure(summary: xr.Dataset) -> go.Figure:
    """A panel a suite, domain and metric: the fitted direction and the random ones by alpha, a star where alpha was chosen.

    Args:
        summary: What `summaries.steering_summary` returned.

    Raises:
        ResultError: There is no group, direction or alpha.
    """
    if 0 in (summary.sizes["direction"], summary.sizes["alpha"]):
        raise ResultError("the result holds no direction or no alpha; there is nothing to draw")
    panels = Panels.of(summary)
    stack = Stack((HEIGHT,) * panels.rows, 56 + panels.lines * TITLE_ROW)
    titles = [title for line in panels.titles(summary) for title in line]
    figure = stack.figure(len(panels.columns), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.06)
    n_arms = summary.sizes.get("arm", 0)
    for g, (row, col) in enumerate(panels.places):
        group = summary.isel(group=g)
        for i in reversed(range(summary.sizes["direction"])):
            _add_line(figure, group.isel(direction=i), i, row, col, first=g == 0)
        for i in range(n_arms):
            _add_arm(figure, group.isel(arm=i), i, row, col, first=g == 0)
        if panels.leads((row, col)):
            figure.update_yaxes(title_text=axis_title(group), title_font_size=12, showticklabels=True, row=row, col=col)
    figure.update_xaxes(title_text="alpha (standard deviations)", title_font_size=12, nticks=6)
    panels.clear(figure)
    notes = [
        f"{models(summary.attrs)}; {panels.note}".removeprefix("; "),
        f"method {shown(summary.attrs['method'])}; star: alpha chosen on other rows; bars and shading: 95% intervals over prompts",
        "open: not told apart from the model itself, alpha 0 (5% after Benjamini-Hochberg)",
    ]
    legend = min(summary.sizes["direction"], 2) + n_arms
    return framed(figure, "Steering along a direction", notes, inside=stack.inside, below=56, legend=legend, panels=panels.lines)


def _add_line(figure: go.Figure, line: xr.Dataset, i: int, row: int, col: int, *, first: bool) -> None:
    value, alpha, name = line.value.values, line.alpha.values, str(line.direction.item())
    ends = {"type": "data", "symmetric": False, "array": line.high.values - value, "arrayminus": value - line.low.values, "thickness": 1}
    fitted, chosen, sure = i == 0, alpha == float(line.chosen), line.q.values <= ALPHA
    figure.add_scatter(
        x=alpha,
        y=value,
        mode="lines+markers",
        line={
            "color": COLOURS["head"] if fitted else COLOURS["control"],
            "width": 2 if fitted else 1,
            "dash": "solid" if fitted else "dot",
        },
        marker={
            "size": [13 if c else 6 for c in chosen],
            "symbol": [("star" if c else "circle") + ("" if s else "-open") for c, s in zip(chosen, sure, strict=True)],
        },
        error_y=ends | {"visible": fitted},
        name=shown(name, 20) if fitted else "random direction",
        legendgroup="fitted" if fitted else "random",
        showlegend=first and i < 2,
        customdata=[_hover(line.isel(alpha=j), "") for j in range(len(alpha))],
        hovertemplate="%{customdata}<extra></extra>",
        meta={"at": at(line) | {"direction": name}, "points": plain("alpha", alpha)},
        row=row,
        col=col,
    )


def _hover(cell: xr.Dataset, prefix: str) -> str:
    value, low, high, difference, q = (float(cell[f"{prefix}{name}"]) for name in ("value", "low", "high", "diff", "q"))
    where = shown(cell.arm.item()) if prefix else f"{shown(cell.direction.item())}, alpha {float(cell.alpha):g}"
    apart = "" if np.isnan(difference) else f"<br>- alpha 0: {difference:+.4g}, q = {q:.2g}"
    return f"{where}: {value:.4g} [{low:.4g}, {high:.4g}], n = {int(cell.n)}{apart}"


def _add_arm(figure: go.Figure, arm: xr.Dataset, i: int, row: int, col: int, *, first: bool) -> None:
    """A line across with its interval as a band."""
    name, colour = str(arm.arm.item()), COLOURS["tuned"]
    ends = [float(arm.alpha.min()), float(arm.alpha.max())]
    value, low, high = (float(arm[f"arm_{end}"]) for end in ("value", "low", "high"))
    figure.add_scatter(
        x=ends,
        y=[value, value],
        mode="lines",
        line={"color": colour, "dash": DASHES[i % len(DASHES)], "width": 1.5},
        name=f"{shown(name, 14)} ({int(arm.arm_numbers)} numbers)",
        legendgroup=f"arm {i}",
        showlegend=first,
        customdata=[_hover(arm, "arm_")] * 2,
        hovertemplate="%{customdata}<extra></extra>",
        meta={"at": at(arm) | {"arm": name}, "points": [{}, {}]},
        row=row,
        col=col,
    )
    if np.isfinite([low, high]).all():
        figure.add_hrect(y0=low, y1=high, fillcolor=colour, opacity=0.08, line_width=0, row=row, col=col)
