"""The attribution study summed up: as a patching study, and how far the sites that were patched really say it is off. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from taia_lens import stats
from taia_lens.summaries.patching import patch_summary

AMONG = ("strong", "random", "all")


def attribution_summary(result: xr.Dataset) -> xr.Dataset:
    """Means and intervals by domain, and the check's verdict over all prompts.

    Args:
        result: What `studies.attribution.attribution` returned.

    Returns:
        What `patch_summary` gives, `effect` being the attribution. Where sites were patched really: `check_attributed` and
        `check_patched` (check), the mean change that was said of each and the one found, with `_low` and `_high`, and `check_n`, how many
        prompts have the site; and by `among` (the strongest sites, those
        drawn at random, all): `off`, the mean error of a site's mean over the mean size of what was found; `correlation` over
        sites' means, `correlation_prompts` over sites and prompts, NaN where nothing varies; `n_sites`.
    """
    summary = patch_summary(result)
    if "check" not in result.dims:
        return summary
    names = ("check_attributed", "check_patched")
    means = {name: result[name].mean("example") for name in names}
    means |= _intervals(result, names)
    groups = [np.isin(result.chosen.values, AMONG[:2] if among == "all" else among) for among in AMONG]
    said, found = (means[name].values for name in names)
    cells = [[result[name].values[group] for name in names] for group in groups]
    figures = {
        "off": [_share(abs(said - found)[group], abs(found)[group]) for group in groups],
        "correlation": [_correlation(said[group], found[group]) for group in groups],
        "correlation_prompts": [_correlation(*(c[~np.isnan(cell[0])] for c in cell)) for cell in cells],
        "n_sites": [int(group.sum()) for group in groups],
    }
    return summary.assign(means | {name: ("among", values) for name, values in figures.items()}).assign_coords(among=list(AMONG))


def _intervals(result: xr.Dataset, names: Sequence[str]) -> dict[str, xr.DataArray]:
    """Of each site's means, over the prompts that have it."""
    out = {"check_n": result[names[0]].notnull().sum("example")}
    for name in names:
        cells = [cell[~np.isnan(cell)] for cell in result[name].transpose("check", "example").values]
        ends = np.array([stats.mean_interval(cell, seed=int(result.attrs["seed"])) for cell in cells]).reshape(-1, 2)
        out |= {f"{name}_{end}": xr.DataArray(ends[:, i], dims="check") for i, end in enumerate(("low", "high"))}
    return out


def _share(error: np.ndarray, size: np.ndarray) -> float:
    return float(error.mean() / size.mean()) if size.sum() > 0 else np.nan


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.size > 1 and a.std() > 0 and b.std() > 0 else np.nan
