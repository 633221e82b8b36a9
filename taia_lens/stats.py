"""Intervals, paired by example: thin over scipy. Imports no torch.

Every interval is a 95% bootstrap over examples: BCa, or percentile above 2000 examples, where the two agree and BCa's
jackknife would cost the square of their number. Differences are taken per example before resampling, so what two models get
right or wrong together cancels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 2000
BCA_UP_TO = 2000
LEVEL = 0.95
Array = NDArray[np.float64]


def mean_interval(values: Array, *, seed: int) -> tuple[Array, Array]:
    """Interval of the mean over the last axis (examples).

    Args:
        values: One value per (..., example).
        seed: Of the resampling; the same seed gives the same bits.

    Returns:
        Lower and upper ends, shaped like `values` without its last axis.

    >>> low, high = mean_interval(np.arange(100.0)[None], seed=0)
    >>> bool(low[0] < 49.5 < high[0])
    True
    """
    return _bootstrap((values,), lambda v, axis: v.mean(axis), seed)


def ratio_interval(part: Array, whole: Array, *, seed: int) -> tuple[Array, Array]:
    """Interval of mean(part) / mean(whole) over the last axis; the two are resampled together."""
    return _bootstrap((part, whole), lambda p, w, axis: p.mean(axis) / w.mean(axis), seed)


def _bootstrap(data: tuple[Array, ...], statistic: Callable[..., Array], seed: int) -> tuple[Array, Array]:
    data = tuple(np.broadcast_arrays(*[np.asarray(d, dtype=np.float64) for d in data]))
    with np.errstate(divide="ignore", invalid="ignore"):
        point = statistic(*data, axis=-1)
    if data[0].shape[-1] < 2:
        nan = np.full(np.shape(point), np.nan)  # one example has no spread to resample
        return nan, nan
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            data,
            statistic,
            paired=len(data) > 1,
            vectorized=True,
            axis=-1,
            n_resamples=RESAMPLES,
            method="BCa" if data[0].shape[-1] <= BCA_UP_TO else "percentile",
            batch=max(1, 4_000_000 // data[0].size),  # keeps the resamples in tens of megabytes
            confidence_level=LEVEL,
            rng=np.random.default_rng(seed),
        )
        # BCa has no answer where (nearly) every resample gives one value; the percentile interval has: that value.
        tails = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)
        plain = np.percentile(found.bootstrap_distribution, tails, axis=-1)
    bca = found.confidence_interval
    degenerate = np.isnan(bca.low) | np.isnan(bca.high)
    return np.where(degenerate, plain[0], bca.low), np.where(degenerate, plain[1], bca.high)
