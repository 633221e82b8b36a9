"""Rankers that change one head at a time and score the rows again: patch, graft and ablate. One pass over the rows a head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from taia_lens.engine import run_recipes
from taia_lens.evaluation import off_device
from taia_lens.grafting import notes
from taia_lens.loaded import Loaded, Shape
from taia_lens.metric_names import METRICS
from taia_lens.pair import Pair
from taia_lens.rankers.asked import Asked, ask
from taia_lens.rankers.options import Options, Ranked, metric_of
from taia_lens.recipe import Graft, Patch, Recipe
from taia_lens.scales import Scales
from taia_lens.scoring import check_grafts, depends_on, prepare_suite, score_many_scales, score_recipes
from taia_lens.sites import Site
from taia_lens.store import Cell, CellStore
from taia_lens.suite import Suite


def every_head(shape: Shape) -> list[Site]:
    """Layer by layer."""
    return [Site("head", layer, head) for layer in range(shape.n_layers) for head in range(shape.n_heads)]


def effects(found: np.ndarray, suite: Suite, metric: str, shape: Shape, meaning: str, **more: Any) -> Ranked:
    """Changes of a metric (head, example) as replicates, turned so that more is better."""
    replicates = METRICS[metric].better * found.T.reshape(len(suite), shape.n_layers, shape.n_heads)
    labels = tuple(row.id for row in suite.rows)
    attrs = {"metric": metric, "domains": [row.domain for row in suite.rows]}
    return Ranked(replicates, "example", labels, METRICS[metric].unit, f"{meaning}, in {metric}, better counting up", **more, attrs=attrs)


def patch(pair: Pair, suite: Suite, options: Options, store: CellStore | None, progress: bool) -> Ranked:
    """Put tuned's z of one head, at all positions, into base (CMAP, arXiv 2402.14811)."""
    metric, sites = metric_of(options, suite.task.kind), every_head(pair.shape)
    recipes = [Recipe("base"), *(Recipe("base", (Patch(site, "tuned"),)) for site in sites)]
    asked = ask(pair, suite, metric, options.batch_size, by="patching")
    found = np.full((len(recipes), len(suite)), np.nan)
    with tqdm(total=len(asked) * len(recipes), desc="patch", unit="forward", leave=False, disable=not progress) as bar:
        for some in asked:
            found[:, list(some.rows)] = _patched(pair, recipes, some, store, bar)
    return effects(found[1:] - found[0], suite, metric, pair.shape, "what tuned's z of the head does to base")


def _patched(pair: Pair, recipes: list[Recipe], some: Asked, store: CellStore | None, bar: tqdm) -> np.ndarray:
    """Values (recipe, row); nothing is run where the store has it all."""
    content = some.key
    keys = [depends_on(pair, recipe, content) for recipe in recipes]
    cells = [None if store is None else store.get(key) for key in keys]
    bar.update(sum(cell is not None for cell in cells))
    missing = [i for i, cell in enumerate(cells) if cell is None]
    found = run_recipes(pair, [recipes[i] for i in missing], some.reads) if missing else ()
    for i, values in off_device((missing[k], some.of_reads(read)) for k, read in found):
        cells[i] = cell = Cell({some.metric: values})
        if store is not None:
            store.put(keys[i], cell)
        bar.update()
    return np.stack([cell.values[some.metric] for cell in cells if cell is not None])


def graft(pair: Pair, suite: Suite, options: Options, store: CellStore | None, progress: bool) -> Ranked:
    """Give base tuned's weights of one head; any task."""
    metric, sites = metric_of(options, suite.task.kind), every_head(pair.shape)
    recipes = [Recipe("base", (Graft("head", "tuned", (s.layer or 0,), heads=(s.head or 0,)),)) for s in sites]
    for recipe in recipes:
        check_grafts(pair, recipe)
    prepared = [prepare_suite(pair, suite, (metric,), options.batch_size)]
    with tqdm(total=len(prepared[0].pieces) * (1 + len(recipes)), desc="graft", leave=False, disable=not progress) as bar:
        scores = score_recipes(pair, [Recipe("base"), *recipes], prepared, store=store, bar=bar)
    found = np.stack([of_recipe[0].values[0] for of_recipe in scores])
    said = notes(recipes[0], pair.shape)
    return effects(found[1:] - found[0], suite, metric, pair.shape, "what tuned's weights of the head do to base", notes=said)


def ablate(model: Loaded, suite: Suite, options: Options, store: CellStore | None, progress: bool) -> Ranked:
    """Put zero for one head's z, at all positions; any task."""
    metric, sites = metric_of(options, suite.task.kind), every_head(model.shape)
    zero = torch.zeros(1, model.shape.d_head)
    scales = [None, *(Scales((site,), zero - 1, zero) for site in sites)]  # (1 - 1) * z + 0
    prepared = [prepare_suite(model, suite, (metric,), options.batch_size)]
    with tqdm(total=len(prepared[0].pieces) * len(scales), desc="ablate", leave=False, disable=not progress) as bar:
        scores = score_many_scales(model, scales, prepared, store=store, bar=bar)
    found = np.stack([of_head[0].values[0] for of_head in scores])
    return effects(found[0] - found[1:], suite, metric, model.shape, f"what {model.name} loses without the head")
