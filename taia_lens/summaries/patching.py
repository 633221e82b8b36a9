"""The patching study summed up: effects and recovered fractions with their intervals and tests, by domain. Imports no torch."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import xarray as xr

from taia_lens import stats
from taia_lens.suite import DOMAINS


def patch_summary(result: xr.Dataset) -> xr.Dataset:
    """Means, effects, recovered fractions and their 95% paired intervals, for each domain.

    Args:
        result: What `studies.patching.patch` returned.

    Returns:
        With dims (domain, metric, component, layer[, head][, pos]): `host`, `donor`, `patched` (means over examples), `effect` =
        patched - host, `recovered` = effect / (donor - host), each with `_low` and `_high`; `effect_p`, the sign-flip p of the
        effect, NaN of one example and where no example changes at all, and `effect_q`, that p after Benjamini-Hochberg over the
        cells of a domain and metric; `defined` is False, and
        `recovered` NaN, where donor - host is within noise: its interval holds 0, or it is no larger than the noise floor, or
        so small in some resamples that the fraction has no interval. `gap` is donor - host. `n` is the number of examples,
        `noise` the mean change that rounding makes in one. With a dim `pos`, all of these are of the examples that have the
        position, and are NaN (`n` is 0) where none has. Without one, and with examples of both domains: `shift`, with `_low`,
        `_high`, `_p`, `_q` (metric, component, layer[, head]), the effect out of distribution minus that in distribution, q over a
        metric's cells.
    """
    seed = int(result.attrs["seed"])
    domains = [d for d in DOMAINS if d in result.domain.values]
    parts = [_domain(result.isel(example=np.flatnonzero(result.domain.values == d)), seed) for d in domains]
    out = xr.concat(parts, xr.IndexVariable("domain", domains), coords="minimal", compat="override", join="exact")
    return out.assign(noise=result.noise).merge(_shift(result, seed)).assign_attrs(result.attrs)


def _domain(part: xr.Dataset, seed: int) -> xr.Dataset:
    """The summary of one domain; positions that the same examples have are summed up together."""
    if "pos" not in part.dims:
        found = _summary(part, seed)
    else:
        has = part.patched.notnull().any([d for d in part.patched.dims if d not in ("pos", "example")]).transpose("pos", "example").values
        groups = [list(group) for _, group in groupby(range(len(has)), key=lambda i: has[i].tobytes())]
        each = [_of_those(part.isel(pos=group), np.flatnonzero(has[group[0]]), seed) for group in groups]
        found = xr.concat(each, "pos", data_vars="all", coords="minimal", compat="override", join="exact")
    return found.assign(effect_q=_adjusted(found.effect_p))


def _adjusted(p: xr.DataArray) -> xr.DataArray:
    """Benjamini-Hochberg over each metric's cells."""
    ordered = p.transpose("metric", ...)
    q = ordered.copy(data=np.stack([stats.adjust(cells) for cells in ordered.values]) if p.size else ordered.values)
    return q.transpose(*p.dims)


def _of_those(part: xr.Dataset, examples: np.ndarray, seed: int) -> xr.Dataset:
    """The summary of some examples; of none of them, NaN and nothing defined."""
    if len(examples):
        return _summary(part.isel(example=examples), seed)
    blank = _summary(part.isel(example=[0]), seed)
    return blank.where(False).assign(defined=xr.zeros_like(blank.defined), n=xr.zeros_like(blank.n))


def _summary(part: xr.Dataset, seed: int) -> xr.Dataset:
    gap = part.donor - part.host
    effect = part.patched - part.host
    gap_low, gap_high = _interval(gap, seed)
    mean_gap = gap.mean("example")
    low, high = _interval(effect, seed)
    whole = gap.broadcast_like(effect).transpose(*effect.dims)
    ratio_low, ratio_high = (_like(end, effect) for end in stats.ratio_interval(effect.values, whole.values, seed=seed))
    # NaN ends (one example; a resample whose gap is 0) compare as False: then the fraction is not defined either.
    defined = ((gap_low > 0) | (gap_high < 0)) & (np.abs(mean_gap) > part.noise)
    defined = defined & np.isfinite(ratio_low) & np.isfinite(ratio_high)
    fields = {
        "host": part.host.mean("example"),
        "donor": part.donor.mean("example"),
        "patched": part.patched.mean("example"),
        "gap": mean_gap,
        "gap_low": gap_low,
        "gap_high": gap_high,
        "effect": effect.mean("example"),
        "effect_low": low,
        "effect_high": high,
        "effect_p": _like(_p(effect.values, seed), effect),
        "defined": defined,
        "recovered": (effect.mean("example") / mean_gap).where(defined),
        "recovered_low": ratio_low.where(defined),
        "recovered_high": ratio_high.where(defined),
        "n": xr.DataArray(part.sizes["example"]),
    }
    return xr.Dataset(fields)


def _p(effect: np.ndarray, seed: int) -> np.ndarray:
    """Sign-flip p over the last axis; one example has nothing to flip against, and where nothing changes there is nothing to test."""
    if effect.shape[-1] < 2:
        return np.full(effect.shape[:-1], np.nan)
    return np.where((effect == 0).all(-1), np.nan, stats.sign_flip_p(effect, seed=seed))


def _shift(result: xr.Dataset, seed: int) -> xr.Dataset:
    """Effect out of distribution minus that in distribution: two groups of examples, resampled apart."""
    if "pos" in result.dims or not set(DOMAINS) <= set(result.domain.values.tolist()):
        return xr.Dataset()
    effect = result.patched - result.host
    ood, own = (effect.isel(example=np.flatnonzero(result.domain.values == d)) for d in ("ood", "id"))
    low, high = stats.difference_interval(ood.values, own.values, seed=seed)
    untouched = (ood.values == 0).all(-1) & (own.values == 0).all(-1)
    p = _like(np.where(untouched, np.nan, stats.difference_p(ood.values, own.values, seed=seed)), effect)
    mean = ood.mean("example") - own.mean("example")
    return xr.Dataset(
        {"shift": mean, "shift_low": _like(low, effect), "shift_high": _like(high, effect), "shift_p": p, "shift_q": _adjusted(p)}
    )


def _interval(values: xr.DataArray, seed: int) -> tuple[xr.DataArray, xr.DataArray]:
    assert values.dims[-1] == "example"
    low, high = stats.mean_interval(values.values, seed=seed)
    return _like(low, values), _like(high, values)


def _like(data: np.ndarray, values: xr.DataArray) -> xr.DataArray:
    return values.isel(example=0, drop=True).copy(data=data)
