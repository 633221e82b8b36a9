"""The pictures of a patching study: points for one layer, curves over layers; maps are in plots/maps.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.plots.curves import Curve, add_curve, label_layers
from taia_lens.plots.layout import Row, check_some, models, panels
from taia_lens.plots.look import ALPHA, COLOURS, framed, shown
from taia_lens.plots.maps import READ, hover_text, is_map, map_figure
from taia_lens.suite import DOMAIN_NAMES

__all__ = ["COLOURS", "component_curve", "layers_said", "patch_figure", "patch_note"]

INTERVALS = "95% paired bootstrap intervals of the effect"
CORRECTED = "not told apart from 0 after correction (q > 0.05, Benjamini-Hochberg over a domain's sites)"
_WORDS = {"head": "head outputs (z)", "resid": "residual stream", "attn": "attn output", "mlp": "mlp output"}


def patch_figure(summary: xr.Dataset, *, lead: str = "", notes: Sequence[str] = ()) -> go.Figure:
    """The picture of a patching study: points for one layer, curves over layers, or a map of heads or positions.

    Hollow marks, in maps dots, are sites whose effect is not told apart from 0 after correction.

    Args:
        summary: What `summaries.patch_summary` returned.
        lead: What the title begins with, where the numbers are not of patching itself.
        notes: What is said besides, below the title.

    Raises:
        ResultError: The summary holds no site.
    """
    check_some(summary, "patched", "give what summaries.patch_summary returned for a result with a site and an example")
    title, said = lead + _title(summary), [patch_note(summary), *notes]
    if is_map(summary):
        return map_figure(summary, title, said)
    return _layers(summary, title, said) if summary.sizes["layer"] > 1 else _points(summary, title, said)


def _title(summary: xr.Dataset) -> str:
    a = summary.attrs
    each = {"all": "", "each": ", each position by itself", "each-from-end": ", each position by itself, counted from the end"}
    where = each.get(str(a["positions"]), f", positions {shown(a['positions'])}")
    names = " and ".join(_WORDS[str(c)] for c in summary.component.values)
    return f"{a['host']} with {names} of {a['donor']} patched in: {layers_said(summary)}{where}"


def layers_said(summary: xr.Dataset) -> str:
    """Which layers, in words."""
    layers = summary.layer.values
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers.min()}-{layers.max()}, one at a time"


def patch_note(summary: xr.Dataset) -> str:
    """The suite, how many examples of each domain, and the two models."""
    n = ", ".join(f"n = {int(summary.n.sel(domain=d).max())} {d}" for d in summary.domain.values)
    return "; ".join(filter(None, [f"suite {shown(summary.attrs['suite'], 40)}", n, models(summary.attrs)]))


def _points(summary: xr.Dataset, title: str, notes: Sequence[str]) -> go.Figure:
    """One layer: for each metric, host, donor and patched on one axis, a line for each domain and component."""
    metrics = summary.metric.values.tolist()
    labels = [_label(summary, d, c) for d, c in _lines(summary)]
    height = 40 * len(labels) + 10
    figure, inside = panels([Row(height, ticks=True)] * len(metrics), 1, same_x=False)
    for row, metric in enumerate(metrics, 1):
        part = summary.sel(metric=metric)
        _add_ends(figure, part, row)
        for component in part.component.values.tolist():
            _add_patched(figure, part, component, row)
        figure.update_xaxes(title={"text": f"{metric} ({part.unit.values})", "standoff": 4}, showgrid=True, row=row)
    ticks = {"tickvals": list(range(len(labels))), "ticktext": labels, "range": [len(labels) - 0.4, -0.6]}
    figure.update_yaxes(showgrid=True, **ticks)
    legend = 2 + summary.sizes["component"]
    return framed(figure, title, [*notes, f"{INTERVALS}; hollow: {CORRECTED}"], inside=inside, below=50, legend=legend)


def _lines(summary: xr.Dataset) -> list[tuple[str, str]]:
    return [(d, c) for d in summary.domain.values.tolist() for c in summary.component.values.tolist()]


def _label(summary: xr.Dataset, domain: str, component: str) -> str:
    label = DOMAIN_NAMES[domain]
    return label if summary.sizes["component"] == 1 else f"{label}<br>{component}"


def _add_ends(figure: go.Figure, part: xr.Dataset, row: int) -> None:
    """Where the unedited host and donor are."""
    for name, symbol, size in (("host", "diamond-open", 15), ("donor", "square", 10)):
        side = str(part.attrs[name])
        figure.add_scatter(
            x=[float(part[name].sel(domain=domain)) for domain, _ in _lines(part)],
            y=list(range(len(_lines(part)))),
            mode="markers",
            marker={"symbol": symbol, "size": size, "color": COLOURS[side], "line": {"width": 2}},
            name=f"{side} ({name})",
            legendgroup=name,
            showlegend=row == 1,
            hovertemplate=f"{side} ({name}): %{{x:.4g}}<extra></extra>",
            row=row,
            col=1,
        )


def _add_patched(figure: go.Figure, part: xr.Dataset, component: str, row: int) -> None:
    """Where the patched host is, with the interval of the effect around it."""
    domains = part.domain.values.tolist()
    cells = [part.sel(domain=d, component=component).squeeze() for d in domains]
    high = [float(cell.effect_high - cell.effect) for cell in cells]
    low = [float(cell.effect - cell.effect_low) for cell in cells]
    sure = [float(cell.effect_q) <= ALPHA for cell in cells]
    site: dict[str, Any] = {"metric": str(part.metric.item()), "component": component, "layer": int(part.layer.values[0])}
    site |= {"head": int(part["head"].values[0])} if "head" in part.dims else {}
    name, look = f"{part.attrs['host']}, {component} patched", {"size": 8, "color": COLOURS[component]}
    if row == 1:  # the legend would show the first mark otherwise, hollow or not
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=look, name=name, legendgroup=name, hoverinfo="skip", row=1, col=1)
    figure.add_scatter(
        x=[float(cell.patched) for cell in cells],
        y=[_lines(part).index((d, component)) for d in domains],
        mode="markers",
        marker=look | {"symbol": ["circle" if s else "circle-open" for s in sure]},
        error_x={"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 2, "width": 6},
        text=[_hover(cell) for cell in cells],
        name=name,
        legendgroup=name,
        showlegend=False,
        hovertemplate="patched: %{x:.4g}<br>%{text}<extra></extra>",
        meta={"at": site, "points": [{"domain": domain} for domain in domains]},
        row=row,
        col=1,
    )


def _hover(cell: xr.Dataset) -> str:
    return hover_text({name: float(cell[name]) for name in READ})


def _layers(summary: xr.Dataset, title: str, notes: Sequence[str]) -> go.Figure:
    """Several layers: effect by layer, a row a metric, a column a domain, a curve and a band for each component."""
    metrics, domains = summary.metric.values.tolist(), summary.domain.values.tolist()
    titles = tuple(f"{DOMAIN_NAMES[d]}, n = {int(summary.n.sel(domain=d).max())}" for d in domains)
    figure, inside = panels([Row(190, titles), *[Row(190)] * (len(metrics) - 1)], len(domains))
    host, donor = str(summary.attrs["host"]), str(summary.attrs["donor"])
    for row, metric in enumerate(metrics, 1):
        for column, domain in enumerate(domains, 1):
            part = summary.sel(metric=metric, domain=domain)
            for component in summary.component.values.tolist():
                add_curve(figure, component_curve(part, component, "effect"), row, column, named=row == column == 1)
            # The donor's distance from the host: what patching everything would give.
            if np.isfinite(float(part.gap)):
                figure.add_hline(y=float(part.gap), line={"dash": "dot", "width": 1, "color": COLOURS[donor]}, row=row, col=column)
            figure.add_hline(y=0, line={"width": 1, "color": COLOURS[host]}, row=row, col=column)
        figure.update_yaxes(title_text=f"effect on {metric}<br>({summary.unit.sel(metric=metric).item()})", row=row, col=1)
    label_layers(figure, summary.layer.values)
    figure.update_xaxes(title_text="layer", row=len(metrics))
    said = [*notes, f"bands: {INTERVALS}; dotted: {donor} - {host}; hollow: {CORRECTED}"]
    return framed(figure, title, said, inside=inside, below=50, legend=summary.sizes["component"], panels=1)


def component_curve(part: xr.Dataset, component: str, what: str, *, beside: float = 0.0) -> Curve:
    """`effect` or `recovered` of one component by layer, in one domain and metric; hollow where the effect is not told apart from 0."""
    line = part.sel(component=component)
    line = line.isel(head=0) if "head" in line.dims else line
    arrays = {name: line[name].broadcast_like(line.layer).values.astype(float) for name in READ}
    cells = [{name: float(array[i]) for name, array in arrays.items()} for i in range(line.sizes["layer"])]
    at: dict[str, Any] = {"domain": str(part.domain.item()), "metric": str(part.metric.item()), "component": component}
    at |= {"head": int(line["head"].item())} if "head" in line.coords else {}
    value, low, high = (arrays[f"{what}{end}"] for end in ("", "_low", "_high"))
    layers, hovers = line.layer.values, [hover_text(cell) for cell in cells]
    return Curve(component, COLOURS[component], layers, value, low, high, hovers, at, q=arrays["effect_q"], beside=beside)
