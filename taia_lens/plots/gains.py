"""Where gains live: what each layer's parts do out of distribution, in it, and the difference, one map below the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.layers import check_view
from taia_lens.plots.layout import Row, check_some, group_note, metric_text, panels
from taia_lens.plots.look import NOTHING, framed, shades, shown, unsure
from taia_lens.plots.patching import layers_said, patch_note
from taia_lens.suite import DOMAIN_NAMES

DIFFERENCE = "out of distribution - in distribution"
CORRECTED = "not told apart from 0 after correction (q > 0.05, Benjamini-Hochberg over cells of gains, and of differences)"
_LINE = 12, 30  # pixels of a map's line: the least, and the most, of few lines
_SAYS = {"alone": "gain of each part alone (base with it - base)", "last": "gain of each part last (tuned - tuned without it)"}
_SAYS |= {"shapley": "Shapley value of each part", "effect": "effect of patching each site"}


@dataclass(frozen=True, eq=False)
class _Map:
    """A panel: values, intervals and q (part, layer), which cells they are, and how many examples they come from."""

    title: str
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    q: np.ndarray
    at: dict[str, Any]
    n: str


def gains_figure(summary: xr.Dataset, *, view: str | None = None) -> go.Figure:
    """Layer x component maps of the gain out of distribution, in it, and of their difference; layers go across.

    Args:
        summary: What `summaries.layers_summary` returned; or `summaries.patch_summary`, for a study of whole prompts.
        view: Of a layers summary: `alone`, `last` or `shapley`; None for the last of them that was run.

    Raises:
        ResultError: The summary holds no such view, or positions one by one.
    """
    if "effect" in summary and "component" in summary.dims:
        return _of_patching(summary)
    view = check_view(summary, view)
    check_some(summary, view, "give what summaries.layers_summary returned")
    metrics = list(dict.fromkeys(summary.metric.values.tolist()))
    maps = [_of_metric(summary, view, metric) for metric in metrics]
    words = [metric_text(summary.isel(group=summary.metric.values.tolist().index(metric))) for metric in metrics]
    note = f"{_SAYS[view]}; {group_note(summary)}"
    return _drawn(summary, maps, words, [str(part) for part in summary.part.values], "part", note)


def _of_metric(summary: xr.Dataset, view: str, metric: str) -> list[_Map]:
    """Every group of a metric, out of distribution first, and the difference over all suites."""
    there = summary.isel(group=np.flatnonzero(summary.metric.values == metric))
    order = sorted(range(there.sizes["group"]), key=lambda i: there.domain.values[i] != "ood")
    several = len(set(there.suite.values.tolist())) > 1
    out = []
    for group in (there.isel(group=i) for i in order):
        suite = f", {shown(group.suite.item(), 24)}" if several else ""
        at = {name: str(group[name].item()) for name in ("suite", "domain", "metric")} | {"view": view}
        out.append(_map(group, view, f"{DOMAIN_NAMES[at['domain']]}, n = {int(group.n)}{suite}", at, f"n = {int(group.n)}"))
    if f"shift_{view}" in summary and metric in summary.shift_metric.values:
        over = ", over all suites" if several else ""
        cells = summary.sel(shift_metric=metric)
        out.append(_map(cells, f"shift_{view}", f"{DIFFERENCE}{over}", {"metric": metric, "view": view}, _counts(there)))
    return out


def _counts(there: xr.Dataset) -> str:
    return ", ".join(f"n = {int(there.n.values[there.domain.values == d].sum())} {d}" for d in ("ood", "id"))


def _map(cells: xr.Dataset, name: str, title: str, at: dict[str, Any], n: str, dim: str = "part") -> _Map:
    arrays = [cells[f"{name}{end}"].transpose(dim, "layer").values.astype(float) for end in ("", "_low", "_high", "_q")]
    return _Map(title, arrays[0], arrays[1], arrays[2], arrays[3], at, n)


def _of_patching(summary: xr.Dataset) -> go.Figure:
    check_some(summary, "effect", "give what summaries.patch_summary returned for a result with a site and an example")
    if "pos" in summary.dims:
        raise ResultError(
            "gains are drawn by layer and component, and this result has positions one by one; write patch_figure for its map"
        )
    dim = "head" if "head" in summary.dims else "component"
    whole = summary.isel(component=0) if dim == "head" else summary
    maps = [_of_patched_metric(whole.sel(metric=metric), dim) for metric in summary.metric.values.tolist()]
    words = [f"{metric} ({unit})" for metric, unit in zip(summary.metric.values, summary.unit.values, strict=True)]
    labels = [f"h{head}" for head in summary["head"].values] if dim == "head" else [str(c) for c in summary.component.values]
    a = summary.attrs
    note = f"{_SAYS['effect']} of {a['donor']} in {a['host']}, {layers_said(summary)}; {patch_note(summary)}"
    return _drawn(summary, maps, words, labels, dim, note)


def _of_patched_metric(part: xr.Dataset, dim: str) -> list[_Map]:
    at = {"metric": str(part.metric.item())} | ({"component": "head"} if dim == "head" else {})
    out = []
    for domain in sorted(part.domain.values.tolist(), key=lambda d: d != "ood"):
        cells, n = part.sel(domain=domain), int(part.n.sel(domain=domain))
        out.append(_map(cells, "effect", f"{DOMAIN_NAMES[domain]}, n = {n}", at | {"domain": domain}, f"n = {n}", dim))
    if "shift" in part:
        both = ", ".join(f"n = {int(part.n.sel(domain=d))} {d}" for d in ("ood", "id"))
        out.append(_map(part, "shift", DIFFERENCE, at, both, dim))
    return out


def _drawn(
    summary: xr.Dataset, maps: Sequence[Sequence[_Map]], words: Sequence[str], labels: Sequence[str], dim: str, note: str
) -> go.Figure:
    """The maps of each metric in one scale, below each other."""
    each = max(_LINE[0], min(_LINE[1], 420 // len(labels)))
    several = len(words) > 1
    whole = [(i, one) for i, of_metric in enumerate(maps) for one in of_metric]
    rows = [Row(each * len(labels) + 6, (one.title + (f": {words[i]}" if several else ""),)) for i, one in whole]
    figure, inside = panels(rows, 1)
    layers, values = summary.layer.values.tolist(), _cell_labels(summary, dim, labels)
    for row, (i, one) in enumerate(whole, 1):
        _add_map(figure, one, layers, labels, values, f"coloraxis{i + 1 if i else ''}", row)
    figure.update_xaxes(type="category", tickfont={"size": 10}, row=len(rows))
    figure.update_xaxes(title_text="layer", row=len(rows))
    figure.update_yaxes(type="category", autorange="reversed", tickfont={"size": 10})
    figure.update_layout(plot_bgcolor=NOTHING)
    scales = [shades(f"gain, {word}", np.stack([one.value for one in of_metric])) for word, of_metric in zip(words, maps, strict=True)]
    marks = f"dot: {CORRECTED}"
    missing = "" if any(one.title.startswith(DIFFERENCE) for _, one in whole) else "no difference: one of the domains is missing"
    title = "Gains out of and in distribution, and the difference"
    return framed(figure, title, [note, marks, missing], inside=inside, below=64, panels=1, scales=scales)


def _cell_labels(summary: xr.Dataset, dim: str, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Which cells of the result the lines are."""
    return [{dim: value} for value in (summary["head"].values.tolist() if dim == "head" else labels)]


def _add_map(
    figure: go.Figure, one: _Map, layers: list[int], labels: Sequence[str], cells: list[dict[str, Any]], scale: str, row: int
) -> None:
    hovers = [[_hover(one, i, j, f"L{layer}.{label}") for j, layer in enumerate(layers)] for i, label in enumerate(labels)]
    gap = 1 if len(layers) <= 48 else 0
    figure.add_heatmap(
        x=[str(layer) for layer in layers],
        y=list(labels),
        z=one.value,
        xgap=gap,
        ygap=gap,
        text=unsure(one.q),
        texttemplate="%{text}",
        customdata=hovers,
        hovertemplate="%{customdata}<extra></extra>",
        coloraxis=scale,
        meta={"at": one.at, "rows": cells, "columns": [{"layer": layer} for layer in layers]},
        row=row,
        col=1,
    )


def _hover(one: _Map, i: int, j: int, site: str) -> str:
    value, low, high, q = (float(numbers[i, j]) for numbers in (one.value, one.low, one.high, one.q))
    return f"{site}, {one.title}<br>{value:+.4g} [{low:+.4g}, {high:+.4g}], q = {q:.2g}<br>{one.n}"
