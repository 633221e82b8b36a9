"""Suites made ready for scoring, what they are scored by, and what a result keeps of them and of its models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taia_lens.engine import check_recipe
from taia_lens.errors import RecipeError, SuiteError, TaiaLensError
from taia_lens.evaluation import Piece, prepare
from taia_lens.loaded import Loaded
from taia_lens.metric_names import METRICS, default_metrics
from taia_lens.pair import Pair
from taia_lens.recipe import Recipe
from taia_lens.suite import Suite


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
    device = ",".join(map(str, pair.devices))
    return {"base": origin.base, "tuned": origin.tuned, "dtype": origin.dtype, "device": device, "fingerprint": pair.fingerprint}
