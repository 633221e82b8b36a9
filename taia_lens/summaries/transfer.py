"""Head transfer summed up: what the heads of one task do on another, against that task's own. Imports no torch."""

from __future__ import annotations

import numpy as np
import xarray as xr

from taia_lens import stats
from taia_lens.suite import DOMAIN_NAMES
from taia_lens.summaries.agreement import shared
from taia_lens.summaries.groups import Group, group_coords, groups, levels, paired

ALPHA = 0.05
RANDOM = "random heads"


def transfer_summary(result: xr.Dataset) -> xr.Dataset:
    """Means and tests of a transfer result, by group (a metric on a suite's examples of one domain; its `task` is what was tuned).

    Args:
        result: What `studies.heads.transfer` returned.

    Returns:
        By (group, row), a row being a task whose heads were taken, or `random heads` (all draws as one): `value`, `low`, `high`
        (means over prompts and seeds, 95% over prompts), `least`, `most` (over seeds and draws), and `diff`, `diff_low`, `diff_high`, `p`,
        `q`: the paired difference to the task's own heads; q after Benjamini-Hochberg over all of them. `base` (group).
        `per_layer` (task, layer): how many of the top K, mean over seeds; `chosen` (task, layer, head): share of seeds.
        `overlap` (task, other): the share of heads in common, mean over seeds, and `overlap_p`, the largest p.
    """
    seed, found = int(result.attrs["seed"]), list(groups(result, "base"))
    tasks = result.task.values.tolist()
    rows = [*tasks, *([RANDOM] if int(result.attrs["draws"]) else [])]
    own = [str(result.tuned_on.values[group.examples[0]]) for group in found]
    parts = [_group(result, group, task, rows, seed) for group, task in zip(found, own, strict=True)]
    data: dict[str, tuple] = {name: (("group", "row"), np.stack([part[name] for part in parts])) for name in parts[0]}
    data["q"] = (("group", "row"), stats.adjust(data["p"][1]))
    data["base"] = ("group", [float(result.base.sel(metric=g.metric).isel(example=g.examples).mean()) for g in found])
    top = result.top.astype(float)
    data |= {
        "chosen": (("task", "layer", "head"), top.mean("seed").values),
        "per_layer": (("task", "layer"), top.sum("head").mean("seed").values),
    }
    data |= _overlaps(result)
    coords = group_coords(found, result) | {"own": ("group", own), "row": rows, "task": tasks, "other": tasks}
    return xr.Dataset(data, coords | {"layer": result.layer.values, "head": result["head"].values}, result.attrs)


def _group(result: xr.Dataset, group: Group, own: str, rows: list[str], seed: int) -> dict[str, np.ndarray]:
    values = result.value.sel(metric=group.metric).isel(example=group.examples)
    names = result.row.values.tolist()
    members = [[n for n in names if n == row or (row == RANDOM and n.startswith(RANDOM))] for row in rows]
    each = [values.sel(row=some).values.reshape(-1, len(group.examples)) for some in members]
    mean = np.stack([e.mean(0) for e in each])
    out = levels(mean, seed)
    out |= {"least": np.array([e.mean(1).min() for e in each]), "most": np.array([e.mean(1).max() for e in each])}
    itself = np.array([row == own for row in rows])
    against = paired(mean - mean[rows.index(own)], seed)
    return out | {name: np.where(itself, np.nan, value) for name, value in against.items()}


def _overlaps(result: xr.Dataset) -> dict[str, tuple]:
    top = result.top.stack(site=("layer", "head")).transpose("task", "seed", "site").values.astype(bool)
    found = np.array([[[shared(a, b) for a, b in zip(x, y, strict=True)] for y in top] for x in top])  # (task, other, seed, share and p)
    itself = np.eye(len(top), dtype=bool)
    share, p = found[..., 0].mean(-1), found[..., 1].max(-1)
    return {"overlap": (("task", "other"), share), "overlap_p": (("task", "other"), np.where(itself, np.nan, p))}


def transfer_sentences(summary: xr.Dataset) -> list[str]:
    """What the numbers support and no more: a sentence a group, and one on what the tasks' heads have in common."""
    said = [_sentence(summary.isel(group=i)) for i in range(summary.sizes["group"])]
    tasks = summary.task.values.tolist()
    pairs = [(a, b) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    chance = int(summary.attrs["k"]) / int(summary.attrs["n_heads"])
    parts = []
    for a, b in pairs:
        cell = summary.sel(task=a, other=b)
        parts.append(f"{a} and {b} {float(cell.overlap):.0%} (p = {float(cell.overlap_p):.2g})")
    k, n = summary.attrs["k"], summary.attrs["n_heads"]
    return [*said, f"Of their top {k} of {n} heads the tasks share: {', '.join(parts)}; chance gives {chance:.0%}."]


def _sentence(group: xr.Dataset) -> str:
    own = str(group.own.item())
    where = f"{DOMAIN_NAMES[str(group.domain.item())].capitalize()} ({group.suite.item()}, {group.metric.item()}, n = {int(group.n)})"
    parts = []
    for row in group.row.values.tolist():
        cell = group.sel(row=row)
        if row == own:
            continue
        name = row if row == RANDOM else f"{row}'s heads"
        if np.isnan(float(cell.p)):
            parts.append(f"{name} give the same on every prompt")
            continue
        sign = np.sign(float(cell["diff"])) * int(group.better) if float(cell.q) <= ALPHA else 0
        word = {1: "are better", -1: "are worse", 0: "are not told apart"}[int(sign)]
        numbers = f"{float(cell['diff']):+.3f} [{float(cell.diff_low):+.3f}, {float(cell.diff_high):+.3f}], q = {float(cell.q):.2g}"
        parts.append(f"{name} {word} ({numbers})")
    return f"{where}, offsets tuned on {own}, against its own heads: {'; '.join(parts)}."
