"""Whether the shared plan gives a model's numbers: held against the plain plan once, when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from taia_lens.batch import Batch
from taia_lens.engine.many import both_of_recipes, both_of_scales
from taia_lens.engine.reads import Reads
from taia_lens.errors import out_of_memory
from taia_lens.loaded import Loaded
from taia_lens.pair import Pair
from taia_lens.recipe import Ablate, Graft, Patch, Recipe, Scale
from taia_lens.scales import Scales
from taia_lens.sites import Site

Both = Callable[[], tuple[dict[int, Tensor], dict[int, Tensor]]]

ROUNDING, MOST, SPREAD = 16.0, 256.0, 0.1
"""Times what putting a row into another batch changes, but at most so many units in the last place, and at most this share of the
logits' own standard deviation, which counts in half precision: more than that, and rows would be reading each other."""


def plain_because(subject: Pair | Loaded, batch: Batch) -> str:
    """Why recipes must be run one by one on these models; empty where sharing work gives the same logits.

    Args:
        subject: The two models, or the one.
        batch: A few rows, of which one is padded.
    """
    reads = Reads.last(batch)
    if isinstance(subject, Pair):
        recipes, noise = _recipes(subject), _noise(subject.base, reads)
        some = replace(reads, columns=torch.tensor([1, 0], device=batch.tokens.device))
        whole = _compared(lambda: both_of_recipes(subject, recipes, reads), noise)
        return whole or _compared(lambda: both_of_recipes(subject, recipes[:1], some), noise)
    return _compared(lambda: both_of_scales(subject, _scales(subject), reads), _noise(subject.model, reads))


def _compared(both: Both, noise: float) -> str:
    try:
        shared, plain = both()
    # What a block raises when it is called by itself, with what other architectures are called with.
    except (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        found = str(error).splitlines()
        return f"its blocks cannot be run by themselves ({found[0] if found else type(error).__name__})"
    worst = torch.stack([(shared[i] - plain[i]).abs().max() for i in plain]).max().item()  # Python's max would drop a NaN
    if worst <= noise:
        return ""
    return f"with work shared, logits differ by {worst:.2g}, more than the {noise:.2g} that rounding explains"


def _noise(model: object, reads: Reads) -> float:
    """What rounding explains: a few units in the last place, or what it changes to run each row by itself."""
    together = reads.run(model)
    alone = torch.cat(
        [Reads.last(Batch.of(t[m][None], m[m][None])).run(model) for t, m in zip(reads.batch.tokens, reads.batch.mask, strict=True)]
    )
    ulp = torch.finfo(together.dtype).eps * max(1.0, together.abs().max().item())
    most = min(MOST * ulp, SPREAD * together.float().std().item())
    return min(max(8 * ulp, ROUNDING * (together - alone).abs().max().item()), most)


def _recipes(pair: Pair) -> list[Recipe]:
    """Both ends, and words that part in the first, a middle and the last layer: by weights, by patches, at some positions only."""
    last = pair.shape.n_layers - 1
    middle = last // 2
    edits = (
        (Patch(Site("mlp", middle), "tuned"), Patch(Site("attn", last), "tuned")),
        (Patch(Site("head", middle, 0), "tuned", (-2,)), Scale(Site("mlp", last), 0.5, 0.0, (-1,))),
        (Graft("mlp", "tuned", (0,)), Graft("attn", "tuned", (last,)), Patch(Site("resid", middle), "tuned", "last")),
    )
    # Two that share a node which is no end's, and an edit of the other end.
    beside = (Graft("mlp", "tuned", (0,)), Graft("attn", "tuned", (last,)))
    tuned = Recipe("tuned", (Ablate(Site("mlp", middle)),))
    return [Recipe("base"), Recipe("tuned"), *(Recipe("base", each) for each in (*edits, beside)), tuned]


def _scales(model: Loaded) -> list[Scales | None]:
    """The model as it is, and scales of a head and of an FFN's output."""
    shape, middle = model.shape, (model.shape.n_layers - 1) // 2
    head, mlp = torch.full((1, shape.d_head), -0.5), torch.full((1, shape.d_model), 0.5)
    return [None, Scales((Site("head", middle, 0),), head, head), Scales((Site("mlp", middle),), mlp, 0 * mlp)]
