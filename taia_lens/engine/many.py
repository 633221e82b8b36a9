"""Many recipes, or many sets of scales, on one batch: the shared plan where it was found equal to the plain one, else that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from taia_lens.batch import Batch
from taia_lens.engine.layout import lay_out, lay_out_scales
from taia_lens.engine.plan import BUDGET, Budget, Plan
from taia_lens.engine.reads import Reads
from taia_lens.engine.run import Run, applied, check_recipe, with_needed
from taia_lens.engine.scaled import scaled
from taia_lens.engine.shared import Found
from taia_lens.loaded import Loaded
from taia_lens.pair import Pair
from taia_lens.recipe import Recipe, Side
from taia_lens.scales import Scales
from taia_lens.weights import Model

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
    budget: Budget = BUDGET,
) -> dict[str, Float[Tensor, "recipe batch"]]:
    """Carry out each recipe on the batch and read its numbers.

    Args:
        pair: The two models.
        recipes: What to do; patches take their activations from `donors`.
        batch: The rows, on the pair's device.
        readout: Logits at the answer positions -> named values, one per row.
        donors: Runs of the unedited sides that hold the activations the patches need; run here where missing.
        plan: As in `run_recipes`.
        budget: As in `run_recipes`.

    Returns:
        For each name of the readout, one value per (recipe, row).

    Raises:
        SiteError, RecipeError: A recipe names what the pair does not have.
    """
    found: dict[int, Mapping[str, Tensor]] = {}
    for i, logits in run_recipes(pair, recipes, Reads.last(batch), donors=donors, plan=plan, budget=budget):
        found[i] = readout(logits)
    return {name: torch.stack([found[i][name] for i in range(len(recipes))]) for name in found[0]} if recipes else {}


def run_recipes(
    pair: Pair,
    recipes: Sequence[Recipe],
    reads: Reads,
    *,
    donors: Mapping[Side, Run] | None = None,
    plan: Way = "shared",
    budget: Budget = BUDGET,
) -> Found:
    """Carry out each recipe on a batch.

    Args:
        pair: The two models.
        recipes: What to do; patches take their activations from `donors`.
        reads: The rows, and what is read of each forward.
        donors: Runs of the unedited sides that hold the activations the patches need; run here where missing.
        plan: `shared` computes what recipes have in common once, where this pair was found to give the same numbers so
            (`pair.report.plain_because` is empty); `plain` runs one forward a recipe.
        budget: How much is run and held at a time.

    Yields:
        The number of a recipe and what was read: those without edits first, the others in any order.

    Raises:
        SiteError, RecipeError: A recipe names what the pair does not have.
    """
    if plan == "plain" or pair.report.plain_because or any(_hooked(model) for model in pair.models):
        for recipe in recipes:
            check_recipe(pair, recipe)
        return _plain(pair, recipes, reads, donors)
    return lay_out(pair, recipes, reads, donors, budget).run(reads)


Both = tuple[dict[int, Tensor], dict[int, Tensor]]


def both_of_recipes(pair: Pair, recipes: Sequence[Recipe], reads: Reads) -> Both:
    """What is read under each recipe with work shared, and without."""
    return dict(lay_out(pair, recipes, reads, None, BUDGET).run(reads)), dict(_plain(pair, recipes, reads, None))


def both_of_scales(model: Loaded, scales: Sequence[Scales | None], reads: Reads) -> Both:
    """What is read under each set of scales with work shared, and without."""
    return dict(lay_out_scales(model, scales, reads, BUDGET).run(reads)), dict(_plain_scales(model.model, scales, reads))


def _plain(pair: Pair, recipes: Sequence[Recipe], reads: Reads, donors: Mapping[Side, Run] | None) -> Found:
    runs = with_needed(pair, recipes, reads.batch, donors)
    for i in sorted(range(len(recipes)), key=lambda i: bool(recipes[i].edits)):
        with applied(pair, recipes[i], batch=reads.batch, donors=runs) as model:
            found = reads.run(model)
        yield i, found


def plan_recipes(pair: Pair, recipes: Sequence[Recipe], reads: Reads, *, budget: Budget = BUDGET) -> Plan:
    """What `run_recipes` would run with work shared: how many forwards' worth, how many bytes; nothing is run.

    Raises:
        SiteError, RecipeError: A recipe names what the pair does not have.
    """
    return lay_out(pair, recipes, reads, None, budget).plan


def run_scales(model: Loaded, scales: Sequence[Scales | None], reads: Reads, *, plan: Way = "shared", budget: Budget = BUDGET) -> Found:
    """Read a model under each set of scales, and as it is (None).

    Args:
        model: The model.
        scales: That fit it.
        reads: The rows, and what is read of each forward.
        plan: As in `run_recipes`.
        budget: As in `run_recipes`.

    Yields:
        The number of a set and what was read; None first, the others in any order.
    """
    if plan == "plain" or model.plain_because or _hooked(model.model):
        return _plain_scales(model.model, scales, reads)
    return lay_out_scales(model, scales, reads, budget).run(reads)


def _hooked(model: Model) -> bool:
    """Whether the user's own hooks hang in the model: they expect the rows that the user sees, not a stack of them."""
    return any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


def _plain_scales(model: Model, scales: Sequence[Scales | None], reads: Reads) -> Found:
    for i in sorted(range(len(scales)), key=lambda i: scales[i] is not None):
        one = scales[i]
        with nullcontext(model) if one is None else scaled(model, one) as live:
            found = reads.run(live)
        yield i, found
