"""Do two rankings of heads agree: shared heads of the top K, with what chance gives, and Kendall's tau. Imports no torch."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from taia_lens import stats

Array = NDArray[np.float64]


def shared(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> tuple[float, float]:
    """The share of the first set's heads that are in the second, and the p of at least as many by chance (hypergeometric).

    Args:
        a: One bool a head.
        b: The same heads.

    >>> one, other = np.arange(128) < 4, (np.arange(128) >= 1) & (np.arange(128) < 5)
    >>> share, p = shared(one, other)
    >>> round(share, 2), round(p, 6)
    (0.75, 4.7e-05)
    """
    both = int((a & b).sum())
    return both / int(a.sum()), float(scipy_stats.hypergeom.sf(both - 1, a.size, int(a.sum()), int(b.sum())))


def tau(a: Array, b: Array) -> float:
    """Kendall's tau-b over heads; NaN where one of the two gives every head the same score.

    >>> round(tau(np.arange(5.0), np.arange(5.0) ** 2), 6), round(tau(np.arange(5.0), -np.arange(5.0)), 6)
    (1.0, -1.0)
    """
    return float(scipy_stats.kendalltau(a, b).statistic)


def agreement(result: xr.Dataset) -> xr.Dataset:
    """Every ranker against every other, and against itself over its seeds.

    Args:
        result: With `score`, `top` (ranker, seed, layer, head).

    Returns:
        By (ranker, other): `overlap`, the shared share of the top K, `overlap_least`, `overlap_most`, and `tau`, over all pairs of
        a seed of the one and a seed of the other (two different seeds where the two are one ranker; NaN where there is one
        seed); `overlap_p`, the largest p among those pairs: shared beyond chance whichever seed is taken. `chance`: the share that
        two sets drawn at random have in common on average, K / heads.
    """
    names, n_seeds = result.ranker.values.tolist(), result.sizes["seed"]
    flat = result[["score", "top"]].stack(site=("layer", "head")).transpose("ranker", "seed", "site")
    score, top = flat.score.values, flat.top.values.astype(bool)
    found = {key: np.full((len(names), len(names)), np.nan) for key in ("overlap", "overlap_least", "overlap_most", "overlap_p", "tau")}
    for i in range(len(names)):
        for j in range(len(names)):
            runs = [(s, t) for s in range(n_seeds) for t in range(n_seeds) if i != j or s < t]
            if not runs or (i == j and (score[i] == score[i, :1]).all()):
                continue
            parts = np.array([shared(top[i, s], top[j, t]) for s, t in runs])
            found["overlap"][i, j], found["overlap_p"][i, j] = parts[:, 0].mean(), parts[:, 1].max()
            found["overlap_least"][i, j], found["overlap_most"][i, j] = parts[:, 0].min(), parts[:, 0].max()
            found["tau"][i, j] = np.mean([tau(score[i, s], score[j, t]) for s, t in runs])
    once = np.where(np.tri(len(names), dtype=bool), found["overlap_p"], np.nan)  # a with b and b with a are one comparison
    q = stats.adjust(once)
    found["overlap_q"] = np.where(np.isnan(q), q.T, q)
    data: dict[str, tuple] = {key: (("ranker", "other"), value) for key, value in found.items()}
    data["chance"] = ((), top[0, 0].sum() / top[0, 0].size)
    return xr.Dataset(data, {"ranker": names, "other": names})
