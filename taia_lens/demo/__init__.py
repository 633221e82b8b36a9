"""The embedded pair: a small base, a LoRA fine-tune of it on mismatched data, and suites with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from taia_lens.errors import SuiteError
from taia_lens.suite import Suite, load_suite

if TYPE_CHECKING:
    from taia_lens.pair import Pair

FOLDER = Path(__file__).parent
BASE, TUNED, CARD = FOLDER / "pair" / "base", FOLDER / "pair" / "tuned", FOLDER / "README.md"

SUITES = {
    "routing": "two entities, answer with the second one's value: domain A (id) and B (ood)",
    "routing-order": "the same with the prompt's parts in another order (ood only)",
    "truth": "one entity, answer with the true value, not the myth: domain A, held-out entities (id), and B (ood)",
    "truth-train": "the training split of the truth skill: domain A, the other half of the entities",
}


def demo_suite(name: str = "routing") -> Suite:
    """One of the demo's suites.

    >>> demo_suite().domains
    ('id', 'ood')

    Raises:
        SuiteError: There is none of that name.
    """
    if name not in SUITES:
        raise SuiteError(f"no demo suite {name!r}; there are {', '.join(SUITES)}")
    return load_suite(FOLDER / "suites" / f"{name}.jsonl")


def demo_pair(*, device: str = "cpu") -> Pair:
    """The demo's base and its tuned version, loaded and checked.

    Args:
        device: Where they go: `cpu`, `cuda`, or `auto`, which takes a GPU where there is one.
    """
    from taia_lens.loading import load_pair

    return load_pair(BASE, TUNED, device=device)
