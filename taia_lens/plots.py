"""Figures: a result's summary in, a plotly Figure out. No I/O, no torch, no global theme.

The same colour means the same thing in every figure (Okabe and Ito's palette, safe for colour-blind readers).
"""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from taia_lens.errors import ResultError

COLOURS = {
    "base": "#7f7f7f",
    "tuned": "#000000",
    "attn": "#0072B2",
    "mlp": "#D55E00",
    "resid": "#009E73",
    "head": "#CC79A7",
    "id": "#56B4E9",
    "ood": "#E69F00",
}
DOMAIN_NAMES = {"id": "in distribution", "ood": "out of distribution"}
DIVERGING = "RdBu_r"


def patch_figure(summary: xr.Dataset) -> go.Figure:
    """The picture of a patching study: points for one layer, curves over layers, or a map of heads.

    Args:
        summary: What `results.summary` returned for a patching result.

    Raises:
        ResultError: The summary holds no site.
    """
    if 0 in summary.effect.shape:
        raise ResultError("the result holds no site or no example; there is nothing to draw")
    if "head" in summary.dims and max(summary.sizes["head"], summary.sizes["layer"]) > 1:
        figure = _heads(summary)
    elif summary.sizes["layer"] > 1:
        figure = _layers(summary)
    else:
        figure = _points(summary)
    figure.update_layout(template="simple_white", title={"text": _title(summary), "x": 0.02, "xanchor": "left", "font": {"size": 15}})
    return figure


def _title(summary: xr.Dataset) -> str:
    a = summary.attrs
    what = {"head": "head output (z)", "resid": "residual stream"}
    names = ", ".join(what.get(str(c), f"{c} output") for c in summary.component.values)
    layers = summary.layer.values
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers.min()}-{layers.max()}, one at a time"
    where += "" if a["positions"] == "all" else f", positions {a['positions']}"
    n = ", ".join(f"n = {int(v)} {d}" for d, v in zip(summary.domain.values, summary.n.values, strict=True))
    note = f"suite {html.escape(str(a['suite']))}; {n}; bars and bands: 95% paired bootstrap intervals of the effect"
    return f"{a['host']} with {names} of {a['donor']} patched in: {where}<br><sup>{note}</sup>"


def _points(summary: xr.Dataset) -> go.Figure:
    """One layer: for each metric, host, patched and donor side by side on one axis."""
    metrics = summary.metric.values.tolist()
    figure = make_subplots(rows=1, cols=len(metrics), shared_yaxes=True, horizontal_spacing=0.06)
    host, donor = summary.attrs["host"], summary.attrs["donor"]
    for col, metric in enumerate(metrics, 1):
        part = summary.sel(metric=metric)
        rows = [(d, c) for d in summary.domain.values for c in summary.component.values]
        labels = [_row_label(summary, d, c) for d, c in rows]
        ends: tuple[tuple[str, str, str], ...] = ((host, "host", "diamond"), (donor, "donor", "square"))
        for side, name, symbol in ends:
            x = [float(part[name].sel(domain=d)) for d, _ in rows]
            hover = f"{name} ({side}): %{{x:.4g}}<extra></extra>"
            marker = {"symbol": symbol, "size": 11, "color": COLOURS[side]}
            figure.add_scatter(
                x=x,
                y=labels,
                mode="markers",
                name=f"{side} ({name})",
                marker=marker,
                hovertemplate=hover,
                legendgroup=name,
                showlegend=col == 1,
                row=1,
                col=col,
            )
        cells = [part.sel(domain=d, component=c).squeeze() for d, c in rows]
        x = [float(cell.patched) for cell in cells]
        error = {
            "type": "data",
            "symmetric": False,
            "array": [float(cell.effect_high - cell.effect) for cell in cells],
            "arrayminus": [float(cell.effect - cell.effect_low) for cell in cells],
        }
        marker = {"size": 12, "color": [COLOURS[str(c)] for _, c in rows], "line": {"width": 1, "color": "white"}}
        figure.add_scatter(
            x=x,
            y=labels,
            mode="markers",
            name=f"{host}, patched",
            marker=marker,
            error_x=error,
            text=[_hover(cell) for cell in cells],
            hovertemplate="patched: %{x:.4g}<br>%{text}<extra></extra>",
            legendgroup="patched",
            showlegend=col == 1,
            row=1,
            col=col,
        )
        figure.update_xaxes(title_text=f"{metric} ({part.unit.values!s})", showgrid=True, row=1, col=col)
    figure.update_yaxes(autorange="reversed", showgrid=True)
    count = summary.sizes["domain"] * summary.sizes["component"]
    figure.update_layout(
        height=250 + 45 * count, legend={"orientation": "h", "y": -0.28 - 0.3 / count, "yanchor": "top"}, margin={"t": 80, "b": 110}
    )
    return figure


def _row_label(summary: xr.Dataset, domain: str, component: str) -> str:
    label = DOMAIN_NAMES[str(domain)].replace(" of ", "<br>of ") if domain == "ood" else "in<br>distribution"
    return label if summary.sizes["component"] == 1 else f"{label}<br>{component}"


def _hover(cell: xr.Dataset) -> str:
    text = f"effect {float(cell.effect):+.4g} [{float(cell.effect_low):+.4g}, {float(cell.effect_high):+.4g}]"
    if bool(cell.defined):
        return text + f"<br>recovered {float(cell.recovered):.0%} [{float(cell.recovered_low):.0%}, {float(cell.recovered_high):.0%}]"
    return text + "<br>recovered: undefined (donor - host is within noise)"


def _layers(summary: xr.Dataset) -> go.Figure:
    """Several layers: effect by layer, one row a metric, one column a domain, a curve and a band for each component."""
    metrics, domains = summary.metric.values.tolist(), summary.domain.values.tolist()
    titles = [DOMAIN_NAMES[d] for d in domains]
    figure = make_subplots(
        rows=len(metrics),
        cols=len(domains),
        shared_xaxes=True,
        shared_yaxes=True,
        column_titles=titles,
        horizontal_spacing=0.04,
        vertical_spacing=0.06,
    )
    layers = summary.layer.values
    for row, metric in enumerate(metrics, 1):
        for col, domain in enumerate(domains, 1):
            part = summary.sel(metric=metric, domain=domain)
            for component in summary.component.values.tolist():
                line = part.sel(component=component)
                line = line.isel(head=0) if "head" in line.dims else line
                colour, legend = COLOURS[component], {"legendgroup": component, "name": component}
                band = np.concatenate([line.effect_high.values, line.effect_low.values[::-1]])
                figure.add_scatter(
                    x=np.concatenate([layers, layers[::-1]]),
                    y=band,
                    fill="toself",
                    mode="lines",
                    line={"width": 0},
                    fillcolor=colour,
                    opacity=0.2,
                    hoverinfo="skip",
                    showlegend=False,
                    legendgroup=component,
                    row=row,
                    col=col,
                )
                text = [_hover(line.isel(layer=i)) for i in range(len(layers))]
                figure.add_scatter(
                    x=layers,
                    y=line.effect.values,
                    mode="lines+markers",
                    line={"color": colour},
                    text=text,
                    hovertemplate="layer %{x}<br>%{text}<extra>" + component + "</extra>",
                    showlegend=row == col == 1,
                    row=row,
                    col=col,
                    **legend,
                )
            # The donor's distance from the host: what patching everything would give.
            figure.add_hline(
                y=float(part.gap), line={"dash": "dot", "width": 1, "color": COLOURS[str(summary.attrs["donor"])]}, row=row, col=col
            )
            figure.add_hline(y=0, line={"width": 1, "color": COLOURS[str(summary.attrs["host"])]}, row=row, col=col)
        figure.update_yaxes(title_text=f"effect on {metric}<br>({part.unit.values!s})", row=row, col=1)
    figure.update_xaxes(title_text=f"layer (dotted: {summary.attrs['donor']} - {summary.attrs['host']})", row=len(metrics))
    figure.update_layout(
        height=160 + 220 * len(metrics), legend={"orientation": "h", "y": -0.3 / len(metrics), "yanchor": "top"}, margin={"t": 95, "b": 90}
    )
    return figure


def _heads(summary: xr.Dataset) -> go.Figure:
    """Heads: a map of the effect on the first metric by layer and head, one panel a domain; dots where the interval holds 0."""
    metric, domains = str(summary.metric.values[0]), summary.domain.values.tolist()
    figure = make_subplots(
        rows=1, cols=len(domains), column_titles=[DOMAIN_NAMES[d] for d in domains], horizontal_spacing=0.08, shared_yaxes=True
    )
    part = summary.sel(metric=metric).isel(component=0)
    limit = max(float(np.abs(part.effect).max()), 1e-12)
    for col, domain in enumerate(domains, 1):
        cells = part.sel(domain=domain).transpose("layer", "head", ...)
        unsure = ((cells.effect_low <= 0) & (cells.effect_high >= 0)).values
        hover = [[_hover(cells.isel(layer=i, head=j)) for j in range(cells.sizes["head"])] for i in range(cells.sizes["layer"])]
        shared: dict[str, Any] = {"colorscale": DIVERGING, "zmin": -limit, "zmax": limit, "xgap": 1, "ygap": 1}
        bar = {"title": {"text": f"effect on<br>{metric}<br>({part.unit.values!s})"}}
        figure.add_heatmap(
            x=cells.head.values,
            y=cells.layer.values,
            z=cells.effect.values,
            customdata=hover,
            text=np.where(unsure, "·", ""),
            texttemplate="%{text}",
            colorbar=bar,
            showscale=col == len(domains),
            hovertemplate="layer %{y}, head %{x}<br>%{customdata}<extra></extra>",
            row=1,
            col=col,
            **shared,
        )
        figure.update_xaxes(title_text="head (dot: interval holds 0)", dtick=max(1, cells.sizes["head"] // 8), row=1, col=col)
    figure.update_yaxes(title_text="layer", row=1, col=1)
    figure.update_layout(height=220 + 22 * min(summary.sizes["layer"], 40), margin={"t": 95})
    return figure
