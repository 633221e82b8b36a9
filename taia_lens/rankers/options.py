"""What a ranker may be told, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from taia_lens.errors import SuiteError, TaiaLensError
from taia_lens.lofit.settings import Settings
from taia_lens.metric_names import check_metrics, default_metrics
from taia_lens.suite import Suite

# A head's effect on an accuracy is mostly 0: where a task has a continuous metric, that one is read.
CONTINUOUS = {"next": "logprob", "choice": "choice_logprob"}


@dataclass(frozen=True)
class Options:
    """What all rankers share; each reads what concerns it.

    Attributes:
        metric: Whose change counts (patch, graft, ablate, atp); None for the task's log-probability, or its main metric
            where it has none.
        batch_size: Sequences at a time; it changes speed, results only by rounding.
        seed: Of the folds, the training and the random ranking.
        seeds: How often a trained (or random) ranker is run, with seed, seed + 1, ...
        folds: Of the rows, for probes.
        steps: Integrated gradients instead of one gradient, with so many steps a layer (atp); 0 for one gradient.
        magnitude: Rank by |mean effect| instead of how much better it makes the metric (patch, graft, ablate, atp).
        every: Rank on all rows; else on those of the domain `id` only, so that heads are not chosen by the rows out of
            distribution that they are tested on later.
        selecting: How lofit, its variants and jola train (their seed is replaced); the paper's where None.
        tuning: How lofit-offset trains; the same.
    """

    metric: str | None = None
    batch_size: int = 64
    seed: int = 0
    seeds: int = 1
    folds: int = 5
    steps: int = 0
    magnitude: bool = False
    every: bool = False
    selecting: Settings | None = None
    tuning: Settings | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seed", 0), ("seeds", 1), ("folds", 2), ("steps", 0)):
            if getattr(self, name) < least:
                raise TaiaLensError(f"{name} is {getattr(self, name)}; write {least} or more")


DEFAULT = Options()


@dataclass(frozen=True, eq=False)
class Ranked:
    """What a ranker found.

    Attributes:
        replicates: Importance (replicate, layer, head); higher is more important.
        replicate: What they are: `example`, `fold`, `seed`, or `none` where there is one number a head.
        labels: Of the replicates.
        unit: Of the numbers.
        meaning: What they are, in words.
        notes: What a reader may not expect.
        attrs: More that the result keeps.
    """

    replicates: np.ndarray
    replicate: str
    labels: tuple[str, ...]
    unit: str
    meaning: str
    notes: tuple[str, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)


def metric_of(options: Options, kind: str) -> str:
    """The metric whose change counts for a kind of task.

    >>> metric_of(Options(), "next"), metric_of(Options(), "generate"), metric_of(Options(metric="prob"), "next")
    ('logprob', 'exact_match', 'prob')

    Raises:
        TaiaLensError: The one asked for is none, or is of another task.
    """
    (name,) = check_metrics([options.metric or CONTINUOUS.get(kind, default_metrics(kind)[0])], kind)
    return name


def rows_of(suite: Suite, options: Options) -> Suite:
    """The rows that heads are ranked on.

    Raises:
        SuiteError: There is none.
    """
    if options.every:
        return suite
    rows = tuple(row for row in suite.rows if row.domain == "id")
    if not rows:
        raise SuiteError(
            f"suite {suite.name} has no row in distribution (domain id), and heads are ranked on those; "
            "give one that has, or rank on every row: --every (Options(every=True))"
        )
    return replace(suite, rows=rows)
