"""Shapley values by sampled orders of the players, in antithetic pairs: an order and its reverse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from taia_lens.errors import TaiaLensError
from taia_lens.players import Players
from taia_lens.recipe import Recipe
from taia_lens.studies.layers.game import Board, Data, Member, coalition, each, members_of
from taia_lens.suite import DOMAINS


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


SAMPLING = Sampling()


def pair_cost(members: int) -> int:
    """Recipes that an order and its reverse evaluate, the two ends aside."""
    return 2 * max(0, members - 1)


def shapley(board: Board, game: Players, base: np.ndarray, vanilla: np.ndarray, sampling: Sampling, coords: dict) -> Data:
    """Mean over sampled orders of what each player adds to those before it; every order's additions sum to vanilla - base."""
    members, parts, orders = members_of(game), _parts(coords), _orders(len(members_of(game)), sampling.seed)
    total, pairs = np.zeros((len(members), *base.shape)), list[np.ndarray]()
    exact = len(members) < 3  # the two orders of two players are all there are
    most = _most_pairs(len(members), sampling)
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
    data = each(game, base, "shapley", dict(zip(members, total / len(pairs), strict=True)))
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


def _most_pairs(members: int, sampling: Sampling) -> int:
    """Antithetic pairs of orders that the budget has room for; the two orders of two players are all there are."""
    return 1 if members < 3 else max(1, sampling.budget // pair_cost(members))


def chains(game: Players, sampling: Sampling) -> list[list[Recipe]]:
    """The coalitions that the sampled orders go through, as far as the budget allows, in the lists that they are asked for in."""
    members = members_of(game)
    orders = islice(_orders(len(members), sampling.seed), _most_pairs(len(members), sampling))
    pairs = [[recipe for way in (order, order[::-1]) for recipe in _chain(game, members, way)] for order in orders]
    return pairs if sampling.target_se is not None else [[recipe for pair in pairs for recipe in pair]]


def _chain(game: Players, members: Sequence[Member], order: np.ndarray) -> list[Recipe]:
    """The coalitions that an order goes through, without its two ends; each has one more member than the one before."""
    return [coalition(game, [members[i] for i in order[:n]]) for n in range(1, len(order))]


def _marginals(
    board: Board, game: Players, members: Sequence[Member], order: np.ndarray, base: np.ndarray, vanilla: np.ndarray
) -> np.ndarray:
    """What each member adds to those before it in this order: (member, metric, example)."""
    out = np.zeros((len(members), *base.shape))
    values = [base, *board(_chain(game, members, order)), vanilla]
    for i, before, after in zip(order, values, values[1:], strict=False):
        out[i] = after - before
    return out
