"""How many tokens one call of a block should be given: measured when it is asked for, and never on the way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat

from taia_lens.budget import BUDGET
from taia_lens.engine.blocks import Blocks, Detour
from taia_lens.errors import TaiaLensError, out_of_memory
from taia_lens.loaded import Loaded

SIZES = (400, 800, 1500, 3000, 6000, 12_000, 24_000, 48_000)
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


def measure_pace(model: Loaded, *, width: int = 32, sizes: Sequence[int] = SIZES, rounds: int = 5) -> Pace:
    """Time the model's middle block on stacks of several sizes, as `run_recipes` calls it.

    Args:
        model: A model, or a side of a pair (`pair.loaded("base")`).
        width: Tokens of a row; attention's share grows with it.
        sizes: Tokens of a call, ascending, a row at least; the larger are left out once two in a row are a quarter slower than the
            fastest, or memory has run out.
        rounds: Sizes take turns; what counts is each one's median.

    Raises:
        TaiaLensError: No call of a block is given more than one recipe's rows on this model, or nothing is to be timed.
        RuntimeError: There is no room for the first size.

    >>> from taia_lens import demo_pair
    >>> pace = measure_pace(demo_pair().loaded("base"), sizes=(400, 1500), rounds=1)
    >>> sorted(pace.seconds)
    [400, 1500]
    """
    if model.plain_because:
        raise TaiaLensError(f"recipes share no work on this model, so that no call is given more than its rows: {model.plain_because}")
    if not sizes or min(sizes) < width or rounds < 1:
        raise TaiaLensError(
            f"sizes {tuple(sizes)}, rows of {width} tokens, {rounds} rounds; write sizes of a row at least, and 1 round or more"
        )
    found: dict[int, list[float]] = {}
    for size in sizes:
        try:
            found[size] = [_seconds(model, size, width)]
        except RuntimeError as error:
            if not found or not out_of_memory(error):
                raise
            break
        fastest = min(times[0] for times in found.values())
        if len(found) > 2 and all(times[0] > WORSE * fastest for times in list(found.values())[-2:]):
            break
    for _ in range(rounds - 1):
        for size, times in found.items():
            times.append(_seconds(model, size, width))
    return Pace({size: statistics.median(times) for size, times in found.items()})


@torch.no_grad()
def _seconds(model: Loaded, size: int, width: int) -> float:
    """Of one token, where a call is given so many."""
    rows, layer = size // width, model.shape.n_layers // 2
    tokens = torch.randint(model.shape.d_vocab, (1, width), generator=torch.Generator().manual_seed(0)).to(model.device)
    blocks = Blocks(model.model, tokens, torch.ones_like(tokens, dtype=torch.bool), {0: rows}, model.model.hook_dict)
    stream = repeat(blocks.embeddings(), "1 pos d_model -> row pos d_model", row=rows)

    def run(times: int) -> None:
        for _ in range(times):
            out = blocks.run(layer, stream, slice(0, rows), 0, None, Detour())
        out.stream[0, 0, 0].item()  # a GPU has finished once a number of the last is here

    run(1)  # what is recorded or compiled at the first call is not counted
    times = -(-TIMED // (rows * width))
    start = time.perf_counter()
    run(times)
    return (time.perf_counter() - start) / (times * rows * width)
