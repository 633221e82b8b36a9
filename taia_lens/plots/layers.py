"""The pictures of the layers study: gains by layer for a few parts, a map for many; cumulative gains as curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.curves import Curve, add_curve, label_layers
from taia_lens.plots.layout import (
    BROAD,
    WIDE,
    Row,
    blank,
    check_some,
    group_note,
    metric_text,
    panel_title,
    panels,
    ragged,
    side_by_side,
    title_y,
)
from taia_lens.plots.look import ALPHA, COLOURS, NOTHING, framed, shades, unsure
from taia_lens.plots.maps import line_height

VIEWS = {"alone": "alone<br>(base + it)", "last": "last<br>(tuned - it)", "shapley": "Shapley"}
DIRECTIONS = {"below": "layers up to<br>this one", "above": "layers from<br>this one on"}
SERIES = {"attn": COLOURS["attn"], "mlp": COLOURS["mlp"], "both": COLOURS["tuned"]}
FEW_PARTS = 2
CORRECTED = "not told apart from 0 after correction (q > 0.05, Benjamini-Hochberg over a view's cells)"
_GIVE = "give what summaries.layers_summary returned"


def layers_figure(summary: xr.Dataset) -> go.Figure:
    """A row a view, a column a domain: bars with intervals and cumulative curves, or maps where there are many parts.

    Args:
        summary: What `summaries.layers_summary` returned.

    Raises:
        ResultError: The summary holds no group, layer, part or view.
    """
    views = [view for view in VIEWS if view in summary]
    if not views and "cumulated" in summary:
        return cumulative_figure(summary)
    check_some(summary, views[0] if views else "alone", _GIVE)
    title = "Which parts of the update change the metric"
    if summary.sizes["part"] > FEW_PARTS:
        return _maps(summary, views, title)
    rows = [(view, height) for view, height in ((*((v, 130) for v in views), *_directions(summary)))]
    figure, inside, lines = _laid_out(summary, rows)
    legend = summary.sizes["part"] + ("cumulated" in summary)
    bars = f"bars: 95% bootstrap intervals over examples; faint: {CORRECTED}"
    figure.update_layout(barmode="group")
    return framed(
        figure, title, [group_note(summary), bars, *_cumulative_note(summary)], inside=inside, below=50, legend=legend, panels=lines
    )


def cumulative_figure(summary: xr.Dataset) -> go.Figure:
    """What base gains with attention, FFN or both of all layers up to one (from below), and of all from one on (from above).

    Args:
        summary: What `summaries.layers_summary` returned, with the view cumulative.

    Raises:
        ResultError: The summary holds no cumulative gains.
    """
    check_some(summary, "cumulated", f"{_GIVE} for a study with the view cumulative (unit component)")
    figure, inside, lines = _laid_out(summary, _directions(summary))
    notes = [group_note(summary), *_cumulative_note(summary)]
    title = "Gain over base, layer by layer, from below and from above"
    return framed(figure, title, notes, inside=inside, below=50, legend=len(SERIES), panels=lines)


def _directions(summary: xr.Dataset) -> list[tuple[str, int]]:
    return [(direction, 150) for direction in DIRECTIONS] if "cumulated" in summary else []


def _cumulative_note(summary: xr.Dataset) -> list[str]:
    if "cumulated" not in summary:
        return []
    return ["curves: base with tuned's weights in these layers, less base; bands: 95% bootstrap intervals; dashed: vanilla - base"]


def _laid_out(summary: xr.Dataset, rows: list[tuple[str, int]]) -> tuple[go.Figure, int, int]:
    """Bars and curves, block by block; the figure, its height inside, and how many lines stand above the first panels."""
    blocks = side_by_side(summary, narrow=summary.sizes["layer"] <= BROAD)
    whole = [(block, name, height) for block in blocks for name, height in rows]
    titles = [tuple("" if i is None else panel_title(summary.isel(group=i), summary) for i in block) for block in blocks]
    first, last = (range(i, len(whole), len(rows)) for i in (0, len(rows) - 1))
    alone = ragged(blocks)
    laid = [Row(h, titles[i // len(rows)] if i in first else (), ticks=alone and i in last) for i, (_, _, h) in enumerate(whole)]
    figure, inside = panels(laid, len(blocks[0]))
    for row, (block, name, _) in enumerate(whole, 1):
        for column, i in enumerate(block, 1):
            if i is None:
                blank(figure, row, column)
            elif name in VIEWS:
                _add_bars(figure, summary.isel(group=i), name, row, column, named=row == column == 1)
            else:
                _add_cumulated(figure, summary.isel(group=i, direction=list(DIRECTIONS).index(name)), row, column, named=row <= len(rows))
        title_y(figure, row, block, VIEWS.get(name, DIRECTIONS.get(name)))
    label_layers(figure, summary.layer.values)
    figure.update_xaxes(title_text="layer", row=len(whole))
    return figure, inside, laid[0].lines


def cell_of(group: xr.Dataset) -> dict[str, Any]:
    """Which cells of the result a group's are."""
    return {name: str(group[name].item()) for name in ("suite", "domain", "metric")}


def _add_bars(figure: go.Figure, group: xr.Dataset, view: str, row: int, column: int, *, named: bool) -> None:
    for part in group.part.values.tolist():
        cell = group.sel(part=part)
        value, low, high, q = (cell[f"{view}{end}"].values for end in ("", "_low", "_high", "_q"))
        colour = COLOURS.get(str(part), COLOURS["head"])
        spread = np.where(low == high, np.nan, 1.0)  # where no example changes, a dash would look like a value
        if named:  # the legend would show the first bar otherwise, faint or not
            figure.add_bar(
                x=[None], y=[None], name=str(part), legendgroup=str(part), marker={"color": colour}, hoverinfo="skip", row=1, col=1
            )
        figure.add_bar(
            x=cell.layer.values,
            y=value,
            marker={"color": colour, "opacity": np.where(np.nan_to_num(q, nan=1.0) <= ALPHA, 1.0, 0.35)},
            error_y=whiskers(spread * (high - value), spread * (value - low)),
            name=str(part),
            legendgroup=str(part),
            offsetgroup=str(part),
            showlegend=False,
            text=gain_hovers(cell, view),
            textposition="none",
            hovertemplate=f"L%{{x}}.{part}: %{{text}}<extra></extra>",
            meta={"at": cell_of(group) | {"part": str(part), "view": view}, "points": [{"layer": n} for n in cell.layer.values.tolist()]},
            row=row,
            col=column,
        )


def whiskers(up: np.ndarray, down: np.ndarray) -> dict[str, Any]:
    """Intervals around bars."""
    caps = {"width": 2, "color": "#444444"} if len(up) <= WIDE else {"width": 0, "color": "#aaaaaa"}
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1} | caps


def gain_hovers(cells: xr.Dataset, view: str) -> list[Any]:
    """Of each cell, shaped like the view's values: the gain, its interval, q, what sampling orders leaves open, and n."""
    ends = [f"{view}{end}" for end in ("", "_low", "_high", "_q")]
    numbers = [cells[name].transpose(*cells[view].dims).values for name in ends]
    orders = cells.shapley_se.transpose(*cells[view].dims).values if view == "shapley" and "shapley_se" in cells else None
    texts = np.empty(numbers[0].shape, dtype=object)
    for i in np.ndindex(texts.shape):
        value, low, high, q = (float(array[i]) for array in numbers)
        open_ = "" if orders is None else f"<br>± {float(orders[i]):.2g} (standard error of sampled orders)"
        texts[i] = f"{value:+.4g} [{low:+.4g}, {high:+.4g}], q = {q:.2g}{open_}<br>n = {int(cells.n)}"
    return list(texts.tolist())


def _add_cumulated(figure: go.Figure, group: xr.Dataset, row: int, column: int, *, named: bool) -> None:
    direction = str(group.direction.item())
    for i, series in enumerate(group.series.values.tolist()):
        line = group.sel(series=series)
        value, low, high = (line[f"cumulated{end}"].values for end in ("", "_low", "_high"))
        curve = Curve(
            name=str(series),
            colour=SERIES[series],
            layers=line.layer.values,
            value=value,
            low=low,
            high=high,
            hovers=[f"{v:+.4g} [{a:+.4g}, {b:+.4g}]<br>n = {int(group.n)}" for v, a, b in zip(value, low, high, strict=True)],
            at=cell_of(group) | {"view": "cumulative", "direction": direction, "series": str(series)},
            beside=0.15 * (i - 1) if len(value) == 1 else 0.0,
        )
        # Bars of attn and mlp name these colours already.
        first = direction == "below" and column == 1 and named
        add_curve(figure, curve, row, column, named=first and (series == "both" or not any(t.type == "bar" for t in figure.data)))
    if np.isfinite(float(group.gap)):
        figure.add_hline(y=float(group.gap), line={"dash": "dash", "width": 1, "color": COLOURS["tuned"]}, row=row, col=column)
    figure.add_hline(y=0, line={"width": 1, "color": COLOURS["base"]}, row=row, col=column)


@dataclass(frozen=True)
class _Place:
    """A map: which group and view, and which of the figure's scales."""

    group: int
    view: str
    scale: int


def _maps(summary: xr.Dataset, views: list[str], title: str) -> go.Figure:
    """Many parts: a map a view and domain, layers up, parts across; a scale a metric, so that views can be compared."""
    metrics = list(dict.fromkeys(summary.metric.values.tolist()))
    rows: list[tuple[_Place | None, ...]] = []
    for block in side_by_side(summary):
        for view in views:
            places = tuple(None if i is None else _Place(i, view, metrics.index(summary.metric.values[i])) for i in block)
            rows += [places] if summary.sizes["part"] <= WIDE else [(place,) for place in places if place is not None]
    height = line_height(summary.sizes["layer"]) * summary.sizes["layer"] + 8
    laid = [Row(height, tuple("" if p is None else _map_title(summary, p) for p in places)) for places in rows]
    figure, inside = panels(laid, len(rows[0]))
    for row, places in enumerate(rows, 1):
        for column, place in enumerate(places, 1):
            if place is None:
                blank(figure, row, column)
            else:
                _add_map(figure, summary.isel(group=place.group), place, row, column)
        figure.update_yaxes(type="category", tickfont={"size": 10}, row=row)
        title_y(figure, row, places, "layer")
    angle = -90 if max(len(str(part)) for part in summary.part.values) > 4 else 0
    figure.update_xaxes(type="category", title_text="part", tickfont={"size": 10}, tickangle=angle, row=len(rows))
    figure.update_layout(plot_bgcolor=NOTHING)
    scales = []
    for metric in metrics:
        some = summary.isel(group=np.flatnonzero(summary.metric.values == metric))
        scales.append(shades(f"gain, {metric_text(some.isel(group=0))}", np.stack([some[view].values for view in views])))
    notes = [group_note(summary), f"dot: {CORRECTED}"]
    return framed(figure, title, notes, inside=inside, below=90, panels=laid[0].lines, scales=scales)


def _map_title(summary: xr.Dataset, place: _Place) -> str:
    return f"{VIEWS[place.view].replace('<br>', ' ')}<br>{panel_title(summary.isel(group=place.group), summary)}"


def _add_map(figure: go.Figure, group: xr.Dataset, place: _Place, row: int, column: int) -> None:
    view, cells = place.view, group.transpose("layer", "part", ...)
    layers, parts = cells.layer.values.tolist(), [str(part) for part in cells.part.values]
    gap = 1 if len(parts) <= WIDE and line_height(len(layers)) > 8 else 0
    figure.add_heatmap(
        x=parts,
        y=[str(layer) for layer in layers],
        z=cells[view].values,
        xgap=gap,
        ygap=gap,
        text=unsure(cells[f"{view}_q"].values),
        texttemplate="%{text}",
        customdata=gain_hovers(cells, view),
        hovertemplate="L%{y}.%{x}: %{customdata}<extra></extra>",
        coloraxis=f"coloraxis{place.scale + 1 if place.scale else ''}",
        meta={
            "at": cell_of(group) | {"view": view},
            "rows": [{"layer": layer} for layer in layers],
            "columns": [{"part": part} for part in parts],
        },
        row=row,
        col=column,
    )


def check_view(summary: xr.Dataset, view: str | None) -> str:
    """The view asked for, or the best one that was run.

    Raises:
        ResultError: It was not run.
    """
    there = [name for name in VIEWS if name in summary]
    if not there or (view is not None and view not in there):
        raise ResultError(f"the summary holds no view {view or 'alone, last or shapley'}, but {', '.join(there) or 'none'}; {_GIVE}")
    return view or there[-1]
