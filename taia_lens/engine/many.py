"""Many recipes, or many sets of scales, on one batch: the shared plan where it was found equal to the plain one, else that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from taia_lens.batch import Batch
from taia_lens.budget import Budget
from taia_lens.engine.layout import Layout, lay_out, lay_out_scales
from taia_lens.engine.plan import Plan
from taia_lens.engine.reads import Reads
from taia_lens.engine.run import Run, applied, check_recipe, with_needed
from taia_lens.engine.scaled import scaled
from taia_lens.engine.shared import Found
from taia_lens.loaded import Loaded
from taia_lens.pair import Pair
from taia_lens.recipe import Recipe, Side
from taia_lens.scales import Scales
from taia_lens.weights import Model

LIBRARIES = ("transformer_lens", "transformers", "accelerate")
"""Whose hooks on modules are no user's: the bridge hangs some in norms, transformers some that capture hidden states."""
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
    budget: Budget | None = None,
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
    budget: Budget | None = None,
) -> Found:
    """Carry out each recipe on a batch.

    Args:
        pair: The two models.
        recipes: What to do; patches take their activations from `donors`.
        reads: The rows, and what is read of each forward.
        donors: Runs of the unedited sides that hold the activations the patches need; run here where missing.
        plan: `shared` computes what recipes have in common once, where this pair was found to give the same numbers so
            (`pair.report.plain_because` is empty); `plain` runs one forward a recipe.
        budget: How much is run and held at a time; None takes the pair's own.

    Yields:
        The number of a recipe and what was read: those without edits first, the others in any order.

    Raises:
        SiteError, RecipeError: A recipe names what the pair does not have.
    """
    if plan == "plain" or pair.report.plain_because or any(_hooked(model) for model in pair.models):
        for recipe in recipes:
            check_recipe(pair, recipe)
        return _plain(pair, recipes, reads, donors)
    return lay_out(pair, recipes, reads, donors, budget or pair.budget).run(reads)


Both = tuple[dict[int, Tensor], dict[int, Tensor]]


def both_of_recipes(pair: Pair, recipes: Sequence[Recipe], reads: Reads) -> Both:
    """What is read under each recipe with work shared, and without."""
    return dict(lay_out(pair, recipes, reads, None, pair.budget).run(reads)), dict(_plain(pair, recipes, reads, None))


def both_of_scales(model: Loaded, scales: Sequence[Scales | None], reads: Reads) -> Both:
    """What is read under each set of scales with work shared, and without."""
    return dict(lay_out_scales(model, scales, reads, model.budget).run(reads)), dict(_plain_scales(model.model, scales, reads))


def _plain(pair: Pair, recipes: Sequence[Recipe], reads: Reads, donors: Mapping[Side, Run] | None) -> Found:
    runs = with_needed(pair, recipes, reads.batch, donors)
    for i in sorted(range(len(recipes)), key=lambda i: bool(recipes[i].edits)):
        with applied(pair, recipes[i], batch=reads.batch, donors=runs) as model:
            found = reads.run(model)
        yield i, found


def plan_recipes(pair: Pair, recipes: Sequence[Recipe], reads: Reads, *, budget: Budget | None = None) -> Plan:
    """What `run_recipes` would run with work shared: how many forwards' worth, how many bytes; nothing is run.

    Raises:
        SiteError, RecipeError: A recipe names what the pair does not have.
    """
    return lay_out(pair, recipes, reads, None, budget or pair.budget).plan


def run_scales(
    model: Loaded, scales: Sequence[Scales | None], reads: Reads, *, plan: Way = "shared", budget: Budget | None = None
) -> Found:
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
    return lay_out_scales(model, scales, reads, budget or model.budget).run(reads)


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a batch with all that is asked of them, and no more of them than there is room for.

    Attributes:
        reads: The rows, and what is read of each forward.
        work: What it comes to, in forwards on these rows.
        bytes: The most that is held besides the models; 0 where no work is shared.
        run: Carries it out; yields as `run_recipes` does.
    """

    reads: Reads
    work: float
    bytes: int
    run: Callable[[], Found]


def parts_of_recipes(pair: Pair, recipes: Sequence[Recipe], reads: Reads, *, budget: Budget | None = None) -> list[Part]:
    """What `run_recipes` runs, in as many parts as the budget's bytes ask for: what is kept of base and tuned grows with the rows.

    Raises:
        SiteError, RecipeError: A recipe names what the pair does not have.
    """
    if pair.report.plain_because or any(_hooked(model) for model in pair.models):
        return [Part(reads, float(len(recipes)), 0, partial(run_recipes, pair, recipes, reads, plan="plain"))]
    room = budget or pair.budget
    return _parts(lambda some: lay_out(pair, recipes, some, None, room), reads, room)


def parts_of_scales(model: Loaded, scales: Sequence[Scales | None], reads: Reads, *, budget: Budget | None = None) -> list[Part]:
    """What `run_scales` runs, in parts as of `parts_of_recipes`."""
    if model.plain_because or _hooked(model.model):
        return [Part(reads, float(len(scales)), 0, partial(run_scales, model, scales, reads, plan="plain"))]
    room = budget or model.budget
    return _parts(lambda some: lay_out_scales(model, scales, some, room), reads, room)


def _parts(lay: Callable[[Reads], Layout], reads: Reads, budget: Budget) -> list[Part]:
    layout = lay(reads)
    if layout.plan.bytes <= budget.bytes or len(reads.batch.rows) == 1:
        return [Part(reads, layout.plan.work, layout.plan.bytes, partial(layout.run, reads))]
    return [part for half in reads.halves() for part in _parts(lay, half, budget)]


def _hooked(model: Model) -> bool:
    """Whether the user's own hooks hang in the model: they expect the rows that the user sees, not a stack of them, and each once."""
    if any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values()):
        return True
    found = (hook for module in model.modules() for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()))
    return any(hook.__module__.split(".")[0] not in LIBRARIES for hook in found)


def _plain_scales(model: Model, scales: Sequence[Scales | None], reads: Reads) -> Found:
    for i in sorted(range(len(scales)), key=lambda i: scales[i] is not None):
        one = scales[i]
        with nullcontext(model) if one is None else scaled(model, one) as live:
            found = reads.run(live)
        yield i, found
