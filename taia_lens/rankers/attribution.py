"""Attribution patching: what patching each head would do, to first order, from one forward and one backward for all heads.

The gradient of the metric with respect to z on base, times z of tuned less z of base, summed over positions and d_head
(Nanda 2023; Kramar et al., arXiv 2403.00745). With steps, integrated gradients (Sundararajan et al., arXiv 1703.01365): all of
a layer's heads go from base's z to tuned's together, so that the scores of a layer sum to what patching the whole layer does.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from taia_lens.engine import run_gradients, run_plain
from taia_lens.errors import TaiaLensError
from taia_lens.pair import Pair
from taia_lens.rankers.asked import Asked, ask
from taia_lens.rankers.causal import effects
from taia_lens.rankers.options import Options, Ranked, metric_of
from taia_lens.sites import Site
from taia_lens.store import CellStore
from taia_lens.suite import Suite

DIFFERENTIABLE = ("prob", "logprob", "logit_diff", "choice_logprob")


def atp(pair: Pair, suite: Suite, options: Options, store: CellStore | None, progress: bool) -> Ranked:
    """Attribution patching of every head, tuned -> base; what it computes is not kept in the store, being cheap.

    Raises:
        TaiaLensError: A metric without a gradient.
    """
    metric, shape = metric_of(options, suite.task.kind), pair.shape
    if metric not in DIFFERENTIABLE:
        raise TaiaLensError(f"the metric {metric} has no gradient, which atp needs; write one of {', '.join(DIFFERENTIABLE)}")
    hooks = [Site("head", layer, 0).hook for layer in range(shape.n_layers)]
    asked = ask(pair, suite, metric, options.batch_size, by="atp")
    found = np.full((shape.n_layers * shape.n_heads, len(suite)), np.nan)
    total = len(asked) * max(1, options.steps * shape.n_layers)
    with tqdm(total=total, desc="atp", unit="backward", leave=False, disable=not progress) as bar:
        for some in asked:
            each = [_integrated(pair, some, hooks, options.steps, bar)] if options.steps else [_gradient(pair, some, hooks, bar)]
            found[:, list(some.rows)] = torch.cat(each).double().cpu().numpy()
    how = f"integrated over {options.steps} steps a layer" if options.steps else "to first order"
    return effects(found, suite, metric, shape, f"what patching tuned's z of the head would do to base, {how}")


def _gradient(pair: Pair, some: Asked, hooks: list[str], bar: tqdm) -> Float[Tensor, "all_heads row"]:
    tuned = run_plain(pair.tuned, some.batch, hooks).acts
    found = run_gradients(pair.base, some.batch.tokens, some.batch.mask, some.sequences, some.positions, some.value, hooks)
    bar.update()
    return torch.cat([_credit(some, found.grads[h], tuned[h].float() - found.acts[h].float()) for h in hooks])


def _integrated(pair: Pair, some: Asked, hooks: list[str], steps: int, bar: tqdm) -> Float[Tensor, "all_heads row"]:
    """The mean gradient at the middles of equal steps from base's z to tuned's, one layer at a time."""
    base, tuned = (run_plain(side, some.batch, hooks).acts for side in pair.models)
    layers = []
    for hook in hooks:
        change = tuned[hook].float() - base[hook].float()
        total = torch.zeros_like(change)
        for step in range(steps):
            put = {hook: base[hook] + (step + 0.5) / steps * change}
            found = run_gradients(
                pair.base, some.batch.tokens, some.batch.mask, some.sequences, some.positions, some.value, [hook], put=put
            )
            total += found.grads[hook].float()
            bar.update()
        layers.append(_credit(some, total / steps, change))
    return torch.cat(layers)


def _credit(some: Asked, grad: Tensor, change: Tensor) -> Float[Tensor, "head row"]:
    """Gradient times change, summed over each row's sequences. Nothing is summed over padding: no answer reads it."""
    grad = grad.float() * some.batch.mask[:, :, None, None]
    per_sequence = einsum(grad, change, "batch pos head d_head, batch pos head d_head -> head batch")
    out = torch.zeros(len(per_sequence), len(some.rows), device=per_sequence.device)
    return out.index_add(1, some.owner, per_sequence)
