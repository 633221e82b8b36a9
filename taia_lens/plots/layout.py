"""Panels in rows, at most two beside each other: in distribution left, out of it right. Heights are in pixels, as text is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from taia_lens.errors import ResultError
from taia_lens.plots.look import LABEL, shown, wrapped
from taia_lens.suite import DOMAIN_NAMES, DOMAINS

ACROSS = 28
"""Characters of a panel's title that fit where two panels share 450 pixels."""
WIDE = 24
"""A map with more columns than this has a row of panels for itself."""
BROAD = 32
"""Bars of more layers than this have a row of panels for themselves."""
_TICKS = 46  # pixels below a row for the tick labels and title of its own x axis
_APART = 14


@dataclass(frozen=True)
class Row:
    """A row of panels: its height in pixels, a title for each panel or none, and whether its x axis is labelled."""

    height: int
    titles: tuple[str, ...] = ()
    ticks: bool = False

    @property
    def lines(self) -> int:
        return max((title.count("<br>") + 1 for title in self.titles if title), default=0)


def panels(rows: Sequence[Row], columns: int, *, same_x: bool = True) -> tuple[go.Figure, int]:
    """An empty figure of panels.

    Args:
        rows: From the top down. The last one's x axis is always labelled.
        columns: 1 or 2; panels of a row share their y axis.
        same_x: All panels share one x axis.

    Returns:
        The figure, and the pixels from the top of the first panel to the bottom of the last; the titles of the first row stand
        above that, `rows[0].lines` of them.
    """
    shared = "all" if same_x else False
    figure = make_subplots(len(rows), columns, shared_xaxes=shared, shared_yaxes="rows", horizontal_spacing=0.05)
    tops, edge = [], 0
    for i, row in enumerate(rows):
        edge += round(1.3 * LABEL * row.lines) + _APART if i else 0
        tops.append(edge)
        edge += row.height + (_TICKS if row.ticks and i + 1 < len(rows) else 0)
    for i, (row, top) in enumerate(zip(rows, tops, strict=True), 1):
        high = 1 - top / edge
        figure.update_yaxes(domain=[max(0.0, high - row.height / edge), high], row=i)
        figure.update_xaxes(showticklabels=row.ticks or i == len(rows), row=i)
        for title, column in zip(row.titles, range(1, columns + 1), strict=False):
            middle = float(np.mean(figure.get_subplot(i, column).xaxis.domain))
            place = {"x": middle, "y": high, "xref": "paper", "yref": "paper", "xanchor": "center", "yanchor": "bottom"}
            figure.add_annotation(text=title, showarrow=False, **place)
    return figure, edge


def domains_of(summary: xr.Dataset) -> list[str]:
    """The domains that are there, in distribution first: the columns of a figure."""
    return [domain for domain in DOMAINS if domain in summary.domain.values]


def side_by_side(summary: xr.Dataset, *, narrow: bool = True) -> list[tuple[int | None, ...]]:
    """Which groups stand beside each other: under one metric a suite's domains, and what is left in order; None where there is none.

    Where panels are not narrow, each has a row.
    """
    columns, metrics, suites = domains_of(summary), summary.metric.values.tolist(), summary.suite.values.tolist()
    where = {(m, s, d): i for i, (m, s, d) in enumerate(zip(metrics, suites, summary.domain.values.tolist(), strict=True))}
    out: list[tuple[int | None, ...]] = []
    for metric in dict.fromkeys(metrics):
        found = [[where.get((metric, suite, domain)) for domain in columns] for suite in dict.fromkeys(suites)]
        whole = [row for row in found if None not in row]
        left = [[row[j] for row in found if None in row and row[j] is not None] for j in range(len(columns))]
        out += [tuple(row) for row in whole] + list(zip_longest(*left))
    return out if narrow else [(i,) for row in out for i in row if i is not None]


def ragged(blocks: Sequence[tuple[int | None, ...]]) -> bool:
    """Whether a place is empty: then panels above it have labelled x axes of their own."""
    return any(None in block for block in blocks)


def title_y(figure: go.Figure, row: int, block: Sequence[object | None], text: str | None) -> None:
    """Name a row's y axis, beside its first panel that is there."""
    figure.update_yaxes(title_text=text, row=row, col=1 + [place is None for place in block].index(False))


def panel_title(group: xr.Dataset, summary: xr.Dataset) -> str:
    """What a group's panel is of: its domain and n, and the suite and metric where the figure has several."""
    lines = [f"{DOMAIN_NAMES[str(group.domain.item())]}, n = {int(group.n)}"]
    lines += [shown(group.suite.item(), ACROSS - 4)] if len(set(summary.suite.values.tolist())) > 1 else []
    lines += [wrapped(metric_text(group), ACROSS)] if len(set(summary.metric.values.tolist())) > 1 else []
    return "<br>".join(lines)


def metric_text(group: xr.Dataset) -> str:
    """A metric with its unit, and which way is better where that is down."""
    down = ", smaller is better" if "better" in group.coords and int(group.better) < 0 else ""
    return f"{group.metric.item()} ({group.unit.item()}{down})"


def group_note(summary: xr.Dataset) -> str:
    """The suite and the metric where the figure has one of them, and the two models."""
    suites, metrics = (list(dict.fromkeys(summary[name].values.tolist())) for name in ("suite", "metric"))
    parts = [f"suite {shown(suites[0], 40)}"] if len(suites) == 1 else []
    parts += [metric_text(summary.isel(group=0))] if len(metrics) == 1 else []
    return "; ".join(filter(None, [*parts, models(summary.attrs)]))


def models(attrs: dict[Any, Any]) -> str:
    """The names of base and tuned: the last part of a path or id; nothing where that says no more."""
    names = {side: str(attrs.get(side, side)).rstrip("/").rpartition("/")[2] for side in ("base", "tuned")}
    return ", ".join(f"{side}: {shown(name, 28)}" for side, name in names.items() if name != side)


def check_some(summary: xr.Dataset, variable: str, what: str) -> None:
    """Refuse a summary with nothing in it.

    Raises:
        ResultError: One of the variable's dims is empty, or the variable is not there.
    """
    if variable not in summary:
        raise ResultError(f"the summary holds no {variable}; {what}")
    empty = [str(dim) for dim, size in summary[variable].sizes.items() if size == 0]
    if empty:
        raise ResultError(f"the result holds no {' and no '.join(empty)}; there is nothing to draw; {what}")


def blank(figure: go.Figure, row: int, column: int) -> None:
    """Leave a panel's place empty."""
    figure.update_xaxes(visible=False, row=row, col=column)
    figure.update_yaxes(visible=False, row=row, col=column)
    if column == 1:  # its neighbour's labels stood here
        figure.update_yaxes(showticklabels=True, row=row, col=2)


def say(figure: go.Figure, row: int, column: int, text: str) -> None:
    """In the middle of a panel that has nothing to show: why."""
    place = {"x": 0.5, "y": 0.5, "xref": "x domain", "yref": "y domain", "showarrow": False, "bgcolor": "white"}
    figure.add_annotation(text=wrapped(text, ACROSS - 6), row=row, col=column, **place)
