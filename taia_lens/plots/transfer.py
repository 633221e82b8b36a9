"""The picture of head transfer: a matrix of what one task's heads do on another, and where each task's heads lie."""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from taia_lens.plots.heads import CLEAR
from taia_lens.plots.maps import DIVERGING
from taia_lens.plots.patching import COLOURS
from taia_lens.suite import DOMAIN_NAMES

_CYCLE = tuple(COLOURS[name] for name in ("attn", "mlp", "resid", "head", "tuned", "base"))


def transfer_figure(summary: xr.Dataset) -> go.Figure:
    """Above, rows: heads selected on, columns: tuned and tested on, coloured by the difference to the task's own heads; below,
    how many of each task's top heads lie in each layer.

    Args:
        summary: What `summaries.transfer_summary` returned.
    """
    rows = summary.row.values.tolist()
    inside = 60 + 40 * len(rows)
    figure = make_subplots(2, 1, row_heights=[inside, 180], vertical_spacing=150 / (inside + 330))
    _add_matrix(figure, summary, inside / (inside + 330))
    _add_layers(figure, summary)
    k, n = summary.attrs["k"], summary.attrs["n_heads"]
    note = f"top {k} of {n} heads; the mean, and the difference to the task's own heads (framed); *: told apart from it after correction"
    figure.update_layout(
        template="simple_white",
        title={"text": f"Heads of one task on another<br><sup>{note}</sup>", "x": 0.02, "xanchor": "left", "font": {"size": 15}},
        height=inside + 330 + 190,
        barmode="group",
        legend={"title": {"text": "selected on"}, "y": 0.0, "yanchor": "bottom"},
        margin={"t": 90},
    )
    return figure


def _add_matrix(figure: go.Figure, summary: xr.Dataset, share: float) -> None:
    cells = summary.transpose("row", "group", ...)
    difference = np.nan_to_num(cells["diff"].values) * cells.better.values  # blue is worse, whatever the metric
    limit = max(float(np.abs(difference).max()), 1e-3)
    columns = [_column(summary.isel(group=i)) for i in range(summary.sizes["group"])]
    text = [[_cell(cells.isel(row=i, group=j)) for j in range(len(columns))] for i in range(cells.sizes["row"])]
    figure.add_heatmap(
        x=columns,
        y=[html.escape(name) for name in summary.row.values.tolist()],
        z=difference,
        zmin=-limit,
        zmax=limit,
        colorscale=DIVERGING,
        text=text,
        texttemplate="%{text}",
        xgap=1,
        ygap=1,
        hovertemplate="heads of %{y}<br>%{x}<br>%{text}<extra></extra>",
        colorbar={"title": {"text": "better (+) or<br>worse (-) than<br>its own"}, "len": share, "y": 1, "yanchor": "top"},
        row=1,
        col=1,
    )
    names = summary.row.values.tolist()
    for j, own in enumerate(summary.own.values.tolist()):
        i = names.index(own)
        corners = {"x0": j - 0.5, "x1": j + 0.5, "y0": i - 0.5, "y1": i + 0.5}
        line = {"color": COLOURS["tuned"], "width": 2}
        figure.add_shape(type="rect", line=line, fillcolor=CLEAR, opacity=1, row=1, col=1, **corners)
    figure.update_yaxes(autorange="reversed", title_text="heads selected on", row=1, col=1)
    figure.update_xaxes(row=1, col=1)


def _column(group: xr.Dataset) -> str:
    where = f"{html.escape(str(group.suite.item()))}, {DOMAIN_NAMES[str(group.domain.item())]}"
    return f"tuned on {html.escape(str(group.own.item()))}<br>{where}<br>{group.metric.item()}, n = {int(group.n)}"


def _cell(cell: xr.Dataset) -> str:
    value = f"{float(cell.value):.3f}"
    if np.isnan(float(cell["diff"])):
        return value
    return f"{value} ({float(cell['diff']):+.3f}{'*' if float(cell.q) <= 0.05 else ''})"


def _add_layers(figure: go.Figure, summary: xr.Dataset) -> None:
    for task, colour in zip(summary.task.values.tolist(), _CYCLE * len(summary.task), strict=False):
        figure.add_bar(
            x=summary.layer.values,
            y=summary.per_layer.sel(task=task).values,
            marker={"color": colour},
            name=html.escape(task),
            hovertemplate=f"{html.escape(task)}, layer %{{x}}: %{{y:.3g}} heads<extra></extra>",
            row=2,
            col=1,
        )
    figure.update_xaxes(title_text="layer", dtick=max(1, summary.sizes["layer"] // 16), row=2, col=1)
    figure.update_yaxes(title_text="top heads", row=2, col=1)
