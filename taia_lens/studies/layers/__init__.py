"""Layers: how much of the gain each part of the update carries, layer by layer.

Four views of one game, whose players are the parts of the update and whose value is the metric of base with some players'
weights from tuned: alone (base plus one player), last (tuned, and tuned without it), cumulative (from below and from above),
and the Shapley value, which shares out vanilla - base exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.errors import TaiaLensError
from taia_lens.grafting import notes
from taia_lens.pair import Pair
from taia_lens.players import Players, players
from taia_lens.recipe import Recipe
from taia_lens.scoring import Cost, check_suites, cost_of_suites, metrics_of, pair_attrs, prepare_suite, suites_attr
from taia_lens.sites import select
from taia_lens.store import CellStore
from taia_lens.studies.layers.game import Board, Data, coalition, each, members_of
from taia_lens.studies.layers.shapley import SAMPLING, Sampling, chains, pair_cost, shapley
from taia_lens.suite import Suite

VIEWS = ("alone", "last", "cumulative", "shapley")
SERIES = ("attn", "mlp", "both")


def layers(
    pair: Pair,
    suites: Suite | Sequence[Suite],
    *,
    unit: str = "component",
    views: str | Sequence[str] | None = None,
    which: str | int | Sequence[int] | None = "all",
    sampling: Sampling = SAMPLING,
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
    _check_budget(game, chosen_views, sampling)
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


def layers_cost(
    pair: Pair,
    suites: Suite | Sequence[Suite],
    *,
    unit: str = "component",
    views: str | Sequence[str] | None = None,
    which: str | int | Sequence[int] | None = "all",
    sampling: Sampling = SAMPLING,
    metrics: Sequence[str] | None = None,
    batch_size: int = 64,
) -> Cost:
    """What `layers` would take with an empty store; with a target for Shapley values, the most it would.

    Raises:
        TaiaLensError and its kinds: Something asked for does not exist.
    """
    chosen = check_suites([suites] if isinstance(suites, Suite) else list(suites))
    chosen_views = _check_views([views] if isinstance(views, str) else views, unit)
    game = players(pair, unit, select(which, pair.shape.n_layers, "layer"))
    _check_budget(game, chosen_views, sampling)
    asked = [list(_asked(game, chosen_views).values()), *(chains(game, sampling) if "shapley" in chosen_views else [])]
    prepared = [prepare_suite(pair, suite, metrics_of(suite, metrics), batch_size) for suite in chosen]
    new: list[list[Recipe]] = []
    for some in asked:
        known = {recipe for before in new for recipe in before}
        new.append([recipe for recipe in dict.fromkeys(some) if recipe not in known])
    return cost_of_suites(pair, new, prepared)


def _check_budget(game: Players, views: Sequence[str], sampling: Sampling) -> None:
    least = pair_cost(len(game.active) + game.rest)
    if "shapley" in views and least > sampling.budget:
        raise TaiaLensError(
            f"one pair of orders of {len(game.active)} parts evaluates {least} recipes, and the budget is {sampling.budget}; "
            f"write --budget {least} or more, name fewer layers, or leave out the view shapley"
        )


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


def _views(board: Board, game: Players, views: Sequence[str], sampling: Sampling, coords: dict) -> Data:
    """All views; but for Shapley values, which may ask as they go, their recipes are scored together."""
    asked = _asked(game, views)
    value = dict(zip(asked, board(asked.values()), strict=True))
    base, vanilla = value["base",], value["vanilla",]
    data: Data = {"base": (("metric", "example"), base), "vanilla": (("metric", "example"), vanilla)}
    if "alone" in views:
        data |= each(game, base, "alone", {m: value["alone", m] - base for m in members_of(game)})
    if "last" in views:
        data |= each(game, base, "last", {m: vanilla - value["last", m] for m in members_of(game)})
    if "cumulative" in views:
        at = [[[value["cumulated", d, s, layer] for layer in game.layers] for s in SERIES] for d in (0, 1)]
        cumulated = np.moveaxis(np.array(at), 3, 0) - base[:, None, None, None]
        data["cumulated"] = ("metric", "direction", "series", "layer", "example"), cumulated
    if "shapley" in views:
        data |= shapley(board, game, base, vanilla, sampling, coords)
    return data


def _asked(game: Players, views: Sequence[str]) -> dict[tuple, Recipe]:
    """The recipes of all views but Shapley's. Cumulative: base with a component of all layers up to one, or from one on, from tuned."""
    members = members_of(game)
    out: dict[tuple, Recipe] = {("base",): Recipe("base"), ("vanilla",): Recipe("tuned")}
    if "alone" in views:
        out |= {("alone", m): coalition(game, [m]) for m in members}
    if "last" in views:
        out |= {("last", m): coalition(game, [q for q in members if q is not m]) for m in members}
    for series in SERIES if "cumulative" in views else ():
        parts = [p for p in game.active if series in ("both", p.unit)]
        for layer in game.layers:
            out["cumulated", 0, series, layer] = game.coalition([p for p in parts if p.layer <= layer], rest=False)
            out["cumulated", 1, series, layer] = game.coalition([p for p in parts if p.layer >= layer], rest=False)
    return out
