"""Tables, the sentence and records of the attribution study: a patching study's, and how far off it is. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from rich.table import Table

from taia_lens.tables.patching import patch_tables


def attribution_tables(summary: xr.Dataset) -> list[Table]:
    """A table for each domain, as of a patching study; what was attributed is called so.

    Args:
        summary: What `summaries.attribution_summary` returned.
    """
    tables = patch_tables(summary)
    for table in tables:
        next(column for column in table.columns if column.header == "patched").header = "host + attribution"
    return tables


def attribution_note(summary: xr.Dataset) -> str:
    """What the numbers are, and how far off they are at the sites that were patched really."""
    steps = summary.attrs["steps"]
    how = f"gradients integrated over {steps} steps a component and layer" if steps else "one gradient: what patching does, to first order"
    if "check" not in summary.dims:
        return f"Attribution by {how}. Not checked: with check 4, the 4 strongest sites and 4 others are patched really."
    n = {name: int(summary.n_sites.sel(among=name)) for name in summary.among.values.tolist()}
    off = {name: _percent(float(summary.off.sel(among=name))) for name in n}
    parts = f"the {n['strong']} strongest {off['strong']}" + (f", {n['random']} drawn at random {off['random']}" if n["random"] else "")
    whole = summary.sel(among="all")
    r = f"r = {_number(float(whole.correlation))} over sites, {_number(float(whole.correlation_prompts))} over sites and prompts"
    cell = summary.isel(check=int(np.argmax(abs(summary.check_attributed - summary.check_patched).values)))
    said, found = float(cell.check_attributed), float(cell.check_patched)
    worst = f"farthest off is {cell.check.item()}: {said:+.3g} attributed, {found:+.3g} when patched ({summary.unit.values[0]})"
    patched = f"{n['all']} sites were patched really, on all prompts: attribution is off by {off['all']} of what patching does"
    return f"Attribution by {how}. {patched} ({parts}); {r}; {worst}."


def _percent(value: float) -> str:
    return "an undefined share" if math.isnan(value) else f"{value:.0%}"


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2f}"


def check_records(summary: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a site that was patched really, ready for JSON."""
    if "check" not in summary.dims:
        return []
    names = ("check", "chosen", "check_attributed", "check_patched")
    columns = [summary[name].values.tolist() for name in names]
    return [dict(zip(("site", "chosen", "attributed", "patched"), row, strict=True)) for row in zip(*columns, strict=True)]
