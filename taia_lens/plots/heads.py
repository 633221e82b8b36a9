"""The pictures of a bench of rankers: maps of their scores, and how far they agree."""

from __future__ import annotations

import html
import math

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from taia_lens.plots.anatomy import SEQUENTIAL
from taia_lens.plots.maps import DIVERGING
from taia_lens.plots.patching import COLOURS

ACROSS = 4  # maps in a row
BETWEEN = 110  # pixels between two rows of maps: an axis with its title, and the next map's
CLEAR = "rgba(0,0,0,0)"


def head_maps_figure(summary: xr.Dataset) -> go.Figure:
    """A map a ranker: every head's score by layer, its top K outlined, and how many of them lie in each layer.

    Args:
        summary: What `summaries.heads_summary` returned.
    """
    names, n_layers = summary.ranker.values.tolist(), summary.sizes["layer"]
    across = min(ACROSS, len(names))
    rows = math.ceil(len(names) / across)
    titles = [part for i in range(rows * across) for part in ((_title(summary, names[i]), "") if i < len(names) else ("", ""))]
    inside = rows * max(160, 14 * n_layers) + (rows - 1) * BETWEEN
    figure = make_subplots(
        rows,
        2 * across,
        subplot_titles=titles,
        column_widths=[0.72, 0.28] * across,
        horizontal_spacing=0.018,
        vertical_spacing=BETWEEN / inside,
    )
    most = max(float(summary.per_layer.max()), 1.0)
    for i, name in enumerate(names):
        row, col = i // across + 1, 2 * (i % across) + 1
        _add_map(figure, summary.sel(ranker=name), row, col)
        _add_margin(figure, summary.sel(ranker=name), most, row, col + 1)
        figure.update_yaxes(range=[-0.5, n_layers - 0.5], dtick=max(1, n_layers // 8), row=row, col=col)
        figure.update_yaxes(range=[-0.5, n_layers - 0.5], showticklabels=False, row=row, col=col + 1)
    figure.update_yaxes(title_text="layer", col=1)
    k, n = summary.attrs["k"], summary.attrs["n_heads"]
    seeds = len(summary.attrs["seeds"])
    over = "" if seeds == 1 else f" in at least one of {seeds} seeds (thick: in all)"
    note = f"outlined: top {k} of {n}{over}; bars: how many of them in each layer; colours from each ranker's least to its largest score"
    return _laid_out(figure, "Which heads each ranker chooses", note, 200 + inside)


def _title(summary: xr.Dataset, name: str) -> str:
    return f"{html.escape(name)}<br><sup>{html.escape(str(summary.score_unit.sel(ranker=name).item()))}</sup>"


def _add_map(figure: go.Figure, one: xr.Dataset, row: int, col: int) -> None:
    cells = one.transpose("layer", "head", ...)
    chosen, se = cells.chosen.values, cells.se.values
    figure.add_heatmap(
        x=cells["head"].values,
        y=cells.layer.values,
        z=cells.score.values,
        colorscale=SEQUENTIAL,
        showscale=False,
        customdata=np.stack([np.where(np.isnan(se), "", np.char.mod(" ± %.2g", se)), np.char.mod("%.3g", 100 * chosen)], axis=-1),
        hovertemplate="L%{y}.h%{x}: %{z:.4g}%{customdata[0]}<br>in the top K in %{customdata[1]}% of seeds<extra></extra>",
        row=row,
        col=col,
    )
    for layer, head in np.argwhere(chosen > 0):
        line = {"color": COLOURS["mlp"], "width": 3 if chosen[layer, head] == 1 else 1.5}
        corners = {"x0": head - 0.5, "x1": head + 0.5, "y0": layer - 0.5, "y1": layer + 0.5}
        figure.add_shape(type="rect", line=line, fillcolor=CLEAR, opacity=1, row=row, col=col, **corners)
    n = cells.sizes["head"]
    figure.update_xaxes(title_text="head", range=[-0.5, n - 0.5], dtick=max(1, n // 4), row=row, col=col)


def _add_margin(figure: go.Figure, one: xr.Dataset, most: float, row: int, col: int) -> None:
    figure.add_bar(
        x=one.per_layer.values,
        y=one.layer.values,
        orientation="h",
        marker={"color": COLOURS["mlp"]},
        showlegend=False,
        hovertemplate="layer %{y}: %{x:.3g} of the top K<extra></extra>",
        row=row,
        col=col,
    )
    figure.update_xaxes(range=[0, most * 1.05], dtick=max(1, math.ceil(most / 2)), row=row, col=col)


def agreement_figure(summary: xr.Dataset) -> go.Figure:
    """Two matrices, ranker by ranker: the shared share of the top K, and Kendall's tau; the diagonal is between seeds.

    Args:
        summary: What `summaries.heads_summary` returned.
    """
    k, chance = summary.attrs["k"], float(summary.chance)
    titles = (f"shared share of the top {k}", "Kendall's tau over all heads")
    figure = make_subplots(1, 2, column_titles=titles, shared_yaxes=True, horizontal_spacing=0.12)
    _add_matrix(figure, summary, "overlap", {"zmin": 0, "zmax": 1, "colorscale": SEQUENTIAL}, 1)
    _add_matrix(figure, summary, "tau", {"zmin": -1, "zmax": 1, "colorscale": DIVERGING}, 2)
    figure.update_yaxes(autorange="reversed")
    note = f"on the diagonal: between seeds of one ranker; chance shares {chance:.0%}; *: beyond chance after correction"
    return _laid_out(figure, "How far rankers agree", note, 240 + 44 * summary.sizes["ranker"])


def _add_matrix(figure: go.Figure, summary: xr.Dataset, name: str, colours: dict, col: int) -> None:
    names = [html.escape(text) for text in summary.ranker.values.tolist()]
    cells = summary[name].values
    stars = np.where(np.nan_to_num(summary.overlap_q.values, nan=1.0) <= 0.05, "*", "") if name == "overlap" else np.full(cells.shape, "")
    number = "{:.0%}{}" if name == "overlap" else "{:+.2f}{}"
    text = [["" if np.isnan(v) else number.format(v, s) for v, s in zip(*pair, strict=True)] for pair in zip(cells, stars, strict=True)]
    figure.add_heatmap(
        x=names,
        y=names,
        z=cells,
        text=text,
        texttemplate="%{text}",
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="%{y} and %{x}: %{text}<extra></extra>",
        colorbar={"x": 0.445 if col == 1 else 1.01, "thickness": 12},
        row=1,
        col=col,
        **colours,
    )


def _laid_out(figure: go.Figure, title: str, note: str, height: int) -> go.Figure:
    text = f"{title}<br><sup>{note}</sup>"
    figure.update_layout(
        template="simple_white",
        title={"text": text, "x": 0.02, "xanchor": "left", "font": {"size": 15}},
        height=height,
        margin={"t": 120},
    )
    figure.update_annotations(font_size=13)
    return figure
