"""Recipes on suites, with the store: every recipe's score on every prompt, computed once and found again.

All recipes of a study are asked for together, so that the engine can share the work that they have in common.
"""

from taia_lens.scoring.cells import Work
from taia_lens.scoring.cost import Cost, cost, cost_of_suites
from taia_lens.scoring.depends import NUMERIC, SCORING, depends_on, scales_depend_on
from taia_lens.scoring.many import score_many_scales, score_recipes
from taia_lens.scoring.suites import (
    Prepared,
    Scores,
    check_grafts,
    check_suites,
    metrics_of,
    model_attrs,
    pair_attrs,
    prepare_suite,
    suites_attr,
)

__all__ = [
    "NUMERIC",
    "SCORING",
    "Cost",
    "Prepared",
    "Scores",
    "Work",
    "check_grafts",
    "check_suites",
    "cost",
    "cost_of_suites",
    "depends_on",
    "metrics_of",
    "model_attrs",
    "pair_attrs",
    "prepare_suite",
    "scales_depend_on",
    "score_many_scales",
    "score_recipes",
    "suites_attr",
]
