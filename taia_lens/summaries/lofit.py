"""LoFiT's selection and trainings as Datasets that figures read: norms by head, losses by epoch. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from taia_lens.errors import ResultError

UNITS = {"norm": "norm of A", "relative": "norm of A / rms norm of z", "effect": "rms norm of A z"}


def selection_summary(selection: xr.Dataset, k: int, by: Sequence[str] = ("norm",)) -> xr.Dataset:
    """The scores of one selection of heads, in the form of a bench of rankers: for `plots.head_maps_figure`.

    Args:
        selection: What `lofit.select` returned.
        k: How many heads are chosen by each score.
        by: Which scores: `norm` (the paper's), `relative`, `effect`.

    Returns:
        By (ranker, layer, head): `score`, `se` (NaN: one training has no spread) and `chosen`, 1 in the top k; `per_layer`
        (ranker, layer): how many of them.

    Raises:
        ResultError: No such score, or more heads than there are.
    """
    for name in by:
        if name not in UNITS:
            raise ResultError(f"a selection has no score {name!r}; it has {', '.join(UNITS)}")
    n = selection["norm"].size
    if not 1 <= k <= n:
        raise ResultError(f"{k} of {n} heads cannot be chosen; write a number from 1 to {n}")
    score = np.stack([selection[name].transpose("layer", "head").values for name in by])
    chosen = np.zeros(score.shape)
    for one, cells in zip(chosen, score, strict=True):
        one.ravel()[np.argsort(-cells.ravel(), kind="stable")[:k]] = 1  # of equal ones the first, as lofit.top_heads
    dims = ("ranker", "layer", "head")
    data = {"score": (dims, score), "se": (dims, np.full(score.shape, np.nan)), "chosen": (dims, chosen)}
    coords = {
        "ranker": ["lofit" if name == "norm" else f"lofit-{name}" for name in by],
        "layer": selection.layer.values,
        "head": selection["head"].values,
        "score_unit": ("ranker", [UNITS[name] for name in by]),
    }
    attrs = {name: selection.attrs[name] for name in ("model",) if name in selection.attrs}
    return xr.Dataset(data | {"per_layer": (dims[:2], chosen.sum(-1))}, coords, attrs | {"k": k, "n_heads": n, "seeds": [0]})


def training_history(trainings: Mapping[str, Mapping[str, Any]], *, model: str | None = None) -> xr.Dataset:
    """Losses by epoch of one or several trainings, for `plots.training_figure`.

    Args:
        trainings: Name -> the record that a training leaves: `attrs["training"]` of what `lofit.select` returned,
            `made["training"]` of scales, `training` in an adapter's scales.json.
        model: What was trained on, for the figure's notes.

    Returns:
        `loss` (the mean as it went), `penalty` and `validation` (run, epoch), NaN after a run's last epoch; `best` (run), the
        epoch, from 1, with the lowest validation loss; `stopped` (run), why it ended before its time, or nothing.
    """
    longest = max((len(record["epochs"]) for record in trainings.values()), default=0)
    data: dict[str, tuple] = {}
    for name in ("loss", "penalty", "validation"):
        values = np.full((len(trainings), longest), np.nan)
        for line, record in zip(values, trainings.values(), strict=True):
            line[: len(record["epochs"])] = [epoch[name] for epoch in record["epochs"]]
        data[name] = (("run", "epoch"), values)
    data["best"] = ("run", [int(record["best"]) + 1 for record in trainings.values()])
    data["stopped"] = ("run", np.array([record["stopped"] or "" for record in trainings.values()], dtype=object))
    coords = {"run": list(trainings), "epoch": list(range(1, longest + 1))}
    return xr.Dataset(data, coords, {} if model is None else {"model": model})
