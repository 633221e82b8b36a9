"""The layers study summed up: each part's gain with its interval, its Monte-Carlo error, and out- minus in-distribution."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.stats import t

from taia_lens import stats
from taia_lens.summaries.groups import Group, group_coords, groups

VIEWS = ("alone", "last", "shapley")
COMPONENTS = ("attn", "mlp")


def layers_summary(result: xr.Dataset) -> xr.Dataset:
    """Means and intervals of a layers result, by group (a metric on a suite's examples of one domain).

    Args:
        result: What `studies.layers.layers` returned.

    Returns:
        For each view that was run (`alone`, `last`, `shapley`): `VIEW`, `VIEW_low`, `VIEW_high`, `VIEW_p`, `VIEW_q` (group, layer,
        part): mean gain, 95% bootstrap interval over examples, sign-flip p and that p after Benjamini-Hochberg over the view's
        cells. `shapley_se`: the standard error that sampling permutations leaves, which the interval does not hold; `shapley_p` is
        the larger of the two tests, over examples and over sampled orders. Where parts are finer than attn and mlp:
        `component_shapley`, `_low`, `_high`, `_p`, `_q` (group, layer, component), the sums over a layer's parts.
        `cumulated*` (group, direction, series, layer). `rest_VIEW` (group). `gap` (group): vanilla - base, with interval.
        `shift_VIEW`, with `_low`, `_high`, `_p`, `_q` (metric, layer, part): out-of-distribution gain minus in-domain gain, over
        all suites, where both are there; its p, too, is the larger of the two tests for `shapley`.
    """
    seed = int(result.attrs["seed"])
    found = list(groups(result, "base"))
    out = xr.Dataset(coords=group_coords(found, result) | {"layer": result.layer, "part": result.part}, attrs=result.attrs)
    out = out.merge(_gap(result, found, seed))
    for view in [v for v in VIEWS if v in result]:
        out = out.merge(_view(result, found, view, seed)).merge(_shift(result, view, seed))
        if f"rest_{view}" in result:
            out[f"rest_{view}"] = ("group", [float(_of(result, f"rest_{view}", g).mean()) for g in found])
    if "cumulated" in result:
        out = out.merge(_cumulated(result, found, seed))
    if "pairs" in result:
        by_part = ("group", "layer", "part")
        out["shapley_se"] = (by_part, np.stack([_spread(_pairs(result, g)) for g in found]))
        orders = _sampling_p(out.shapley.values, out.shapley_se.values, result.sizes["pair"])
        out["shapley_p"] = (by_part, np.fmax(out.shapley_p.values, orders))
        out["shapley_q"] = (by_part, stats.adjust(out.shapley_p.values))
        if "shift_shapley" in out:
            out = out.assign(_shift_orders(result, found, out))
    if "shapley" in result and set(result.part.values.tolist()) != set(COMPONENTS):
        out = out.merge(_by_component(result, found, seed))
    return out


def _cumulated(result: xr.Dataset, found: list[Group], seed: int) -> xr.Dataset:
    cells = [_of(result, "cumulated", g) for g in found]
    ends = [stats.mean_interval(c, seed=seed) for c in cells]
    data = {"cumulated": np.stack([c.mean(-1) for c in cells])}
    data |= {f"cumulated_{name}": np.stack([e[i] for e in ends]) for i, name in enumerate(("low", "high"))}
    coords = {"direction": ["below", "above"], "series": ["attn", "mlp", "both"]}
    return xr.Dataset({name: (("group", "direction", "series", "layer"), values) for name, values in data.items()}, coords)


def _by_component(result: xr.Dataset, found: list[Group], seed: int) -> xr.Dataset:
    """Shapley values of finer parts, summed over each layer's parts of attention and of the FFN."""
    of = np.array([component_of(str(part)) for part in result.part.values])
    components = [name for name in COMPONENTS if name in of]

    def summed(by_part: np.ndarray, axis: int) -> np.ndarray:
        return np.stack([by_part.compress(of == name, axis).sum(axis) for name in components], axis)

    cells = [summed(_of(result, "shapley", g), 1) for g in found]
    ends = [stats.mean_interval(c, seed=seed) for c in cells]
    mean = np.stack([c.mean(-1) for c in cells])
    p = np.stack([np.where((c == 0).all(-1), np.nan, stats.sign_flip_p(c, seed=seed)) for c in cells])
    if "pairs" in result:
        errors = [_spread(summed(_pairs(result, g), 2)) for g in found]
        p = np.fmax(p, _sampling_p(mean, np.stack(errors), result.sizes["pair"]))
    data = {"component_shapley": mean, "component_shapley_p": p, "component_shapley_q": stats.adjust(p)}
    data |= {f"component_shapley_{name}": np.stack([e[i] for e in ends]) for i, name in enumerate(("low", "high"))}
    return xr.Dataset({n: (("group", "layer", "component"), v) for n, v in data.items()}, {"component": components})


def component_of(part: str) -> str:
    """What a part belongs to: projections are named after it, and heads are attention's.

    >>> component_of("mlp.down"), component_of("h3")
    ('mlp', 'attn')
    """
    component = part.partition(".")[0]
    return component if component in COMPONENTS else "attn"


def _sampling_p(value: np.ndarray, se: np.ndarray, n_pairs: int) -> np.ndarray:
    """p of 0 against what sampled orders alone leave open: a t-test over the pairs of orders; 1 where one pair tells nothing.

    A Shapley value must be told apart from 0 both over examples and over orders, so the larger of the two counts.
    """
    value = abs(value)
    with np.errstate(divide="ignore", invalid="ignore"):
        p: np.ndarray = 2 * t.sf(value / se, max(1, n_pairs - 1))
    p = np.where(np.isnan(se), 1.0, np.where(se == 0, np.where(value > 0, 0.0, np.nan), p))
    return np.where(value == 0, np.nan, p)


def _of(result: xr.Dataset, name: str, group: Group) -> np.ndarray:
    return result[name].sel(metric=group.metric).isel(example=group.examples).values


def _gap(result: xr.Dataset, found: list[Group], seed: int) -> xr.Dataset:
    gaps = [_of(result, "vanilla", g) - _of(result, "base", g) for g in found]
    ends = [stats.mean_interval(gap[None], seed=seed) for gap in gaps]
    data = {name: ("group", [float(_of(result, name, g).mean()) for g in found]) for name in ("base", "vanilla")}
    data["gap"] = ("group", [float(gap.mean()) for gap in gaps])
    return xr.Dataset(data | {f"gap_{name}": ("group", [float(end[i][0]) for end in ends]) for i, name in enumerate(("low", "high"))})


def _view(result: xr.Dataset, found: list[Group], view: str, seed: int) -> xr.Dataset:
    cells = [_of(result, view, g) for g in found]
    ends = [stats.mean_interval(c, seed=seed) for c in cells]
    p = np.stack([np.where((c == 0).all(-1), np.nan, stats.sign_flip_p(c, seed=seed)) for c in cells])
    dims = ("group", "layer", "part")
    data = {view: np.stack([c.mean(-1) for c in cells]), f"{view}_p": p, f"{view}_q": stats.adjust(p)}
    data |= {f"{view}_{name}": np.stack([e[i] for e in ends]) for i, name in enumerate(("low", "high"))}
    return xr.Dataset({name: (dims, values) for name, values in data.items()})


def _shift(result: xr.Dataset, view: str, seed: int) -> xr.Dataset:
    """Out-of-distribution minus in-domain gain: two groups of examples, resampled apart."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("", "_low", "_high", "_p")}
    metrics = []
    for metric in result.metric.values.tolist():
        cells = result[view].sel(metric=metric)
        ood, own = (
            cells.isel(example=np.flatnonzero((result.domain.values == d) & result.base.sel(metric=metric).notnull().values)).values
            for d in ("ood", "id")
        )
        if not ood.shape[-1] or not own.shape[-1]:
            continue
        metrics.append(metric)
        low, high = stats.difference_interval(ood, own, seed=seed)
        untouched = (ood == 0).all(-1) & (own == 0).all(-1)
        p = np.where(untouched, np.nan, stats.difference_p(ood, own, seed=seed))
        for name, value in (("", ood.mean(-1) - own.mean(-1)), ("_low", low), ("_high", high), ("_p", p)):
            found[name].append(value)
    if not metrics:
        return xr.Dataset()
    data = {f"shift_{view}{name}": np.stack(values) for name, values in found.items()}
    data[f"shift_{view}_q"] = stats.adjust(data[f"shift_{view}_p"])
    return xr.Dataset({n: (("shift_metric", "layer", "part"), v) for n, v in data.items()}, {"shift_metric": metrics})


def _shift_orders(result: xr.Dataset, found: list[Group], out: xr.Dataset) -> xr.Dataset:
    """The test of out-of-distribution minus in-domain Shapley values, over examples and over sampled orders: the larger p counts."""
    p = []
    for metric in out.shift_metric.values.tolist():
        means = []
        for domain in ("ood", "id"):
            some = [g for g in found if g.metric == metric and g.domain == domain]
            each = [result.pairs.sel(metric=metric, where=f"{g.suite}|{g.domain}").values for g in some]
            means.append(np.average(each, axis=0, weights=[len(g.examples) for g in some]))
        n = len(means[0])
        se = np.std(means[0] - means[1], axis=0, ddof=1) / n**0.5 if n > 1 else np.full(means[0].shape[1:], np.nan)
        p.append(_sampling_p(out.shift_shapley.sel(shift_metric=metric).values, se, n))
    both = out.shift_shapley_p.copy(data=np.fmax(out.shift_shapley_p.values, np.stack(p)))
    return xr.Dataset({"shift_shapley_p": both, "shift_shapley_q": both.copy(data=stats.adjust(both.values))})


def _pairs(result: xr.Dataset, group: Group) -> np.ndarray:
    """Each antithetic pair's mean marginals, (pair, layer, part)."""
    return result.pairs.sel(metric=group.metric, where=f"{group.suite}|{group.domain}").transpose("pair", "layer", "part").values


def _spread(pairs: np.ndarray) -> np.ndarray:
    """The standard error that sampling orders leaves; NaN where one pair tells nothing."""
    if len(pairs) < 2:
        return np.full(pairs.shape[1:], np.nan)
    return np.std(pairs, axis=0, ddof=1) / len(pairs) ** 0.5
