"""A curve over layers with the band of its intervals. Where there is no number there is a gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from taia_lens.plots.look import ALPHA

Numbers = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Curve:
    """Values over layers, their intervals, what each says when pointed at, and which cells they are (`at`: all of them).

    `q` is None where nothing was tested: then every mark is full.
    `beside`: how far from its layer the curve stands, where there is one layer.
    """

    name: str
    colour: str
    layers: NDArray[np.integer]
    value: Numbers
    low: Numbers
    high: Numbers
    hovers: Sequence[str]
    at: dict[str, Any]
    q: Numbers | None = None
    beside: float = 0.0


def add_curve(figure: go.Figure, curve: Curve, row: int, column: int, *, named: bool) -> None:
    """Draw a curve and its band; marks of cells that are not told apart from 0 are hollow.

    Args:
        figure: Changed.
        curve: What is drawn.
        row, column: Of the panel.
        named: Whether the legend names it here.
    """
    _add_band(figure, curve, row, column)
    key(figure, curve, row, column, named=named)
    sure = np.ones(len(curve.layers), bool) if curve.q is None else np.nan_to_num(curve.q, nan=1.0) <= ALPHA
    figure.add_scatter(
        x=curve.layers + curve.beside,
        y=curve.value,
        error_y=_whiskers(curve),
        mode="lines+markers",
        line={"color": curve.colour, "width": 1.5},
        marker={"symbol": np.where(sure, "circle", "circle-open"), "size": 7 if len(curve.layers) <= 24 else 4, "color": curve.colour},
        text=[f"layer {layer}, {curve.name}<br>{hover}" for layer, hover in zip(curve.layers, curve.hovers, strict=True)],
        hovertemplate="%{text}<extra></extra>",
        name=curve.name,
        legendgroup=curve.name,
        showlegend=False,
        meta={"at": curve.at, "points": [{"layer": layer} for layer in curve.layers.tolist()]},
        row=row,
        col=column,
    )


def _add_band(figure: go.Figure, curve: Curve, row: int, column: int) -> None:
    x, y = _band(curve.layers, curve.low, curve.high)
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            fill="toself",
            mode="lines",
            line={"width": 0},
            fillcolor=curve.colour,
            opacity=0.2,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=curve.name,
            row=row,
            col=column,
        )


def _whiskers(curve: Curve) -> dict[str, Any]:
    """The interval of a layer that has no neighbour to make a band with."""
    alone = _alone(curve.low, curve.high)
    up, down = (np.where(alone, size, np.nan) for size in (curve.high - curve.value, curve.value - curve.low))
    look = {"thickness": 1.5, "width": 3, "color": curve.colour, "visible": bool(alone.any())}
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down} | look


def key(figure: go.Figure, curve: Curve, row: int, column: int, *, named: bool) -> None:
    """The curve's entry in the legend; it would show the first mark otherwise, hollow or not."""
    if named:
        look = {"line": {"color": curve.colour}, "marker": {"size": 7, "color": curve.colour}, "mode": "lines+markers"}
        figure.add_scatter(x=[None], y=[None], name=curve.name, legendgroup=curve.name, hoverinfo="skip", row=row, col=column, **look)


def _band(layers: NDArray[np.integer], low: Numbers, high: Numbers) -> tuple[list[float | None], list[float | None]]:
    """The outline of each stretch without a gap, of two layers or more."""
    known, x, y = np.isfinite(low) & np.isfinite(high), list[float | None](), list[float | None]()
    for there, some in groupby(range(len(layers)), key=lambda i: bool(known[i])):
        run = list(some)
        if not there or len(run) == 1:
            continue
        at = layers[run].astype(float)
        ends = (low[run], high[run])
        x += [*at.tolist(), *at[::-1].tolist(), at[0].item(), None]
        y += [*ends[1].tolist(), *ends[0][::-1].tolist(), ends[1][0].item(), None]
    return x, y


def _alone(low: Numbers, high: Numbers) -> NDArray[np.bool_]:
    """Which layers have an interval and no neighbour that has one: theirs is no band."""
    known = np.concatenate([[False], np.isfinite(low) & np.isfinite(high), [False]])
    return known[1:-1] & ~known[:-2] & ~known[2:]


def label_layers(figure: go.Figure, layers: NDArray[np.integer], **where: int) -> None:
    """Ticks at layers, never between them."""
    apart = int(layers.max() - layers.min()) if len(layers) else 0
    figure.update_xaxes(**({"dtick": 1} if apart < 10 else {"tickformat": "d"}), **where)
