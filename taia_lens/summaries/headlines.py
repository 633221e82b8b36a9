"""What a result says, in a few sentences, before anyone has looked at its data: the strongest cells, or the study's own sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from taia_lens.suite import DOMAIN_NAMES, DOMAINS
from taia_lens.summaries.adapters import adapters_summary
from taia_lens.summaries.drift import drift_summary
from taia_lens.summaries.grid import grid_summary, sentences
from taia_lens.summaries.heads import heads_summary
from taia_lens.summaries.heads_said import heads_sentences
from taia_lens.summaries.layers import layers_summary
from taia_lens.summaries.patching import patch_summary
from taia_lens.summaries.steering import steering_summary
from taia_lens.summaries.transfer import transfer_sentences, transfer_summary

STRONGEST = 3  # cells that a sentence names


def headlines(result: xr.Dataset) -> list[str]:
    """Sentences of a study's result; none for a study that has none.

    The strongest cells are chosen by their means, and their intervals do not know that they were chosen.

    Args:
        result: What a study returned, whole.
    """
    say = _STUDIES.get(str(result.attrs.get("study")))
    return [] if say is None else say(result)


def _where(domain: object, suite: object, metric: object, n: int) -> str:
    return f"{DOMAIN_NAMES[str(domain)].capitalize()} ({suite}, {metric}, n = {n})"


def _interval(value: object, low: object, high: object) -> str:
    return f"{float(value):+.3f} [{float(low):+.3f}, {float(high):+.3f}]"  # type: ignore[arg-type]  # scalars of xarray


def _top(values: np.ndarray) -> list[tuple[int, ...]]:
    """Where the values largest in size are, the largest first; NaN is nowhere."""
    size = np.abs(np.where(np.isfinite(values), values, 0.0))
    order = np.argsort(-size, axis=None, kind="stable")[: min(STRONGEST, int((size > 0).sum()))]
    return [tuple(int(i) for i in np.unravel_index(k, values.shape)) for k in order]


def _patch(result: xr.Dataset) -> list[str]:
    """By domain: host and donor, and the sites of the largest effects on the first metric."""
    metric, host, donor = str(result.metric.values[0]), str(result.attrs["host"]), str(result.attrs["donor"])
    how = "estimated to first order" if result.attrs["study"] == "attribution" else "patched one at a time"
    one, said = result.isel(metric=[0]), []
    if "check" in result.dims:  # an attribution's: sites that were patched really, which are no dim of the map
        one = one.drop_dims("check")
    for domain in [d for d in DOMAINS if d in result.domain.values]:
        part = one.isel(example=np.flatnonzero(result.domain.values == domain))
        effect = (part.patched - part.host).mean("example").isel(metric=0)
        ends = f"{host} has {float(part.host.mean()):.3f}, {donor} {float(part.donor.mean()):.3f}"
        found = [_site(part, effect.dims, at) for at in _top(effect.values)]
        most = f"of {effect.size} sites, {how}, the strongest: " if effect.size > 1 else f"{how}: "
        change = most + ", ".join(found) if found else f"{how}, no site changes it"
        said.append(f"{_where(domain, result.attrs['suite'], metric, part.sizes['example'])}: {ends}; {change}.")
    return said


def _site(part: xr.Dataset, dims: Sequence[object], at: tuple[int, ...]) -> str:
    """A site's name, its effect, and how much of the donor's distance it recovers, where that is defined."""
    cell = patch_summary(part.isel({dim: [i] for dim, i in zip(dims, at, strict=True)})).squeeze()
    what = f"h{int(cell['head'])}" if "head" in cell.coords else str(cell.component.item())
    pos = f" @{int(cell.pos)}" if "pos" in cell.coords else ""
    recovered = f", {float(cell.recovered):.0%} recovered" if bool(cell.defined) else ""
    return f"L{int(cell.layer)}.{what}{pos} {_interval(cell.effect, cell.effect_low, cell.effect_high)}{recovered}"


def _layers(result: xr.Dataset) -> list[str]:
    """By group: vanilla - base, and each view's strongest parts, those told apart from 0 after correction."""
    summary, said = layers_summary(result), []
    for group in (summary.isel(group=i) for i in range(summary.sizes["group"])):
        where = _where(group.domain.item(), group.suite.item(), group.metric.item(), int(group.n))
        parts = [f"vanilla - base is {_interval(group.gap, group.gap_low, group.gap_high)}"]
        for view in (v for v in ("alone", "last", "shapley") if v in group):
            cells = group.transpose("layer", "part", ...)
            found = [cells.isel(layer=i, part=j) for i, j in _top(np.where(cells[f"{view}_q"] <= 0.05, cells[view], np.nan))]
            named = [f"L{int(c.layer)}.{c.part.item()} {_interval(c[view], c[f'{view}_low'], c[f'{view}_high'])}" for c in found]
            parts.append(f"{view}, most: {', '.join(named)}" if named else f"{view}: no part is told apart from 0")
        said.append(f"{where}: {'; '.join(parts)}.")
    return said


def _adapters(result: xr.Dataset) -> list[str]:
    """By group: each model's mean and its difference to base."""
    summary, said = adapters_summary(result), []
    for group in (summary.isel(group=i) for i in range(summary.sizes["group"])):
        first, *others = (group.isel(model=i) for i in range(group.sizes["model"]))
        parts = [f"{first.model.item()} has {float(first.value):.3f}"]
        parts += [f"{m.model.item()} {float(m.value):.3f} ({_interval(m['diff'], m.diff_low, m.diff_high)})" for m in others]
        said.append(f"{_where(group.domain.item(), group.suite.item(), group.metric.item(), int(group.n))}: {', '.join(parts)}.")
    return said


def _steering(result: xr.Dataset) -> list[str]:
    """By group: the fitted direction at the strength that was chosen for it, against the model itself."""
    summary, said = steering_summary(result), []
    for group in (summary.isel(group=i) for i in range(summary.sizes["group"])):
        fitted = group.isel(direction=0)
        cell = fitted.sel(alpha=float(fitted.chosen))
        where = _where(group.domain.item(), group.suite.item(), group.metric.item(), int(group.n))
        change = _interval(cell["diff"], cell.diff_low, cell.diff_high)
        said.append(f"{where}: {cell.direction.item()} at alpha {float(cell.alpha):g} has {float(cell.value):.3f}, {change} from alpha 0.")
    return said


def _drift(result: xr.Dataset) -> list[str]:
    """By group: TAIA's residual measure minus vanilla's where it is largest."""
    summary, said = drift_summary(result), []
    for group in (summary.isel(group=i) for i in range(summary.sizes["group"])):
        where = f"{DOMAIN_NAMES[str(group.domain.item())].capitalize()} ({group.suite.item()}, n = {int(group.n)})"
        found = [group.isel(layer=k) for (k,) in _top(np.where(group.change_q <= 0.05, group.change, np.nan))[:1]]
        change = [f"largest at layer {int(c.layer)}: {_interval(c.change, c.change_low, c.change_high)}" for c in found]
        said.append(f"{where}: TAIA's residual measure minus vanilla's is {(change or ['not told apart from 0 at any layer'])[0]}.")
    return said


def _anatomy(result: xr.Dataset) -> list[str]:
    """By component: the update's size and how many directions carry it."""
    said = []
    for name in dict.fromkeys(result.component.values.tolist()):
        part = result.isel(weight=result.component.values == name)
        size = float((part.update_norm**2).sum() ** 0.5 / (part.base_norm**2).sum() ** 0.5)
        rank = float(part.effective_rank.median())
        said.append(
            f"{name}: {part.sizes['weight']} weights differ, |tuned - base| / |base| is {size:.3g}, median effective rank {rank:.3g}."
        )
    return said


_STUDIES: dict[str, Callable[[xr.Dataset], list[str]]] = {
    "patch": _patch,
    "attribution": _patch,
    "compare": lambda result: sentences(grid_summary(result)),
    "layers": _layers,
    "heads": lambda result: heads_sentences(heads_summary(result)),
    "transfer": lambda result: transfer_sentences(transfer_summary(result)),
    "adapters": _adapters,
    "steering": _steering,
    "drift": _drift,
    "anatomy": _anatomy,
}
