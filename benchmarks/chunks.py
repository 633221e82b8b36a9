"""How many tokens one call of a block should be given on this machine: seconds of a layer x {attn, mlp} sweep, by budget.

Run: python benchmarks/chunks.py [--model NAME ...] [--rounds N] [--threads N]. Prints a table; the default of taia_lens.Budget
is what suits two cores.
Below it, what the plain forward takes for a token when so many are given to it at once: the "limit" of sweeps.py is taken at the
throughput of one batch, which is fewer tokens, and can therefore be beaten.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from side_by_side.models import SHAPES, make_setting, random_batch
from side_by_side.questions import components

from taia_lens.batch import Batch
from taia_lens.budget import Budget
from taia_lens.engine import Reads, run_recipes

TOKENS = (200, 400, 800, 1500, 3000, 6000, 12000)
ROWS = {"demo": 64, "gqa": 16}


def seconds(model: str, rounds: int) -> dict[int, float]:
    """Medians by tokens, budgets taking turns."""
    setting = make_setting(model)
    lengths = SHAPES[model].lengths
    batch: Batch = random_batch(ROWS[model], lengths, setting.pair.shape.d_vocab)
    recipes, reads = components(setting).recipes, Reads.last(batch)
    found: dict[int, list[float]] = {tokens: [] for tokens in TOKENS}
    for _ in range(rounds + 1):
        for tokens, times in found.items():
            start = time.perf_counter()
            for _ in run_recipes(setting.pair, recipes, reads, budget=Budget(tokens=tokens)):
                pass
            times.append(time.perf_counter() - start)
    return {tokens: statistics.median(times[1:]) for tokens, times in found.items()}


def plain(model: str, rounds: int) -> dict[int, float]:
    """Median microseconds a token of the plain forward, by tokens at once."""
    setting = make_setting(model)
    lengths, d_vocab = SHAPES[model].lengths, setting.pair.shape.d_vocab
    mean = (min(lengths) + max(lengths)) / 2
    batches = {tokens: random_batch(max(1, round(tokens / mean)), lengths, d_vocab) for tokens in TOKENS}
    found: dict[int, list[float]] = {tokens: [] for tokens in TOKENS}
    for _ in range(rounds + 1):
        for tokens, batch in batches.items():
            start = time.perf_counter()
            Reads.last(batch).run(setting.pair.base)
            found[tokens].append((time.perf_counter() - start) / int(batch.mask.sum()) * 1e6)
    return {tokens: statistics.median(times[1:]) for tokens, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", nargs="+", choices=list(ROWS), default=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| tokens a call | " + " | ".join(map(str, TOKENS)) + " |\n|---|" + "---|" * len(TOKENS))
    with torch.no_grad():
        for model in options.model:
            found = seconds(model, options.rounds)
            print(f"| {SHAPES[model].title}: the sweep, s | " + " | ".join(f"{found[tokens]:.2f}" for tokens in TOKENS) + " |")
            each = plain(model, options.rounds)
            print(f"| {SHAPES[model].title}: plain forward, \u00b5s a token | " + " | ".join(f"{each[t]:.0f}" for t in TOKENS) + " |")


if __name__ == "__main__":
    main()
