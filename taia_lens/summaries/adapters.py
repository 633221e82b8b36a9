"""Adapters of scales summed up: values, and paired differences to the base. Imports no torch."""

from __future__ import annotations

import numpy as np
import xarray as xr

from taia_lens import stats
from taia_lens.summaries.groups import group_coords, groups


def adapters_summary(result: xr.Dataset) -> xr.Dataset:
    """Means and differences, by group (a metric on a suite's examples of one domain).

    Args:
        result: What `studies.adapters.score_adapters` returned.

    Returns:
        By (group, model): `value`, `low`, `high` (Clopper-Pearson where every value is 0 or 1, else bootstrap); `diff`,
        `diff_low`, `diff_high`, `p`, `q`: the paired difference to the first model, base; q after Benjamini-Hochberg over all of them.
    """
    seed = int(result.attrs["seed"])
    found = list(groups(result, "value"))
    parts = []
    for group in found:
        values = result.value.sel(metric=group.metric).isel(example=group.examples).values
        parts.append(_means(values, seed) | _differences(values, seed))
    data: dict[str, tuple] = {name: (("group", "model"), np.stack([part[name] for part in parts])) for name in parts[0]}
    data["q"] = (("group", "model"), stats.adjust(data["p"][1]))
    data |= {name: ("model", result[name].values) for name in ("numbers", "n_sites")}
    coords = group_coords(found, result) | {"model": result.model.values, "sites": ("model", result.sites.values)}
    return xr.Dataset(data, coords, result.attrs)


def _means(values: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    if np.isin(values, (0.0, 1.0)).all():
        low, high = stats.rate_interval(values.sum(-1).astype(int), np.full(len(values), values.shape[-1]))
    else:
        low, high = stats.mean_interval(values, seed=seed)
    return {"value": values.mean(-1), "low": low, "high": high}


def _differences(values: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """NaN for base itself; p is NaN where the two agree on every prompt, and there is nothing to test."""
    paired = values - values[0]
    low, high = stats.mean_interval(paired, seed=seed)
    p = np.where((paired == 0).all(-1), np.nan, stats.sign_flip_p(paired, seed=seed))
    itself = np.arange(len(values)) == 0
    out = {"diff": paired.mean(-1), "diff_low": low, "diff_high": high, "p": p}
    return {name: np.where(itself, np.nan, value) for name, value in out.items()}
