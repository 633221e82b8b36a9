"""Tables and records of the grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from taia_lens.suite import DOMAIN_NAMES
from taia_lens.tables.patching import FEW

ALPHA = 0.05
_CELL = ("diff", "diff_low", "diff_high", "p", "q")


def title_of(group: xr.Dataset) -> str:
    """What a group's numbers are: metric, suite, domain, n, and whether there are too few prompts."""
    n, domain = int(group.n), str(group.domain.item())
    few = "" if n >= FEW else ": too few prompts for the intervals to be trusted"
    down = "" if int(group.better) > 0 else ", smaller is better"
    metric = f"{group.metric.item()} ({group.unit.item()}{down})"
    return f"{group.suite.item()}, {DOMAIN_NAMES[domain]} ({domain}): {metric}, n = {n}{few}"


def grid_tables(summary: xr.Dataset) -> list[Table]:
    """For each group a table of the recipes, and one of the effects of attention and FFN."""
    tables = []
    for i in range(summary.sizes["group"]):
        group = summary.isel(group=i)
        tables += [_recipes(group), _effects(group)]
    return tables


def _recipes(group: xr.Dataset) -> Table:
    table = Table(box=box.SIMPLE, title=title_of(group), title_justify="left")
    table.add_column("recipe", no_wrap=True)
    for name in ("value [95%]", "- vanilla [95%] q", "- base [95%] q", "- TAIA [95%] q"):
        table.add_column(name, justify="right")  # on a narrow terminal q goes to a line of its own, and no digit is lost
    for name in group.recipe.values.tolist():
        cell = group.sel(recipe=name)
        row = [f"{float(cell.value):.3f} [{float(cell.low):.3f}, {float(cell.high):.3f}]"]
        for reference in ("vanilla", "base", "TAIA"):
            row.append(_difference(cell.sel(reference=reference)))
        table.add_row(Text(name), *(Text(text) for text in row))
    return table


def _difference(cell: xr.Dataset) -> str:
    """A difference, its interval, its adjusted p, and a star where that tells it apart from 0."""
    if not math.isfinite(float(cell["diff"])):
        return "- "
    return f"{interval(cell, 'diff')} {adjusted(float(cell.q))}"


def interval(cell: xr.Dataset, name: str) -> str:
    """A number and its interval, three decimals each, without the zero in front of the point: several fit a terminal."""
    value, low, high = (f"{float(cell[name + end]):+.3f}".replace("+0.", "+.").replace("-0.", "-.") for end in ("", "_low", "_high"))
    return f"{value} [{low} {high}]"


def adjusted(q: float) -> str:
    """An adjusted p in six characters; empty where the two agree on every prompt."""
    if math.isnan(q):
        return " " * 7
    shown = "q<.001" if q < 0.001 else f"q={q:.3f}".replace("=0.", "=.") if q < 0.9995 else "q=1.00"
    return shown + ("*" if q <= ALPHA else " ")


def _effects(group: xr.Dataset) -> Table:
    table = Table(box=box.SIMPLE, title="what each part of the update adds", title_justify="left")
    names = [str(name) for name in group.effect.values]
    table.add_column("effect", no_wrap=True)
    table.add_column(f"on {group.metric.item()} [95%]", justify="right", no_wrap=True)
    table.add_column("that is")
    for name in names:
        cell = group.sel(effect=name)
        numbers = f"{float(cell.effect_value):+.3f} [{float(cell.effect_low):+.3f}, {float(cell.effect_high):+.3f}]"
        table.add_row(name, Text(numbers), _meaning(name))
    return table


def _meaning(name: str) -> str:
    player, _, kind = name.rpartition(" ")
    return {
        "alone": f"base with {player} - base",
        "last": f"vanilla - vanilla without {player}",
        "Shapley": "mean over orders of the parts (of two: the main effect); sums to vanilla - base",
    }.get(kind, "both - attn alone - mlp alone: 0 where the two add up")


def grid_records(summary: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a (group, recipe), ready for JSON."""
    out = []
    for i in range(summary.sizes["group"]):
        group = summary.isel(group=i)
        labels = {name: group[name].item() for name in ("suite", "domain", "metric", "n", "better")}
        for name in group.recipe.values.tolist():
            cell = group.sel(recipe=name)
            record = labels | {"recipe": name, "role": str(cell.role.item()), "text": str(cell.text.item())}
            record |= {key: plain(cell[key]) for key in ("value", "low", "high")}
            for reference in group.reference.values.tolist():
                against = cell.sel(reference=reference)
                record[f"minus_{reference}"] = {key: plain(against[key]) for key in _CELL}
            out.append(record)
    return out


def effect_records(summary: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a (group, effect)."""
    groups = [summary.isel(group=i) for i in range(summary.sizes["group"])]
    return [
        {name: group[name].item() for name in ("suite", "domain", "metric")}
        | {"effect": effect}
        | {key: plain(group.sel(effect=effect)[f"effect_{key}"]) for key in ("value", "low", "high")}
        for group in groups
        for effect in group.effect.values.tolist()
    ]


def plain(value: xr.DataArray) -> float | None:
    """A number for JSON: what is undefined is None."""
    number = float(value)
    return number if np.isfinite(number) else None
