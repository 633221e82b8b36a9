"""Why a loop by hand is faster in attribution patching: the forward of TransformerLens's bridge beside that of the model it wraps.

Run: python benchmarks/forwards.py [--rounds N] [--threads N]. Prints a table, medians of interleaved rounds on the same prompts and
weights: a forward, attribution patching of all sites, and how many of its own forwards that is (two forwards and a backward are
three, where a backward to the activations costs one). What a contender's code adds to its model shows in the last column alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from side_by_side.contenders import by_hand, ours
from side_by_side.models import SHAPES, Setting, make_setting
from side_by_side.questions import SWEEPS

from taia_lens.engine import Reads

MODELS = ("demo", "gqa", "gpt2")


def jobs(setting: Setting) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """By name: a forward, and attribution patching."""
    sweep = SWEEPS["attribution"](setting)
    found: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for attention in ("sdpa", "eager"):
        model, job = setting.own("base", attention), by_hand.loop(setting, sweep, attention=attention)
        assert not isinstance(job, str)
        found[f"transformers, {attention}, by hand"] = (lambda model=model: by_hand.forward(model, sweep.batch)), job
    job = ours.shared(setting, sweep)
    assert not isinstance(job, str)
    found["TransformerBridge, taia-lens"] = (lambda: Reads.last(sweep.batch).run(setting.pair.base)), job
    return found


def medians(setting: Setting, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of both, taking turns; the first round warms up."""
    todo = jobs(setting)
    times: dict[str, list[list[float]]] = {name: [[], []] for name in todo}
    for _ in range(rounds + 1):
        for name, both in todo.items():
            for job, kept in zip(both, times[name], strict=True):
                start = time.perf_counter()
                job()
                kept.append((time.perf_counter() - start) * 1e3)
    return {name: [statistics.median(kept[1:]) for kept in both] for name, both in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| model | by | a forward, ms | attribution, ms | in its own forwards |\n|---|---|---|---|---|")
    with torch.no_grad():
        for name in MODELS:
            for by, (forward, attribution) in medians(make_setting(name), options.rounds).items():
                print(f"| {SHAPES[name].title} | {by} | {forward:.1f} | {attribution:.1f} | {attribution / forward:.2f} |")


if __name__ == "__main__":
    main()
