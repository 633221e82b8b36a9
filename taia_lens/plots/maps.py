"""The map of a patching study: the effect by layer and head, or by layer and position; one panel a domain and component."""

from __future__ import annotations

import html
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from taia_lens.suite import DOMAIN_NAMES

DIVERGING = "RdBu_r"
NOTHING = "#d9d9d9"
"""Behind a map of positions: a place that no prompt has is grey, an effect of zero is white."""
TICKS = 60  # more labels than that are not readable: plotly leaves some out
_READ = ("effect", "effect_low", "effect_high", "recovered", "recovered_low", "recovered_high", "defined", "n")


def is_map(summary: xr.Dataset) -> bool:
    """Whether a summary is drawn as a map: it has positions one by one, or more than one head or layer of heads."""
    return "pos" in summary.dims or ("head" in summary.dims and max(summary.sizes["head"], summary.sizes["layer"]) > 1)


def map_note(summary: xr.Dataset) -> str:
    """What a map's marks mean."""
    metric = f"effect on {summary.metric.values[0]}, the first metric"
    if not np.isfinite(summary.effect_low).any():
        return f"{metric}; no intervals: one prompt has no spread"
    alone = " or there is none, of one prompt" if bool((summary.n == 1).any()) else ""
    grey = "; grey: no prompt is that long" if bool((summary.n == 0).any()) else ""
    return f"{metric}; dot: its 95% paired bootstrap interval holds 0{alone}{grey}"


def map_figure(summary: xr.Dataset) -> go.Figure:
    """The effect on the first metric, in colours that are white at zero; dots where the interval holds 0."""
    metric = str(summary.metric.values[0])
    part = summary.sel(metric=metric)
    components, domains = part.component.values.tolist(), part.domain.values.tolist()
    figure = make_subplots(
        len(components),
        len(domains),
        column_titles=[DOMAIN_NAMES[d] for d in domains],
        row_titles=components if len(components) > 1 else None,
        horizontal_spacing=0.08,
        vertical_spacing=0.06,
        shared_xaxes=True,
        shared_yaxes=True,
    )
    sure = part.effect.where(part.n > 1) if bool((part.n > 1).any()) else part.effect  # one long prompt shall not set the scale
    limit = max(float(np.abs(sure).max()), 1e-12)
    scale = {"zmin": -limit, "zmax": limit, "colorscale": DIVERGING}
    scale["colorbar"] = {"title": {"text": f"effect on<br>{metric}<br>({part.unit.values})"}}
    for row, component in enumerate(components, 1):
        for col, domain in enumerate(domains, 1):
            cells = _read(part.sel(component=component, domain=domain))
            _add_map(figure, cells, scale | {"showscale": row == col == 1}, row, col)
    figure.update_xaxes(type="category", nticks=TICKS)
    figure.update_yaxes(type="category")
    figure.update_xaxes(title_text=_across(part), row=len(components))
    figure.update_yaxes(title_text="layer and head" if {"pos", "head"} <= set(part.dims) else "layer", col=1)
    lines = min(part.sizes["layer"] * (part.sizes["head"] if {"pos", "head"} <= set(part.dims) else 1), 64)
    figure.update_layout(height=200 + (140 + 22 * lines) * len(components), margin={"t": 95})
    if "pos" in part.dims:
        figure.update_layout(plot_bgcolor=NOTHING)
    return figure


@dataclass(frozen=True, eq=False)
class _Cells:
    """A panel's numbers, (line, column), by name, and what its lines and columns are called."""

    numbers: dict[str, np.ndarray]
    lines: list[str]
    columns: list[str]


def _read(part: xr.Dataset) -> _Cells:
    across = "pos" if "pos" in part.dims else "head"
    lines = ("layer", "head") if across == "pos" and "head" in part.dims else ("layer",)
    template = part.effect.transpose(*lines, across)
    arrays = {name: part[name].broadcast_like(template).transpose(*lines, across).values.astype(float) for name in _READ}
    layers = part.layer.values.tolist()
    named = [f"L{layer}.h{head}" for layer in layers for head in part["head"].values.tolist()] if len(lines) == 2 else map(str, layers)
    flat = {name: array.reshape(-1, array.shape[-1]) for name, array in arrays.items()}
    # As text: layers, heads and positions that were not patched get no place on the axes.
    return _Cells(flat, list(named), _columns(part, across))


def _columns(part: xr.Dataset, across: str) -> list[str]:
    """What the columns are called: a position with the token that stands there, where it is the same in every prompt."""
    numbers = [str(i) for i in part[across].values.tolist()]
    if across != "pos" or "token" not in part.coords:
        return numbers
    return [f"{i} {_token(str(token))}" if token else i for i, token in zip(numbers, part.token.values.tolist(), strict=True)]


def _token(text: str) -> str:
    """A token on one line, blanks that are all of it made visible, and no markup."""
    return html.escape(text.strip() or repr(text)).replace("\n", "\\n")


def _across(part: xr.Dataset) -> str:
    if "pos" not in part.dims:
        return "head"
    return "position" if (part.pos >= 0).all() else "position from the end: -1 predicts the answer"


def _add_map(figure: go.Figure, cells: _Cells, scale: dict, row: int, col: int) -> None:
    numbers = cells.numbers
    unsure = (numbers["effect_low"] <= 0) & (numbers["effect_high"] >= 0)
    if np.isfinite(numbers["effect_low"]).any():
        unsure |= numbers["n"] == 1
    shape = numbers["effect"].shape
    hovers = [[_hover({name: float(array[i, j]) for name, array in numbers.items()}) for j in range(shape[1])] for i in range(shape[0])]
    figure.add_heatmap(
        x=cells.columns,
        y=cells.lines,
        z=numbers["effect"],
        xgap=1,
        ygap=1,
        customdata=hovers,
        text=np.where(unsure, "·", ""),
        texttemplate="%{text}",
        textfont={"size": 18},
        hovertemplate="%{y}, %{x}<br>%{customdata}<extra></extra>",
        row=row,
        col=col,
        **scale,
    )


def _hover(cell: dict[str, float]) -> str:
    if cell["n"] == 0:
        return "no prompt has this position"
    return f"{hover_text(cell)}<br>n = {int(cell['n'])}"


def hover_text(cell: dict[str, float]) -> str:
    """The effect, and the recovered fraction where there is one, with their intervals."""
    text = f"effect {cell['effect']:+.4g} [{cell['effect_low']:+.4g}, {cell['effect_high']:+.4g}]"
    if cell["defined"]:
        return text + f"<br>recovered {cell['recovered']:.0%} [{cell['recovered_low']:.0%}, {cell['recovered_high']:.0%}]"
    return text + "<br>recovered: undefined (donor - host is within noise)"
