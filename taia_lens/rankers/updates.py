"""Rankers that run no model: the size of each head's weight update, and chance."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from taia_lens.errors import PairError
from taia_lens.grafting import Take, notes, takes
from taia_lens.loaded import Shape
from taia_lens.pair import Pair
from taia_lens.rankers.options import Options, Ranked
from taia_lens.recipe import Graft, Recipe
from taia_lens.weights import weights


def update(pair: Pair) -> Ranked:
    """|tuned - base| / |base| of the weights that a graft of the head takes, in Frobenius norms.

    Raises:
        PairError: A head of base is all zeros, and tuned's is not.
    """
    base, tuned = weights(pair.base), {w.name: w.parameter.detach() for w in weights(pair.tuned)}
    host = {w.name: w.parameter.detach() for w in base}
    shape = pair.shape
    found = np.zeros((1, shape.n_layers, shape.n_heads))
    for layer, head in np.ndindex(shape.n_layers, shape.n_heads):
        recipe = Recipe("base", (Graft("head", "tuned", (layer,), heads=(head,)),))
        taken = [(name, take) for name, some in takes(recipe, base, shape).items() for take in some]
        own = [(_slice(host[name], take), _slice(tuned[name], take).to(host[name].device)) for name, take in taken]
        size = sum(float((a**2).sum()) for a, _ in own)
        change = sum(float(((b - a) ** 2).sum()) for a, b in own)
        if change and not size:
            raise PairError(f"head L{layer}.h{head} of base is all zeros, so its update has no relative size; rank by patch or graft")
        found[0, layer, head] = (change / size) ** 0.5 if change else 0.0
    said = notes(recipe, shape)
    return Ranked(found, "none", ("weights",), "relative norm", "|tuned - base| / |base| of the head's own weights", said)


def _slice(tensor: Tensor, take: Take) -> Tensor:
    return (tensor if take.start is None else tensor.narrow(take.dim, take.start, take.length)).to(torch.float64)


def chance(shape: Shape, options: Options) -> Ranked:
    """A random order of the heads for each seed."""
    seeds = range(options.seed, options.seed + options.seeds)
    n = shape.n_layers * shape.n_heads
    found = [np.random.default_rng(seed).permutation(n).reshape(shape.n_layers, shape.n_heads) / n for seed in seeds]
    return Ranked(np.stack(found), "seed", tuple(map(str, seeds)), "rank", "a random order of the heads")
