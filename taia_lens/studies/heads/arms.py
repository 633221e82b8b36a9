"""Arms of a causal check: some heads, what is done to them, and its score. The same second step for whoever chose the heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from math import comb
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.grafting import takes
from taia_lens.loaded import Loaded
from taia_lens.lofit import Settings, tune
from taia_lens.pair import Pair
from taia_lens.recipe import Graft, Recipe
from taia_lens.scales import Scales
from taia_lens.scoring import Prepared, Scores, score_many_scales, score_recipes
from taia_lens.sites import Site
from taia_lens.store import CellStore, open_store
from taia_lens.suite import Suite
from taia_lens.weights import weights


@dataclass(frozen=True)
class Arm:
    """One bar of the check.

    Attributes:
        check: What is done to the heads: `offsets`, `graft`; empty for a whole model.
        by: Who chose them: a ranker, `random heads`, `all heads`; or the whole model's name.
        end: `top`, `bottom`, `draw`, `all`, `reference`.
        seed: Of the ranker and of the training; -1 where nothing was drawn.
        heads: Which, in the order of layers and numbers, so that two rankers that agree train one and the same.
        recipe: What is grafted; None for offsets.
    """

    check: str
    by: str
    end: str
    seed: int = -1
    heads: tuple[Site, ...] = ()
    recipe: Recipe | None = None

    @property
    def name(self) -> str:
        end = f" {self.end}" if self.end in ("top", "bottom") else ""
        return f"{self.check} {self.by}{end}".strip() + (f" #{self.seed}" if self.seed >= 0 else "")

    @property
    def text(self) -> str:
        return str(self.recipe) if self.recipe is not None else " ".join(map(str, self.heads))


@dataclass(frozen=True, eq=False)
class Bench:
    """What every arm is run with: the model whose heads are offset, its training rows, and the prepared suites."""

    subject: Pair | Loaded
    base: Loaded
    train: Suite
    validation: Suite | None
    settings: Settings
    every: bool
    prepared: tuple[Prepared, ...]
    store: CellStore

    def run(self, arms: Sequence[Arm], bar: tqdm) -> list[tuple[list[Scores], int]]:
        """Each arm's scores, and how many numbers it changes: what offsets train, or what a graft takes.

        What needs no training is scored first; offsets together, once the last are trained.
        """
        found: dict[int, tuple[list[Scores], int]] = {}
        recipes = {i: arm.recipe for i, arm in enumerate(arms) if arm.recipe is not None}
        if isinstance(self.subject, Pair):
            scores = score_recipes(self.subject, list(recipes.values()), self.prepared, store=self.store, bar=bar)
            found |= {i: (of_arm, taken(self.subject, recipes[i])) for i, of_arm in zip(recipes, scores, strict=True)}
        else:  # the model as it is: one model has no other recipe
            scores = score_many_scales(self.base, [None] * len(recipes), self.prepared, store=self.store, bar=bar)
            found |= {i: (of_arm, 0) for i, of_arm in zip(recipes, scores, strict=True)}
        tuned = {i: self.tuned(arm, bar) for i, arm in enumerate(arms) if arm.recipe is None}
        scores = score_many_scales(self.base, list(tuned.values()), self.prepared, store=self.store, bar=bar)
        found |= {i: (of_arm, tuned[i].offset.numel()) for i, of_arm in zip(tuned, scores, strict=True)}
        return [found[i] for i in range(len(arms))]

    def tuned(self, arm: Arm, bar: tqdm) -> Scales:
        """Offsets on the arm's heads."""
        bar.set_postfix_str(f"training {arm.name}")
        settings = replace(self.settings, seed=max(0, arm.seed))
        return tune(self.base, self.train, arm.heads, validation=self.validation, settings=settings, every=self.every, store=self.store)


def graft_heads(heads: Sequence[Site]) -> Recipe:
    """Base with these heads' weights from tuned.

    >>> str(graft_heads([Site("head", 2, 1), Site("head", 0, 3), Site("head", 2, 0)]))
    'base; graft L0.h3 <- tuned; graft L2.h0,1 <- tuned'
    """
    by_layer = groupby(sorted(heads), key=lambda site: site.layer)
    return Recipe(
        "base", tuple(Graft("head", "tuned", (layer or 0,), heads=tuple(s.head or 0 for s in sites)) for layer, sites in by_layer)
    )


def taken(pair: Pair, recipe: Recipe) -> int:
    """How many numbers of the model a recipe changes: entries of the weights that it takes and that differ."""
    differing = {d.name for d in pair.differences}
    sizes = {w.name: w.parameter for w in weights(pair.base) if w.name in differing and not w.copy}
    if recipe.host == "tuned":
        return sum(p.numel() for p in sizes.values())
    total = 0
    for name, edits in takes(recipe, weights(pair.base), pair.shape).items():
        for edit in edits if name in sizes else ():
            whole = sizes[name].numel()
            total += whole if edit.start is None else whole // sizes[name].shape[edit.dim] * edit.length
    return total


def draw_heads(heads: Sequence[Site], k: int, draws: int, seed: int) -> list[tuple[Site, ...]]:
    """Sets of k heads drawn at random, no two alike; fewer than asked where there are not so many.

    >>> [len(set(drawn)) for drawn in draw_heads([Site("head", 0, i) for i in range(3)], 2, 9, 0)]
    [2, 2, 2]
    """
    rng, found = np.random.default_rng(seed), list[tuple[Site, ...]]()
    while len(found) < min(draws, comb(len(heads), k)):
        drawn = tuple(heads[i] for i in sorted(rng.choice(len(heads), k, replace=False)))
        if drawn not in found:
            found.append(drawn)
    return found


def mask_of(heads: Sequence[Site], shape: tuple[int, int]) -> np.ndarray:
    """(layer, head): whether the head is one of these."""
    mask = np.zeros(shape, dtype=bool)
    for site in heads:
        mask[site.layer, site.head] = True
    return mask


@contextmanager
def kept(store: CellStore | None) -> Iterator[CellStore]:
    """The store, or one that lasts as long as the study: what two rankers ask for alike is trained once."""
    if store is not None:
        yield store
        return
    with TemporaryDirectory() as folder, open_store(Path(folder) / "cells.sqlite") as own:
        yield own


def spread_scores(prepared: Sequence[Prepared], names: tuple[str, ...], scores: Sequence[Scores]) -> np.ndarray:
    """One arm's values (metric, example) over all suites."""
    return results.spread(names, [p.metrics for p in prepared], [s.values for s in scores])


def overlap_notes(train: Suite, suites: Sequence[Suite]) -> tuple[str, ...]:
    """Prompts that are trained on and scored on, in words: there a check says nothing about new prompts."""
    known = {row.prompt for row in train.rows}
    out = []
    for suite in suites:
        n = sum(row.prompt in known for row in suite.rows)
        if n:
            out.append(f"{n} of {len(suite)} prompts of the suite {suite.name} are in the training suite {train.name} too")
    return tuple(out)


def arms_dataset(
    prepared: Sequence[Prepared], arms: Sequence[Arm], found: Sequence[tuple[list[Scores], int]], shape: tuple[int, int]
) -> xr.Dataset:
    """`value` (metric, arm, example), `edited` (arm, layer, head) and `numbers` (arm), with what each arm is."""
    names, examples = results.suite_coords([p.suite for p in prepared], [p.metrics for p in prepared])
    data = {
        "value": (("metric", "arm", "example"), np.stack([spread_scores(prepared, names, scores) for scores, _ in found], axis=1)),
        "edited": (("arm", "layer", "head"), np.stack([mask_of(arm.heads, shape) for arm in arms])),
        "numbers": ("arm", [numbers for _, numbers in found]),
    }
    coords = results.metric_coords(names) | {
        "arm": [arm.name for arm in arms],
        **{name: ("arm", [getattr(arm, name) for arm in arms]) for name in ("check", "by", "end", "text")},
        "arm_seed": ("arm", [arm.seed for arm in arms]),
        "layer": np.arange(shape[0]),
        "head": np.arange(shape[1]),
    }
    return xr.Dataset(data, examples | coords)
