"""Tables and records of head transfer."""

from __future__ import annotations

import math
from typing import Any

import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from taia_lens.tables.grid import adjusted, interval, plain, title_of

_CELL = ("value", "low", "high", "least", "most", "diff", "diff_low", "diff_high", "p", "q")


def transfer_tables(summary: xr.Dataset) -> list[Table]:
    """For each group what each task's heads give, against those of the task that is tuned; and where the tasks' heads lie."""
    return [*(_group(summary.isel(group=i)) for i in range(summary.sizes["group"])), _layers(summary)]


def _group(group: xr.Dataset) -> Table:
    title = f"{title_of(group)}: offsets tuned on {group.own.item()}; untouched {float(group.base):.3f}"
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    table.add_column("heads selected on", no_wrap=True)
    for name in ("value [95%]", "seeds", "- its own [95%] q"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in group.row.values.tolist():
        cell = group.sel(row=row)
        value = f"{float(cell.value):.3f} [{float(cell.low):.3f}, {float(cell.high):.3f}]"
        spread = f"{float(cell.least):.3f} to {float(cell.most):.3f}" if float(cell.least) < float(cell.most) else ""
        difference = "" if math.isnan(float(cell["diff"])) else f"{interval(cell, 'diff')} {adjusted(float(cell.q))}"
        if difference and math.isnan(float(cell.p)):
            difference = "0" + 9 * " "  # the same on every prompt
        table.add_row(*map(Text, (row + (" (its own)" if row == group.own.item() else ""), value, spread, difference)))
    return table


def _layers(summary: xr.Dataset) -> Table:
    title = f"how many of the top {summary.attrs['k']} heads lie in each layer (mean over seeds)"
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    table.add_column("layer", justify="right", no_wrap=True)
    for task in summary.task.values.tolist():
        table.add_column(Text(task), justify="right", no_wrap=True)
    for layer in summary.layer.values.tolist():
        counts = summary.per_layer.sel(layer=layer).values
        if counts.any():
            table.add_row(str(layer), *(f"{count:.3g}" if count else "" for count in counts))
    return table


def transfer_records(summary: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a (group, row), ready for JSON."""
    out = []
    for group in (summary.isel(group=i) for i in range(summary.sizes["group"])):
        labels = {name: group[name].item() for name in ("suite", "domain", "metric", "n", "better")} | {"tuned_on": group.own.item()}
        labels |= {"base": plain(group.base)}
        for row in group.row.values.tolist():
            cell = group.sel(row=row)
            out.append(labels | {"selected_on": row} | {name: plain(cell[name]) for name in _CELL})
    return out
