"""The steering study summed up: every strength against the model itself, the strength that was chosen, and further arms. No torch."""

from __future__ import annotations

import numpy as np
import xarray as xr

from taia_lens import stats
from taia_lens.summaries.groups import group_coords, groups, levels, paired

_OVER = {"diff": "over", "diff_low": "over_low", "diff_high": "over_high", "p": "over_p"}


def steering_summary(result: xr.Dataset) -> xr.Dataset:
    """Means, intervals and tests of a steering result, by group (a metric on a suite's examples of one domain).

    Args:
        result: What `studies.steering.steer` returned.

    Returns:
        By (group, direction, alpha): `value`, `low`, `high` (95%), and `diff`, `diff_low`, `diff_high`, `p`, `q`, the paired
        difference to alpha 0, the model itself. By (group, arm), where there are further scales, the same under `arm_...`, and
        `over`, `over_low`, `over_high`, `over_p`, `over_q`: the arm less the fitted direction at the alpha that was chosen. By
        group, where there are random directions, the same under `control_...`: the fitted direction less their mean, all at the
        alpha that was chosen for each. q is p
        after Benjamini-Hochberg over all cells of its kind. `chosen`, `validation` (direction): the alpha, and the mean by which it was.
    """
    seed = int(result.attrs["seed"])
    found = list(groups(result, "value"))
    cells = [result.value.sel(metric=g.metric).isel(example=g.examples).values for g in found]
    zero = result.alpha.values.tolist().index(0.0)
    parts = [levels(c, seed) | paired(c - c[:, [zero]], seed) for c in cells]
    data = _stacked(parts, ("group", "direction", "alpha"))
    data["q"] = (data["p"][0], stats.adjust(data["p"][1]))
    if "arm_value" in result:
        at = result.alpha.values.tolist().index(float(result.chosen.values[0]))
        others = [result.arm_value.sel(metric=g.metric).isel(example=g.examples).values for g in found]
        data |= _arms([(other, cell[0, zero], cell[0, at]) for other, cell in zip(others, cells, strict=True)], seed)
    if result.sizes["direction"] > 1:
        at = [result.alpha.values.tolist().index(float(alpha)) for alpha in result.chosen.values]
        data |= _against_controls([np.stack([c[i, j] for i, j in enumerate(at)]) for c in cells], seed)
    means = result.validated.mean("row").sel(alpha=result.chosen)
    coords = group_coords(found, result) | {"direction": result.direction.values, "alpha": result.alpha.values}
    coords |= {"arm": result.arm.values} if "arm_value" in result else {}
    data |= {name: ("direction", result[name].values) for name in ("chosen", "numbers")} | {"validation": ("direction", means.values)}
    if "arm_value" in result:
        data["arm_numbers"] = ("arm", result.arm_numbers.values)
    return xr.Dataset(data, coords, result.attrs)


def _arms(cells: list[tuple[np.ndarray, np.ndarray, np.ndarray]], seed: int) -> dict[str, tuple]:
    """Of each group: the arms' values, the model's own, and the steered model's at the chosen alpha."""
    against = [{f"arm_{k}": v for k, v in (levels(arms, seed) | paired(arms - base, seed)).items()} for arms, base, _ in cells]
    over = [{_OVER[k]: v for k, v in paired(arms - steered, seed).items()} for arms, _, steered in cells]
    data = _stacked([a | o for a, o in zip(against, over, strict=True)], ("group", "arm"))
    for name in ("arm_", "over_"):
        data[f"{name}q"] = (data[f"{name}p"][0], stats.adjust(data[f"{name}p"][1]))
    return data


def _against_controls(cells: list[np.ndarray], seed: int) -> dict[str, tuple]:
    """Of each group, as chosen: the fitted direction less the mean of the random ones, by example."""
    parts = [{f"control_{k}": v for k, v in paired((c[0] - c[1:].mean(0))[None], seed).items()} for c in cells]
    data = {name: ("group", np.concatenate([part[name] for part in parts])) for name in parts[0]}
    return data | {"control_q": ("group", stats.adjust(data["control_p"][1]))}


def _stacked(parts: list[dict[str, np.ndarray]], dims: tuple[str, ...]) -> dict[str, tuple]:
    return {name: (dims, np.stack([part[name] for part in parts])) for name in parts[0]}
