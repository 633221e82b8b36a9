"""The picture of one head's attention on one prompt: base, tuned, and their difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.look import DIVERGING, NOTHING, SEQUENTIAL, framed
from taia_lens.plots.stacks import Stack, downwards, limit, models, plain, said, ticks, to_the_left, token

SIDES = ("base", "tuned")
MOST = 256
"""Tokens of the longest map that is drawn."""
ROW, LEAST, LARGEST = 14, 90, 420  # pixels of a token's row, and of a map
LABELS, LETTERS = 28, 10  # labels below a map that fit 450 pixels, and letters of a label


def attention_figure(result: xr.Dataset) -> go.Figure:
    """Three maps, one below the other: where each token looks in base, in tuned, and tuned - base.

    Args:
        result: What `studies.attention.attention` returned.

    Raises:
        ResultError: There is no token, more than can be read, or not both sides.
    """
    n_query, n_key = result.sizes["query"], result.sizes["key"]
    if not n_query or not n_key:
        raise ResultError("the result holds no token; there is nothing to draw")
    if max(n_query, n_key) > MOST:
        part = f"result.isel(query=slice(-{MOST}, None), key=slice(-{MOST}, None))"
        raise ResultError(f"a map of {n_query} x {n_key} tokens cannot be read; draw at most {MOST}: {part}")
    if set(result.side.values.tolist()) != set(SIDES):
        raise ResultError(f"the result holds {', '.join(map(str, result.side.values))}; a difference needs base and tuned")
    # What a token cannot see, what stands to its right, is no cell: a zero there says nothing.
    seen = result.pattern.transpose("side", "query", "key").where(result["key"] <= result["query"])
    base, tuned = (seen.sel(side=side).values for side in SIDES)
    below = 16 + 6 * min(LETTERS, max(len(str(text).strip()) for text in result.key_token.values))  # labels stand aslant
    stack = Stack((min(max(LEAST, ROW * n_query), LARGEST),) * 3, below + 34)
    titles = [f"{name}: share of a token's attention" for name in SIDES] + ["tuned - base"]
    figure = stack.figure(subplot_titles=titles)
    to_the_left(figure)
    both = np.concatenate([base.ravel(), tuned.ravel()])
    one = {"zmin": 0, "zmax": limit(both), "colorscale": SEQUENTIAL}
    most = limit(tuned - base)
    apart = {"zmin": -most, "zmax": most, "colorscale": DIVERGING}
    for row, (side, cells, scale) in enumerate((("base", base, one), ("tuned", tuned, one), ("tuned - base", tuned - base, apart)), 1):
        _add_map(figure, result, side, cells, scale, stack, row)
    figure.update_layout(plot_bgcolor=NOTHING)
    a = result.attrs
    notes = [
        models(a),
        said(str(a["prompt"])),
        "rows: the token that looks; columns: where; grey: it stands to the right, and cannot be seen",
        "one prompt, so there are no intervals",
    ]
    return framed(figure, f"Where head {a['site']} looks", notes, inside=stack.inside, below=below, panels=1)


def _add_map(figure: go.Figure, result: xr.Dataset, side: str, cells: np.ndarray, scale: dict[str, Any], stack: Stack, row: int) -> None:
    places = {dim: [f"{place} {token(text)}" for place, text in _named(result, dim)] for dim in ("query", "key")}
    number = "%{z:+.3f}" if side == "tuned - base" else "%{z:.3f}"
    figure.add_heatmap(
        # As text, for the hover; each is one place, since its position stands in front.
        x=places["key"],
        y=places["query"],
        z=cells,
        hoverongaps=False,
        hovertemplate=f"from %{{y}}<br>to %{{x}}: {number}<extra>{side}</extra>",
        colorbar=stack.bar(row),
        meta={
            "at": {"side": side} if side in SIDES else {},
            "rows": plain("query", result["query"].values),
            "columns": plain("key", result["key"].values),
        },
        row=row,
        col=1,
        **scale,
    )
    named = {dim: [token(text, LETTERS) for _, text in _named(result, dim)] for dim in ("query", "key")}
    queries = ticks(named["query"], most=max(1, stack.heights[0] // 13))
    figure.update_yaxes(downwards(queries) | {"tickfont": {"size": 10}}, type="category", row=row, col=1)
    keys = ticks(named["key"], most=LABELS)
    figure.update_xaxes(keys | {"tickangle": -60, "tickfont": {"size": 10}}, type="category", row=row, col=1)


def _named(result: xr.Dataset, dim: str) -> list[tuple[int, str]]:
    """Each position along a dim and the token there."""
    return list(zip(result[dim].values.tolist(), map(str, result[f"{dim}_token"].values.tolist()), strict=True))
