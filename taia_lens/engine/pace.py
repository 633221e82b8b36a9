"""How many tokens one call of a block should be given: measured when it is asked for, and never on the way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import repeat

from taia_lens.budget import BUDGET
from taia_lens.engine.blocks import Blocks, Detour
from taia_lens.loaded import Loaded

SIZES = (400, 800, 1500, 3000, 6000, 12_000, 24_000, 48_000)
PROMPT = 32  # tokens of a row
TIMED = 6000  # tokens, at least, that are timed at a time: a call of 400 alone is a matter of luck
NEAR = 1.05  # times the fastest: as good
WORSE = 1.25  # times the fastest, twice in a row: larger ones need not be tried


@dataclass(frozen=True)
class Pace:
    """What a token costs in a block.

    Attributes:
        seconds: Of one token in one block, by tokens of a call.
    """

    seconds: dict[int, float]

    @property
    def tokens(self) -> int:
        """How many to give a call: the default where it is within 5% of the fastest, else the fewest that are."""
        near = [size for size, seconds in self.seconds.items() if seconds <= NEAR * min(self.seconds.values())]
        return BUDGET.tokens if BUDGET.tokens in near else min(near)


def measure_pace(model: Loaded, *, sizes: Sequence[int] = SIZES, rounds: int = 5) -> Pace:
    """Time the model's middle block on stacks of several sizes, as `run_recipes` would call it.

    Args:
        model: A model, or a side of a pair (`pair.loaded("base")`).
        sizes: Tokens of a call, ascending; the larger are left out once two in a row are a quarter slower than the fastest, or
            memory has run out (where it has for the first, that is raised).
        rounds: Sizes take turns; what counts is each one's median.

    >>> from taia_lens import demo_pair
    >>> pace = measure_pace(demo_pair().loaded("base"), sizes=(400, 1500), rounds=1)
    >>> sorted(pace.seconds)
    [400, 1500]
    """
    found: dict[int, list[float]] = {}
    calls: dict[int, Callable[[], float]] = {}
    with torch.no_grad():
        for size in sizes:
            try:
                calls[size] = _call(model, size)
                found[size] = [calls[size]()]
            except torch.OutOfMemoryError:
                if not found:
                    raise
                calls.pop(size, None)
                break
            fastest = min(times[0] for times in found.values())
            if len(found) > 2 and all(times[0] > WORSE * fastest for times in list(found.values())[-2:]):
                break
        for _ in range(rounds - 1):
            for size, call in calls.items():
                found[size].append(call())
    return Pace({size: statistics.median(times) for size, times in found.items()})


def _call(model: Loaded, size: int) -> Callable[[], float]:
    """Ready to run a block on so many tokens, and to say what one of them took, in seconds."""
    rows, layer = max(1, size // PROMPT), model.shape.n_layers // 2
    tokens = torch.randint(model.shape.d_vocab, (1, PROMPT), generator=torch.Generator().manual_seed(0)).to(model.device)
    blocks = Blocks(model.model, tokens, torch.ones_like(tokens, dtype=torch.bool), {0: rows}, model.model.hook_dict)
    stream = repeat(blocks.embeddings(), "1 pos d_model -> row pos d_model", row=rows)

    def run() -> None:
        out = blocks.run(layer, stream, slice(0, rows), 0, None, Detour())
        out.stream[0, 0, 0].item()  # a GPU has finished once a number of it is here

    def seconds() -> float:
        n = -(-TIMED // (rows * PROMPT))
        start = time.perf_counter()
        for _ in range(n):
            run()
        return (time.perf_counter() - start) / (n * rows * PROMPT)

    run()  # what is recorded or compiled at the first call is not counted
    return seconds
