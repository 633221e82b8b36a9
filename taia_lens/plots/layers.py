"""The pictures of the layers study: gains by layer for a few parts, a map for many."""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from taia_lens.plots.maps import DIVERGING
from taia_lens.plots.patching import COLOURS
from taia_lens.suite import DOMAIN_NAMES

VIEWS = {"alone": "alone<br>(base + it)", "last": "last<br>(tuned - it)", "shapley": "Shapley"}
SERIES = {"attn": COLOURS["attn"], "mlp": COLOURS["mlp"], "both": COLOURS["tuned"]}
FEW_PARTS = 2
ENDS = "[%{customdata[0]:+.4g}, %{customdata[1]:+.4g}], q = %{customdata[2]:.2g}"


def layers_figure(summary: xr.Dataset) -> go.Figure:
    """A row a view, a column a suite, domain and metric: bars with intervals, or maps where there are many parts.

    Args:
        summary: What `summaries.layers_summary` returned.
    """
    few = summary.sizes["part"] <= FEW_PARTS
    views = [view for view in VIEWS if view in summary] + ["cumulative"] * (few and "cumulated" in summary)
    n_groups = summary.sizes["group"]
    titles = [_panel(summary.isel(group=i)) for i in range(n_groups)]
    figure = make_subplots(len(views), n_groups, shared_xaxes=True, shared_yaxes="rows", column_titles=titles, **_gaps(len(views)))
    for col in range(1, n_groups + 1):
        group = summary.isel(group=col - 1)
        for row, view in enumerate(views, 1):
            if view == "cumulative":
                _add_cumulated(figure, group, row, col, named=len(views) == 1)
            elif few:
                _add_bars(figure, group, view, row, col)
            else:
                _add_map(figure, group, view, _limit(summary, view), row, col, _scale(row, len(views)) if col == n_groups else None)
    for row, view in enumerate(views, 1):
        name = VIEWS.get(view, "cumulative<br>(solid: from below)") if few else f"layer ({view})"
        figure.update_yaxes(title_text=name, row=row, col=1)
    figure.update_xaxes(title_text="layer" if few else "part", row=len(views))
    if few and summary.sizes["layer"] < 10:
        figure.update_xaxes(dtick=1)
    return _laid_out(figure, len(views), 190 if few else 60 + 18 * summary.sizes["layer"], _note(views, few))


def _note(views: list[str], few: bool) -> str:
    if not few:
        return "dot: not told apart from 0 after correction; a scale a row"
    bars = "bars: 95% bootstrap intervals over examples; faint: not told apart from 0 after correction"
    lines = "cumulative: dashed grey line at vanilla - base"
    return "; ".join([bars] * (views != ["cumulative"]) + [lines] * ("cumulative" in views))


def _laid_out(figure: go.Figure, rows: int, row_height: int, note: str) -> go.Figure:
    above, below, inside = 130, 110, row_height * rows
    figure.update_layout(
        template="simple_white",
        title={
            "text": f"Which parts of the update change the metric<br><sup>{note}</sup>",
            "x": 0.02,
            "xanchor": "left",
            "font": {"size": 15},
        },
        height=above + below + inside,
        barmode="group",
        legend={"orientation": "h", "y": -60 / inside, "yanchor": "top"},  # 60 pixels below the axis, its title between
        margin={"t": above, "b": below},
    )
    figure.update_annotations(font_size=13)
    return figure


def _scale(row: int, rows: int) -> dict[str, float]:
    """Where a row's colour bar stands, in parts of the figure."""
    return {"len": 0.85 / rows, "y": 1 - (row - 0.5) / rows}


def _gaps(rows: int) -> dict[str, float]:
    return {"horizontal_spacing": 0.04, "vertical_spacing": 0.2 / max(rows, 2) / 2}


def _limit(summary: xr.Dataset, view: str) -> float:
    return max(float(np.nanmax(np.abs(summary[view].values))), 1e-12)


def _panel(group: xr.Dataset) -> str:
    where = f"{html.escape(str(group.suite.item()))}, {DOMAIN_NAMES[str(group.domain.item())]}"
    down = "" if int(group.better) > 0 else ", smaller is better"
    return f"{where}<br>{group.metric.item()} ({group.unit.item()}{down}), n = {int(group.n)}"


def _add_bars(figure: go.Figure, group: xr.Dataset, view: str, row: int, col: int) -> None:
    for part in group.part.values.tolist():
        cell = group.sel(part=part)
        value, low, high, q = (cell[f"{view}{end}"].values for end in ("", "_low", "_high", "_q"))
        sure = np.nan_to_num(q, nan=1.0) <= 0.05
        figure.add_bar(
            x=cell.layer.values,
            y=value,
            marker={"color": COLOURS.get(str(part), COLOURS["resid"]), "opacity": np.where(sure, 1.0, 0.35)},
            error_y={"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low, "thickness": 1, "width": 2},
            name=str(part),
            legendgroup=str(part),
            showlegend=row == col == 1,
            customdata=np.stack([low, high, q], axis=-1),
            hovertemplate=f"L%{{x}}.{part}: %{{y:+.4g}} {ENDS}<extra></extra>",
            row=row,
            col=col,
        )


def _add_cumulated(figure: go.Figure, group: xr.Dataset, row: int, col: int, *, named: bool) -> None:
    for series in group.series.values.tolist():
        for direction, dash in (("below", "solid"), ("above", "dot")):
            line = group.sel(series=series, direction=direction)
            figure.add_scatter(
                x=line.layer.values,
                y=line.cumulated.values,
                mode="lines",
                line={"color": SERIES[series], "dash": dash},
                name=series,
                legendgroup=f"line {series}",
                showlegend=(named or series == "both") and direction == "below" and col == 1,
                hovertemplate=f"{series}, from {direction}, layer %{{x}}: %{{y:+.4g}}<extra></extra>",
                row=row,
                col=col,
            )
    figure.add_hline(y=float(group.gap), line={"dash": "dash", "width": 1, "color": COLOURS["base"]}, row=row, col=col)


def _add_map(figure: go.Figure, group: xr.Dataset, view: str, limit: float, row: int, col: int, scale: dict | None) -> None:
    cells = group.transpose("layer", "part", ...)
    q = np.nan_to_num(cells[f"{view}_q"].values, nan=1.0)
    figure.add_heatmap(
        x=[str(part) for part in cells.part.values],
        y=[str(layer) for layer in cells.layer.values],
        z=cells[view].values,
        zmin=-limit,
        zmax=limit,
        colorscale=DIVERGING,
        xgap=1,
        ygap=1,
        text=np.where(q <= 0.05, "", "·"),
        texttemplate="%{text}",
        customdata=np.stack([cells[f"{view}_low"].values, cells[f"{view}_high"].values, q], axis=-1),
        hovertemplate=f"L%{{y}}.%{{x}}: %{{z:+.4g}} {ENDS}<extra></extra>",
        showscale=scale is not None,
        colorbar={"title": {"text": f"{view}<br>({group.unit.item()})"}} | (scale or {}),
        row=row,
        col=col,
    )
