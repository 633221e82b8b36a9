"""Scoring many recipes on a pair, or many sets of scales on a model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from tqdm.auto import tqdm

from taia_lens.engine import Reads, applied, plan_recipes, run_recipes, run_scales, scaled
from taia_lens.loaded import Loaded
from taia_lens.pair import Pair
from taia_lens.recipe import Recipe
from taia_lens.scales import Scales
from taia_lens.scoring.cells import Asked, Work, scored
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

    worths: dict[tuple[int, ...], float] = {}

    def worth(which: Sequence[int], reads: Reads) -> float:
        key = tuple(which)
        if key not in worths:  # planned once: on other rows the same recipes are worth the same, but for how long those are
            plain = bool(pair.report.plain_because)
            worths[key] = float(len(which)) if plain else plan_recipes(pair, [recipes[i] for i in which], reads).work
        return worths[key]

    asked = Asked(
        depends=[depends_on(pair, recipe, "") for recipe in recipes],
        device=pair.device,
        read=lambda which, reads: run_recipes(pair, [recipes[i] for i in which], reads),
        live=lambda i: applied(pair, recipes[i]),
        worth=None if work is None else worth,
        # A fraction or a multiple of an update is computed, not pointed at: by itself it is computed once, and not for every
        # piece again. No other recipe has such weights, so there is nothing behind them to share.
        apart=frozenset(i for i, recipe in enumerate(recipes) if not all(graft.whole for graft in recipe.grafts)),
    )
    return scored(asked, suites, store, bar, Work() if work is None else work)


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

    asked = Asked(
        depends=[scales_depend_on(model, one, "") for one in scales],
        device=model.device,
        read=lambda which, reads: run_scales(model, [scales[i] for i in which], reads),
        live=live,
    )
    return scored(asked, suites, store, bar, Work())
