"""Moments of activations over texts, without keeping the activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from taia_lens.engine.reads import device_of, run_body
from taia_lens.sites import Site
from taia_lens.weights import Model


def mean_squares(model: Model, batches: Iterable[tuple[Tensor, Tensor]]) -> Float[Tensor, "layer head d_head"]:
    """Mean of z squared over all tokens, of every head and dim; in float64.

    Args:
        model: Live, with whatever is in force.
        batches: Ids (batch, pos) and masks; each batch of its own size.
    """
    names = [Site("head", layer, 0).hook for layer in range(model.cfg.n_layers)]
    sums: dict[str, Tensor] = {}
    count = 0
    device = device_of(model)
    for tokens, mask in batches:
        tokens, mask = tokens.to(device), mask.to(device)

        def add(name: str, mask: Tensor = mask) -> Callable[..., None]:
            def keep(act: Tensor, hook: object) -> None:
                found = einsum(act.float() ** 2, mask.float(), "batch pos head d_head, batch pos -> head d_head").double().cpu()
                sums[name] = sums[name] + found if name in sums else found

            return keep

        with model.hooks(fwd_hooks=[(name, add(name)) for name in names]):
            run_body(model, tokens, mask)
        count += int(mask.sum())
    return torch.stack([sums[name] for name in names]) / count
