"""A loop that someone who knows transformers would write: forward hooks, swapped pointers, and only the last positions unembedded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from side_by_side.contenders import Job, by_site
from side_by_side.models import Setting, score
from side_by_side.questions import Sweep
from taia_lens.batch import Batch
from taia_lens.recipe import Graft, Patch, Recipe, Side, other
from taia_lens.sites import Site


def loop(setting: Setting, sweep: Sweep, *, attention: str) -> Job | str:
    """One forward a recipe with `attention`: sdpa, transformers' default, or eager, which is what a TransformerBridge runs."""
    models: dict[Side, PreTrainedModel] = {side: setting.own(side, attention) for side in ("base", "tuned")}
    jobs = {"graft": _grafts, "attribution": _attribution}
    return partial(jobs.get(sweep.kind, _patches), setting, sweep, models)


def forward(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The scores of a batch; only the answers' positions are unembedded."""
    hidden = model.base_model(batch.tokens, attention_mask=batch.mask.long(), use_cache=False).last_hidden_state
    rows = torch.arange(len(batch.rows), device=batch.tokens.device)
    return score(model.get_output_embeddings()(hidden[rows, batch.last]), batch)


def _module(setting: Setting, model: PreTrainedModel, site: Site) -> nn.Module:
    parts = setting.parts
    return model.get_submodule(f"{parts.blocks}.{site.layer}.{ {'attn': parts.attn, 'mlp': parts.mlp, 'head': parts.o}[site.component] }")


def _hook(module: nn.Module, site: Site, edit: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """What a module gives (attention gives a tuple), or, for heads, what the output projection is given, is edited."""
    if site.component == "head":
        return module.register_forward_pre_hook(lambda _, args: (edit(args[0]),))

    def after(_: nn.Module, args: object, out: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)

    return module.register_forward_hook(after)


def _cached(setting: Setting, model: PreTrainedModel, batch: Batch, sites: list[Site]) -> dict[Site, Tensor]:
    found: dict[Site, Tensor] = {}

    def keep(site: Site, act: Tensor) -> Tensor:
        found[site] = act
        return act

    with ExitStack() as stack:
        for site in sites:
            stack.callback(_hook(_module(setting, model, site), site, partial(keep, site)).remove)
        model.base_model(batch.tokens, attention_mask=batch.mask.long(), use_cache=False)
    return found


def _patches(setting: Setting, sweep: Sweep, models: dict[Side, PreTrainedModel]) -> Tensor:
    patches = [patch for recipe in sweep.recipes for patch in recipe.patches]
    acts = _cached(setting, models["tuned"], sweep.batch, list(dict.fromkeys(_place(patch.site) for patch in patches)))
    width, out = setting.pair.shape.d_head, []
    for patch in patches:
        hook = _hook(_module(setting, models["base"], patch.site), patch.site, partial(_put, patch, acts[_place(patch.site)], width))
        out.append(forward(models["base"], sweep.batch))
        hook.remove()
    return torch.stack(out)


def _place(site: Site) -> Site:
    """Heads of a layer lie in one tensor."""
    return Site("head", site.layer, 0) if site.head is not None else site


def _put(patch: Patch, donor: Tensor, width: int, act: Tensor) -> Tensor:
    if patch.site.head is not None:
        at = slice(patch.site.head * width, (patch.site.head + 1) * width)
        return torch.cat([act[..., : at.start], donor[..., at], act[..., at.stop :]], -1)
    if patch.positions == "all":
        return donor
    act = act.clone()
    act[:, list(patch.positions)] = donor[:, list(patch.positions)]
    return act


def _grafts(setting: Setting, sweep: Sweep, models: dict[Side, PreTrainedModel]) -> Tensor:
    out = []
    for recipe in sweep.recipes:
        with _swapped(setting, models, recipe):
            out.append(forward(models[recipe.host], sweep.batch))
    return torch.stack(out)


@contextmanager
def _swapped(setting: Setting, models: dict[Side, PreTrainedModel], recipe: Recipe) -> Iterator[None]:
    """The host's parameters point at the donor's storage: nothing is copied."""
    pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
    for graft in recipe.grafts:
        for layer in _layers(graft, setting.n_layers):
            site = Site(graft.component, layer)
            here, there = (_module(setting, models[side], site).parameters() for side in (recipe.host, other(recipe.host)))
            pairs += zip(here, there, strict=True)
    kept = [mine.data for mine, _ in pairs]
    try:
        for mine, yours in pairs:
            mine.data = yours.data
        yield
    finally:
        for (mine, _), data in zip(pairs, kept, strict=True):
            mine.data = data


def _layers(graft: Graft, n_layers: int) -> tuple[int, ...]:
    return tuple(range(n_layers)) if graft.layers is None else graft.layers


def _attribution(setting: Setting, sweep: Sweep, models: dict[Side, PreTrainedModel]) -> Tensor:
    """Gradient times change; the graph begins at layer 0's z, since no weight has a gradient."""
    z, mlp = ([Site(*at) for at in places] for places in _places(setting.n_layers))
    theirs = _cached(setting, models["tuned"], sweep.batch, [*z, *mlp])
    mine: dict[Site, Tensor] = {}

    def track(site: Site, act: Tensor) -> Tensor:
        mine[site] = act if act.requires_grad else act.detach().requires_grad_()
        return mine[site]

    with torch.enable_grad(), ExitStack() as stack:
        for site in (*z, *mlp):
            stack.callback(_hook(_module(setting, models["base"], site), site, partial(track, site)).remove)
        grads = torch.autograd.grad(forward(models["base"], sweep.batch).sum(), [mine[site] for site in (*z, *mlp)])
    products = {site: (theirs[site] - mine[site].detach()) * grad for site, grad in zip((*z, *mlp), grads, strict=True)}
    heads = [products[site].unflatten(-1, (setting.pair.shape.n_heads, -1)).sum(-1) for site in z]
    return by_site(heads, [products[site].sum(-1) for site in mlp], sweep.batch.mask)


def _places(n_layers: int) -> tuple[list[tuple[str, int, int | None]], list[tuple[str, int, int | None]]]:
    return [("head", layer, 0) for layer in range(n_layers)], [("mlp", layer, None) for layer in range(n_layers)]
