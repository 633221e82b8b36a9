"""TransformerLens 4: the functions of `transformer_lens.patching`, with the tuned model's cache patched into base.

https://transformerlensorg.github.io/TransformerLens/ (transformer_lens.patching, transformer_lens.tools.analysis). No attention
mask is given: prompts are padded on the right, and under causal attention what stands there reaches nothing that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.patching import (
    generic_activation_patch,
    get_act_patch_attn_head_out_all_pos,
    get_act_patch_attn_out,
)

from side_by_side.contenders import Job, by_site
from side_by_side.models import Setting, score
from side_by_side.questions import Sweep


def functions(setting: Setting, sweep: Sweep) -> Job | str:
    """Its own function for each sweep; per-example values (`reduce="none"`)."""
    jobs: dict[str, Callable[[Setting, Sweep], Tensor]] = {
        "component": _components,
        "head": _heads,
        "position": _positions,
        "attribution": _attribution,
    }
    if sweep.kind not in jobs:
        return "TransformerLens has no weight grafts; its forward with weights swapped by hand is the plain plan"
    return partial(jobs[sweep.kind], setting, sweep)


def _cache(setting: Setting, sweep: Sweep, ending: str | tuple[str, ...]) -> ActivationCache:
    return setting.pair.tuned.run_with_cache(sweep.batch.tokens, names_filter=lambda name: name.endswith(ending))[1]


def _metric(sweep: Sweep) -> Callable[[Tensor], Tensor]:
    batch = sweep.batch
    rows, last = torch.arange(len(batch.rows), device=batch.tokens.device), batch.last
    return lambda logits: score(logits[rows, last], batch)


def _whole(corrupted_activation: Tensor, index: list[int], clean_activation: Tensor) -> Tensor:
    return clean_activation


def _components(setting: Setting, sweep: Sweep) -> Tensor:
    cache = _cache(setting, sweep, ("hook_attn_out", "hook_mlp_out"))
    found = [
        generic_activation_patch(
            setting.pair.base, sweep.batch.tokens, cache, _metric(sweep), _whole, name, index_axis_names=("layer",), reduce="none"
        ).values
        for name in ("attn_out", "mlp_out")
    ]
    return torch.stack(found, 1).flatten(0, 1)


def _heads(setting: Setting, sweep: Sweep) -> Tensor:
    cache = _cache(setting, sweep, "attn.hook_z")
    found = get_act_patch_attn_head_out_all_pos(setting.pair.base, sweep.batch.tokens, cache, _metric(sweep), reduce="none")
    return found.values.flatten(0, 1)


def _positions(setting: Setting, sweep: Sweep) -> Tensor:
    cache = _cache(setting, sweep, "hook_attn_out")
    found = get_act_patch_attn_out(setting.pair.base, sweep.batch.tokens, cache, _metric(sweep), reduce="none")
    return found.values.flatten(0, 1)


def _attribution(setting: Setting, sweep: Sweep) -> Tensor:
    """`attribution_patch` takes two prompts of one model, a row at a time; what it is made of takes two models and a batch."""
    from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

    layers = range(setting.n_layers)
    z, mlp = ([f"blocks.{layer}.{name}" for layer in layers] for name in ("attn.hook_z", "hook_mlp_out"))
    names, per_row, tokens = ["hook_embed", *z, *mlp], _metric(sweep), sweep.batch.tokens

    def metric(logits: Tensor) -> Tensor:
        return per_row(logits).sum()

    clean = cache_activation_and_gradient(setting.pair.tuned, tokens, metric, names, compute_gradient=False)
    with torch.enable_grad(), _growing_from_the_embedding(setting.pair.base):
        own = cache_activation_and_gradient(setting.pair.base, tokens, metric, names)

    def product(name: str) -> Tensor:
        return ((clean.activations[name] - own.activations[name]) * own.gradients[name]).sum(-1)

    return by_site([product(name) for name in z], [product(name) for name in mlp], sweep.batch.mask)


@contextmanager
def _growing_from_the_embedding(model: TransformerBridge) -> Iterator[None]:
    """Its backward begins at hook_embed; of the weights, which are frozen here, only the embedding's is given a gradient."""
    weights = list(model.embed.parameters())
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
