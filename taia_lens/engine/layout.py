"""Recipes, or sets of scales, laid out as a plan on one batch, with all that it is carried out with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from taia_lens.batch import sent
from taia_lens.budget import Budget
from taia_lens.engine.blocks import Blocks
from taia_lens.engine.plan import Extent, Plan, Step
from taia_lens.engine.planner import make_plan
from taia_lens.engine.reads import Reads, device_of
from taia_lens.engine.run import Run, check_hooks, check_sites
from taia_lens.engine.scaled import laid_out
from taia_lens.engine.shared import Found, Parameters, Sweep
from taia_lens.engine.words import Gain, Speller, Word, scales_word
from taia_lens.engine.writes import Writer
from taia_lens.loaded import Loaded
from taia_lens.pair import Pair
from taia_lens.recipe import Recipe, Side
from taia_lens.scales import Scales
from taia_lens.sites import Positions
from taia_lens.weights import Model, live

Gains = Callable[[Gain], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Layout:
    """A plan, and what it is carried out with.

    Attributes:
        plan: The steps.
        ends: Base and tuned as they are, as words.
        models: Those, by the side whose blocks are run.
        parameters: Of base and tuned, by name.
        given: Activations that the caller brought.
        gains: Gain and offset of a set of scales at a layer.
        budget: How much at a time.
        edited: Numbers of the words whose recipes have edits.
    """

    plan: Plan
    ends: Mapping[Side, Word]
    models: Mapping[Side, Model]
    parameters: Parameters
    given: dict[Side, dict[str, Tensor]]
    gains: Gains
    budget: Budget
    edited: frozenset[int]

    def run(self, reads: Reads) -> Found:
        """Carry it out on the batch that it was made for.

        Yields:
            The number of a word and what was read: those without edits first.
        """
        copies: dict[int, int] = {}
        for step in self.plan.steps:
            if isinstance(step, Step):
                copies[step.start] = max(copies.get(step.start, 1), len(step.rows))
        blocks = {}
        for side, model in self.models.items():
            tokens, mask = (sent(t, device_of(model)) for t in (reads.batch.tokens, reads.batch.mask))
            blocks[side] = Blocks(model, tokens, mask, copies, model.hook_dict)
        writer = Writer(reads.batch, self.given, self.gains)
        return Sweep(reads, self.parameters, blocks, writer, self.budget.tokens).run(self.plan, self.ends, self.edited)


def lay_out(pair: Pair, recipes: Sequence[Recipe], reads: Reads, donors: Mapping[Side, Run] | None, budget: Budget) -> Layout:
    """Recipes on a pair.

    Raises:
        SiteError, RecipeError: A recipe names what the pair does not have.
    """
    for recipe in recipes:
        check_sites(pair, recipe)
    speller = Speller.of(pair)
    words = [speller.word(recipe) for recipe in recipes]
    ends: dict[Side, Word] = {side: speller.word(Recipe(side)) for side in ("base", "tuned")}
    models: dict[Side, Model] = {"base": pair.base, "tuned": pair.tuned}
    given = {side: dict(run.acts) for side, run in (donors or {}).items()}
    for side, model in models.items():
        written = {write.site.hook for recipe, word in zip(recipes, words, strict=True) if recipe.host == side for write in word.writes}
        check_hooks(model, sorted(written))
    hooks = _hooks(recipes, given)
    for side, names in hooks.items():
        check_hooks(models[side], names)
    plan = make_plan(words, _starts(words, reads, pair.base), ends, hooks, extent_of(pair.loaded("base"), reads), budget)
    homes = dict.fromkeys(word.home for word in (*words, *ends.values()))
    edited = frozenset(i for i, recipe in enumerate(recipes) if recipe.edits)
    parameters = {side: {w.name: w.parameter for w in found} for side, found in speller.hosts.items()}
    return Layout(plan, ends, {home: models[home] for home in homes}, parameters, given, _no_gains, budget, edited)


def lay_out_scales(loaded: Loaded, scales: Sequence[Scales | None], reads: Reads, budget: Budget) -> Layout:
    """Sets of scales on one model."""
    model = loaded.model
    n = int(model.cfg.n_layers)
    words = [scales_word(i, one, n) for i, one in enumerate(scales)]
    ends: dict[Side, Word] = {"base": scales_word(0, None, n)}

    def gains(gain: Gain) -> tuple[Tensor, Tensor]:
        one = scales[gain.number]
        assert one is not None
        return laid_out(model, one, gain.site.layer or 0)[1:]

    plan = make_plan(words, [0] * len(words), ends, {}, extent_of(loaded, reads), budget)
    edited = frozenset(i for i, one in enumerate(scales) if one is not None)
    return Layout(plan, ends, {"base": model}, {"base": {}}, {}, gains, budget, edited)


def _no_gains(gain: Gain) -> tuple[Tensor, Tensor]:
    raise AssertionError(f"{gain}: recipes have no sets of scales")


def _hooks(recipes: Sequence[Recipe], given: Mapping[Side, Mapping[str, Tensor]]) -> dict[Side, list[str]]:
    """Activations of each side that patches take and that nobody brought."""
    found: dict[Side, dict[str, None]] = {}
    for patch in (patch for recipe in recipes for patch in recipe.patches):
        if patch.site.hook not in given.get(patch.source, {}):
            found.setdefault(patch.source, {})[patch.site.hook] = None
    return {side: list(names) for side, names in found.items()}


def _starts(words: Sequence[Word], reads: Reads, model: Model) -> list[int]:
    """For each word the first position, of any row, that it writes at or that is read; what stands before stays as it was."""
    if type(model).__name__ == "HookedTransformer" or not model.adapter.supports_kv_cache or model.cfg.is_stateful:
        return [0] * len(words)
    known: dict[Positions, int] = {"all": 0}
    earliest = int(reads.positions.min())

    def first(positions: Positions) -> int:
        if positions not in known:
            known[positions] = int(reads.batch.at(positions).int().argmax(1).min())
        return known[positions]

    return [min([earliest, *(first(write.positions) for write in word.writes)]) for word in words]


def extent_of(loaded: Loaded, reads: Reads) -> Extent:
    """How much one forward on this batch is; a block's work is counted by its weights, all experts alike."""
    rows, width = reads.batch.tokens.shape
    sizes = {"attn": 0, "mlp": 0}
    for weight in live(loaded.weights):
        if weight.component in sizes:
            sizes[weight.component] += weight.parameter.numel()
    n, cfg = int(loaded.model.cfg.n_layers), loaded.model.cfg
    item = next(loaded.model.parameters()).element_size()
    return Extent(
        rows=rows,
        width=width,
        n_layers=n,
        node_bytes=rows * width * int(cfg.d_model) * item,
        key_bytes=2 * rows * width * int(cfg.n_key_value_heads or cfg.n_heads) * int(cfg.d_head) * item,
        attention=sizes["attn"] / max(1, sum(sizes.values())),
        unembedding=int(cfg.d_model) * int(cfg.d_vocab) * n / max(1, sum(sizes.values())),
        reads=len(reads.rows),
    )
