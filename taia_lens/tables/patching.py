"""Tables and records: a result's summary in, text out, for terminals and for `--json`. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from taia_lens.sites import Site
from taia_lens.suite import DOMAIN_NAMES

# So many of a map's places are shown on a terminal, for each metric: those of the largest effects.
STRONGEST = 12
# Below this, a bootstrap interval of a mean covers clearly less often than it says.
FEW = 20
SITE_DIMS = ("component", "layer", "head", "pos")
_NUMBERS = (
    "host", "donor", "patched", "gap", "gap_low", "gap_high",
    "effect", "effect_low", "effect_high", "effect_p", "effect_q", "recovered", "recovered_low", "recovered_high",
)  # fmt: skip


def cells(summary: xr.Dataset) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """Every cell of a summary: its labels, and its numbers."""
    dims = ("domain", "metric", *(dim for dim in SITE_DIMS if dim in summary.dims))
    shape = summary[list(dims)].sizes  # the labels alone: numbers may lack a dim, along which they are the same
    labels = [summary[dim].values.tolist() for dim in dims]
    names = (*_NUMBERS, "n", "noise", "defined")
    template = xr.DataArray(np.zeros([shape[dim] for dim in dims]), dims=dims)
    bare = summary[list(names)].drop_vars(summary.coords, errors="ignore")
    arrays = [bare[name].broadcast_like(template).transpose(*dims).values.astype(float).ravel() for name in names]
    for key, *values in zip(product(*labels), *(array.tolist() for array in arrays), strict=True):
        yield dict(zip(dims, key, strict=True)), dict(zip(names, values, strict=True))


def records(summary: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a cell, ready for JSON: what is undefined is None."""
    out = []
    for labels, cell in cells(summary):
        numbers = {name: _plain(cell[name]) for name in _NUMBERS}
        out.append(labels | {"n": int(cell["n"]), "noise": cell["noise"], "defined": bool(cell["defined"])} | numbers)
    return out


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def patch_tables(summary: xr.Dataset) -> list[Table]:
    """A table for each domain: host, donor, patched, effect and recovered fraction with their 95% intervals.

    Of a map of positions, the strongest places only: `records` and the figure have all of them.
    """
    host, donor = summary.attrs["host"], summary.attrs["donor"]
    tables = []
    for domain in summary.domain.values.tolist():
        part = summary.sel(domain=[domain])
        shown = list(cells(part))
        title = _title(domain, int(part.n.max()))
        if "pos" in part.dims:
            title += f"; the strongest of {len(shown) // part.sizes['metric']} places"
            shown = _strongest(shown)
        table = Table(box=box.SIMPLE, title=title, title_justify="left")
        for name in ("metric", "site"):
            table.add_column(name, no_wrap=True)
        if "pos" in part.dims:
            table.add_column("n", justify="right")  # prompts that have the position
        for name in (f"{host} (host)", f"{donor} (donor)", "patched", "effect [95%]", "recovered [95%]"):
            table.add_column(name, justify="right", no_wrap=True)
        for labels, cell in shown:
            table.add_row(*_row(labels, cell))
        tables.append(table)
    return tables


def _title(domain: str, n: int) -> str:
    few = "" if n >= FEW else ": too few prompts for the intervals to be trusted"
    return f"{DOMAIN_NAMES[domain]} ({domain}), n = {n}{few}"


_Cell = tuple[dict[str, Any], dict[str, float]]


def _strongest(found: Sequence[_Cell]) -> list[_Cell]:
    """For each metric, the cells of the largest effects; those of a single example, which have no interval, come last."""
    known = sorted((cell for cell in found if cell[1]["n"]), key=lambda cell: (cell[1]["n"] == 1, -abs(cell[1]["effect"])))
    metrics = dict.fromkeys(labels["metric"] for labels, _ in found)
    return [cell for metric in metrics for cell in [c for c in known if c[0]["metric"] == metric][:STRONGEST]]


def site_text(labels: dict[str, Any]) -> str:
    """A cell's site, as recipes write it.

    >>> site_text({"component": "mlp", "layer": 3, "pos": -1})
    'L3.mlp @-1'
    """
    site = str(Site(labels["component"], labels["layer"], labels.get("head")))
    return f"{site} @{labels['pos']}" if "pos" in labels else site


def _row(labels: dict[str, Any], cell: dict[str, float]) -> Sequence[str | Text]:
    effect = f"{cell['effect']:+.3f} [{cell['effect_low']:+.3f}, {cell['effect_high']:+.3f}]"
    values = [f"{cell[name]:.3f}" for name in ("host", "donor", "patched")]
    if cell["defined"]:
        recovered = f"{cell['recovered']:.1%} [{cell['recovered_low']:.1%}, {cell['recovered_high']:.1%}]"
    else:
        recovered = "undefined: donor - host is within noise" if cell["n"] > 1 else "undefined: one prompt has no spread"
    # Text, not str: names from files are shown as they are, never read as markup.
    n = [str(int(cell["n"]))] if "pos" in labels else []
    return [labels["metric"], Text(site_text(labels)), *n, *values, Text(effect), Text(recovered)]


def noise_line(summary: xr.Dataset) -> str:
    """The noise floor of each metric, in words."""
    floors = ", ".join(f"{name} {value:.1g}" for name, value in zip(summary.metric.values, summary.noise.values, strict=True))
    return f"noise floor (host patched with itself, a row at a time): {floors}"
