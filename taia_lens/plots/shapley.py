"""Shapley values by layer, stacked by component, and what they sum to."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.plots.layers import CORRECTED, cell_of, gain_hovers, whiskers
from taia_lens.plots.layout import BROAD, Row, blank, check_some, group_note, panel_title, panels, ragged, side_by_side, title_y
from taia_lens.plots.look import ALPHA, COLOURS, framed, wrapped

_SUM = 1e-6  # of the largest number of the sum: what rounding leaves


def shapley_figure(summary: xr.Dataset) -> go.Figure:
    """Shapley values as bars by layer, attention's and the FFN's stacked; a panel a suite, domain and metric.

    The bars, and the one of all else that differs (`rest`), sum to vanilla - base: each panel's title says both numbers.

    Args:
        summary: What `summaries.layers_summary` returned, with the view shapley.

    Raises:
        ResultError: The summary holds no Shapley values.
    """
    check_some(summary, "shapley", "give what summaries.layers_summary returned for a study with the view shapley")
    fine = "component_shapley" in summary
    blocks = side_by_side(summary, narrow=summary.sizes["layer"] <= BROAD)
    titles = [tuple("" if i is None else _title(summary.isel(group=i), summary) for i in block) for block in blocks]
    figure, inside = panels([Row(200, some, ticks=ragged(blocks)) for some in titles], len(blocks[0]))
    for row, block in enumerate(blocks, 1):
        for column, i in enumerate(block, 1):
            if i is None:
                blank(figure, row, column)
            else:
                _add_panel(figure, summary.isel(group=i), row, column, named=row == column == 1)
        title_y(figure, row, block, "Shapley value")
    _label(figure, summary, len(blocks))
    figure.update_layout(barmode="relative")
    what = ("bars: sums over a layer's parts; " if fine else "") + f"faint: {CORRECTED}"
    notes = [group_note(summary), f"{what}; lines: 95% bootstrap intervals over examples, each around its bar's end", _checked(summary)]
    names = len(_components(summary)) + ("rest_shapley" in summary)
    title = "Which layers carry vanilla - base: Shapley values"
    return framed(figure, title, notes, inside=inside, below=50, legend=names, panels=Row(0, titles[0]).lines)


def _components(summary: xr.Dataset) -> list[str]:
    return [str(name) for name in (summary.component if "component_shapley" in summary else summary.part).values]


def _sums(group: xr.Dataset) -> tuple[float, float, float]:
    """What the bars sum to, the rest's value, and vanilla - base."""
    return float(group.shapley.sum()), float(group.rest_shapley) if "rest_shapley" in group else 0.0, float(group.gap)


def _title(group: xr.Dataset, summary: xr.Dataset) -> str:
    bars, rest, gap = _sums(group)
    bars, rest, gap = (round(number, 3) + 0.0 for number in (bars, rest, gap))  # no "-0.000"
    also = f" and rest {rest:+.3f}" if "rest_shapley" in group else ""
    return f"{panel_title(group, summary)}<br>{wrapped(f'bars {bars:+.3f}{also}', 28)}<br>vanilla - base {gap:+.3f}"


def _checked(summary: xr.Dataset) -> str:
    """The sum rule, held against the numbers."""
    found = [_sums(summary.isel(group=i)) for i in range(summary.sizes["group"])]
    off = [abs(bars + rest - gap) for bars, rest, gap in found]
    rule = "sum rule: bars" + (" + rest" if "rest_shapley" in summary else "") + " = vanilla - base"
    if not np.isfinite(off).all():
        return f"{rule}: not checked, a number is missing"
    if all(o <= _SUM * max(1.0, *map(abs, some)) for o, some in zip(off, found, strict=True)):
        return f"{rule}, checked in every panel"
    return f"{rule} does NOT hold here: off by up to {max(off):.3g}; are all layers and parts of the study there?"


def _add_panel(figure: go.Figure, group: xr.Dataset, row: int, column: int, *, named: bool) -> None:
    """A bar a component and layer. Plotly would draw both intervals of a layer over each other: they stand beside each other."""
    layers = group.layer.values
    positive, negative = np.zeros(len(layers)), np.zeros(len(layers))
    components = _components(group)
    for i, name in enumerate(components):
        cells = group.sel(component=name) if "component_shapley" in group else group.sel(part=name)
        view = "component_shapley" if "component_shapley" in group else "shapley"
        value, low, high = (np.nan_to_num(cells[f"{view}{end}"].values) for end in ("", "_low", "_high"))
        q = np.nan_to_num(cells[f"{view}_q"].values, nan=1.0)
        colour = COLOURS.get(name, COLOURS["head"])
        hovers = gain_hovers(cells, view) if view == "shapley" else [_summed(cells, k) for k in range(len(layers))]
        at = cell_of(group) | {"view": "shapley"} | ({"part": name} if view == "shapley" else {"component": name})
        points = [{"layer": layer} for layer in layers.tolist()]
        _add_bar(
            figure, name, colour, layers, value, np.where(q <= ALPHA, 1.0, 0.35), hovers, {"at": at, "points": points}, row, column, named
        )
        ends = np.where(value >= 0, positive + value, negative + value)
        positive, negative = positive + np.maximum(value, 0), negative + np.minimum(value, 0)
        spread = np.where(low == high, np.nan, 1.0)
        beside = (i - (len(components) - 1) / 2) * 0.3
        _add_whiskers(figure, layers + beside, ends, whiskers(spread * (high - value), spread * (value - low)), row, column)
    if "rest_shapley" in group:
        rest = float(group.rest_shapley)
        meta = {"at": cell_of(group) | {"view": "shapley", "part": "rest"}, "points": [{}]}
        _add_bar(figure, "rest", COLOURS["rest"], layers[-1:] + 2, np.array([rest]), np.ones(1), [f"{rest:+.4g}"], meta, row, column, named)


def _add_bar(
    figure: go.Figure, name: str, colour: str, x: np.ndarray, y: np.ndarray, opacity: np.ndarray, hovers: list[str],
    meta: dict[str, Any], row: int, column: int, named: bool,
) -> None:  # fmt: skip
    if named:  # the legend would show the first bar otherwise, faint or not
        figure.add_bar(x=[None], y=[None], name=name, legendgroup=name, marker={"color": colour}, hoverinfo="skip", row=row, col=column)
    where = "rest" if name == "rest" else f"L%{{x}}.{name}"
    figure.add_bar(
        x=x,
        y=y,
        marker={"color": colour, "opacity": opacity},
        name=name,
        legendgroup=name,
        showlegend=False,
        text=hovers,
        textposition="none",
        hovertemplate=f"{where}: %{{text}}<extra></extra>",
        meta=meta,
        row=row,
        col=column,
    )


def _add_whiskers(figure: go.Figure, x: np.ndarray, y: np.ndarray, error: dict[str, Any], row: int, column: int) -> None:
    unseen = {"size": 1, "opacity": 0}
    figure.add_scatter(x=x, y=y, mode="markers", marker=unseen, error_y=error, hoverinfo="skip", showlegend=False, row=row, col=column)


def _summed(cells: xr.Dataset, k: int) -> str:
    value, low, high = (float(cells[f"component_shapley{end}"].isel(layer=k)) for end in ("", "_low", "_high"))
    return f"{value:+.4g} [{low:+.4g}, {high:+.4g}], sum over {cells.sizes['part']} parts or fewer<br>n = {int(cells.n)}"


def _label(figure: go.Figure, summary: xr.Dataset, last: int) -> None:
    """Layers below the bars, and the rest after them."""
    layers = summary.layer.values
    step = max(1, -(-len(layers) // 8))
    places, names = layers[::step].tolist(), [str(layer) for layer in layers[::step]]
    if "rest_shapley" in summary:
        places, names = [*places, int(layers[-1]) + 2], [*names, "rest"]
    figure.update_xaxes(tickvals=places, ticktext=names)
    figure.update_xaxes(title_text="layer", row=last)
