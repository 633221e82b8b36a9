"""Scoring many recipes on a pair, or many sets of scales on a model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from tqdm.auto import tqdm

from taia_lens.engine import applied, parts_of_recipes, parts_of_scales, scaled
from taia_lens.errors import RecipeError
from taia_lens.evaluation import Reading
from taia_lens.loaded import Loaded
from taia_lens.pair import Pair
from taia_lens.recipe import Graft, Recipe
from taia_lens.scales import Scales
from taia_lens.scoring.cells import Scorable, Work, scored
from taia_lens.scoring.depends import depends_on, scales_depend_on
from taia_lens.scoring.suites import Prepared, Scores
from taia_lens.store import CellStore
from taia_lens.weights import Model


def score_recipes(
    pair: Pair, recipes: Sequence[Recipe], suites: Sequence[Prepared], *, store: CellStore | None, bar: tqdm, work: Work | None = None
) -> list[list[Scores]]:
    """Score recipes on every prompt of the suites; only what the store lacks is computed.

    Args:
        pair: The two models.
        recipes: Grafts only (`check_grafts`): an activation belongs to a batch.
        suites: From `prepare_suite`.
        store: Finished cells; None to keep none.
        bar: Moved on by one a recipe and piece.
        work: What is computed is added to it.

    Returns:
        For each recipe, its scores on each suite.
    """
    _check_positions(recipes, suites)
    asked = Scorable(
        depends=[depends_on(pair, recipe, "") for recipe in recipes],
        device=pair.device,
        parts=lambda which, reads: parts_of_recipes(pair, [recipes[i] for i in which], reads),
        live=lambda i: applied(pair, recipes[i]),
        apart=frozenset(i for i, recipe in enumerate(recipes) if _blended(recipe)),
    )
    return scored(asked, suites, store, bar, Work() if work is None else work)


def _blended(recipe: Recipe) -> bool:
    """Whether weights are computed and not pointed at: a fraction or a multiple of an update.

    By itself that is done once, and not for every piece again. No other recipe has such weights: nothing behind them is shared.
    """
    return not all(graft.whole for graft in recipe.grafts)


def _check_positions(recipes: Sequence[Recipe], suites: Sequence[Prepared]) -> None:
    """Raise, before anything is run, where positions are written at and no batch says where they are."""
    writes = any(not isinstance(piece.how, Reading) for suite in suites for piece in suite.pieces)
    for recipe in recipes:
        for edit in recipe.edits:
            if not isinstance(edit, Graft) and edit.positions != "all" and (writes or _blended(recipe)):
                why = "the suite's text is generated, and has no length yet" if writes else "a graft of this recipe is not whole (x, keep)"
                raise RecipeError(f"'{edit}' writes at positions, and {why}; leave the positions out, or run it on other suites")


def score_many_scales(
    model: Loaded, scales: Sequence[Scales | None], suites: Sequence[Prepared], *, store: CellStore | None, bar: tqdm
) -> list[list[Scores]]:
    """Score a model under each set of scales, and as it is (None), on every prompt of the suites; as `score_recipes`.

    Args:
        model: The model; `suites` are prepared for it.
        scales: That fit it (`scales.check_fits`).
        suites: From `prepare_suite`.
        store: Finished cells; None to keep none.
        bar: Moved on by one a set of scales and piece.
    """

    def live(i: int) -> AbstractContextManager[Model]:
        one = scales[i]
        return nullcontext(model.model) if one is None else scaled(model.model, one)

    asked = Scorable(
        depends=[scales_depend_on(model, one, "") for one in scales],
        device=model.device,
        parts=lambda which, reads: parts_of_scales(model, [scales[i] for i in which], reads),
        live=live,
    )
    return scored(asked, suites, store, bar, Work())
