"""The logit lens as a table for a terminal and as records for `--json`. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from rich.table import Table
from rich.text import Text


def lens_table(result: xr.Dataset) -> Table:
    """The most likely token of each recipe after each layer, and its probability.

    Args:
        result: What `studies.lens.lens` returned.
    """
    table = Table(title="the most likely token after each layer, and its probability", title_justify="left")
    table.add_column("layer")
    for name in result.recipe.values.tolist():
        table.add_column(Text(name))
    for record in lens_records(result):
        cells = [f"{top['token']!r} {top['probability']:.2f}" for top in record["most_likely"].values()]
        table.add_row("embedding" if record["layer"] < 0 else str(record["layer"]), *map(Text, cells))
    return table


def lens_records(result: xr.Dataset) -> list[dict[str, Any]]:
    """A record a layer: each recipe's most likely token, and the log-probabilities, in nats, of those that are followed.

    Args:
        result: What `studies.lens.lens` returned.
    """
    out = []
    for i, layer in enumerate(result.layer.values.tolist()):
        record: dict[str, Any] = {"layer": layer, "most_likely": {}, "logprob": {}}
        for recipe in result.recipe.values.tolist():
            cell = result.isel(layer=i).sel(recipe=recipe)
            record["most_likely"][recipe] = {"token": str(cell.top.item()), "probability": float(np.exp(cell.top_logprob))}
            record["logprob"][recipe] = dict(zip(result.token.values.tolist(), cell.logprob.values.tolist(), strict=True))
        out.append(record)
    return out
