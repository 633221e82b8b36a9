"""Tables and records of adapters of scales on prompts."""

from __future__ import annotations

import math
from typing import Any

import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from taia_lens.tables.grid import adjusted, interval, plain, title_of

_CELL = ("value", "low", "high", "diff", "diff_low", "diff_high", "p", "q")


def adapters_tables(summary: xr.Dataset) -> list[Table]:
    """A table a group: base and each adapter, with the numbers it holds."""
    return [_table(summary.isel(group=i)) for i in range(summary.sizes["group"])]


def _table(group: xr.Dataset) -> Table:
    table = Table(box=box.SIMPLE, title=title_of(group), title_justify="left")
    table.add_column("model", no_wrap=True)
    for name in ("numbers", "value [95%]", "- base [95%] q"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in (group.isel(model=i) for i in range(group.sizes["model"])):
        value = f"{float(cell.value):.3f} [{float(cell.low):.3f}, {float(cell.high):.3f}]"
        difference = "- " if math.isnan(float(cell["diff"])) else f"{interval(cell, 'diff')} {adjusted(float(cell.q))}"
        table.add_row(Text(str(cell.model.item())), f"{int(cell.numbers):,}", Text(value), Text(difference))
    return table


def adapters_note() -> str:
    """What the columns mean."""
    return (
        "numbers: what the adapter holds; [95% interval: Clopper-Pearson for rates, else bootstrap, paired for differences]; q: "
        "sign-flip p, adjusted over all differences (false-discovery rate); * at most .05"
    )


def adapters_records(summary: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a (group, model), ready for JSON."""
    out = []
    for group in (summary.isel(group=i) for i in range(summary.sizes["group"])):
        labels = {name: group[name].item() for name in ("suite", "domain", "metric", "n", "better")}
        for cell in (group.isel(model=i) for i in range(group.sizes["model"])):
            about = {"model": str(cell.model.item()), "numbers": int(cell.numbers), "sites": int(cell.n_sites)}
            out.append(labels | about | {name: plain(cell[name]) for name in _CELL})
    return out
