"""The pictures of a bench of rankers: maps of their scores, and how far they agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.look import COLOURS, DIVERGING, NOTHING, SEQUENTIAL, framed, shown, unsure
from taia_lens.plots.stacks import Stack, add_missing, downwards, limit, models, plain, step, ticks, to_the_left

LEAST, MOST, LAYER = 110, 480, 15  # pixels of a map's height, and of a layer of it
CELL, NARROW = 30, 10  # pixels of a row of a matrix, and columns that leave room for numbers
NARROWER = "; numbers are in the hover"
_NAME = 18  # characters of a ranker's name beside a matrix


def head_maps_figure(summary: xr.Dataset) -> go.Figure:
    """A map a ranker, one below the other: every head's score, its top K outlined, and beside it how many of them each layer has.

    Args:
        summary: What `summaries.heads_summary` or `summaries.selection_summary` returned.

    Raises:
        ResultError: There is no ranker, layer or head.
    """
    if 0 in summary.score.shape:
        raise ResultError("the result ranks no head; there is nothing to draw")
    names, n_layers = summary.ranker.values.tolist(), summary.sizes["layer"]
    stack = Stack((min(max(LEAST, LAYER * n_layers), MOST),) * len(names), 104)
    titles = [part for name in names for part in (_title(summary.sel(ranker=name)), "")]
    figure = stack.figure(2, subplot_titles=titles, column_widths=[0.76, 0.24], horizontal_spacing=0.03)
    to_the_left(figure)
    most = max(limit(summary.per_layer.values), 1.0)
    for row, name in enumerate(names, 1):
        one = summary.sel(ranker=name).transpose("layer", "head", ...)
        _add_map(figure, one, row, min(280 / summary.sizes["head"], stack.heights[0] / n_layers))
        _add_margin(figure, one, most, row)
        axis = {"range": _range(one.layer.values), "tick0": 0, "dtick": step(n_layers, stack.heights[0] // 22), "zeroline": False}
        figure.update_yaxes(axis, title_text="layer", row=row, col=1)
        figure.update_yaxes(axis, showticklabels=False, row=row, col=2)
    k, n = summary.attrs["k"], summary.attrs["n_heads"]
    seeds = len(summary.attrs["seeds"])
    over = "" if seeds == 1 else f" in at least one of {seeds} seeds (thick: in all)"
    notes = [
        models(summary.attrs),
        _ranked_on(summary),
        f"outlined: top {k} of {n} heads{over}; bars: how many of them in each layer",
        "dark to light: from the least to the largest score; where scores have both signs, white is 0; grey: no score",
    ]
    title = "Which heads each ranker chooses" if len(names) > 1 else f"Which heads {shown(names[0], 24)} chooses"
    return framed(figure, title, notes, inside=stack.inside, below=52, panels=2)


def _ranked_on(summary: xr.Dataset) -> str:
    """The rows that rankers learned from; nothing where the result does not say."""
    train = summary.attrs.get("train", {})
    return f"ranked on suite {shown(train['name'], 40)}, n = {train['n']}" if "n" in train else ""


def _title(one: xr.Dataset) -> str:
    score = one.score.values
    known = score[np.isfinite(score)]
    ends = f"{known.min():.3g} to {known.max():.3g}" if known.size else "no score"
    return f'{shown(one.ranker.item(), 40)}<br><span style="font-size:11px">{shown(one.score_unit.item(), 32)}: {ends}</span>'


def _add_map(figure: go.Figure, one: xr.Dataset, row: int, cell: float) -> None:
    """A ranker's map; `cell`: pixels of a cell's shorter side where the figure is narrow."""
    score, chosen, se = one.score.values, one.chosen.values, one.se.values
    signed = bool((score < 0).any())
    scale = {"zmin": -limit(score), "zmax": limit(score), "colorscale": DIVERGING} if signed else {"colorscale": SEQUENTIAL}
    spread = [["" if math.isnan(e) else f" ± {e:.2g}" for e in line] for line in se.tolist()]
    hovers = [[f"{e}<br>in the top K in {c:.0%} of seeds" for e, c in zip(*line, strict=True)] for line in zip(spread, chosen, strict=True)]
    heads, layers = one["head"].values.tolist(), one.layer.values.tolist()
    add_missing(figure, score, heads, layers, row, 1)
    figure.add_heatmap(
        x=heads,
        y=layers,
        z=score,
        showscale=False,
        customdata=hovers,
        hoverongaps=False,
        hovertemplate="L%{y}.h%{x}: %{z:.4g}%{customdata}<extra></extra>",
        meta={
            "at": {"ranker": str(one.ranker.item())},
            "rows": plain("layer", one.layer.values),
            "columns": plain("head", one["head"].values),
        },
        row=row,
        col=1,
        **scale,
    )
    thick = min(3.0, max(1.0, cell / 5))  # so that a frame does not hide what it is around
    for cells, width in (((chosen > 0) & (chosen < 1), thick / 2), (chosen == 1, thick)):
        if cells.any():
            figure.add_trace(_outlines([(layers[i], heads[j]) for i, j in np.argwhere(cells)], width), row=row, col=1)
    axis = {"range": _range(one["head"].values), "tick0": 0, "dtick": step(len(heads), 10), "zeroline": False}
    figure.update_xaxes(axis, title_text="head", row=row, col=1)


def _range(places: np.ndarray) -> list[float]:
    return [float(places.min()) - 0.5, float(places.max()) + 0.5]


def _outlines(cells: list[tuple[int, int]], width: float) -> go.Scatter:
    """Frames around some cells (layer, head), as one line with gaps: hundreds of shapes would be slow."""
    x: list[float | None] = []
    y: list[float | None] = []
    for layer, head in cells:
        x += [head - 0.5, head + 0.5, head + 0.5, head - 0.5, head - 0.5, None]
        y += [layer - 0.5, layer - 0.5, layer + 0.5, layer + 0.5, layer - 0.5, None]
    return go.Scatter(
        x=x, y=y, mode="lines", line={"color": COLOURS["head"], "width": width}, cliponaxis=False, hoverinfo="skip", showlegend=False
    )


def _add_margin(figure: go.Figure, one: xr.Dataset, most: float, row: int) -> None:
    figure.add_bar(
        x=one.per_layer.values,
        y=one.layer.values,
        orientation="h",
        marker={"color": COLOURS["head"]},
        showlegend=False,
        hovertemplate="layer %{y}: %{x:.3g} of the top K<extra></extra>",
        meta={"at": {"ranker": str(one.ranker.item())}, "points": plain("layer", one.layer.values)},
        row=row,
        col=2,
    )
    figure.update_xaxes(title_text="in the top", range=[0, most * 1.05], dtick=max(1, math.ceil(most / 2)), row=row, col=2)


def agreement_figure(summary: xr.Dataset) -> go.Figure:
    """Two matrices, ranker by ranker: the shared share of the top K, and Kendall's tau; the diagonal is between seeds.

    Args:
        summary: What `summaries.heads_summary` returned.

    Raises:
        ResultError: There is no ranker.
    """
    names, k, chance = summary.ranker.values.tolist(), summary.attrs["k"], float(summary.chance)
    if not names:
        raise ResultError("the result holds no ranker; there is nothing to draw")
    below = 28 + 5 * max(min(len(name), _NAME) for name in names)  # labels stand aslant
    stack = Stack((max(90, CELL * len(names)),) * 2, below + 30)
    titles = (f"share of the top {k} in common, %", "Kendall's tau over all heads")
    figure = stack.figure(subplot_titles=titles)
    to_the_left(figure)
    share = {"zmin": 0, "zmax": 100, "colorscale": SEQUENTIAL}
    _add_matrix(figure, summary, 100 * summary.overlap.values, "overlap", share, stack, 1)
    _add_matrix(figure, summary, summary.tau.values, "tau", {"zmin": -1, "zmax": 1, "colorscale": DIVERGING}, stack, 2)
    notes = [
        models(summary.attrs),
        _ranked_on(summary),
        f"on the diagonal: between seeds of one ranker, grey where it draws nothing; chance shares {chance:.0%}",
        "dot: not beyond chance (hypergeometric, 5% after Benjamini-Hochberg)" + NARROWER * (len(names) > NARROW),
    ]
    figure.update_layout(plot_bgcolor=NOTHING)
    return framed(figure, "How far rankers agree", notes, inside=stack.inside, below=below, panels=1)


def _add_matrix(
    figure: go.Figure, summary: xr.Dataset, cells: np.ndarray, name: str, colours: dict[str, Any], stack: Stack, row: int
) -> None:
    names = summary.ranker.values.tolist()
    is_share = name == "overlap"
    marks = unsure(summary.overlap_q.values) if is_share else np.full(cells.shape, "")
    number = "{:.0f}{}" if is_share else "{:+.2f}{}"
    fits = len(names) <= NARROW
    text = [
        ["" if np.isnan(v) else number.format(v, s) if fits else s for v, s in zip(*line, strict=True)]
        for line in zip(cells, marks, strict=True)
    ]
    hovers = [[_hover(summary.isel(ranker=i, other=j), is_share) for j in range(len(names))] for i in range(len(names))]
    figure.add_heatmap(
        z=cells,
        text=text,
        texttemplate="%{text}",
        textfont={"size": 11 if len(names) <= 8 else 9},
        xgap=1,
        ygap=1,
        customdata=hovers,
        hoverongaps=False,
        hovertemplate="%{customdata}<extra></extra>",
        colorbar=stack.bar(row),
        meta={"at": {}, "rows": plain("ranker", summary.ranker.values), "columns": plain("other", summary.other.values)},
        row=row,
        col=1,
        **colours,
    )
    labels = ticks([shown(text, _NAME) for text in names])
    figure.update_xaxes(labels, tickangle=-40, tickfont_size=12 if fits else 10, row=row, col=1)
    figure.update_yaxes(downwards(labels), row=row, col=1)


def _hover(cell: xr.Dataset, is_share: bool) -> str:
    names = f"{shown(cell.ranker.item())} and {shown(cell.other.item())}"
    if not is_share:
        return f"{names}<br>tau {float(cell.tau):+.3f}, mean over seeds"
    ends = f"over seeds {float(cell.overlap_least):.0%} to {float(cell.overlap_most):.0%}"
    return f"{names}<br>share {float(cell.overlap):.0%}, {ends}<br>q = {float(cell.overlap_q):.2g}; chance {float(cell.chance):.0%}"
