"""The picture of the causal check: what the same step does on each ranker's top heads, its bottom heads, and random ones."""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from taia_lens.errors import ResultError
from taia_lens.plots.patching import COLOURS
from taia_lens.suite import DOMAIN_NAMES

ABOVE, BELOW, ROW = 120, 120, 30  # pixels around the panels, and of a row
ENDS = {"top": "top K", "bottom": "bottom K", "draw": "random K", "all": "all heads"}
_COLOUR = {"top": COLOURS["attn"], "bottom": COLOURS["mlp"], "draw": COLOURS["base"], "all": COLOURS["resid"]}
_SYMBOL = {"top": "circle", "bottom": "circle-open", "draw": "diamond", "all": "square"}
_CHECKS = {"offsets": "offsets trained on the heads", "graft": "tuned's weights of the heads"}
_DASHES = {"base": "dot", "vanilla": "dot", "TAIA": "dash"}
_LINES = {"base": COLOURS["base"], "vanilla": COLOURS["tuned"], "TAIA": COLOURS["attn"]}


def heads_figure(summary: xr.Dataset) -> go.Figure:
    """A row a check, a column a suite, domain and metric: every line's mean with its interval; dotted lines at whole models.

    Args:
        summary: What `summaries.heads_summary` returned.

    Raises:
        ResultError: No check was run.
    """
    checks = [check for check in _CHECKS if check in summary.check.values]
    if not checks:
        raise ResultError("the result holds rankings and no check; draw plots.head_maps_figure or plots.agreement_figure")
    n_groups = summary.sizes["group"]
    titles = [_panel(summary.isel(group=i)) for i in range(n_groups)]
    rows = [len(dict.fromkeys(_labels(summary.isel(line=summary.check.values == check)))) for check in checks]
    figure = make_subplots(
        len(checks),
        n_groups,
        shared_yaxes=True,
        shared_xaxes=True,
        column_titles=titles,
        row_heights=rows,
        horizontal_spacing=0.04,
        vertical_spacing=60 / (ROW * sum(rows) + 60),
    )
    for row, check in enumerate(checks, 1):
        part = summary.isel(line=summary.check.values == check)
        for col in range(1, n_groups + 1):
            for end in ENDS:
                _add_end(figure, part.isel(group=col - 1), end, row, col)
            _add_wholes(figure, summary.isel(group=col - 1), row, col)
        labels = list(dict.fromkeys(_labels(part)))
        ticks = {"tickvals": list(range(len(labels))), "ticktext": labels, "range": [len(labels) - 0.5, -0.5]}
        figure.update_yaxes(showgrid=True, row=row, **ticks)
        figure.update_yaxes(title_text=_CHECKS[check].replace(" the", "<br>the"), row=row, col=1)
    for col in range(1, n_groups + 1):
        group = summary.isel(group=col - 1)
        down = "" if int(group.better) > 0 else ", smaller is better"
        figure.update_xaxes(title_text=f"{group.metric.item()} ({group.unit.item()}{down})", row=len(checks), col=col)
    figure.update_xaxes(showgrid=True)
    return _laid_out(figure, summary, ROW * sum(rows) + 60 * (len(checks) - 1))


def _laid_out(figure: go.Figure, summary: xr.Dataset, inside: int) -> go.Figure:
    k, n = summary.attrs["k"], summary.attrs["n_heads"]
    note = f"K = {k} of {n} heads; means over prompts and seeds, 95% intervals over prompts; ticks: least and most over seeds or draws"
    title = f"What the same step does on each ranker's heads<br><sup>{note}</sup>"
    figure.update_layout(
        template="simple_white",
        title={"text": title, "x": 0.02, "xanchor": "left", "font": {"size": 15}},
        height=ABOVE + BELOW + inside,
        legend={"orientation": "h", "y": -70 / inside, "yanchor": "top"},  # 70 pixels below the axis, its title between
        margin={"t": ABOVE, "b": BELOW},
    )
    figure.update_annotations(font_size=13)
    return figure


def _panel(group: xr.Dataset) -> str:
    return f"{html.escape(str(group.suite.item()))}<br>{DOMAIN_NAMES[str(group.domain.item())]}, n = {int(group.n)}"


def _labels(part: xr.Dataset) -> list[str]:
    return [html.escape(str(name)) for name in part.by.values]


def _heights(part: xr.Dataset, end: str, labels: list[str]) -> np.ndarray:
    """Where each line stands: a ranker's top and bottom heads one above the other."""
    shift = {"top": -0.17, "bottom": 0.17}.get(end, 0.0)
    return np.array([labels.index(name) + shift for name in _labels(part)])


def _add_end(figure: go.Figure, group: xr.Dataset, end: str, row: int, col: int) -> None:
    labels = list(dict.fromkeys(_labels(group)))
    part = group.isel(line=group.end.values == end)
    if not part.sizes["line"]:
        return
    value = part.value.values
    error = {"type": "data", "symmetric": False, "array": part.high.values - value, "arrayminus": value - part.low.values}
    figure.add_scatter(
        x=value,
        y=_heights(part, end, labels),
        mode="markers",
        marker={"size": 8, "color": _COLOUR[end], "symbol": _SYMBOL[end]},
        error_x=error | {"thickness": 2, "width": 0},
        name=ENDS[end],
        legendgroup=end,
        showlegend=row == col == 1,
        text=[_hover(part.isel(line=i)) for i in range(part.sizes["line"])],
        hovertemplate="%{text}<extra></extra>",
        row=row,
        col=col,
    )
    several = part.runs.values > 1
    ends = np.stack([part.least.values[several], part.most.values[several]], axis=-1)
    figure.add_scatter(
        x=ends.ravel(),
        y=np.repeat(_heights(part, end, labels)[several], 2),
        mode="markers",
        marker={"size": 8, "symbol": "line-ns", "line": {"width": 1.5, "color": _COLOUR[end]}},
        hoverinfo="skip",
        legendgroup=end,
        showlegend=False,
        row=row,
        col=col,
    )


def _add_wholes(figure: go.Figure, group: xr.Dataset, row: int, col: int) -> None:
    for name, colour in _LINES.items():
        found = np.flatnonzero((group.by.values == name) & (group.end.values == "reference"))
        if not len(found):
            continue
        line = {"dash": _DASHES[name], "width": 1.5, "color": colour}
        figure.add_vline(x=float(group.value[found[0]]), line=line, opacity=1, row=row, col=col)
        # A line of its own has no place in the legend: an empty trace has.
        figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=name, showlegend=row == col == 1, row=row, col=col)


def _hover(line: xr.Dataset) -> str:
    name = f"{html.escape(str(line.by.item()))} {line.end.item()}: {float(line.value):.4g}"
    text = [name, f"[{float(line.low):.4g}, {float(line.high):.4g}], {int(line.numbers):,} numbers, {int(line.runs)} runs"]
    for reference in line.reference.values.tolist():
        cell = line.sel(reference=reference)
        if not np.isnan(float(cell["diff"])):
            ends = f"[{float(cell.diff_low):+.4g}, {float(cell.diff_high):+.4g}]"
            text.append(f"- {reference}: {float(cell['diff']):+.4g} {ends}, q = {float(cell.q):.2g}")
    return "<br>".join(text)
