"""Scales on a live model: one hook a layer, vectorised over its heads. Gradients reach the scales and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor

from taia_lens.engine.reads import device_of
from taia_lens.scales import Scales
from taia_lens.sites import Site
from taia_lens.weights import Model


@contextmanager
def scaled(model: Model, scales: Scales) -> Iterator[Model]:
    """The model with scales applied, live, for as long as the block runs.

    Every TransformerLens tool works on it, and so do gradients with respect to `scales.gain` and `scales.offset`. The
    arithmetic is float32 at least, whatever the model's dtype; what leaves the site is of the model's dtype.
    """
    with model.hooks(fwd_hooks=[_hook(model, scales, layer) for layer in scales.layers]):
        yield model


@contextmanager
def frozen(model: Model) -> Iterator[Model]:
    """The model with gradients on, of which its own weights get none."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield model
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _hook(model: Model, scales: Scales, layer: int) -> tuple[str, Callable[..., Tensor]]:
    name, gain, offset = laid_out(model, scales, layer)

    def scale(act: Tensor, hook: object) -> Tensor:
        # Half precision would round 1 + A away: A starts at 1e-3, and bfloat16's steps at 1 are 8e-3.
        return ((1 + gain) * act + offset).to(act.dtype)

    return name, scale


def laid_out(model: Model, scales: Scales, layer: int) -> tuple[str, Tensor, Tensor]:
    """One layer's hook name, and its gain and offset in the shape of the activation there: of heads, one row a head."""
    rows = [i for i, site in enumerate(scales.sites) if site.layer == layer]
    here = [scales.sites[i] for i in rows]
    device = device_of(model)
    index = torch.tensor(rows, device=scales.gain.device)
    gain, offset = (_laid_out(model, here, t[index]).to(device) for t in (scales.gain, scales.offset))
    return here[0].hook, gain, offset


def _laid_out(model: Model, sites: list[Site], values: Tensor) -> Tensor:
    """One layer's values as they are added to its activation: zero at the heads that are not named."""
    if sites[0].head is None:
        return rearrange(values, "1 width -> width")
    heads, n_heads = [site.head for site in sites], int(model.cfg.n_heads)
    if heads == list(range(n_heads)):
        return values
    index = torch.tensor(heads, device=values.device)
    return torch.zeros(n_heads, values.shape[1], dtype=values.dtype, device=values.device).index_copy(0, index, values)
