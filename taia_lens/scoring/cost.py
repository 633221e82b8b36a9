"""What a study would cost, before it is run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from taia_lens.engine import Reads, parts_of_recipes
from taia_lens.errors import SuiteError
from taia_lens.evaluation import Reading
from taia_lens.pair import Pair
from taia_lens.recipe import Recipe
from taia_lens.scoring.suites import Prepared

Forwards = tuple[Sequence[Recipe], Reads]
"""Recipes, and the rows that they are all run on."""


@dataclass(frozen=True)
class Cost:
    """What would be run.

    Attributes:
        recipes: How many.
        forwards: What they come to with work shared, in forwards over all prompts.
        bytes: The most that is held besides the models.
        seconds: As long as forwards on this machine took a moment ago.
        plain_because: Why no work is shared, where none is.
    """

    recipes: int
    forwards: float
    bytes: int
    seconds: float
    plain_because: str = ""

    def __str__(self) -> str:
        held = f"{self.bytes / 2**20:.0f} MB beside the models, " if self.bytes else ""
        why = f"; run one by one: {self.plain_because}" if self.plain_because else ""
        return f"{self.recipes} recipes, {self.forwards:.1f} forwards' worth of work, {held}about {_time(self.seconds)}{why}"


def _time(seconds: float) -> str:
    """In the unit that reads best.

    >>> _time(0.31), _time(340.0), _time(9000.0)
    ('0.3 s', '5.7 min', '2.5 h')
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def cost(pair: Pair, asked: Sequence[Forwards]) -> Cost:
    """Plan everything, and time one forward on the largest batch; nothing else is run.

    Args:
        pair: The two models.
        asked: What is run on which rows; the rows of all are all prompts.
    """
    tokens = [reads.batch.tokens.numel() for _, reads in asked]
    parts = [part for recipes, reads in asked for part in parts_of_recipes(pair, recipes, reads)]
    per_token = _seconds(pair, asked[max(range(len(asked)), key=lambda i: tokens[i])][1]) / max(tokens)
    spent = [part.work * part.reads.batch.tokens.numel() for part in parts]
    recipes = len({str(recipe) for recipes, _ in asked for recipe in recipes})
    return Cost(recipes, sum(spent) / sum(tokens), max(part.bytes for part in parts), sum(spent) * per_token, pair.report.plain_because)


def cost_of_suites(pair: Pair, asked: Sequence[Sequence[Recipe]], suites: Sequence[Prepared]) -> Cost:
    """What `score_recipes` would take with an empty store, asked for these recipes one time after the other.

    Raises:
        SuiteError: The suites have nothing but text to generate, which is not planned.
    """
    readings = [piece.how for suite in suites for piece in suite.pieces if isinstance(piece.how, Reading)]
    if not readings:
        raise SuiteError("text that is generated is run recipe by recipe, and its length is not known: --dry-run has nothing to plan here")
    reads = [reads.to(pair.device) for reading in readings for reads in reading.reads]
    costs = [cost(pair, [(recipes, each) for each in reads]) for recipes in asked if recipes]
    return Cost(
        recipes=sum(one.recipes for one in costs),
        forwards=sum(one.forwards for one in costs),
        bytes=max(one.bytes for one in costs),
        seconds=sum(one.seconds for one in costs),
        plain_because=pair.report.plain_because,
    )


def _seconds(pair: Pair, reads: Reads) -> float:
    """Of one forward; the first, which may still load something, is not counted."""
    for _ in range(2):
        start = time.perf_counter()
        reads.run(pair.base)
        if reads.batch.tokens.is_cuda:
            torch.cuda.synchronize()
    return time.perf_counter() - start
