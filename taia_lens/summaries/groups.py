"""The groups that numbers are summed up over: a suite's examples of one domain, under one metric."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from taia_lens import stats
from taia_lens.suite import DOMAINS


@dataclass(frozen=True)
class Group:
    """A metric on a suite's examples of one domain, and which examples they are."""

    metric: str
    suite: str
    domain: str
    examples: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.suite}|{self.domain}|{self.metric}"


def groups(result: xr.Dataset, variable: str) -> Iterator[Group]:
    """Every (metric, suite, domain) that has numbers, in the order of metrics, domains, suites."""
    applies = result[variable].notnull().any([d for d in result[variable].dims if d not in ("metric", "example")])
    for metric in result.metric.values.tolist():
        for domain in DOMAINS:
            for suite in dict.fromkeys(result.suite.values.tolist()):
                chosen = (result.suite.values == suite) & (result.domain.values == domain) & applies.sel(metric=metric).values
                if chosen.any():
                    yield Group(metric, suite, domain, np.flatnonzero(chosen))


def group_coords(found: list[Group], result: xr.Dataset) -> dict[str, object]:
    """The coords of a `group` dim."""
    better = dict(zip(result.metric.values.tolist(), result.better.values.tolist(), strict=True))
    unit = dict(zip(result.metric.values.tolist(), result.unit.values.tolist(), strict=True))
    return {
        "group": [g.name for g in found],
        "metric": ("group", [g.metric for g in found]),
        "suite": ("group", [g.suite for g in found]),
        "domain": ("group", [g.domain for g in found]),
        "n": ("group", [len(g.examples) for g in found]),
        "unit": ("group", [unit[g.metric] for g in found]),
        "better": ("group", [better[g.metric] for g in found]),
    }


def levels(values: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """`value`, `low`, `high`: means over the last axis and their 95% intervals; Clopper-Pearson where all of a cell is 0 or 1."""
    low, high = stats.mean_interval(values, seed=seed)
    rates = np.isin(values, (0.0, 1.0)).all(-1)
    counts = np.where(rates, values.sum(-1), 0).astype(int)
    exact = stats.rate_interval(counts, np.full(counts.shape, values.shape[-1]))
    return {"value": values.mean(-1), "low": np.where(rates, exact[0], low), "high": np.where(rates, exact[1], high)}


def paired(differences: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """`diff`, `diff_low`, `diff_high`, `p`: means over the last axis, intervals, sign-flip p; p is NaN where nothing differs at all."""
    low, high = stats.mean_interval(differences, seed=seed)
    p = np.where((differences == 0).all(-1), np.nan, stats.sign_flip_p(differences, seed=seed))
    return {"diff": differences.mean(-1), "diff_low": low, "diff_high": high, "p": p}
