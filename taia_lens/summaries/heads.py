"""The bench of rankers summed up: scores, agreement, and whether a ranker's top heads do more than random ones. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from taia_lens import stats
from taia_lens.summaries.agreement import agreement
from taia_lens.summaries.groups import Group, group_coords, groups, levels, paired

REFERENCES = ("base", "random", "bottom", "first")


@dataclass(frozen=True, eq=False)
class Line:
    """Arms that differ in nothing but their seed (or draw) and are summed up as one.

    Attributes:
        check: What was done to the heads: `offsets`, `graft`, or nothing for whole models.
        by: The ranker that chose them; for a control or a reference, its own name.
        end: `top`, `bottom`, `draw`, `all`, or `reference`.
        arms: Where they are along the dim `arm`.
    """

    check: str
    by: str
    end: str
    arms: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.check} {self.by} {self.end}".strip() if self.end in ("top", "bottom") else f"{self.check} {self.by}".strip()


def lines(result: xr.Dataset) -> list[Line]:
    """The arms of a heads result by what they are, in their order."""
    keys = list(zip(result.check.values.tolist(), result.by.values.tolist(), result.end.values.tolist(), strict=True))
    return [Line(*key, np.flatnonzero([k == key for k in keys])) for key in dict.fromkeys(keys)]


def heads_summary(result: xr.Dataset) -> xr.Dataset:
    """Scores, agreement and the causal check of a heads result.

    Args:
        result: What `studies.heads.heads` returned.

    Returns:
        By (ranker, layer, head): `score`, `se` (means over seeds) and `chosen`, the share of seeds in which the head is among the
        top K. `per_layer` (ranker, layer): how many of the top K. What `agreement` gives (ranker, other). By (group, line), a
        line being what arms of several seeds have in common: `value` (mean over prompts and seeds), `low`, `high` (95%, over
        prompts), `least`, `most` (over seeds); by (group, line, reference): `diff`, `diff_low`, `diff_high`, `p`, `q`, the paired
        difference to `base`, to `random` heads (the mean of the draws), to the same ranker's `bottom` heads, and to the `first`
        ranker's top heads, NaN where that is not a comparison; q after Benjamini-Hochberg over all of them. `above` and `draws`:
        how many random draws the line's mean is better than, of how many. `fraction`, `fraction_low`, `fraction_high`: of
        TAIA's gain over base, for grafts, NaN where TAIA's gain is not told apart from 0.
    """
    seed = int(result.attrs["seed"])
    found, arms = list(groups(result, "value")), lines(result)
    parts = [_causal(result, group, arms, seed) for group in found]
    by_line, by_reference = ("group", "line"), ("group", "line", "reference")
    data: dict[str, tuple] = {}
    for name in parts[0]:
        value = np.stack([part[name] for part in parts])
        data[name] = (by_line if value.ndim == 2 else by_reference, value)
    data["q"] = (by_reference, stats.adjust(data["p"][1]))
    data["numbers"] = ("line", [int(result.numbers.values[line.arms].mean()) for line in arms])
    coords = group_coords(found, result) | {
        "line": [line.name for line in arms],
        "check": ("line", [line.check for line in arms]),
        "by": ("line", [line.by for line in arms]),
        "end": ("line", [line.end for line in arms]),
        "runs": ("line", [len(line.arms) for line in arms]),
        "reference": list(REFERENCES),
    }
    return xr.merge([xr.Dataset(data, coords), _ranking(result), agreement(result)], compat="no_conflicts").assign_attrs(result.attrs)


def _se(result: xr.Dataset) -> xr.DataArray:
    """Standard error of the scores: over examples or folds, or, where a ranker has one number a seed, over its seeds."""
    n = result.sizes["seed"]
    over_seeds = result.score.std("seed", ddof=1) / n**0.5 if n > 1 else result.se.isel(seed=0)
    return result.se.mean("seed", skipna=False).fillna(over_seeds)


def _ranking(result: xr.Dataset) -> xr.Dataset:
    top = result.top.astype(float)
    # A ranker that draws nothing gives one score whatever the seed.
    seeded = (abs(result.score - result.score.isel(seed=0)) > 0).any(("seed", "layer", "head"))
    data = {
        "score": result.score.mean("seed"),
        "se": _se(result),
        "chosen": top.mean("seed"),
        "per_layer": top.sum("head").mean("seed"),
        "seeded": seeded,
    }
    return xr.Dataset({name: value.transpose("ranker", ...) for name, value in data.items()})


def _causal(result: xr.Dataset, group: Group, arms: list[Line], seed: int) -> dict[str, np.ndarray]:
    """Numbers (line) and (line, reference) of a group."""
    values = result.value.sel(metric=group.metric).isel(example=group.examples).values
    mean = np.stack([values[line.arms].mean(0) for line in arms])
    each = [values[line.arms].mean(1) for line in arms]
    out = levels(mean, seed)
    out |= {"least": np.array([e.min() for e in each]), "most": np.array([e.max() for e in each])}
    out |= _against(mean, arms, result, seed)
    better = dict(zip(result.metric.values.tolist(), result.better.values.tolist(), strict=True))[group.metric]
    draws = [_find(arms, line.check, end="draw") for line in arms]
    out["draws"] = np.array([0 if d is None else len(each[d]) for d in draws])
    out["above"] = np.array([0 if d is None else int((better * (mean[i].mean() - each[d]) > 0).sum()) for i, d in enumerate(draws)])
    return out | _fractions(mean, arms, seed)


def _find(arms: list[Line], check: str, *, by: str | None = None, end: str) -> int | None:
    return next((i for i, a in enumerate(arms) if a.check == check and a.end == end and by in (None, a.by)), None)


def _reference(arms: list[Line], i: int, name: str, first: str) -> int | None:
    """What a line is held against under that name, if anything."""
    line = arms[i]
    if name == "base":
        found = _find(arms, "", by="base", end="reference")
    elif line.end == "draw" or not line.check:
        return None
    elif name == "random":
        found = _find(arms, line.check, end="draw")
    elif line.end != "top":
        return None
    else:
        found = _find(arms, line.check, by=line.by, end="bottom") if name == "bottom" else _find(arms, line.check, by=first, end="top")
    return None if found == i else found


def _against(mean: np.ndarray, arms: list[Line], result: xr.Dataset, seed: int) -> dict[str, np.ndarray]:
    first = str(result.ranker.values[0])
    out = {name: np.full((len(arms), len(REFERENCES)), np.nan) for name in ("diff", "diff_low", "diff_high", "p")}
    cells = [(i, j, _reference(arms, i, name, first)) for i in range(len(arms)) for j, name in enumerate(REFERENCES)]
    asked = [(i, j, k) for i, j, k in cells if k is not None]
    if not asked:
        return out
    found = paired(np.stack([mean[i] - mean[k] for i, _, k in asked]), seed)
    at = tuple(np.array([[i, j] for i, j, _ in asked]).T)
    for name, value in found.items():
        out[name][at] = value
    return out


def _fractions(mean: np.ndarray, arms: list[Line], seed: int) -> dict[str, np.ndarray]:
    """What part of TAIA's gain over base each graft gives."""
    out = {name: np.full(len(arms), np.nan) for name in ("fraction", "fraction_low", "fraction_high")}
    base, whole = (_find(arms, "", by=name, end="reference") for name in ("base", "TAIA"))
    if base is None or whole is None:
        return out
    gap = mean[whole] - mean[base]
    low, high = stats.mean_interval(gap[None], seed=seed)
    if not (low[0] > 0 or high[0] < 0):
        return out
    chosen = [i for i, line in enumerate(arms) if line.check == "graft"]
    if chosen:
        gains = np.stack([mean[i] - mean[base] for i in chosen])
        low, high = stats.ratio_interval(gains, gap[None], seed=seed)
        for name, value in (("fraction", gains.mean(-1) / gap.mean()), ("fraction_low", low), ("fraction_high", high)):
            out[name][chosen] = value
    return out
