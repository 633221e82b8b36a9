"""The picture of the update's anatomy: maps over layers and projections, one below the other."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.look import COLOURS, DIVERGING, NOTHING, SEQUENTIAL, framed, shown
from taia_lens.plots.stacks import Stack, downwards, gap, limit, models, plain, step, ticks, to_the_left

# Panel -> its title.
_PANELS = {
    "ratio": "size: |update| / |weight| (Frobenius)",
    "effective_rank": "effective rank of the update",
    "out": "overlap in the space written to, times chance",
    "in": "overlap in the space read from, times chance",
}
ROW, MOST = 20, 600  # pixels of a projection's row, and of a map
BARS = 40  # more bars than that are not readable


def anatomy_figure(result: xr.Dataset) -> go.Figure:
    """Four maps, layer by projection: size, effective rank, and overlap with the base weight's own directions, both sides.

    Where no matrix inside a layer differs, the sizes of what does.

    Args:
        result: What `studies.anatomy.anatomy` returned.

    Raises:
        ResultError: No weight differs.
    """
    if not result.sizes["weight"]:
        raise ResultError("no weight differs in the result; there is nothing to draw")
    inside = result.isel(weight=np.flatnonzero((result.layer.values >= 0) & result.effective_rank.notnull().values))
    share = result.share.groupby("component").sum()
    parts = ", ".join(f"{shown(c)} {float(share.sel(component=c)):.0%}" for c in dict.fromkeys(result.component.values.tolist()))
    notes = [models(result.attrs), f"share of its squared norm: {parts}"]
    title = f"Anatomy of the update: {result.sizes['weight']} weights differ"
    return _maps(inside, title, notes) if inside.sizes["weight"] else _bars(result, title, notes)


def _bars(result: xr.Dataset, title: str, notes: list[str]) -> go.Figure:
    known = np.nan_to_num(result.ratio.values, nan=0.0, posinf=np.inf)
    order = np.sort(np.argsort(-known, kind="stable")[:BARS])
    result = result.isel(weight=order)
    names = [shown(name, 26) for name in result.weight.values.tolist()]
    ratio = np.where(np.isfinite(result.ratio.values), result.ratio.values, np.nan)
    figure = go.Figure()
    figure.add_bar(
        x=ratio,
        y=list(range(len(names))),
        orientation="h",
        marker={"color": COLOURS["tuned"]},
        customdata=[f"{shown(n)}<br>{_hover(result.isel(weight=i), 'norm')}" for i, n in enumerate(result.weight.values.tolist())],
        hovertemplate="%{customdata}<extra></extra>",
        meta={"at": {}, "points": plain("weight", result.weight.values)},
    )
    labels = ticks(names)
    figure.update_yaxes(downwards(labels), automargin=True)
    figure.update_xaxes(title_text="|update| / |weight|", nticks=6)
    left = len(known) - len(order)
    more = [f"the {BARS} that changed most; {left} more are in the table"] if left else []
    none = ["no bar: the base's weight is zero, or the ratio is no number"] if np.isnan(ratio).any() else []
    return framed(figure, title, [*notes, *more, *none], inside=max(90, 18 * len(names)))


def _maps(inside: xr.Dataset, title: str, notes: list[str]) -> go.Figure:
    kinds = _kinds(inside)
    stack = Stack((min(max(70, ROW * len(kinds)), MOST),) * len(_PANELS), 82)
    figure = stack.figure(subplot_titles=list(_PANELS.values()))
    to_the_left(figure)
    for row, panel in enumerate(_PANELS, 1):
        _add_map(figure, inside, panel, kinds, stack, row)
    figure.update_layout(plot_bgcolor=NOTHING)
    said = [
        "overlap: how far the update's leading directions lie in the weight's own; white: as by chance, red: more, blue: less",
        "grey: no such weight, no update, or no number; read off the weights, so there are no intervals",
    ]
    return framed(figure, title, [*notes, *said], inside=stack.inside, below=52, panels=1)


def _kinds(inside: xr.Dataset) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(inside.component.values.tolist(), inside.part.values.tolist(), strict=True)))


def _add_map(figure: go.Figure, inside: xr.Dataset, panel: str, kinds: list[tuple[str, str]], stack: Stack, row: int) -> None:
    layers = list(range(int(inside.attrs["n_layers"])))
    z = np.full((len(kinds), len(layers)), np.nan)
    hover = np.full(z.shape, "", dtype=object)
    for i in range(inside.sizes["weight"]):
        one = inside.isel(weight=i)
        at = kinds.index((str(one.component.item()), str(one.part.item()))), int(one.layer)
        z[at], hover[at] = _value(one, panel), f"{shown(one.weight.item())}<br>{_hover(one, panel)}"
    bar = stack.bar(row)
    if panel in ("out", "in"):
        most = max(limit(z), 1.0)
        whole = np.arange(-int(most), int(most) + 1)
        every = step(len(whole), 7)
        whole = whole[whole % every == 0]
        scale = {"zmin": -most, "zmax": most, "colorscale": DIVERGING}
        bar |= {"tickvals": whole, "ticktext": [f"{2.0**t:.3g}" for t in whole]}
    else:  # from 0: what differs little looks alike
        scale = {"zmin": 0, "zmax": limit(z), "colorscale": SEQUENTIAL}
    figure.add_heatmap(
        x=layers,
        z=z,
        xgap=gap(len(layers)),
        ygap=1,
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        colorbar=bar,
        meta={
            "at": {},
            "rows": [{"component": component, "part": part} for component, part in kinds],
            "columns": plain("layer", np.array(layers)),
        },
        row=row,
        col=1,
        **scale,
    )
    labels = ticks([shown(f"{component}.{part}", 18) for component, part in kinds], most=max(1, stack.heights[0] // 13))
    figure.update_yaxes(downwards(labels), automargin=True, row=row, col=1)
    figure.update_xaxes(title_text="layer", tick0=0, dtick=step(len(layers), 10), row=row, col=1)


def _value(one: xr.Dataset, panel: str) -> float:
    if panel in ("out", "in"):
        times = float(one[f"overlap_{panel}"] / one[f"chance_{panel}"])
        return float(np.log2(times)) if times > 0 else np.nan
    value = float(one[panel])
    return value if np.isfinite(value) else np.nan


def _hover(one: xr.Dataset, panel: str) -> str:
    if panel in ("out", "in"):
        r = float(one.directions)
        return f"overlap {float(one[f'overlap_{panel}']):.3f} of {r:.3g} directions; by chance {float(one[f'chance_{panel}']):.3f}"
    if panel == "norm":
        return f"{float(one.ratio):.3g} ({float(one.share):.2%} of the update)"
    if panel == "ratio":
        return f"{float(one.ratio):.3g} ({float(one.share):.2%} of the update); spectral {float(one.spectral_ratio):.3g}"
    return f"effective {float(one.effective_rank):.1f}, stable {float(one.stable_rank):.1f}, above rounding {float(one['rank']):.3g}"
