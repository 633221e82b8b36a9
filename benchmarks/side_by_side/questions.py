"""The sweeps: many recipes on one batch. Recipes are what every contender is asked to do, in its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from side_by_side.models import Setting
from taia_lens.batch import Batch
from taia_lens.recipe import Graft, Patch, Recipe
from taia_lens.sites import Site

MASKS = 200


@dataclass(frozen=True, eq=False)
class Sweep:
    """Many recipes on one batch.

    Attributes:
        name: Key of `SWEEPS`.
        kind: `component`, `head`, `position`: patches from tuned into base, laid out by layer first; `graft`; `attribution`.
        recipes: In order; none for attribution, which asks about every head and FFN at every layer and position at once.
        batch: What they are carried out on.
    """

    name: str
    kind: str
    recipes: tuple[Recipe, ...]
    batch: Batch


def components(setting: Setting) -> Sweep:
    """Attention's and the FFN's output of each layer, patched whole."""
    sites = [Site(c, layer) for layer in range(setting.n_layers) for c in ("attn", "mlp")]
    return Sweep("layer x {attn, mlp} patches", "component", _patches(sites), setting.mixed)


def heads(setting: Setting) -> Sweep:
    """Each head's z."""
    sites = [Site("head", layer, head) for layer in range(setting.n_layers) for head in range(setting.pair.shape.n_heads)]
    return Sweep("layer x head patches", "head", _patches(sites), setting.mixed)


def positions(setting: Setting) -> Sweep:
    """Attention's output of each layer at each position; every prompt has all of them, as a map by position needs."""
    at = [(layer, p) for layer in range(setting.n_layers) for p in range(setting.square.tokens.shape[1])]
    recipes = tuple(Recipe("base", (Patch(Site("attn", layer), "tuned", (p,)),)) for layer, p in at)
    return Sweep("layer x position patches", "position", recipes, setting.square)


def grafts(setting: Setting) -> Sweep:
    """Leave-one-in, leave-one-out, prefixes and suffixes, of attn, mlp and both."""
    n, found = setting.n_layers, []
    for parts in (("attn",), ("mlp",), ("attn", "mlp")):
        for layer in range(n):
            here, up, down = (layer,), tuple(range(layer + 1)), tuple(range(layer, n))
            found += [Recipe("base", tuple(Graft(c, "tuned", where) for c in parts)) for where in (here, up, down)]
            found.append(Recipe("tuned", tuple(Graft(c, "base", here) for c in parts)))
    return Sweep("leave-one-in, -out, prefix, suffix grafts", "graft", tuple(dict.fromkeys(found)), setting.mixed)


def masks(setting: Setting) -> Sweep:
    """Random halves of the update: each layer's attn and mlp from tuned or not."""
    drawn = torch.rand(MASKS, setting.n_layers, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    recipes = []
    for mask in drawn.tolist():
        taken = {c: tuple(layer for layer, row in enumerate(mask) if row[i]) for i, c in enumerate(("attn", "mlp"))}
        recipes.append(Recipe("base", tuple(Graft(c, "tuned", layers) for c, layers in taken.items() if layers)))
    return Sweep(f"{MASKS} random masks of grafts", "graft", tuple(recipes), setting.mixed)


def attribution(setting: Setting) -> Sweep:
    """Attribution patching at every head's z and every FFN's output, at every position."""
    return Sweep("attribution patching, all sites", "attribution", (), setting.mixed)


SWEEPS: dict[str, Callable[[Setting], Sweep]] = {
    "components": components,
    "heads": heads,
    "positions": positions,
    "grafts": grafts,
    "masks": masks,
    "attribution": attribution,
}


def _patches(sites: list[Site]) -> tuple[Recipe, ...]:
    return tuple(Recipe("base", (Patch(site, "tuned"),)) for site in sites)
