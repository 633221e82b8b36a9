"""The picture of the update's anatomy: maps over layers and projections."""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from taia_lens.plots.maps import DIVERGING

SEQUENTIAL = "Cividis"
# Panel -> its title, and what stands at the colour bar.
_PANELS = {
    "ratio": ("size: |update| / |weight| (Frobenius)", "ratio"),
    "effective_rank": ("effective rank of the update", "rank"),
    "out": ("overlap with the weight's leading directions: written to", "times<br>chance"),
    "in": ("overlap with the weight's leading directions: read from", "times<br>chance"),
}


def anatomy_figure(result: xr.Dataset) -> go.Figure:
    """Four maps, layer by projection: size, effective rank, and overlap with the base weight's own directions, both sides.

    Where no matrix inside a layer differs, the sizes of what does.

    Args:
        result: What `studies.anatomy.anatomy` returned.
    """
    inside = result.isel(weight=np.flatnonzero((result.layer.values >= 0) & result.effective_rank.notnull().values))
    figure = _maps(inside) if inside.sizes["weight"] else _bars(result)
    share = result.share.groupby("component").sum()
    parts = ", ".join(f"{c} {float(share.sel(component=c)):.0%}" for c in dict.fromkeys(result.component.values.tolist()))
    text = f"Anatomy of the update: {result.sizes['weight']} weights differ<br><sup>share of its squared norm: {parts}</sup>"
    figure.update_layout(
        template="simple_white",
        title={"text": text, "x": 0.02, "xanchor": "left", "font": {"size": 15}},
        height=260 + 56 * len(_kinds(inside)),
        margin={"t": 110, "l": 90},
    )
    return figure


def _bars(result: xr.Dataset) -> go.Figure:
    figure = go.Figure(go.Bar(x=[html.escape(str(name)) for name in result.weight.values], y=result.ratio.values))
    figure.update_yaxes(title_text="|update| / |weight|")
    return figure


def _maps(inside: xr.Dataset) -> go.Figure:
    titles = [title for title, _ in _PANELS.values()]
    figure = make_subplots(2, 2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.14, vertical_spacing=0.2)
    for i, panel in enumerate(_PANELS):
        _add_map(figure, inside, panel, i // 2 + 1, i % 2 + 1)
    return figure


def _kinds(inside: xr.Dataset) -> list[str]:
    return list(dict.fromkeys(f"{c}.{p}" for c, p in zip(inside.component.values, inside.part.values, strict=True)))


def _add_map(figure: go.Figure, inside: xr.Dataset, panel: str, row: int, col: int) -> None:
    kinds, layers = _kinds(inside), list(range(int(inside.attrs["n_layers"])))
    z = np.full((len(kinds), len(layers)), np.nan)
    hover = np.full(z.shape, "", dtype=object)
    for i in range(inside.sizes["weight"]):
        one = inside.isel(weight=i)
        at = kinds.index(f"{one.component.item()}.{one.part.item()}"), int(one.layer)
        z[at], hover[at] = _value(one, panel), _hover(one, panel)
    ratio = panel in ("out", "in")
    known = np.nan_to_num(z)
    limit = max(float(np.abs(known).max()), 1.0) if ratio else None
    bar = {"len": 0.42, "x": 0.435 if col == 1 else 1.005, "y": 0.81 if row == 1 else 0.2, "thickness": 12}
    ticks = {"tickvals": (whole := np.arange(-int(limit), int(limit) + 1)), "ticktext": [f"{2.0**t:g}" for t in whole]} if limit else {}
    figure.add_heatmap(
        x=layers,
        y=kinds,
        z=z,
        zmin=-limit if limit else 0,  # from 0: what differs little looks alike
        zmax=limit or float(known.max()) or None,
        colorscale=DIVERGING if ratio else SEQUENTIAL,
        xgap=1,
        ygap=1,
        customdata=hover,
        hovertemplate="layer %{x}, %{y}<br>%{customdata}<extra></extra>",
        hoverongaps=False,
        colorbar=bar | {"title": {"text": _PANELS[panel][1], "font": {"size": 11}}} | ticks,
        row=row,
        col=col,
    )
    figure.update_yaxes(autorange="reversed", row=row, col=col)
    figure.update_xaxes(title_text="layer", tick0=0, dtick=max(1, len(layers) // 4), row=row, col=col)


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
    if panel == "ratio":
        return f"{float(one.ratio):.3g} ({float(one.share):.2%} of the update); spectral {float(one.spectral_ratio):.3g}"
    return f"effective {float(one.effective_rank):.1f}, stable {float(one.stable_rank):.1f}, above rounding {float(one['rank']):.3g}"
