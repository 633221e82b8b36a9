"""The game of a layers study: its board, whose players are the parts of the update, and the coalitions that views ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.pair import Pair
from taia_lens.players import Player, Players
from taia_lens.recipe import Recipe
from taia_lens.scoring import Prepared, Work, score_recipes
from taia_lens.store import CellStore

Data = dict[str, tuple[tuple[str, ...], np.ndarray]]
Member = Player | None  # None is the rest


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


def members_of(game: Players) -> list[Member]:
    return [*game.active, *([None] if game.rest else [])]


def coalition(game: Players, members: Sequence[Member]) -> Recipe:
    return game.coalition([m for m in members if m is not None], rest=None in members)


def each(game: Players, like: np.ndarray, name: str, gain: Mapping[Member, np.ndarray]) -> Data:
    out = np.zeros((like.shape[0], len(game.layers), len(game.units), like.shape[1]))
    out += 0 * like[:, None, None]  # NaN where a metric does not apply to an example
    for player in game.active:
        layer, part = game.coords(player)
        out[:, layer, part] = gain[player]
    rest: Data = {f"rest_{name}": (("metric", "example"), gain[None])} if game.rest else {}
    return {name: (("metric", "layer", "part", "example"), out)} | rest
