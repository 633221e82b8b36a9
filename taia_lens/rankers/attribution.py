"""Attribution patching: what patching would do, to first order, from one forward of each model and one backward for all sites.

The gradient of the metric with respect to an activation of the host, times the donor's activation less the host's (Nanda 2023;
Kramar et al., arXiv 2403.00745). With steps, integrated gradients (Sundararajan et al., arXiv 1703.01365): all of a hook goes
from the host's activation to the donor's together, so that what is credited there sums to what patching the whole of it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from taia_lens.engine import Attributed, Reads, run_attributed
from taia_lens.metric_names import check_gradient
from taia_lens.pair import Pair
from taia_lens.rankers.asked import Asked, ask
from taia_lens.rankers.causal import effects
from taia_lens.rankers.options import Options, Ranked, metric_of
from taia_lens.recipe import Side, other
from taia_lens.sites import Site
from taia_lens.store import CellStore
from taia_lens.suite import Suite


def asked_with_gradients(pair: Pair, suite: Suite, options: Options) -> list[Asked]:
    """The suite as forwards whose values have gradients.

    Raises:
        TaiaLensError: A metric without a gradient, or a task whose text is generated.
        SuiteError: A row that this tokenizer or model cannot take.
    """
    metric = metric_of(options, suite.task.kind)
    check_gradient(metric)
    return ask(pair, suite, metric, options.batch_size, by="attribution (atp)")


def attribute(
    pair: Pair, some: Asked, hooks: Sequence[str], *, source: Side = "tuned", steps: int = 0, done: Callable[[], object] = lambda: None
) -> Attributed:
    """Gradient times change at the hooks on one batch; `engine.run_attributed` says what it gives and costs."""
    reads = Reads(some.batch, some.sequences, some.positions)
    return run_attributed(pair.side(other(source)), pair.side(source), reads, some.value, hooks, steps=steps, done=done)


def over_positions(some: Asked, product: torch.Tensor) -> np.ndarray:
    """A product (batch, pos[, head]) summed over positions and over each row's sequences: (row[, head])."""
    sums = product.double().sum(1)
    return torch.zeros(len(some.rows), *sums.shape[1:], dtype=sums.dtype, device=sums.device).index_add(0, some.owner, sums).cpu().numpy()


def atp(pair: Pair, suite: Suite, options: Options, store: CellStore | None, progress: bool) -> Ranked:
    """Attribution patching of every head, tuned -> base; what it computes is not kept in the store, being cheap.

    Raises:
        TaiaLensError: A metric without a gradient.
    """
    shape, asked = pair.shape, asked_with_gradients(pair, suite, options)
    hooks = [Site("head", layer, 0).hook for layer in range(shape.n_layers)]
    found = np.full((shape.n_layers, shape.n_heads, len(suite)), np.nan)
    total = len(asked) * max(1, options.steps * shape.n_layers)
    with tqdm(total=total, desc="atp", unit="backward", leave=False, disable=not progress) as bar:
        for some in asked:
            products = attribute(pair, some, hooks, steps=options.steps, done=bar.update).products
            for layer, hook in enumerate(hooks):
                found[layer][:, list(some.rows)] = over_positions(some, products[hook]).T
    how = f"integrated over {options.steps} steps a layer" if options.steps else "to first order"
    meaning = f"what patching tuned's z of the head would do to base, {how}"
    return effects(found.reshape(-1, len(suite)), suite, metric_of(options, suite.task.kind), shape, meaning)
