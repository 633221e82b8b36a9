"""The map of a patching study: the effect by layer and head, or by position and site; one panel a domain and component.

Positions go down and layers across, so that a prompt is read along its tokens whatever their length, script and number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.plots.layout import WIDE, Row, panels
from taia_lens.plots.look import DIVERGING, NOTHING, framed, shades, shown, unsure
from taia_lens.suite import DOMAIN_NAMES

__all__ = ["DIVERGING", "NOTHING", "hover_text", "is_map", "line_height", "map_figure"]

TALL = 1300  # pixels of a map of many positions, so that each has its token beside it
TOKEN = 18  # letters of a token that are shown beside its line; all of it when pointed at
READ = ("effect", "effect_low", "effect_high", "effect_q", "recovered", "recovered_low", "recovered_high", "defined", "n")


def is_map(summary: xr.Dataset) -> bool:
    """Whether a summary is drawn as a map: it has positions one by one, or more than one head or layer of heads."""
    return "pos" in summary.dims or ("head" in summary.dims and max(summary.sizes["head"], summary.sizes["layer"]) > 1)


def line_height(lines: int, most: int = 640) -> int:
    """Pixels of one of so many lines of a map: room for a label where they are few, about `most` in all where they are many."""
    return max(5, min(16, most // max(lines, 1)))


def map_figure(summary: xr.Dataset, title: str, notes: Sequence[str]) -> go.Figure:
    """The effect on the first metric that changes anywhere; white at zero, a dot where it is not told apart from 0 after correction.

    Args:
        summary: What `summaries.patch_summary` returned; `is_map` holds of it.
        title: Of the figure.
        notes: Below the title.
    """
    part = summary.isel(metric=_chosen(summary))
    cells = {(c, d): _read(part, c, d) for c in part.component.values.tolist() for d in part.domain.values.tolist()}
    shape = next(iter(cells.values())).numbers["effect"].shape
    rows = _rows(part, shape[1])
    each = line_height(shape[0], TALL if "pos" in part.dims else 640)
    height = each * shape[0] + 8
    figure, inside = panels([Row(height, titles) for _, titles in rows], len(rows[0][0]))
    for row, (places, _) in enumerate(rows, 1):
        for column, place in enumerate(places, 1):
            _add_map(figure, cells[place], row, column, gap=int(shape[1] <= WIDE and each > 8))
    figure.update_layout(plot_bgcolor=NOTHING)
    figure.update_xaxes(type="category", row=len(rows), title_text=_across(part), tickfont={"size": 10})
    figure.update_yaxes(type="category", tickfont={"size": 10})
    down = "pos" in part.dims
    figure.update_yaxes(title_text=_down(part) if down else "layer", autorange="reversed" if down else True, col=1)
    sure = part.effect.where(part.n > 1) if bool((part.n > 1).any()) else part.effect  # one long prompt shall not set the scale
    scale = shades(f"effect on {part.metric.item()} ({part.unit.item()})", sure.values)
    lines = max(title.count("<br>") + 1 for title in rows[0][1])
    said = [*notes, _note(part, str(summary.metric.values[0]))]
    return framed(figure, title, said, inside=inside, below=70, panels=lines, scales=[scale])


def _rows(part: xr.Dataset, across: int) -> list[tuple[list[tuple[str, str]], tuple[str, ...]]]:
    """What stands in each row of panels, (component, domain), and the panels' titles; wide maps stand below each other."""
    components, domains = part.component.values.tolist(), part.domain.values.tolist()
    places = [[(c, d) for d in domains] for c in components]
    if across > WIDE:
        places = [[place] for row in places for place in row]

    def title(component: str, domain: str) -> str:
        lines = [f"{DOMAIN_NAMES[domain]}, n = {int(part.n.sel(domain=domain).max())}"]
        return "<br>".join(([component] if len(components) > 1 else []) + lines)

    return [(row, tuple(title(*place) for place in row)) for row in places]


def _chosen(summary: xr.Dataset) -> int:
    """The first metric that any site changes: of one prompt, an accuracy hardly ever does."""
    changes = (np.abs(summary.effect) > 0).any([dim for dim in summary.effect.dims if dim != "metric"]).values
    return int(changes.argmax())


def _note(part: xr.Dataset, first: str) -> str:
    """What the map's marks mean."""
    metric = f"effect on {part.metric.item()}, " + ("the first metric" if part.metric == first else f"since {first} changes nowhere")
    grey = "; grey: no prompt is that long" if bool((part.n == 0).any()) else ""
    if not bool((part.n > 1).any()):
        return f"{metric}; no intervals and no tests: one prompt has no spread{grey}"
    alone = ", or of one prompt" if bool((part.n == 1).any()) else ""
    return f"{metric}; dot: not told apart from 0 after correction (q > 0.05, Benjamini-Hochberg over a domain's sites){alone}{grey}"


@dataclass(frozen=True, eq=False)
class _Cells:
    """A panel's numbers, (line, column), by name; what its lines and columns are called, and which cells of the result they are."""

    numbers: dict[str, np.ndarray]
    lines: list[str]
    columns: list[str]
    meta: dict[str, Any]
    hovers: list[str]


def _read(part: xr.Dataset, component: str, domain: str) -> _Cells:
    cells = part.sel(component=component, domain=domain)
    at = {"metric": str(part.metric.item()), "component": component, "domain": domain}
    down = "pos" if "pos" in cells.dims else "layer"
    across = [dim for dim in ("layer", "head") if dim in cells.dims and dim != down]
    template = cells.effect.transpose(down, *across)
    arrays = {name: cells[name].broadcast_like(template).transpose(down, *across).values.astype(float) for name in READ}
    numbers = {name: array.reshape(len(array), -1) for name, array in arrays.items()}
    lines = [{down: value} for value in cells[down].values.tolist()]
    columns: list[dict[str, int]] = [{}]
    for dim in across:
        columns = [column | {dim: value} for column in columns for value in cells[dim].values.tolist()]
    tokens = cells.token.values.tolist() if "token" in cells.coords else [""] * len(lines)
    # As text: layers, heads and positions that were not patched get no place on the axes.
    named = ["L{layer}.h{head}".format(**c) if len(c) == 2 else str(*c.values()) for c in columns]
    labels = [_label(line[down], str(token)) for line, token in zip(lines, tokens, strict=True)]
    full = [f"{down} {line[down]}" + (f", token {shown(token, 60)}" if token else "") for line, token in zip(lines, tokens, strict=True)]
    return _Cells(numbers, labels, named, {"at": at, "rows": lines, "columns": columns}, full)


def _label(number: int, token: str) -> str:
    """A layer or a position, with the token that stands there where it is the same in every prompt."""
    # A blank that is all of the token is made visible, and so is a new line.
    return f"{number} {shown((token if token.strip() else repr(token)).replace(chr(10), chr(92) + 'n'), TOKEN)}" if token else str(number)


def _across(part: xr.Dataset) -> str:
    if "pos" not in part.dims:
        return "head"
    return "layer and head" if "head" in part.dims else "layer"


def _down(part: xr.Dataset) -> str:
    return "position" if (part.pos >= 0).all() else "position from the end<br>(-1 predicts the answer)"


def _add_map(figure: go.Figure, cells: _Cells, row: int, column: int, *, gap: int) -> None:
    numbers = cells.numbers
    marks = np.where(numbers["n"] > 0, unsure(numbers["effect_q"]), "") if (numbers["n"] > 1).any() else np.full(numbers["n"].shape, "")
    shape = numbers["effect"].shape
    hovers = [[_hover({name: float(array[i, j]) for name, array in numbers.items()}) for j in range(shape[1])] for i in range(shape[0])]
    word = "" if len(cells.meta["columns"][0]) == 2 else f"{next(iter(cells.meta['columns'][0]))} "
    figure.add_heatmap(
        x=cells.columns,
        y=cells.lines,
        z=numbers["effect"],
        xgap=gap,
        ygap=gap,
        customdata=[[f"{cells.hovers[i]}, {word}{cells.columns[j]}<br>{hovers[i][j]}" for j in range(shape[1])] for i in range(shape[0])],
        text=marks,
        texttemplate="%{text}",
        hovertemplate="%{customdata}<extra></extra>",
        coloraxis="coloraxis",
        meta=cells.meta,
        row=row,
        col=column,
    )


def _hover(cell: dict[str, float]) -> str:
    return hover_text(cell) if cell["n"] else "no prompt has this position"


def hover_text(cell: dict[str, float]) -> str:
    """The effect with its interval and q, the recovered fraction where there is one, and n."""
    text = f"effect {cell['effect']:+.4g} [{cell['effect_low']:+.4g}, {cell['effect_high']:+.4g}], q = {cell['effect_q']:.2g}"
    if cell["defined"]:
        text += f"<br>recovered {cell['recovered']:.0%} [{cell['recovered_low']:.0%}, {cell['recovered_high']:.0%}]"
    else:
        text += "<br>recovered: undefined (donor - host is within noise)"
    return f"{text}<br>n = {int(cell['n'])}"
