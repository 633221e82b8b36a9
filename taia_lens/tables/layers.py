"""Tables and records of the layers study."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from taia_lens.tables.grid import interval, plain, title_of

VIEWS = {"alone": "alone: base with it - base", "last": "last: tuned - tuned without it", "shapley": "Shapley"}
MOST_PARTS = 3  # more columns than this do not fit a terminal: then the largest cells are listed
LISTED = 15


def layers_tables(summary: xr.Dataset) -> list[Table]:
    """For each group the gain of each part in every view that was run, by layer; or, for many parts, the largest."""
    views = [view for view in VIEWS if view in summary]
    groups = [summary.isel(group=i) for i in range(summary.sizes["group"])]
    small = summary.sizes["part"] <= MOST_PARTS
    return [_by_layer(group, views) if small else _largest(group, views) for group in groups]


def _heading(group: xr.Dataset) -> str:
    gap = f"vanilla - base {float(group.gap):+.3f} [{float(group.gap_low):+.3f}, {float(group.gap_high):+.3f}]"
    rest = [f"{view} {float(group[f'rest_{view}']):+.3f}" for view in VIEWS if f"rest_{view}" in group]
    return f"{title_of(group)}; {gap}" + (f"; all else that differs: {', '.join(rest)}" if rest else "")


def _by_layer(group: xr.Dataset, views: list[str]) -> Table:
    table = Table(box=box.SIMPLE, title=_heading(group), title_justify="left")
    table.add_column("layer", justify="right", no_wrap=True, min_width=5)
    parts = [str(part) for part in group.part.values]
    for view in views:
        for part in parts:
            table.add_column(f"{part} {view}", justify="right", no_wrap=True)
    for layer in group.layer.values.tolist():
        cells = [cell_text(group.sel(layer=layer, part=part), view) for view in views for part in parts]
        table.add_row(str(layer), *map(Text, cells))
    if "shapley" in views:
        sums = ["" if view != "shapley" else f"{float(group.shapley.sel(part=part).sum()):+.3f}" for view in views for part in parts]
        table.add_section()
        table.add_row("sum", *sums)
    return table


def _largest(group: xr.Dataset, views: list[str]) -> Table:
    """The cells with the largest gain or loss, by the last view that was run."""
    by = views[-1]
    flat = group.stack(cell=("layer", "part"))
    order = np.argsort(-np.abs(flat[by].values), kind="stable")[:LISTED]
    title = f"{_heading(group)}; the {len(order)} largest of {flat.sizes['cell']} by {by}"
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    table.add_column("site", no_wrap=True)
    for view in views:
        table.add_column(view, justify="right", no_wrap=True)
    for i in order:
        cell = flat.isel(cell=int(i))
        table.add_row(f"L{int(cell.layer)}.{cell.part.item()}", *(Text(cell_text(cell, view)) for view in views))
    return table


def cell_text(cell: xr.Dataset, view: str) -> str:
    """A gain, its interval, and a star where it is told apart from 0 after correction; for Shapley also the sampling error."""
    value, low, high = (float(cell[f"{view}{end}"]) for end in ("", "_low", "_high"))
    star = "*" if float(cell[f"{view}_q"]) <= 0.05 else " "
    if value == low == high == 0:
        return f"0{star}"
    if view != "shapley":
        return f"{interval(cell, view)}{star}"
    se = float(cell.shapley_se)
    return f"{interval(cell, view).split()[0]} ± {'n/a' if math.isnan(se) else f'{se:.3f}'.removeprefix('0')}{star}"


def layers_note(summary: xr.Dataset) -> str:
    """What the marks mean, and what the estimate cost."""
    parts = ["[95% bootstrap interval over examples]", "* told apart from 0 (sign-flip test, false-discovery rate 5% within a view)"]
    if "shapley" in summary:
        parts.append("± standard error that sampling orders leaves; there the star needs both, examples and orders")
    recipes, work = int(summary.attrs["evaluations"]), float(summary.attrs["work"])
    return "; ".join(parts) + f"; {recipes} recipes evaluated, for {work:.1f} forwards' worth of work (what the store had cost none)"


def cumulated_tables(summary: xr.Dataset) -> list[Table]:
    """For each group what base gains with a component of all layers up to one, or from one on, from tuned."""
    if "cumulated" not in summary:
        return []
    tables = []
    for i in range(summary.sizes["group"]):
        group = summary.isel(group=i)
        table = Table(box=box.SIMPLE, title=f"{_heading(group)}; cumulative gain over base", title_justify="left", padding=(0, 1, 0, 0))
        columns = [(d, s) for d in group.direction.values.tolist() for s in group.series.values.tolist()]
        table.add_column("layer", justify="right", no_wrap=True, min_width=5)
        for direction, series in columns:
            table.add_column(f"{series} from {direction}", justify="right", no_wrap=True)
        for layer in group.layer.values.tolist():
            cells = [group.sel(direction=d, series=s, layer=layer) for d, s in columns]
            table.add_row(str(layer), *(Text(_ends(cell, "cumulated")) for cell in cells))
        tables.append(table)
    return tables


def shift_tables(summary: xr.Dataset) -> list[Table]:
    """Out-of-distribution minus in-domain gain by layer, a table a metric; for many parts, the largest. None where a domain is missing."""
    views = [view for view in VIEWS if f"shift_{view}" in summary]
    return [_shift_table(summary.sel(shift_metric=metric), views) for metric in (summary.shift_metric.values.tolist() if views else [])]


def _shift_table(chosen: xr.Dataset, views: list[str]) -> Table:
    title = f"out-of-distribution gain - in-domain gain: {chosen.shift_metric.item()}"
    many = chosen.sizes["part"] > MOST_PARTS
    flat = chosen.stack(cell=("layer", "part"))
    order = np.argsort(-np.abs(flat[f"shift_{views[-1]}"].values), kind="stable")[:LISTED]
    title += f"; the {len(order)} largest of {flat.sizes['cell']} by {views[-1]}" if many else ""
    table = Table(box=box.SIMPLE, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("site" if many else "layer", justify="right", no_wrap=True, min_width=5)
    parts = [str(part) for part in chosen.part.values]
    for name in views if many else [f"{part} {view}" for view in views for part in parts]:
        table.add_column(name, justify="right", no_wrap=True)
    if many:
        for cell in (flat.isel(cell=int(i)) for i in order):
            table.add_row(f"L{int(cell.layer)}.{cell.part.item()}", *(Text(_shift(cell, view)) for view in views))
        return table
    for layer in chosen.layer.values.tolist():
        row = [chosen.sel(layer=layer, part=part) for part in parts]
        table.add_row(str(layer), *(Text(_shift(cell, view)) for view in views for cell in row))
    return table


def _shift(cell: xr.Dataset, view: str) -> str:
    return _ends(cell, f"shift_{view}") + ("*" if float(cell[f"shift_{view}_q"]) <= 0.05 else " ")


def _ends(cell: xr.Dataset, name: str) -> str:
    return "0" if all(float(cell[f"{name}{end}"]) == 0 for end in ("", "_low", "_high")) else interval(cell, name)


def layers_records(summary: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a (group, layer, part), ready for JSON."""
    names = [str(name) for name in summary.data_vars if {"group", "layer", "part"} == set(summary[name].dims)]
    out = []
    for i in range(summary.sizes["group"]):
        group = summary.isel(group=i)
        labels = {name: group[name].item() for name in ("suite", "domain", "metric", "n", "better")}
        for layer in group.layer.values.tolist():
            for part in group.part.values.tolist():
                cell = group.sel(layer=layer, part=part)
                out.append(labels | {"layer": layer, "part": part} | {name: plain(cell[name]) for name in names})
    return out


def layers_report(summary: xr.Dataset) -> dict[str, Any]:
    """All numbers of a layers summary, ready for JSON: gaps and rest, gains, cumulative gains, out- minus in-domain."""
    groups = [summary.isel(group=i) for i in range(summary.sizes["group"])]
    own = [str(name) for name in summary.data_vars if summary[name].dims == ("group",)]
    gaps = [_labels(group) | {name: plain(group[name]) for name in own} for group in groups]
    shifted = [str(name) for name in summary.data_vars if str(name).startswith("shift_")]
    return {
        "notes": list(summary.attrs["notes"]),
        "groups": gaps,
        "results": layers_records(summary),
        "cumulative": [
            record for group in groups for record in _flat(group, ("cumulated", "cumulated_low", "cumulated_high"), _labels(group))
        ],
        "ood_minus_id": _flat(summary, tuple(shifted), {}),
    }


def _labels(group: xr.Dataset) -> dict[str, Any]:
    return {name: group[name].item() for name in ("suite", "domain", "metric", "n", "better")}


def _flat(summary: xr.Dataset, names: tuple[str, ...], labels: dict[str, Any]) -> list[dict[str, Any]]:
    """One dict a cell of these variables, which share their dims; none where the summary has none of them."""
    found = [name for name in names if name in summary]
    if not found:
        return []
    dims = [str(dim) for dim in summary[found[0]].dims]
    stacked = summary[found].stack(cell=dims)
    out = []
    for i, key in enumerate(stacked.cell.values):
        where = {d: v.item() if isinstance(v, np.generic) else v for d, v in zip(dims, key, strict=True)}
        out.append(labels | where | {name: plain(stacked[name].isel(cell=i)) for name in found})
    return out
