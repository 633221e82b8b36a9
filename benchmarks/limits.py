"""How far the engine is from the limit where the limit is taken at its strictest: the plain forward on as many tokens as suit it best.

Run: python benchmarks/limits.py [--model NAME ...] [--rounds N] [--threads N]. The limit of sweeps.py is the plan's work at the
throughput of the plain forward on the sweep's own prompts, which are few; here it is the work at the least that a token of the plain
forward takes, whatever the number of prompts it is given. Prints a table, medians of rounds in which all take turns, for the engine's
default and for other budgets. With --where, what stands between the two instead: how much of the time is spent in calls of blocks, and
how many tokens they are given for each that the plan counts (it weighs a call that runs attention or the FFN alone by their weights).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from side_by_side.models import SHAPES, USUAL, Setting, make_setting, random_batch
from side_by_side.questions import SWEEPS, Sweep
from side_by_side.rounds import work
from torch import Tensor

from taia_lens.budget import BUDGET, Budget
from taia_lens.engine import Reads, run_recipes
from taia_lens.engine.blocks import Blocks, Out

AT_ONCE = (400, 1500, 3000, 6000)  # tokens of a plain forward
BUDGETS = (BUDGET.tokens, 3000)
ASKED = ("components", "heads", "grafts")


def timed(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def engine(setting: Setting, sweep: Sweep, reads: Reads, budget: Budget) -> None:
    """The whole sweep, with the plan being made."""
    for _ in run_recipes(setting.pair, sweep.recipes, reads, budget=budget):
        pass


def forwards(setting: Setting) -> dict[int, tuple[Callable[[], object], int]]:
    """Plain forwards on prompts as the sweep's, by tokens at once, padding included; and how many tokens those are."""
    shape, found = SHAPES[setting.name], {}
    width = setting.mixed.tokens.shape[1]
    for tokens in AT_ONCE:
        reads = Reads.last(random_batch(max(1, round(tokens / width)), shape.lengths, setting.pair.shape.d_vocab))
        found[tokens] = (lambda reads=reads: reads.run(setting.pair.base)), reads.batch.tokens.numel()
    return found


def measure(model: str, rounds: int) -> None:
    """Print a line for each sweep and budget."""
    setting = make_setting(model)
    plain = forwards(setting)
    for name in ASKED:
        sweep = SWEEPS[name](setting)
        reads = Reads.last(sweep.batch)
        times: dict[object, list[float]] = {}
        for _ in range(rounds + 1):
            for tokens, (job, _) in plain.items():
                times.setdefault(tokens, []).append(timed(job))
            for budget in BUDGETS:
                job = partial(engine, setting, sweep, reads, Budget(tokens=budget))
                times.setdefault(("engine", budget), []).append(timed(job))
        medians = {what: statistics.median(seconds[1:]) for what, seconds in times.items()}
        best = min(plain, key=lambda tokens: medians[tokens] / plain[tokens][1])
        limit = work(setting, sweep) * sweep.batch.tokens.numel() * medians[best] / plain[best][1]
        for budget in BUDGETS:
            seconds = medians["engine", budget]
            print(
                f"| {SHAPES[model].title} | {sweep.name} | {best} | {limit:.3g} | {budget} | {seconds:.3g} | {seconds / limit:.2f} |",
                flush=True,
            )


def where(model: str, rounds: int) -> None:
    """Print a line for each sweep."""
    setting = make_setting(model)
    calls, run = list[tuple[int, float]](), Blocks.run

    def counted(self: Blocks, layer: int, stream: Tensor, *rest: Any) -> Out:
        start = time.perf_counter()
        out = run(self, layer, stream, *rest)
        calls.append((stream.shape[0] * stream.shape[1], time.perf_counter() - start))
        return out

    Blocks.run = counted  # type: ignore[method-assign]
    for name in ASKED:
        sweep, whole = SWEEPS[name](setting), list[tuple[float, list[tuple[int, float]]]]()
        reads = Reads.last(sweep.batch)
        for _ in range(rounds + 1):
            calls.clear()
            whole.append((timed(partial(engine, setting, sweep, reads, BUDGET)), list(calls)))
        seconds, median = sorted(whole[1:], key=lambda one: one[0])[rounds // 2]
        counts = sum(tokens for tokens, _ in median) / (work(setting, sweep) * sweep.batch.tokens.numel() * setting.n_layers)
        share = sum(spent for _, spent in median) / seconds
        print(f"| {SHAPES[model].title} | {sweep.name} | {len(median)} | {share:.0%} | {counts:.2f} |", flush=True)
    Blocks.run = run  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--where", action="store_true")
    parser.add_argument("--model", nargs="+", choices=list(SHAPES), default=list(USUAL))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.where:
        print("| model | sweep | calls of blocks | of the time | tokens, of the plan's |\n|---|---|---|---|---|")
        for model in options.model:
            where(model, options.rounds)
        return
    print("| model | sweep | best at, tokens | limit, s | tokens a call | taia-lens, s | of the limit |\n|---|---|---|---|---|---|---|")
    with torch.no_grad():
        for model in options.model:
            measure(model, options.rounds)


if __name__ == "__main__":
    main()
