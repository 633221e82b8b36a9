"""Recipes on suites, with the store: every recipe's score on every prompt, computed once and found again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from taia_lens.engine import applied, check_recipe, scaled
from taia_lens.errors import RecipeError, SuiteError, TaiaLensError
from taia_lens.evaluation import Piece, prepare, score
from taia_lens.loaded import Loaded
from taia_lens.metric_names import METRICS, default_metrics
from taia_lens.pair import Pair
from taia_lens.recipe import Graft, Patch, Recipe, Side
from taia_lens.results import versions
from taia_lens.scales import Scales
from taia_lens.store import Cell, CellStore
from taia_lens.suite import Suite
from taia_lens.weights import Model

# Versions that numbers depend on; plotting libraries do not belong here. SCORING is raised when this package's own numbers change.
NUMERIC = ("torch", "transformers", "tokenizers", "transformer-lens", "numpy")
SCORING = 1


@dataclass(frozen=True, eq=False)
class Prepared:
    """A suite tokenized for a pair, in the pieces that are scored and stored one at a time."""

    suite: Suite
    metrics: tuple[str, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class Scores:
    """What one recipe scored: values (metric, example), and what it generated, if anything."""

    values: np.ndarray
    transcripts: tuple[str, ...] = ()


def prepare_suite(pair: Pair | Loaded, suite: Suite, metrics: Sequence[str], batch_size: int) -> Prepared:
    """Tokenize a suite once, for every recipe.

    Raises:
        SuiteError: A row that this tokenizer or model cannot take, or a metric that does not fit the task.
    """
    return Prepared(suite, tuple(metrics), tuple(prepare(suite, pair, tuple(metrics), batch_size)))


def check_grafts(pair: Pair, recipe: Recipe) -> None:
    """Raise, before anything is scored, where a recipe cannot be.

    Raises:
        RecipeError, SiteError: It patches activations, or names what the pair does not have.
    """
    if recipe.patches:
        raise RecipeError(f"'{recipe.patches[0]}' puts an activation; here weights are grafted: write graft, or run 'taia-lens patch'")
    check_recipe(pair, recipe)


def score_recipe(pair: Pair, recipe: Recipe, suites: Sequence[Prepared], *, store: CellStore | None, bar: tqdm) -> list[Scores]:
    """Score one recipe on every prompt of the suites; only pieces that the store lacks are computed.

    Args:
        pair: The two models.
        recipe: Grafts only (`check_grafts`): an activation belongs to a batch.
        suites: From `prepare_suite`.
        store: Finished cells; None to keep none.
        bar: Moved on by one a piece.

    """
    return _scored(suites, lambda content: depends_on(pair, recipe, content), applied(pair, recipe), store, bar)


def score_scales(model: Loaded, scales: Scales | None, suites: Sequence[Prepared], *, store: CellStore | None, bar: tqdm) -> list[Scores]:
    """Score a model with scales applied, or as it is (None), on every prompt of the suites; as `score_recipe`.

    Args:
        model: The model; `suites` are prepared for it.
        scales: That fit it (`scales.check_fits`).
        suites: From `prepare_suite`.
        store: Finished cells; None to keep none.
        bar: Moved on by one a piece.
    """
    live = nullcontext(model.model) if scales is None else scaled(model.model, scales)
    return _scored(suites, lambda content: scales_depend_on(model, scales, content), live, store, bar)


def _scored(
    suites: Sequence[Prepared],
    depends: Callable[[str], dict[str, Any]],
    live: AbstractContextManager[Model],
    store: CellStore | None,
    bar: tqdm,
) -> list[Scores]:
    """Every piece's cell, from the store or from the live model."""
    found: dict[str, Cell] = {}
    missing: list[Piece] = []
    for piece in (piece for suite in suites for piece in suite.pieces):
        cell = None if store is None else store.get(depends(piece.key))
        if cell is None:
            missing.append(piece)
        else:
            found[piece.key] = cell
            bar.update()
    if missing:
        with live as model:
            for piece in missing:
                scored = score(model, piece)
                cell = Cell(scored.values, scored.transcripts)
                if store is not None:
                    store.put(depends(piece.key), cell)
                found[piece.key] = cell
                bar.update()
    return [_gather(suite, found) for suite in suites]


def _gather(suite: Prepared, found: Mapping[str, Cell]) -> Scores:
    values = np.full((len(suite.metrics), len(suite.suite)), np.nan)
    texts: dict[int, str] = {}
    for piece in suite.pieces:
        cell = found[piece.key]
        for i, metric in enumerate(suite.metrics):
            values[i, list(piece.rows)] = cell.values[metric]
        texts |= dict(zip(piece.rows, cell.transcripts, strict=False))  # empty where nothing is generated
    return Scores(values, tuple(texts[i] for i in sorted(texts)))


def depends_on(pair: Pair, recipe: Recipe, content: str, *, sides: Sequence[Side] | None = None) -> dict[str, Any]:
    """Everything that a cell's numbers depend on.

    Args:
        pair: The two models.
        recipe: What was done.
        content: The key of the prompts, task and metrics.
        sides: Models that matter; None for those that the recipe names.
    """
    named = {recipe.host} | {edit.source for edit in recipe.edits if isinstance(edit, Patch | Graft)}
    known = versions()
    return {
        "models": {side: pair.fingerprint[side] for side in sorted(named if sides is None else sides)},
        "recipe": str(recipe),
        "content": content,
        "dtype": pair.origin.dtype,
        "device": pair.device.type,
        "versions": {name: known[name] for name in NUMERIC} | {"scoring": str(SCORING)},
    }


def scales_depend_on(model: Loaded, scales: Scales | None, content: str) -> dict[str, Any]:
    """Everything that a cell of a scaled model depends on; without scales it is the cell of a pair's base."""
    known = versions()
    return {
        "models": {"base": model.fingerprint},
        "recipe": str(Recipe("base")),
        "content": content,
        "dtype": model.dtype,
        "device": model.device.type,
        "versions": {name: known[name] for name in NUMERIC} | {"scoring": str(SCORING)},
    } | ({} if scales is None else {"scales": scales.key})


def check_suites(suites: list[Suite]) -> list[Suite]:
    """The suites, with distinct names.

    Raises:
        SuiteError: There is none, or two have one name.
    """
    if not suites:
        raise SuiteError("no suite was given; give at least one")
    names = [suite.name for suite in suites]
    if len(set(names)) != len(names):
        raise SuiteError(f"two suites are called {max(names, key=names.count)!r}; rename one of the files")
    return suites


def metrics_of(suite: Suite, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The asked metrics that fit the suite's task, or the task's main one.

    Raises:
        TaiaLensError: None of them fits.
    """
    if asked is None:
        return tuple(default_metrics(suite.task.kind))
    for name in asked:
        if name not in METRICS:
            raise TaiaLensError(f"no metric {name!r}; there are {', '.join(METRICS)}")
    fitting = tuple(dict.fromkeys(name for name in asked if suite.task.kind in METRICS[name].kinds))
    if not fitting:
        able = ", ".join(name for name, metric in METRICS.items() if suite.task.kind in metric.kinds)
        raise TaiaLensError(f"none of {', '.join(asked)} fits the suite {suite.name}, whose task is {suite.task.kind}; write one of {able}")
    return fitting


def model_attrs(model: Loaded) -> dict[str, object]:
    """What a result keeps of the one model it came from."""
    return {"model": model.name, "dtype": model.dtype, "device": str(model.device), "fingerprint": model.fingerprint}


def suites_attr(prepared: Sequence[Prepared]) -> dict[str, dict[str, Any]]:
    """What a result keeps of its suites, by name."""
    return {p.suite.name: {"sha256": p.suite.sha256, "kind": p.suite.task.kind, "made": dict(p.suite.made)} for p in prepared}


def pair_attrs(pair: Pair) -> dict[str, object]:
    """What a result keeps of the pair it came from."""
    origin = pair.origin
    device = str(pair.device)
    return {"base": origin.base, "tuned": origin.tuned, "dtype": origin.dtype, "device": device, "fingerprint": pair.fingerprint}
