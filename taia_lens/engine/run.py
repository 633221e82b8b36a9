"""Carrying out recipes: the only hooks and the only weight swaps. This is the plain plan, one full forward a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from taia_lens.batch import Batch
from taia_lens.engine.reads import Reads, check_fired
from taia_lens.engine.written import written
from taia_lens.errors import RecipeError, SiteError
from taia_lens.grafting import blend, takes
from taia_lens.pair import Pair
from taia_lens.recipe import Ablate, Graft, Patch, Recipe, Scale, Side, other
from taia_lens.sites import Site, select
from taia_lens.weights import Model

_Write = Patch | Ablate | Scale


@dataclass(frozen=True, eq=False)
class Run:
    """What one forward gave: logits at the answer positions, and the activations that were asked for, by hook name."""

    logits: Float[Tensor, "batch d_vocab"]
    acts: dict[str, Tensor] = field(default_factory=dict)


def run_plain(model: Model, batch: Batch, hooks: Iterable[str] = ()) -> Run:
    """Run an unedited model, keeping the activations at `hooks`; all that it gives is on the batch's device.

    Raises:
        SiteError: The model has no such hook.
    """
    acts: dict[str, Tensor] = {}
    names = list(dict.fromkeys(hooks))
    check_hooks(model, names)
    with model.hooks(fwd_hooks=[(name, _keep_as(acts, name, batch.tokens.device)) for name in names]):
        logits = Reads.last(batch).run(model)
    check_fired(name for name in names if name not in acts)
    return Run(logits, acts)


def _keep_as(acts: dict[str, Tensor], name: str, device: torch.device) -> Callable[..., None]:
    def keep(act: Tensor, hook: object) -> None:
        acts[name] = act.detach().to(device)

    return keep


def with_needed(pair: Pair, recipes: Sequence[Recipe], batch: Batch, donors: Mapping[Side, Run] | None) -> dict[Side, Run]:
    """The donors' runs, with every activation that the recipes' patches take; what is missing is run here."""
    needed: dict[Side, dict[str, None]] = {}
    for recipe in recipes:
        for patch in recipe.patches:
            needed.setdefault(patch.source, {})[patch.site.hook] = None
    out = dict(donors or {})
    for side, hooks in needed.items():
        known = out[side].acts if side in out else {}
        missing = [hook for hook in hooks if hook not in known]
        if missing:
            run = run_plain(pair.side(side), batch, missing)
            out[side] = Run(run.logits, known | run.acts)
    return out


@contextmanager
def applied(pair: Pair, recipe: Recipe, *, batch: Batch | None = None, donors: Mapping[Side, Run] | None = None) -> Iterator[Model]:
    """The host model with the recipe carried out on it, live, for as long as the block runs.

    Every TransformerLens tool works on it. Weights and hooks are restored on the way out, whatever happens inside. Where base and
    tuned are on two devices, the host stays on its own, and all that is taken from the other side is held there beside it.

    Args:
        pair: The two models.
        recipe: What to do.
        batch: The rows that the model will be run on; needed where the recipe patches activations.
        donors: Runs that hold those activations; computed from `batch` where missing.

    Raises:
        SiteError, RecipeError: The recipe names what the pair does not have, or patches without a batch.
    """
    check_sites(pair, recipe)
    host = pair.side(recipe.host)
    if recipe.patches and batch is None:
        raise RecipeError(f"'{recipe.patches[0]}' puts activations, which belong to a batch; write applied(pair, recipe, batch=batch)")
    runs = {} if batch is None else with_needed(pair, [recipe], batch, donors)
    counts: Counter[str] = Counter()
    hooks = _hooks(recipe, batch, runs, counts)
    check_hooks(host, [name for name, _ in hooks])
    with ExitStack() as stack:
        stack.enter_context(_grafted(pair, recipe))
        if hooks:
            stack.enter_context(host.hooks(fwd_hooks=hooks))
        yield host
    if batch is not None and counts:
        check_fired(name for name, _ in hooks if not counts[name])


@contextmanager
def _grafted(pair: Pair, recipe: Recipe) -> Iterator[None]:
    """Point the host's parameters at the donor's storage; copies only what is taken in part, or scaled."""
    if not recipe.grafts:
        yield
        return
    hosts, donors = pair.weights[recipe.host], pair.weights[other(recipe.host)]
    edits = takes(recipe, hosts, pair.shape)
    host, donor = ({w.name: w.parameter for w in found} for found in (hosts, donors))
    originals = {name: host[name].data for name in edits}
    try:
        for name, edit in edits.items():
            if name in pair.changed:  # blending equal tensors would copy them for nothing
                host[name].data = blend(name, host[name].data, donor[name].data, edit)
        yield
    finally:
        for name, data in originals.items():
            host[name].data = data


def _hooks(recipe: Recipe, batch: Batch | None, donors: Mapping[Side, Run], counts: Counter[str]) -> list[tuple[str, Callable]]:
    """One hook a hook point, carrying out every edit there in the recipe's order."""
    edits: dict[str, list[_Write]] = {}
    for edit in recipe.edits:
        if not isinstance(edit, Graft):
            edits.setdefault(edit.site.hook, []).append(edit)
    return [(name, _writer(name, group, batch, donors, counts)) for name, group in edits.items()]


def _writer(name: str, edits: list[_Write], batch: Batch | None, donors: Mapping[Side, Run], counts: Counter[str]) -> Callable[..., Tensor]:
    def write(act: Tensor, hook: object) -> Tensor:
        counts[name] += 1
        for edit in edits:
            act = torch.where(_where(edit, act, batch), written(edit, act, partial(_donated, name, donors)), act)
        return act

    return write


def _donated(name: str, donors: Mapping[Side, Run], edit: Patch) -> Tensor:
    return donors[edit.source].acts[name]


def _where(edit: _Write, act: Tensor, batch: Batch | None) -> Tensor:
    """True where the edit writes, broadcast over the activation: its positions, and its head if it has one."""
    if batch is not None and act.shape[:2] != batch.tokens.shape:
        ran, want = (" rows by ".join(map(str, shape)) for shape in (act.shape[:2], batch.tokens.shape))
        raise RecipeError(f"'{edit}' was applied for a batch of {want} tokens and the model was run on {ran}; run it on that batch")
    if batch is None:
        if edit.positions != "all":
            raise RecipeError(f"'{edit}': positions belong to a batch; write applied(pair, recipe, batch=batch)")
        at = torch.ones(act.shape[:2], dtype=torch.bool, device=act.device)
    else:
        at = batch.at(edit.positions).to(act.device)
    if edit.site.head is None:
        return rearrange(at, "batch pos -> batch pos 1")
    is_head = torch.arange(act.shape[2], device=act.device) == edit.site.head
    return rearrange(at, "batch pos -> batch pos 1 1") & rearrange(is_head, "head -> head 1")


def check_recipe(pair: Pair, recipe: Recipe) -> None:
    """Raise, before anything is computed, where a recipe names what the pair does not have.

    Raises:
        SiteError, RecipeError: A layer, head, projection or component that is not there, or an overlap.
    """
    check_sites(pair, recipe)
    if recipe.grafts:
        takes(recipe, pair.weights[recipe.host], pair.shape)


def check_sites(pair: Pair, recipe: Recipe) -> None:
    """Raise where a recipe names a layer or head that the pair does not have.

    Raises:
        SiteError: The message says which there are.
    """
    shape = pair.shape
    for edit in recipe.edits:
        if isinstance(edit, Graft):
            select(edit.layers or "all", shape.n_layers, "layer")
            select(edit.heads or "all", shape.n_heads, "head")
            continue
        _check_site(edit.site, shape.n_layers, shape.n_heads)


def _check_site(site: Site, n_layers: int, n_heads: int) -> None:
    if site.layer is not None:
        select([site.layer], n_layers, "layer")
    if site.head is not None:
        select([site.head], n_heads, "head")


def check_hooks(model: Model, names: Sequence[str]) -> None:
    """Raise where a model lacks one of these hooks.

    Raises:
        SiteError: The message lists those that are near.
    """
    if not names:
        return  # the table of hooks is made anew each time it is asked for
    known = model.hook_dict
    for name in names:
        if name not in known:
            block = name.rsplit(".", 1)[0] + "."
            near = [n.removeprefix(block) for n in known if n.startswith(block) and "." not in n.removeprefix(block)]
            raise SiteError(f"this model has no {name}; under {block[:-1]} it has {', '.join(near) or 'nothing'}")
