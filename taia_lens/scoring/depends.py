"""What a finished cell depends on: the key by which the store finds it again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from taia_lens.loaded import Loaded
from taia_lens.pair import Pair
from taia_lens.recipe import Graft, Patch, Recipe, Side
from taia_lens.results import versions
from taia_lens.scales import Scales

# Versions that numbers depend on; plotting libraries do not belong here. SCORING is raised when this package's own numbers change.
NUMERIC = ("torch", "transformers", "tokenizers", "transformer-lens", "numpy")
SCORING = 1


def depends_on(pair: Pair, recipe: Recipe, content: str, *, sides: Sequence[Side] | None = None) -> dict[str, Any]:
    """Everything that a cell's numbers depend on.

    Args:
        pair: The two models.
        recipe: What was done.
        content: The key of the prompts, task and metrics.
        sides: Models that matter; None for those that the recipe names.
    """
    named = {recipe.host} | {edit.source for edit in recipe.edits if isinstance(edit, Patch | Graft)}
    return {
        "models": {side: pair.fingerprint[side] for side in sorted(named if sides is None else sides)},
        "recipe": str(recipe),
        "content": content,
        "dtype": pair.origin.dtype,
        "device": pair.device.type,
        "versions": dict(_versions()),
    }


def scales_depend_on(model: Loaded, scales: Scales | None, content: str) -> dict[str, Any]:
    """Everything that a cell of a scaled model depends on; without scales it is the cell of a pair's base."""
    return {
        "models": {"base": model.fingerprint},
        "recipe": str(Recipe("base")),
        "content": content,
        "dtype": model.dtype,
        "device": model.device.type,
        "versions": dict(_versions()),
    } | ({} if scales is None else {"scales": scales.key})


@cache
def _versions() -> dict[str, str]:
    """Of what numbers depend on; reading them takes milliseconds, and a study asks once a cell."""
    known = versions()
    return {name: known[name] for name in NUMERIC} | {"scoring": str(SCORING)}
