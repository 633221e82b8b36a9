"""The picture of representation drift: curves over layers."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.curves import Curve, add_curve
from taia_lens.plots.look import COLOURS, framed
from taia_lens.plots.stacks import TITLE_ROW, Panels, Stack, at, models, step

# Vanilla is tuned whole, TAIA tuned's attention, and what the two differ by is the FFN.
_LINES = {"base-vanilla": COLOURS["tuned"], "base-taia": COLOURS["attn"], "vanilla-taia": COLOURS["mlp"]}
_RECIPES = {"base": COLOURS["base"], "vanilla": COLOURS["tuned"], "taia": COLOURS["attn"]}
_NAMES = {"base": "base", "vanilla": "vanilla", "taia": "TAIA"}
_CURVES = (("cka", "comparison", _LINES, "linear CKA"), ("residual", "recipe", _RECIPES, "||res(X)|| / ||X||"))
HEIGHT = 190


def drift_figure(summary: xr.Dataset) -> go.Figure:
    """CKA of each two recipes above, the residual measure of each below; a pair of rows for each suite, a column a domain.

    Args:
        summary: What `summaries.drift_summary` returned.

    Raises:
        ResultError: There is no group or no layer.
    """
    if not summary.sizes["layer"]:
        raise ResultError("the result holds no layer; there is nothing to draw")
    panels = Panels.of(summary)
    stack = Stack((HEIGHT,) * 2 * panels.rows, 54 + panels.lines * TITLE_ROW)
    titles = [title for line in panels.titles(summary) for _ in _CURVES for title in line]
    figure = stack.figure(len(panels.columns), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.06)
    for i, (line, col) in enumerate(panels.places):
        group = summary.isel(group=i)
        for j, (name, dim, colours, title) in enumerate(_CURVES):
            row = 2 * (line - 1) + j + 1
            for key in group[dim].values.tolist():
                add_curve(figure, _curve(group.sel({dim: key}), name, dim, colours[key]), row, col, named=i == 0)
            if panels.leads((line, col)):
                figure.update_yaxes(title_text=title, showticklabels=True, row=row, col=col)
        # One line for all three: chance depends on the numbers of prompts and dims far more than on the models.
        _add_chance(figure, group, 2 * line - 1, col, first=i == 0)
    figure.update_xaxes(title_text="layer", tick0=0, dtick=step(summary.sizes["layer"], 7))
    panels.clear(figure, len(_CURVES))
    notes = [
        f"{models(summary.attrs)}; {panels.note}".removeprefix("; "),
        "residual stream after each layer; CKA at the last position, the residual measure over all; bands: 95% intervals over prompts",
        "open: TAIA's residual measure is not told apart from vanilla's (5% after Benjamini-Hochberg)",
    ]
    title = "How far representations drift from the base"
    return framed(figure, title, notes, inside=stack.inside, below=52, legend=7, panels=panels.lines)


def _label(name: str, key: str) -> str:
    return f"CKA {' and '.join(_NAMES[side] for side in key.split('-'))}" if name == "cka" else f"res(X) {_NAMES[key]}"


def _curve(line: xr.Dataset, name: str, dim: str, colour: str) -> Curve:
    """A measure by layer with its interval; TAIA's residual measure is tested against vanilla's."""
    key, layers = str(line[dim].item()), line.layer.values
    value, low, high = (line[f"{name}{end}"].values for end in ("", "_low", "_high"))
    hovers = [_hover(line.isel(layer=i), name, key) for i in range(len(layers))]
    q = line.change_q.values if key == "taia" else None
    return Curve(_label(name, key), colour, layers, value, low, high, hovers, at(line) | {dim: key}, q)


def _hover(cell: xr.Dataset, name: str, key: str) -> str:
    ends = f"[{float(cell[f'{name}_low']):.4f}, {float(cell[f'{name}_high']):.4f}]"
    text = f"{float(cell[name]):.4f} {ends}, n = {int(cell.n)}"
    return text if key != "taia" else f"{text}<br>TAIA - vanilla {float(cell.change):+.4f}, q = {float(cell.change_q):.2g}"


def _add_chance(figure: go.Figure, group: xr.Dataset, row: int, col: int, *, first: bool) -> None:
    figure.add_scatter(
        x=group.layer.values,
        y=group.chance.mean("comparison").values,
        mode="lines" if group.sizes["layer"] > 1 else "markers",
        marker={"symbol": "line-ew-open", "size": 9, "color": COLOURS["base"]},
        line={"dash": "dot", "width": 1, "color": COLOURS["base"]},
        name="CKA prompts shuffled",
        legendgroup="chance",
        showlegend=first,
        hovertemplate="by chance, layer %{x}: %{y:.3f}<extra></extra>",
        row=row,
        col=col,
    )
