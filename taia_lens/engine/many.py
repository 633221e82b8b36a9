"""Many recipes, or many sets of scales, on one batch: the shared plan where it was found equal to the plain one, else that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from taia_lens.batch import Batch
from taia_lens.engine.blocks import Blocks
from taia_lens.engine.plan import Extent, Plan, Step, make_plan
from taia_lens.engine.reads import Reads
from taia_lens.engine.run import Run, applied, check_hooks, check_recipe, with_needed
from taia_lens.engine.scaled import laid_out, scaled
from taia_lens.engine.shared import Found, Sweep
from taia_lens.engine.words import Gain, Speller, Word, scales_word
from taia_lens.engine.writes import Writer
from taia_lens.loaded import Loaded
from taia_lens.pair import Pair
from taia_lens.recipe import Recipe, Side
from taia_lens.scales import Scales
from taia_lens.weights import Model, live_weights

Way = Literal["shared", "plain"]
Readout = Callable[[Float[Tensor, "batch d_vocab"]], Mapping[str, Float[Tensor, " batch"]]]


def evaluate(
    pair: Pair,
    recipes: Sequence[Recipe],
    batch: Batch,
    readout: Readout,
    *,
    donors: Mapping[Side, Run] | None = None,
    plan: Way = "shared",
) -> dict[str, Float[Tensor, "recipe batch"]]:
    """Carry out each recipe on the batch and read its numbers.

    Args:
        pair: The two models.
        recipes: What to do; patches take their activations from `donors`.
        batch: The rows, on the pair's device.
        readout: Logits at the answer positions -> named values, one per row.
        donors: Runs of the unedited sides that hold the activations the patches need; run here where missing.
        plan: As in `run_recipes`.

    Returns:
        For each name of the readout, one value per (recipe, row).

    Raises:
        SiteError, RecipeError: A recipe names what the pair does not have.
    """
    found: dict[int, Mapping[str, Tensor]] = {}
    for i, logits in run_recipes(pair, recipes, Reads.last(batch), donors=donors, plan=plan):
        found[i] = readout(logits)
    return {name: torch.stack([found[i][name] for i in range(len(recipes))]) for name in found[0]} if recipes else {}


def run_recipes(
    pair: Pair, recipes: Sequence[Recipe], reads: Reads, *, donors: Mapping[Side, Run] | None = None, plan: Way = "shared"
) -> Found:
    """Carry out each recipe on a batch.

    Args:
        pair: The two models.
        recipes: What to do; patches take their activations from `donors`.
        reads: The rows, and what is read of each forward.
        donors: Runs of the unedited sides that hold the activations the patches need; run here where missing.
        plan: `shared` computes what recipes have in common once, where this pair was found to give the same numbers so
            (`pair.report.plain_because` is empty); `plain` runs one forward a recipe.

    Yields:
        The number of a recipe and what was read: those without edits first, the others in any order.

    Raises:
        SiteError, RecipeError: A recipe names what the pair does not have.
    """
    for recipe in recipes:
        check_recipe(pair, recipe)
    if plan == "plain" or pair.report.plain_because or any(_hooked(model) for model in pair.models):
        return _plain(pair, recipes, reads, donors)
    return _shared(pair, recipes, reads, donors)


Both = tuple[dict[int, Tensor], dict[int, Tensor]]


def both_of_recipes(pair: Pair, recipes: Sequence[Recipe], reads: Reads) -> Both:
    """What is read under each recipe with work shared, and without."""
    return dict(_shared(pair, recipes, reads, None)), dict(_plain(pair, recipes, reads, None))


def both_of_scales(model: Model, scales: Sequence[Scales | None], reads: Reads) -> Both:
    """What is read under each set of scales with work shared, and without."""
    return dict(_shared_scales(model, scales, reads)), dict(_plain_scales(model, scales, reads))


def _plain(pair: Pair, recipes: Sequence[Recipe], reads: Reads, donors: Mapping[Side, Run] | None) -> Found:
    runs = with_needed(pair, recipes, reads.batch, donors)
    for i in sorted(range(len(recipes)), key=lambda i: bool(recipes[i].edits)):
        with applied(pair, recipes[i], batch=reads.batch, donors=runs) as model:
            found = reads.run(model)
        yield i, found


def _shared(pair: Pair, recipes: Sequence[Recipe], reads: Reads, donors: Mapping[Side, Run] | None) -> Found:
    speller = Speller.of(pair)
    words = [speller.word(recipe) for recipe in recipes]
    ends: dict[Side, Word] = {side: speller.word(Recipe(side)) for side in ("base", "tuned")}
    given = {side: dict(run.acts) for side, run in (donors or {}).items()}
    hooks = _hooks(recipes, given)
    models: dict[Side, Model] = {"base": pair.base, "tuned": pair.tuned}
    for side, names in hooks.items():
        check_hooks(models[side], names)
    parameters = {side: {w.name: w.parameter for w in speller.hosts[side]} for side in models}
    starts = [_start(word, reads, pair.base) for word in words]
    plan = make_plan(words, starts, ends, hooks, extent_of(pair.base, reads))
    blocks = {home: _blocks(models[home], reads, plan) for home in dict.fromkeys(word.home for word in (*words, *ends.values()))}
    with torch.no_grad():
        yield from Sweep(reads, parameters, blocks, Writer(reads.batch, given, _no_scales), 1500).run(plan, ends)


def run_scales(model: Loaded, scales: Sequence[Scales | None], reads: Reads, *, plan: Way = "shared") -> Found:
    """Read a model under each set of scales, and as it is (None).

    Args:
        model: The model.
        scales: That fit it.
        reads: The rows, and what is read of each forward.
        plan: As in `run_recipes`.

    Yields:
        The number of a set and what was read; None first, the others in any order.
    """
    if plan == "plain" or model.plain_because or _hooked(model.model):
        return _plain_scales(model.model, scales, reads)
    return _shared_scales(model.model, scales, reads)


def _hooked(model: Model) -> bool:
    """Whether the user's own hooks hang in the model: they expect the rows that the user sees, not a stack of them."""
    return any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


def _plain_scales(model: Model, scales: Sequence[Scales | None], reads: Reads) -> Found:
    for i in sorted(range(len(scales)), key=lambda i: scales[i] is not None):
        one = scales[i]
        with nullcontext(model) if one is None else scaled(model, one) as live:
            found = reads.run(live)
        yield i, found


def _shared_scales(model: Model, scales: Sequence[Scales | None], reads: Reads) -> Found:
    n = int(model.cfg.n_layers)
    words = [scales_word(i, one, n) for i, one in enumerate(scales)]
    ends: dict[Side, Word] = {"base": scales_word(0, None, n)}

    def gains(gain: Gain) -> tuple[Tensor, Tensor]:
        one = scales[gain.number]
        assert one is not None
        return laid_out(model, one, gain.site.layer or 0)[1:]

    plan = make_plan(words, [0] * len(words), ends, {}, extent_of(model, reads))
    with torch.no_grad():
        yield from Sweep(reads, {"base": {}}, {"base": _blocks(model, reads, plan)}, Writer(reads.batch, {}, gains), 1500).run(plan, ends)


def _no_scales(gain: Gain) -> tuple[Tensor, Tensor]:
    raise AssertionError(f"{gain}: recipes have no sets of scales")


def _hooks(recipes: Sequence[Recipe], given: Mapping[Side, Mapping[str, Tensor]]) -> dict[Side, list[str]]:
    """Activations of each side that patches take and that nobody brought."""
    found: dict[Side, dict[str, None]] = {}
    for patch in (patch for recipe in recipes for patch in recipe.patches):
        if patch.site.hook not in given.get(patch.source, {}):
            found.setdefault(patch.source, {})[patch.site.hook] = None
    return {side: list(names) for side, names in found.items()}


def _blocks(model: Model, reads: Reads, plan: Plan) -> Blocks:
    copies: dict[int, int] = {}
    for step in plan.steps:
        if isinstance(step, Step):
            copies[step.start] = max(copies.get(step.start, 1), len(step.rows))
    return Blocks(model, reads.batch.tokens, reads.batch.mask, copies, model.hook_dict)


def _start(word: Word, reads: Reads, model: Model) -> int:
    """The first position, of any row, that a word writes at or that is read; what stands before it stays as it was."""
    if type(model).__name__ == "HookedTransformer" or not word.writes or any(write.positions == "all" for write in word.writes):
        return 0
    firsts = [reads.batch.at(write.positions).int().argmax(1).min() for write in word.writes]
    return int(min([*firsts, reads.positions.min()]))


def extent_of(model: Model, reads: Reads) -> Extent:
    """How much one forward on this batch is."""
    rows, width = reads.batch.tokens.shape
    sizes = {"attn": 0, "mlp": 0}
    for weight in live_weights(model):
        if weight.component in sizes:
            sizes[weight.component] += weight.parameter.numel()
    n, cfg = int(model.cfg.n_layers), model.cfg
    block = max(1, sum(sizes.values()) / n)
    return Extent(
        rows=rows,
        width=width,
        n_layers=n,
        node_bytes=rows * width * int(cfg.d_model) * next(model.parameters()).element_size(),
        attention=sizes["attn"] / max(1, sum(sizes.values())),
        unembedding=int(cfg.d_model) * int(cfg.d_vocab) / block,
        reads=len(reads.rows),
    )
