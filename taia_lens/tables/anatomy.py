"""Tables and records of the update's anatomy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from taia_lens.tables.grid import plain

_LABELS = ("component", "layer", "part", "experts", "rows", "cols")


def anatomy_tables(result: xr.Dataset) -> list[Table]:
    """One row a projection, over all layers; then the relative size and the effective rank by layer and projection.

    Args:
        result: What `studies.anatomy.anatomy` returned.
    """
    components = [result.isel(weight=np.flatnonzero(result.component.values == c)) for c in dict.fromkeys(result.component.values)]
    inside = [c.isel(weight=np.flatnonzero(c.layer.values >= 0)) for c in components]
    return [_by_kind(components), *(_by_layer(c) for c in inside if c.sizes["weight"])]


def _kinds(component: xr.Dataset) -> dict[str, xr.Dataset]:
    """A component's weights by projection; a projection's bias apart from its matrix."""
    bias = [str(name).endswith(".bias") and rows == 1 for name, rows in zip(component.weight.values, component.rows.values, strict=True)]
    names = np.array([f"{part} bias" if b else str(part) for part, b in zip(component.part.values, bias, strict=True)])
    return {name: component.isel(weight=np.flatnonzero(names == name)) for name in dict.fromkeys(names.tolist())}


def _by_kind(components: Sequence[xr.Dataset]) -> Table:
    table = Table(box=box.SIMPLE, title="The update by projection: means over the weights that differ", title_justify="left")
    table.add_column("weights", no_wrap=True)
    for name in ("n", "share", "|dW|/|W|", "eff. rank", "rank", "overlap out (chance)", "overlap in (chance)"):
        table.add_column(name, justify="right", no_wrap=True)
    for component in components:
        label, kinds = str(component.component.values[0]), _kinds(component)
        for name, part in kinds.items():
            table.add_row(Text(f"{label}.{name}"), *_row(part))
        if len(kinds) > 1:
            table.add_row(f"all {label}", str(component.sizes["weight"]), f"{float(component.share.sum()):.1%}")
        table.add_section()
    return table


def _row(part: xr.Dataset) -> list[str]:
    means = {str(name): float(part[name].mean()) for name in part.data_vars}
    numbers = [f"{means['ratio']:.2g}" if math.isfinite(means["ratio"]) else f"|dW| {means['update_norm']:.2g}"]
    if math.isnan(means["effective_rank"]):
        numbers += [""] * 4  # vectors have no rank
    else:
        numbers += [f"{means[name]:.1f}" for name in ("effective_rank", "rank")]
        numbers += [f"{means[f'overlap_{side}']:.3f} ({means[f'chance_{side}']:.3f})" for side in ("out", "in")]
    return [str(part.sizes["weight"]), f"{float(part.share.sum()):.1%}", *numbers]


def _by_layer(component: xr.Dataset) -> Table:
    """Matrices where the component has any; a table a component, so that none is wider than a terminal."""
    matrices = component.isel(weight=np.flatnonzero(component.effective_rank.notnull().values))
    shown = matrices if matrices.sizes["weight"] else component
    what = "|dW|/|W|" + (" (effective rank)" if matrices.sizes["weight"] else "")
    table = Table(box=box.SIMPLE, title=f"{shown.component.values[0]}: {what}, by layer", title_justify="left")
    kinds = _kinds(shown)
    for name in ("layer", *kinds):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in np.unique(shown.layer.values):
        here = [part.isel(weight=np.flatnonzero(part.layer.values == layer)) for part in kinds.values()]
        table.add_row(str(layer), *map(_cell, here))
    return table


def _cell(weights: xr.Dataset) -> str:
    """A projection is one matrix in a layer, or one for each expert that is a module of its own: then their mean."""
    if not weights.sizes["weight"]:
        return ""
    ratio, rank = float(weights.ratio.mean()), float(weights.effective_rank.mean())
    size = f"{ratio:.3g}" if math.isfinite(ratio) else f"|dW| {float(weights.update_norm.mean()):.3g}"  # base has none of it
    return size + ("" if math.isnan(rank) else f" ({rank:.1f})")


def anatomy_records(result: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a weight, ready for JSON."""
    out = []
    for i in range(result.sizes["weight"]):
        one = result.isel(weight=i)
        labels = {"weight": one.weight.item()} | {name: one[name].item() for name in _LABELS}
        out.append(labels | {str(name): plain(one[name]) for name in result.data_vars})
    return out
