"""Figures: a result's summary in, a plotly Figure out. No I/O, no torch, no global theme.

The same colour means the same thing in every figure (Okabe and Ito's palette, safe for colour-blind readers).
"""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from taia_lens.errors import ResultError
from taia_lens.plots.maps import hover_text, is_map, map_figure, map_note
from taia_lens.suite import DOMAIN_NAMES

COLOURS = {
    "base": "#7f7f7f",
    "tuned": "#000000",
    "attn": "#0072B2",
    "mlp": "#D55E00",
    "resid": "#009E73",
    "head": "#CC79A7",
}
ENDS = ("", "_low", "_high")


def patch_figure(summary: xr.Dataset) -> go.Figure:
    """The picture of a patching study: points for one layer, curves over layers, or a map of heads or positions.

    Args:
        summary: What `results.summary` returned for a patching result.

    Raises:
        ResultError: The summary holds no site.
    """
    if 0 in summary.effect.shape:
        raise ResultError("the result holds no site or no example; there is nothing to draw")
    if is_map(summary):
        figure = map_figure(summary)
    elif summary.sizes["layer"] > 1:
        figure = _layers(summary)
    else:
        figure = _points(summary)
    figure.update_layout(template="simple_white", title={"text": _title(summary), "x": 0.02, "xanchor": "left", "font": {"size": 15}})
    return figure


def _title(summary: xr.Dataset) -> str:
    a = summary.attrs
    words = {"head": "head outputs (z)", "resid": "residual stream", "attn": "attn output", "mlp": "mlp output"}
    names = " and ".join(words[str(c)] for c in summary.component.values)
    layers = summary.layer.values
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers.min()}-{layers.max()}, one at a time"
    each = {"all": "", "each": ", each position by itself", "each-from-end": ", each position by itself, counted from the end"}
    where += each.get(str(a["positions"]), f", positions {a['positions']}")
    n = ", ".join(f"n = {int(summary.n.sel(domain=d).max())} {d}" for d in summary.domain.values)
    note = map_note(summary) if is_map(summary) else "95% paired bootstrap intervals of the effect"
    note = f"suite {html.escape(str(a['suite']))}; {n}; {note}"
    return f"{a['host']} with {names} of {a['donor']} patched in: {where}<br><sup>{note}</sup>"


def _points(summary: xr.Dataset) -> go.Figure:
    """One layer: for each metric, host, donor and patched on one axis, a row for each domain and component."""
    metrics = summary.metric.values.tolist()
    figure = make_subplots(rows=1, cols=len(metrics), shared_yaxes=True, horizontal_spacing=0.06)
    for col, metric in enumerate(metrics, 1):
        part = summary.sel(metric=metric)
        _add_ends(figure, part, col)
        for component in part.component.values.tolist():
            _add_patched(figure, part, component, col)
        figure.update_xaxes(title_text=f"{metric}<br>({part.unit.values})", showgrid=True, row=1, col=col)
    figure.update_yaxes(autorange="reversed", showgrid=True)
    count = summary.sizes["domain"] * summary.sizes["component"]
    legend = {"orientation": "h", "y": -0.4 - 0.35 / count, "yanchor": "top"}
    figure.update_layout(height=260 + 45 * count, legend=legend, margin={"t": 80, "b": 130})
    return figure


def _add_ends(figure: go.Figure, part: xr.Dataset, col: int) -> None:
    """Where the unedited host and donor are."""
    rows = [(d, c) for d in part.domain.values.tolist() for c in part.component.values.tolist()]
    labels = [_row_label(part, d, c) for d, c in rows]
    for name, symbol, size in (("host", "diamond-open", 15), ("donor", "square", 10)):
        side = str(part.attrs[name])
        figure.add_scatter(
            x=[float(part[name].sel(domain=d)) for d, _ in rows],
            y=labels,
            mode="markers",
            marker={"symbol": symbol, "size": size, "color": COLOURS[side], "line": {"width": 2}},
            name=f"{side} ({name})",
            legendgroup=name,
            showlegend=col == 1,
            hovertemplate=f"{side} ({name}): %{{x:.4g}}<extra></extra>",
            row=1,
            col=col,
        )


def _add_patched(figure: go.Figure, part: xr.Dataset, component: str, col: int) -> None:
    """Where the patched host is, with the interval of the effect around it."""
    domains = part.domain.values.tolist()
    cells = [part.sel(domain=d, component=component).squeeze() for d in domains]
    high = [float(cell.effect_high - cell.effect) for cell in cells]
    low = [float(cell.effect - cell.effect_low) for cell in cells]
    figure.add_scatter(
        x=[float(cell.patched) for cell in cells],
        y=[_row_label(part, d, component) for d in domains],
        mode="markers",
        marker={"size": 8, "color": COLOURS[component]},
        error_x={"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 2, "width": 6},
        text=[_hover(cell) for cell in cells],
        name=f"{part.attrs['host']}, {component} patched",
        legendgroup=f"patched {component}",
        showlegend=col == 1,
        hovertemplate="patched: %{x:.4g}<br>%{text}<extra></extra>",
        row=1,
        col=col,
    )


def _row_label(summary: xr.Dataset, domain: str, component: str) -> str:
    label = DOMAIN_NAMES[str(domain)].replace(" of ", "<br>of ") if domain == "ood" else "in<br>distribution"
    return label if summary.sizes["component"] == 1 else f"{label}<br>{component}"


def _hover(cell: xr.Dataset) -> str:
    return hover_text({name: float(cell[name]) for name in ("defined", *(f"{n}{end}" for n in ("effect", "recovered") for end in ENDS))})


def _layers(summary: xr.Dataset) -> go.Figure:
    """Several layers: effect by layer, one row a metric, one column a domain, a curve and a band for each component."""
    metrics, domains = summary.metric.values.tolist(), summary.domain.values.tolist()
    titles = [DOMAIN_NAMES[d] for d in domains]
    figure = make_subplots(
        len(metrics),
        len(domains),
        shared_xaxes=True,
        shared_yaxes=True,
        column_titles=titles,
        horizontal_spacing=0.04,
        vertical_spacing=0.06,
    )
    host, donor = str(summary.attrs["host"]), str(summary.attrs["donor"])
    for row, metric in enumerate(metrics, 1):
        for col, domain in enumerate(domains, 1):
            part = summary.sel(metric=metric, domain=domain)
            for component in summary.component.values.tolist():
                _add_curve(figure, part, component, row, col)
            # The donor's distance from the host: what patching everything would give.
            figure.add_hline(y=float(part.gap), line={"dash": "dot", "width": 1, "color": COLOURS[donor]}, row=row, col=col)
            figure.add_hline(y=0, line={"width": 1, "color": COLOURS[host]}, row=row, col=col)
        figure.update_yaxes(title_text=f"effect on {metric}<br>({part.unit.values})", row=row, col=1)
    figure.update_xaxes(title_text=f"layer (dotted: {donor} - {host})", row=len(metrics))
    legend = {"orientation": "h", "y": -0.3 / len(metrics), "yanchor": "top"}
    figure.update_layout(height=160 + 220 * len(metrics), legend=legend, margin={"t": 95, "b": 90})
    return figure


def _add_curve(figure: go.Figure, part: xr.Dataset, component: str, row: int, col: int) -> None:
    """One component's effect by layer, and the band of its interval."""
    line = part.sel(component=component)
    line = line.isel(head=0) if "head" in line.dims else line
    layers, colour = line.layer.values, COLOURS[component]
    figure.add_scatter(
        x=np.concatenate([layers, layers[::-1]]),
        y=np.concatenate([line.effect_high.values, line.effect_low.values[::-1]]),
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
    figure.add_scatter(
        x=layers,
        y=line.effect.values,
        mode="lines+markers",
        line={"color": colour},
        text=[_hover(line.isel(layer=i)) for i in range(len(layers))],
        hovertemplate=f"layer %{{x}}<br>%{{text}}<extra>{component}</extra>",
        name=component,
        legendgroup=component,
        showlegend=row == col == 1,
        row=row,
        col=col,
    )
