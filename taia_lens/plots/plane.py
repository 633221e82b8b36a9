"""Recipes in the plane of their value in and out of distribution: the picture in which TAIA's claim can be seen or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.grid import ROLE_COLOURS, ROLE_NAMES, ROLE_SYMBOLS, colour_of
from taia_lens.plots.layout import Row, check_some, metric_text, models, panels
from taia_lens.plots.look import COLOURS, framed, shown

NAMED = ("base", "vanilla", "TAIA", "TAIF")
HEIGHT = 330
_LETTER, _TEXT = 7, 15  # pixels of a label's letter and of its height
_NARROW = 340  # pixels of a panel of a figure of 450, in which labels must not meet
_SHIFTS: dict[str, dict[str, Any]] = {
    f"{up} {side}": {"xshift": dx, "xanchor": anchor, "yshift": dy, "yanchor": edge}
    for up, dy, edge in (("above", 5, "bottom"), ("below", -5, "top"))
    for side, dx, anchor in (("right", 7, "left"), ("left", -7, "right"))
}
_Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class _Plane:
    """A panel: a metric's group in distribution (x) and out of it (y), and what stands above it."""

    x: xr.Dataset
    y: xr.Dataset
    title: str


def plane_figure(summary: xr.Dataset) -> go.Figure:
    """Every recipe's value in distribution (x) and out of it (y), with 95% intervals both ways and the line from base to vanilla.

    A panel a metric, and a suite where there are several. Base, vanilla, TAIA and TAIF are named; controls are a cloud.

    Args:
        summary: What `summaries.grid_summary` returned for suites of both domains.

    Raises:
        ResultError: The summary holds no recipe, or no metric was measured both in and out of distribution.
    """
    check_some(summary, "value", "give what summaries.grid_summary returned")
    planes = _planes(summary)
    if not planes:
        raise ResultError("the plane needs a metric both in and out of distribution; compare on suites with rows of both domains")
    figure, inside = panels([Row(HEIGHT, (plane.title,), ticks=True) for plane in planes], 1, same_x=False)
    roles = dict.fromkeys(str(role) for role in summary.role.values)
    for row, plane in enumerate(planes, 1):
        _add_line(figure, plane, row)
        for role in sorted(roles, key=lambda role: role != "control"):  # the cloud lies below
            _add_role(figure, plane, role, row)
        _add_names(figure, plane, row)
        words = metric_text(plane.x)
        figure.update_xaxes(title={"text": f"in distribution: {words}", "standoff": 4}, showgrid=True, row=row)
        figure.update_yaxes(title_text=f"out of distribution:<br>{words}", showgrid=True, row=row)
    suites = list(dict.fromkeys(summary.suite.values.tolist()))
    where = f"suite {shown(suites[0], 40)}" if len(suites) == 1 else ""
    notes = [
        "; ".join(filter(None, [where, models(summary.attrs)])),
        "crosses: 95% intervals; dashed: from base to vanilla, all of the update",
    ]
    legend = sum(name in summary.recipe.values for name in NAMED) + len([r for r in roles if r not in ("end", "named")])
    title = "Recipes in distribution and out of it"
    return framed(figure, title, notes, inside=inside, below=50, legend=legend, panels=planes[0].title.count("<br>") + 1)


def _planes(summary: xr.Dataset) -> list[_Plane]:
    """For each group out of distribution: with the same suite in distribution, or else with every one under that metric."""
    groups = [summary.isel(group=i) for i in range(summary.sizes["group"])]
    out = []
    for y in (group for group in groups if group.domain == "ood"):
        own = [group for group in groups if group.domain == "id" and group.metric == y.metric]
        same = [group for group in own if group.suite == y.suite]
        for x in same or own:
            n = f"n = {int(x.n)} id, {int(y.n)} ood"
            names = [shown(group.suite.item(), 22) for group in ([y] if same else [x, y])]
            several = len(set(summary.suite.values.tolist())) > 1
            out.append(_Plane(x, y, f"{' (x), '.join(names)}{'' if same else ' (y)'}<br>{n}" if several else n))
    return out


def _add_line(figure: go.Figure, plane: _Plane, row: int) -> None:
    names = [name for name in ("base", "vanilla") if name in plane.x.recipe.values]
    x, y = ([float(group.value.sel(recipe=name)) for name in names] for group in (plane.x, plane.y))
    line = {"dash": "dash", "width": 1, "color": COLOURS["tuned"]}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False, row=row, col=1)


def _add_role(figure: go.Figure, plane: _Plane, role: str, row: int) -> None:
    """The recipes of a role; those that are named have a place each in the legend."""
    names = [str(name) for name in plane.x.recipe.values[plane.x.role.values == role]]
    for some in [[name] for name in names] if role in ("end", "named") else [names]:
        _add_points(figure, plane, role, some, row)


def _add_points(figure: go.Figure, plane: _Plane, role: str, names: list[str], row: int) -> None:
    x, y = plane.x.sel(recipe=names), plane.y.sel(recipe=names)
    cloud, colour = role == "control", colour_of(names[0], role)
    at: dict[str, Any] = {"metric": str(x.metric.item())}
    at |= {"suite": str(x.suite.item())} if x.suite == y.suite else {}
    legend = shown(names[0], 24) if role in ("end", "named") else ROLE_NAMES[role]
    figure.add_scatter(
        x=x.value.values,
        y=y.value.values,
        mode="markers",
        opacity=0.55 if cloud else 1.0,
        marker={"size": 7 if cloud else 10, "color": ROLE_COLOURS["control"] if cloud else colour, "symbol": ROLE_SYMBOLS[role]},
        error_x=_error(x, colour, cloud=cloud),
        error_y=_error(y, colour, cloud=cloud),
        name=legend,
        legendgroup=legend,
        showlegend=row == 1,
        text=[_hover(x.sel(recipe=name), y.sel(recipe=name)) for name in names],
        hovertemplate="%{text}<extra></extra>",
        meta={"at": at, "points": [{"recipe": name} for name in names]},
        row=row,
        col=1,
    )


def _error(cells: xr.Dataset, colour: str, *, cloud: bool) -> dict[str, Any]:
    value, low, high = (cells[name].values for name in ("value", "low", "high"))
    look = {"thickness": 1 if cloud else 1.5, "width": 0 if cloud else 3, "color": colour}
    return {"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low} | look


def _hover(x: xr.Dataset, y: xr.Dataset) -> str:
    lines = [
        f"{word}: {float(cell.value):.4g} [{float(cell.low):.4g}, {float(cell.high):.4g}], n = {int(cell.n)}"
        for word, cell in (("in distribution", x), ("out of distribution", y))
    ]
    return "<br>".join([f"<b>{shown(x.recipe.item(), 60)}</b>", *lines, shown(x.text.item(), 90)])


def _add_names(figure: go.Figure, plane: _Plane, row: int) -> None:
    """Names beside the points of NAMED, where they meet neither each other nor a point or interval of them; else the legend has to do."""
    names = [name for name in NAMED if name in plane.x.recipe.values]
    x, y = (_in_pixels(group, names, size) for group, size in ((plane.x, _NARROW), (plane.y, HEIGHT)))
    for name, place in zip(names, _placed(x, y, names), strict=True):
        if place:
            at = {"x": float(plane.x.value.sel(recipe=name)), "y": float(plane.y.value.sel(recipe=name))}
            text = {"text": f"<b>{name}</b>", "font": {"color": colour_of(name, "named")}, "showarrow": False}
            figure.add_annotation(at | text | _SHIFTS[place], row=row, col=1)


def _in_pixels(group: xr.Dataset, names: list[str], size: int) -> np.ndarray:
    """Low end, value and high end (end, name) along an axis of so many pixels, the axis going as far as any recipe does."""
    ends = np.stack([group[name].values for name in ("low", "value", "high")])
    known = ends[np.isfinite(ends)]
    first, last = (known.min(), known.max()) if known.size else (0.0, 1.0)
    own = np.stack([group[name].sel(recipe=names).values for name in ("low", "value", "high")])
    pixels: np.ndarray = (own - first) / (last - first or 1.0) * (size - 60) + 30
    return pixels


def _placed(x: np.ndarray, y: np.ndarray, names: list[str]) -> list[str]:
    """Where each name stands beside its point in the narrowest panel; nothing where there is no room for it."""
    taken: list[_Box] = []
    for (left, a, right), (low, b, high) in zip(x.T, y.T, strict=True):
        taken += [(a - 6, b - 6, a + 6, b + 6), (left, b - 1, right, b + 1), (a - 1, low, a + 1, high)]
    out = []
    for a, b, name in zip(x[1], y[1], names, strict=True):
        boxes = {place: _box(a, b, float(_LETTER * len(name)), place) for place in _SHIFTS} if np.isfinite(a + b) else {}
        free = [p for p, box in boxes.items() if 0 <= box[0] and box[2] <= _NARROW and not any(_meet(box, other) for other in taken)]
        out.append(free[0] if free else "")
        taken += [boxes[free[0]]] if free else []
    return out


def _box(a: float, b: float, width: float, place: str) -> _Box:
    """Left, bottom, right and top of a label beside a point."""
    shift = _SHIFTS[place]
    left = a + shift["xshift"] - (0 if shift["xanchor"] == "left" else width)
    low = b + shift["yshift"] - (0 if shift["yanchor"] == "bottom" else _TEXT)
    return left, low, left + width, low + _TEXT


def _meet(one: _Box, other: _Box) -> bool:
    return bool(one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3])
