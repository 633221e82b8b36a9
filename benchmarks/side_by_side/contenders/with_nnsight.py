"""nnsight: the donor's activations saved by one trace, then patched in: one trace a patch, or one for all cells of a layer.

After docs/patterns/activation-patching.md ("cache the clean run once and batch a whole layer's positions into one forward pass"),
per-head-attention.md (a head is a slice of the output projection's input) and attribution-patching.md of
https://github.com/ndif-team/nnsight. Prompts are lists of ids, which nnsight pads on the left, so that `logits_to_keep=1` (an
option of transformers' forward) leaves one position to be unembedded.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from side_by_side.contenders import Job, absent, by_site
from side_by_side.models import Setting, score
from side_by_side.questions import Sweep
from taia_lens.recipe import Patch, Side

try:
    import nnsight
    from nnsight import TransformersModel
except (ImportError, AttributeError) as error:  # an older transformers' names, of which some are gone
    MISSING: str | None = absent("nnsight", error)
else:
    MISSING = None


def traces(setting: Setting, sweep: Sweep, *, batched: bool) -> Job | str:
    """One trace a patch; `batched`: a layer's patches are invokes of one trace, and so share a forward."""
    if MISSING is not None:
        return MISSING
    if sweep.kind == "graft":
        return "nnsight edits activations; weights are swapped by hand, and the loop is then the hand-written one"
    if sweep.kind == "attribution" and batched:
        return "attribution has one trace a model"
    models: dict[Side, Any] = {side: _wrapped(setting, side) for side in ("base", "tuned")}
    prompts = [row[mask].tolist() for row, mask in zip(sweep.batch.tokens, sweep.batch.mask, strict=True)]
    if sweep.kind == "attribution":
        return partial(_attribution, setting, sweep, models, prompts)
    return partial(_batched if batched else _one_by_one, setting, sweep, models, prompts)


def _wrapped(setting: Setting, side: Side) -> Any:
    return TransformersModel(setting.own(side), task="text-generation", tokenizer=setting.tokenizer, dispatch=True)


def _layers(setting: Setting, model: Any) -> list[tuple[Any, Any, Any]]:
    """Of each block: attention, FFN and output projection."""
    parts, blocks = setting.parts, _get(model, setting.parts.blocks)
    return [tuple(_get(block, name) for name in (parts.attn, parts.mlp, parts.o)) for block in blocks]


def _get(envoy: Any, path: str) -> Any:
    for name in path.split("."):
        envoy = getattr(envoy, name)
    return envoy


def _donor(setting: Setting, model: Any, prompts: list[list[int]], component: str) -> list[Tensor]:
    """One component's activations at every layer, from one trace."""
    layers = _layers(setting, model)
    with model.trace(prompts, logits_to_keep=1):
        acts = nnsight.save([_read(layer, component) for layer in layers])
    return acts


def _read(layer: tuple[Any, Any, Any], component: str) -> Tensor:
    attn, mlp, o = layer
    return o.input if component == "head" else mlp.output if component == "mlp" else attn.output[0]


def _put(layer: tuple[Any, Any, Any], patch: Patch, donor: Tensor, width: int) -> None:
    """In place, as the docs do it: what is read is the live tensor."""
    if patch.site.head is not None:
        at = slice(patch.site.head * width, (patch.site.head + 1) * width)
        layer[2].input[:, :, at] = donor[:, :, at]
    elif patch.positions == "all":
        _read(layer, patch.site.component)[:] = donor
    else:
        p = [int(position) for position in patch.positions]
        _read(layer, patch.site.component)[:, p] = donor[:, p]


def _layer(patch: Patch) -> int:
    assert patch.site.layer is not None
    return patch.site.layer


def _one_by_one(setting: Setting, sweep: Sweep, models: dict[Side, Any], prompts: list[list[int]]) -> Tensor:
    patches = [recipe.patches[0] for recipe in sweep.recipes]
    donor = {c: _donor(setting, models["tuned"], prompts, c) for c in dict.fromkeys(patch.site.component for patch in patches)}
    model, layers, width, out = models["base"], _layers(setting, models["base"]), setting.pair.shape.d_head, []
    for patch in patches:
        with model.trace(prompts, logits_to_keep=1):
            _put(layers[_layer(patch)], patch, donor[patch.site.component][_layer(patch)], width)
            logits = model.output.logits[:, -1].save()
        out.append(score(logits, sweep.batch))
    return torch.stack(out)


def _batched(setting: Setting, sweep: Sweep, models: dict[Side, Any], prompts: list[list[int]]) -> Tensor:
    patches = [recipe.patches[0] for recipe in sweep.recipes]
    donor = {c: _donor(setting, models["tuned"], prompts, c) for c in dict.fromkeys(patch.site.component for patch in patches)}
    model, layers, width, out = models["base"], _layers(setting, models["base"]), setting.pair.shape.d_head, []
    for _, group in groupby(patches, key=_layer):
        together = list(group)
        with model.trace() as tracer:
            row = nnsight.save([])
            for patch in together:
                with tracer.invoke(prompts, logits_to_keep=1):
                    _put(layers[_layer(patch)], patch, donor[patch.site.component][_layer(patch)], width)
                    row.append(model.output.logits[:, -1])
        out += [score(logits, sweep.batch) for logits in row]
    return torch.stack(out)


def _attribution(setting: Setting, sweep: Sweep, models: dict[Side, Any], prompts: list[list[int]]) -> Tensor:
    """The embeddings are made to need a gradient: the weights, which nnsight's pattern leaves trainable, are frozen here."""
    base, tuned = models["base"], models["tuned"]
    with tuned.trace(prompts, logits_to_keep=1):
        theirs = nnsight.save([_read(layer, c) for layer in _layers(setting, tuned) for c in ("head", "mlp")])
    layers = _layers(setting, base)
    mine, grads = [], []
    embed = _get(base, setting.parts.embed)
    with torch.enable_grad(), base.trace(prompts, logits_to_keep=1):
        embed.output.requires_grad_()
        mine = nnsight.save([_read(layer, c) for layer in layers for c in ("head", "mlp")])
        value = score(base.output.logits[:, -1], sweep.batch)
        with value.sum().backward():
            grads = nnsight.save([act.grad for act in reversed(mine)])
    products = [(a - b.detach()) * g for a, b, g in zip(theirs, mine, reversed(grads), strict=True)]
    return _on_the_right(setting, sweep, products)


def _on_the_right(setting: Setting, sweep: Sweep, products: list[Tensor]) -> Tensor:
    """Rows as they are padded here: tokens of a row stand in one order, whichever side is padded."""
    right, left = sweep.batch.mask, sweep.batch.mask.flip(1)
    moved = []
    for product in products:
        out = torch.zeros_like(product)
        out[right] = product[left]
        moved.append(out)
    heads = [z.unflatten(-1, (setting.pair.shape.n_heads, -1)).sum(-1) for z in moved[::2]]
    return by_site(heads, [mlp.sum(-1) for mlp in moved[1::2]], right)
