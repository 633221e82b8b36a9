"""Layers: how much of the gain each part of the update carries, layer by layer.

Four views of one game, whose players are the parts of the update and whose value is the metric of base with some players'
weights from tuned: alone (base plus one player), last (tuned, and tuned without it), cumulative (from below and from above),
and the Shapley value, which shares out vanilla - base exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.errors import TaiaLensError
from taia_lens.grafting import notes
from taia_lens.pair import Pair
from taia_lens.players import Player, Players, players
from taia_lens.recipe import Recipe
from taia_lens.scoring import Prepared, Work, check_suites, metrics_of, pair_attrs, prepare_suite, score_recipes, suites_attr
from taia_lens.sites import select
from taia_lens.store import CellStore
from taia_lens.suite import DOMAINS, Suite

VIEWS = ("alone", "last", "cumulative", "shapley")
SERIES = ("attn", "mlp", "both")


@dataclass(frozen=True)
class Sampling:
    """How Shapley values are estimated: permutations in antithetic pairs (an order and its reverse), until one rule says stop.

    Attributes:
        target_se: Stop once no player's standard error, on any suite and domain, is above this (in the metric's own unit).
        budget: At most this many recipes are evaluated; the least is one pair of orders.
        seed: Of the permutations.
    """

    target_se: float | None = None
    budget: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget < 1 or (self.target_se is not None and not self.target_se > 0):
            raise TaiaLensError(f"budget {self.budget}, target_se {self.target_se}: write a budget of 1 or more, and a target above 0")


@dataclass(frozen=True, eq=False)
class Board:
    """The game on this pair's prompts: recipes in, the values (metric, example) of each out."""

    pair: Pair
    prepared: tuple[Prepared, ...]
    names: tuple[str, ...]
    store: CellStore | None
    bar: tqdm
    known: dict[str, np.ndarray] = field(default_factory=dict)
    work: Work = field(default_factory=Work)

    def __call__(self, recipes: Iterable[Recipe]) -> list[np.ndarray]:
        asked = [(str(recipe), recipe) for recipe in recipes]
        new = {text: recipe for text, recipe in asked if text not in self.known}
        self.bar.total = (self.bar.total or 0) + len(new) * sum(len(p.pieces) for p in self.prepared)
        found = score_recipes(self.pair, list(new.values()), self.prepared, store=self.store, bar=self.bar, work=self.work)
        for text, scores in zip(new, found, strict=True):
            self.known[text] = results.spread(self.names, [p.metrics for p in self.prepared], [s.values for s in scores])
        return [self.known[text] for text, _ in asked]


def layers(
    pair: Pair,
    suites: Suite | Sequence[Suite],
    *,
    unit: str = "component",
    views: str | Sequence[str] | None = None,
    which: str | int | Sequence[int] | None = "all",
    sampling: Sampling = Sampling(),
    metrics: Sequence[str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    store: CellStore | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Credit each part of the update, on every prompt.

    Args:
        pair: The two models.
        suites: Prompts of one or several suites.
        unit: What a player is at each layer: `component` (attn, mlp), `projection` (attn.q, ..., mlp.down) or `head`. Weights
            that are in no player (norms, embeddings; under `head` the FFN) are one more player, `rest`.
        views: Some of `alone`, `last`, `cumulative` (components only), `shapley`; None for all.
        which: Layers whose parts are players; the others' belong to the rest.
        sampling: Of Shapley values.
        metrics: Names from `metric_names.METRICS`; where None, the main one of each suite's task.
        batch_size: Rows at a time; it changes speed, not results.
        seed: Of the bootstrap.
        store: Where finished cells are kept and found.
        progress: Show a bar.

    Returns:
        `base`, `vanilla` (metric, example); `alone`, `last`, `shapley` (metric, layer, part, example) in the metric's unit;
        `cumulated` (metric, direction, series, layer, example): the value less base's; `rest_*` for the rest; `pairs` (pair,
        metric, layer, part, where): each antithetic pair's mean marginal on each suite and domain. `summaries.layers_summary`
        gives means and intervals.

    Raises:
        TaiaLensError and its kinds: Something asked for does not exist.
    """
    chosen = check_suites([suites] if isinstance(suites, Suite) else list(suites))
    chosen_views = _check_views([views] if isinstance(views, str) else views, unit)
    game = players(pair, unit, select(which, pair.shape.n_layers, "layer"))
    least = _pair_cost(len(game.active) + game.rest)
    if "shapley" in chosen_views and least > sampling.budget:
        raise TaiaLensError(
            f"one pair of orders of {len(game.active)} parts evaluates {least} recipes, and the budget is {sampling.budget}; "
            f"write --budget {least} or more, name fewer layers, or leave out the view shapley"
        )
    prepared = tuple(prepare_suite(pair, suite, metrics_of(suite, metrics), batch_size) for suite in chosen)
    names, coords = results.suite_coords([p.suite for p in prepared], [p.metrics for p in prepared])
    with tqdm(desc="layers", unit="piece", leave=False, disable=not progress) as bar:
        board = Board(pair, prepared, names, store, bar)
        data = _views(board, game, chosen_views, sampling, coords)
    labels: dict = coords | {
        **results.metric_coords(names),
        "layer": list(game.layers),
        "part": list(game.units),
    }
    attrs = pair_attrs(pair) | {"study": "layers", "players": unit, "rest": int(game.rest), "batch_size": batch_size, "seed": seed}
    attrs |= {"notes": list(notes(game.coalition(game.active, rest=False), pair.shape))}
    attrs |= {"permutation_seed": sampling.seed, "evaluations": len(board.known), "work": board.work.forwards}
    return xr.Dataset(data, labels, attrs | {"versions": results.versions(), "suites": suites_attr(prepared)})


def _check_views(views: Sequence[str] | None, unit: str) -> tuple[str, ...]:
    fitting = tuple(view for view in VIEWS if view != "cumulative" or unit == "component")
    for view in views if views is not None else ():
        if view not in VIEWS:
            raise TaiaLensError(f"no view {view!r}; there are {', '.join(VIEWS)}")
        if view not in fitting:
            raise TaiaLensError(f"the view {view} goes with the unit component, not {unit}; write some of {', '.join(fitting)}")
    if views is not None and not views:
        raise TaiaLensError(f"no view was named; write some of {', '.join(fitting)}")
    return fitting if views is None else tuple(views)


def _pair_cost(members: int) -> int:
    """Recipes that an order and its reverse evaluate, the two ends aside."""
    return 2 * max(0, members - 1)


Data = dict[str, tuple[tuple[str, ...], np.ndarray]]
Member = Player | None  # None is the rest


def _members(game: Players) -> list[Member]:
    return [*game.active, *([None] if game.rest else [])]


def _coalition(game: Players, members: Sequence[Member]) -> Recipe:
    return game.coalition([m for m in members if m is not None], rest=None in members)


def _views(board: Board, game: Players, views: Sequence[str], sampling: Sampling, coords: dict) -> Data:
    """All views; but for Shapley values, which may ask as they go, their recipes are scored together."""
    asked = _asked(game, views)
    value = dict(zip(asked, board(asked.values()), strict=True))
    base, vanilla = value["base",], value["vanilla",]
    data: Data = {"base": (("metric", "example"), base), "vanilla": (("metric", "example"), vanilla)}
    if "alone" in views:
        data |= _each(game, base, "alone", {m: value["alone", m] - base for m in _members(game)})
    if "last" in views:
        data |= _each(game, base, "last", {m: vanilla - value["last", m] for m in _members(game)})
    if "cumulative" in views:
        at = [[[value["cumulated", d, s, layer] for layer in game.layers] for s in SERIES] for d in (0, 1)]
        cumulated = np.moveaxis(np.array(at), 3, 0) - base[:, None, None, None]
        data["cumulated"] = ("metric", "direction", "series", "layer", "example"), cumulated
    if "shapley" in views:
        data |= _shapley(board, game, base, vanilla, sampling, coords)
    return data


def _asked(game: Players, views: Sequence[str]) -> dict[tuple, Recipe]:
    """The recipes of all views but Shapley's. Cumulative: base with a component of all layers up to one, or from one on, from tuned."""
    members = _members(game)
    out: dict[tuple, Recipe] = {("base",): Recipe("base"), ("vanilla",): Recipe("tuned")}
    if "alone" in views:
        out |= {("alone", m): _coalition(game, [m]) for m in members}
    if "last" in views:
        out |= {("last", m): _coalition(game, [q for q in members if q is not m]) for m in members}
    for series in SERIES if "cumulative" in views else ():
        parts = [p for p in game.active if series in ("both", p.unit)]
        for layer in game.layers:
            out["cumulated", 0, series, layer] = game.coalition([p for p in parts if p.layer <= layer], rest=False)
            out["cumulated", 1, series, layer] = game.coalition([p for p in parts if p.layer >= layer], rest=False)
    return out


def _each(game: Players, like: np.ndarray, name: str, gain: Mapping[Member, np.ndarray]) -> Data:
    out = np.zeros((like.shape[0], len(game.layers), len(game.units), like.shape[1]))
    out += 0 * like[:, None, None]  # NaN where a metric does not apply to an example
    for player in game.active:
        layer, part = game.coords(player)
        out[:, layer, part] = gain[player]
    rest: Data = {f"rest_{name}": (("metric", "example"), gain[None])} if game.rest else {}
    return {name: (("metric", "layer", "part", "example"), out)} | rest


def _shapley(board: Board, game: Players, base: np.ndarray, vanilla: np.ndarray, sampling: Sampling, coords: dict) -> Data:
    """Mean over sampled orders of what each player adds to those before it; every order's additions sum to vanilla - base."""
    members, parts, orders = _members(game), _parts(coords), _orders(len(_members(game)), sampling.seed)
    total, pairs = np.zeros((len(members), *base.shape)), list[np.ndarray]()
    exact = len(members) < 3  # the two orders of two players are all there are
    most = 1 if exact else max(1, sampling.budget // _pair_cost(len(members)))
    # Without a target, nothing decides on the way. The more orders are asked for together, the more begin alike.
    together = most if sampling.target_se is None else 1
    while len(pairs) < most and not _precise(pairs, sampling.target_se):
        some = list(islice(orders, min(together, most - len(pairs))))
        board(recipe for order in some for way in (order, order[::-1]) for recipe in _chain(game, members, way))
        for order in some:
            there, back = (_marginals(board, game, members, way, base, vanilla) for way in (order, order[::-1]))
            both = (there + back) / 2
            total += both
            pairs.append(np.stack([_mean(both[..., where]) for where in parts.values()], axis=-1))
    data = _each(game, base, "shapley", dict(zip(members, total / len(pairs), strict=True)))
    pairs *= 2 if exact else 1  # no spread
    spread = np.zeros((len(pairs), base.shape[0], len(game.layers), len(game.units), len(parts)))
    for i, player in enumerate(game.active):
        layer, part = game.coords(player)
        spread[:, :, layer, part] = np.stack([p[i] for p in pairs])
    coords["where"] = list(parts)
    return data | {"pairs": (("pair", "metric", "layer", "part", "where"), spread)}


def _parts(coords: dict) -> dict[str, np.ndarray]:
    """Suite and domain -> which examples."""
    suites, domains = (np.array(coords[name][1]) for name in ("suite", "domain"))
    found = {f"{s}|{d}": (suites == s) & (domains == d) for s in dict.fromkeys(suites.tolist()) for d in DOMAINS}
    return {name: where for name, where in found.items() if where.any()}


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis; NaN where a metric does not apply there."""
    applies = np.isfinite(values).all(-1)
    return np.where(applies, np.where(applies[..., None], values, 0).mean(-1), np.nan)


def _orders(n: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.permutation(n)


def _precise(pairs: list[np.ndarray], target: float | None) -> bool:
    if target is None or len(pairs) < 3:
        return False
    se = np.std(pairs, axis=0, ddof=1) / len(pairs) ** 0.5
    return bool(np.nanmax(se) <= target)


def _chain(game: Players, members: Sequence[Member], order: np.ndarray) -> list[Recipe]:
    """The coalitions that an order goes through, without its two ends; each has one more member than the one before."""
    return [_coalition(game, [members[i] for i in order[:n]]) for n in range(1, len(order))]


def _marginals(
    board: Board, game: Players, members: Sequence[Member], order: np.ndarray, base: np.ndarray, vanilla: np.ndarray
) -> np.ndarray:
    """What each member adds to those before it in this order: (member, metric, example)."""
    out = np.zeros((len(members), *base.shape))
    values = [base, *board(_chain(game, members, order)), vanilla]
    for i, before, after in zip(order, values, values[1:], strict=False):
        out[i] = after - before
    return out
