"""The grid summed up: values, paired differences, effects of attention and FFN, and the sentence that they support."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from math import factorial

import numpy as np
import xarray as xr

from taia_lens import stats
from taia_lens.suite import DOMAIN_NAMES
from taia_lens.summaries.groups import Group, group_coords, groups

ALPHA = 0.05
REFERENCES = ("vanilla", "base", "TAIA")


def grid_summary(result: xr.Dataset) -> xr.Dataset:
    """Means, differences and effects of a grid, by group (a metric on a suite's examples of one domain).

    Args:
        result: What `studies.grid.compare` returned.

    Returns:
        `value`, `low`, `high` (group, recipe): mean and its 95% interval (Clopper-Pearson where every value is 0 or 1). `diff`,
        `diff_low`, `diff_high`, `p`, `q` (group, recipe, reference): paired difference to vanilla, base and TAIA, its bootstrap
        interval, the sign-flip p (NaN where the two agree on every prompt), and that p after Benjamini-Hochberg over all of the
        grid's differences. `effect`,
        `effect_low`, `effect_high` (group, effect): for each player its effect alone (on base), its effect last (on all the
        others), its exact Shapley value, and the interaction of attn and mlp.
    """
    seed = int(result.attrs["seed"])
    found = list(groups(result, "value"))
    values = [_values(result, group, seed) for group in found]
    differences = [_differences(result, group, seed) for group in found]
    effects = [_effects(result, group, seed) for group in found]
    names = list(effects[0])
    p = np.stack([d[3] for d in differences])
    ends = np.stack([[e[name] for name in names] for e in effects])
    by_recipe, by_reference = ("group", "recipe"), ("group", "recipe", "reference")
    data: dict[str, tuple] = {name: (by_recipe, np.stack([v[i] for v in values])) for i, name in enumerate(("value", "low", "high"))}
    data |= {name: (by_reference, np.stack([d[i] for d in differences])) for i, name in enumerate(("diff", "diff_low", "diff_high", "p"))}
    data |= {"q": (by_reference, _adjusted(p, result.recipe.values.tolist()))}
    data |= {name: (("group", "effect"), ends[..., i]) for i, name in enumerate(("effect_value", "effect_low", "effect_high"))}
    coords = group_coords(found, result) | {"reference": list(REFERENCES), "effect": names}
    coords |= {"recipe": result.recipe.values, "role": ("recipe", result.role.values), "text": ("recipe", result.text.values)}
    return xr.Dataset(data, coords, result.attrs)


def _of(result: xr.Dataset, group: Group) -> np.ndarray:
    """Values (recipe, example) of a group."""
    return result.value.sel(metric=group.metric).isel(example=group.examples).values


def _values(result: xr.Dataset, group: Group, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = _of(result, group)
    if np.isin(values, (0.0, 1.0)).all():
        low, high = stats.rate_interval(values.sum(-1).astype(int), np.full(len(values), values.shape[-1]))
    else:
        low, high = stats.mean_interval(values, seed=seed)
    return values.mean(-1), low, high


def _differences(result: xr.Dataset, group: Group, seed: int) -> tuple[np.ndarray, ...]:
    """Mean, low, high and p, each (recipe, reference); NaN where a recipe is held against itself."""
    values, names = _of(result, group), result.recipe.values.tolist()
    paired = np.stack([values - values[names.index(reference)] for reference in REFERENCES], axis=1)
    low, high = stats.mean_interval(paired, seed=seed)
    p = np.array(stats.sign_flip_p(paired, seed=seed))
    itself = np.array([[name == reference for reference in REFERENCES] for name in names])
    p = np.where((paired == 0).all(-1), np.nan, p)  # one and the same on every prompt: nothing to test
    return tuple(np.where(itself, np.nan, x) for x in (paired.mean(-1), low, high, p))


def _adjusted(p: np.ndarray, names: list[str]) -> np.ndarray:
    """Benjamini-Hochberg over (group, recipe, reference); a - b and b - a are one difference and count once."""
    twice = [(names.index(a), j, names.index(b), i) for i, a in enumerate(REFERENCES) for j, b in enumerate(REFERENCES) if i < j]
    once = p.copy()
    for recipe, reference, _, _ in twice:
        once[:, recipe, reference] = np.nan
    q = stats.adjust(once)
    for recipe, reference, other, mirrored in twice:
        q[:, recipe, reference] = q[:, other, mirrored]
    return q


def _effects(result: xr.Dataset, group: Group, seed: int) -> dict[str, tuple[float, float, float]]:
    """Each effect's mean and interval; every one is a sum of the same examples' values, so it is paired."""
    values, names = _of(result, group), result.recipe.values.tolist()
    game = {frozenset(filter(None, key.split("+"))): values[names.index(name)] for key, name in result.attrs["coalitions"].items()}
    players = sorted(frozenset().union(*game))
    out = {}
    for player in players:
        everyone = frozenset(players)
        out[f"{player} alone"] = game[frozenset({player})] - game[frozenset()]
        out[f"{player} last"] = game[everyone] - game[everyone - {player}]
        out[f"{player} Shapley"] = _shapley(game, players, player)
    out["attn x mlp"] = game[frozenset({"attn", "mlp"})] - game[frozenset({"attn"})] - game[frozenset({"mlp"})] + game[frozenset()]
    low, high = stats.mean_interval(np.stack(list(out.values())), seed=seed)
    return {name: (float(v.mean()), float(low[i]), float(high[i])) for i, (name, v) in enumerate(out.items())}


def _shapley(game: dict[frozenset[str], np.ndarray], players: Sequence[str], player: str) -> np.ndarray:
    """Mean over all orders of what the player adds to those before it; exact, for two players or three."""
    total = np.zeros_like(game[frozenset()])
    for order in permutations(players):
        before = frozenset(order[: order.index(player)])
        total += game[before | {player}] - game[before]
    return total / factorial(len(players))


def sentences(summary: xr.Dataset) -> list[str]:
    """What the numbers support and no more: a sentence a group.

    A recipe is above or below another where the adjusted p is at most 0.05; else the two are not told apart.

    Args:
        summary: What `grid_summary` returned.
    """
    return [_sentence(summary.isel(group=i)) for i in range(summary.sizes["group"])]


def _sentence(group: xr.Dataset) -> str:
    where = f"{DOMAIN_NAMES[str(group.domain.item())].capitalize()} ({group.suite.item()}, {group.metric.item()}, n = {int(group.n)})"
    if (group["diff"].fillna(0) == 0).all():
        return f"{where}: every recipe gives the same value on every prompt, so this suite tells none of them apart."
    text = f"{where}: TAIA {' and '.join(_relation(group, 'TAIA', name) for name in ('vanilla', 'base'))}"
    controls = [str(name) for name in group.recipe.values[group.role.values == "control"]]
    if controls:
        text += "; " + _against(group, controls)
    rivals = [str(name) for name in group.recipe.values[group.role.values == "rival"]]
    for name in rivals:
        text += f"; {name} {_relation(group, name, 'TAIA')}"
    return text + "."


def _order(group: xr.Dataset, recipe: str, reference: str) -> int:
    """+1 where recipe is better than reference after correction, -1 where worse, 0 where they are not told apart."""
    cell = group.sel(recipe=recipe, reference=reference)
    if not float(cell.q) <= ALPHA:
        return 0
    return int(np.sign(float(cell["diff"])) * int(group.better))


def _relation(group: xr.Dataset, recipe: str, reference: str) -> str:
    cell = group.sel(recipe=recipe, reference=reference)
    if float(cell["diff"]) == 0 and np.isnan(float(cell.p)):
        return f"gives what {reference} gives on every prompt"
    order = _order(group, recipe, reference)
    word = {1: "beats", -1: "is worse than", 0: "is not told apart from"}[order]
    numbers = f"{float(cell['diff']):+.3f} [{float(cell.diff_low):+.3f}, {float(cell.diff_high):+.3f}]"
    # An interval that leaves out 0 is not yet a finding among this many: the adjusted p says why.
    return f"{word} {reference} ({numbers}{'' if order else f', q = {float(cell.q):.2g} after correction'})"


def _against(group: xr.Dataset, controls: list[str]) -> str:
    """TAIA against its controls. The difference is control - TAIA, so a control that is worse is one that TAIA beats."""
    orders = {name: _order(group, name, "TAIA") for name in controls}
    worse = [name for name, order in orders.items() if order == 1]
    level = [name for name, order in orders.items() if order == 0]
    if not worse and not level:
        return f"it beats every control ({len(controls)} of {len(controls)})"
    parts = [f"it does not beat {_some(level)}"] if level else []
    parts += [f"{_some(worse)} {'beats' if len(worse) == 1 else 'beat'} it"] if worse else []
    return f"it beats {len(controls) - len(worse) - len(level)} of {len(controls)} controls: " + ", and ".join(parts)


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:4])} and {len(names) - 4} more"
