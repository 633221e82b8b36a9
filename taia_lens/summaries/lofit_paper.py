"""The paper's protocol summed up: each fold, the mean of the folds, against base and against random heads. Imports no torch."""

from __future__ import annotations

import numpy as np
import xarray as xr

from taia_lens import stats
from taia_lens.summaries.groups import levels, paired

MEAN = "mean"
REFERENCES = ("base", "random")


def lofit_paper_summary(result: xr.Dataset) -> xr.Dataset:
    """Means, intervals and tests of a run of `lofit_paper`.

    A question's value is its mean over seeds, and intervals and tests are over questions. The mean of the folds is the mean of
    their means, as in the paper; its interval resamples each fold by itself.

    Args:
        result: `Outcome.result` of `lofit_paper.run`.

    Returns:
        By (where, metric, line), `where` being each fold and, of two, `mean`, and `line` base and each arm: `value`, `low`, `high`
        (95%), `n`, and `spread`, the standard deviation of the mean over seeds. By (where, metric, line, reference): `diff`,
        `diff_low`, `diff_high`, `p`, `q`, the paired difference to `base` and to `random` heads, NaN where that is no
        comparison; q is p after Benjamini-Hochberg over all of them. `numbers` (line): how many were trained.
    """
    seed = int(result.attrs["seed"])
    lines = ["base", *result.arm.values.tolist()]
    of_fold = {str(f): np.flatnonzero(result.of_fold.values == f) for f in result.fold.values}
    places = [*of_fold, *([MEAN] if len(of_fold) > 1 else [])]
    metrics = [str(metric) for metric in result.metric.values]
    cells = [[_cell(_parts(result, metric, of_fold, where), lines, seed) for metric in metrics] for where in places]
    by_line, by_reference = ("where", "metric", "line"), ("where", "metric", "line", "reference")
    data: dict[str, tuple] = {}
    for name, first in cells[0][0].items():
        data[name] = (by_line if first.ndim == 1 else by_reference, np.stack([np.stack([c[name] for c in row]) for row in cells]))
    data["q"] = (by_reference, stats.adjust(data["p"][1]))
    data["numbers"] = ("line", [0, *result.numbers.values.tolist()])
    coords: dict[str, object] = {"where": places, "metric": metrics, "line": lines, "reference": list(REFERENCES)}
    coords |= {name: ("metric", result[name].values) for name in ("unit", "better")}
    return xr.Dataset(data, coords, result.attrs)


def _parts(result: xr.Dataset, metric: str, of_fold: dict[str, np.ndarray], where: str) -> list[np.ndarray]:
    """Values (line, seed, example) of a fold, or of each, base first; questions that the metric is of."""
    value, base = (result[name].sel(metric=metric).values for name in ("value", "base"))
    every = np.concatenate([np.broadcast_to(base, (1, *value.shape[1:])), value])
    parts = [every[..., rows] for name, rows in of_fold.items() if where in (name, MEAN)]
    return [part[..., np.isfinite(part).all((0, 1))] for part in parts]


def _cell(parts: list[np.ndarray], lines: list[str], seed: int) -> dict[str, np.ndarray]:
    """The numbers of one fold (or the mean of two) and one metric."""
    means = [part.mean(1) for part in parts]
    out = levels(means[0], seed) if len(means) == 1 else _mean_of_two(*means, seed=seed)
    by_seed = np.mean([part.mean(-1) for part in parts], axis=0)
    out["n"] = np.full(len(lines), sum(part.shape[-1] for part in parts))
    out["spread"] = by_seed.std(-1, ddof=1) if by_seed.shape[-1] > 1 else np.full(len(lines), np.nan)
    against = [_against(means, lines, reference, seed) for reference in REFERENCES]
    return out | {name: np.stack([a[name] for a in against], axis=-1) for name in against[0]}


def _against(means: list[np.ndarray], lines: list[str], reference: str, seed: int) -> dict[str, np.ndarray]:
    """Paired differences (line) to a reference."""
    if reference not in lines:
        return {name: np.full(len(lines), np.nan) for name in ("diff", "diff_low", "diff_high", "p")}
    differences = [mean - mean[[lines.index(reference)]] for mean in means]
    # A fold's mean counts as much as the other's, in the test too: each question is weighted by what it adds to the mean.
    n = sum(d.shape[-1] for d in differences)
    out = paired(np.concatenate([d * n / (len(differences) * d.shape[-1]) for d in differences], axis=-1), seed)
    if len(differences) > 1:
        out |= {f"diff{end}": v for end, v in zip(("", "_low", "_high"), _mean_of_two(*differences, seed=seed).values(), strict=True)}
    compared = np.array([line not in ("base", reference) for line in lines])
    return {name: np.where(compared, values, np.nan) for name, values in out.items()}


def _mean_of_two(first: np.ndarray, second: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Mean of two folds' means, each fold resampled by itself: what the difference of halves is, with a sign turned."""
    low, high = stats.difference_interval(first / 2, -second / 2, seed=seed)
    return {"value": (first.mean(-1) + second.mean(-1)) / 2, "low": low, "high": high}
