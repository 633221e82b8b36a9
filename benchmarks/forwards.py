"""Why a loop by hand is faster in attribution patching: TransformerLens's bridge beside the model that it wraps.

Run: python benchmarks/forwards.py [--rounds N] [--threads N]. Prints a table, medians of interleaved rounds on the same prompts and
weights: a forward; a forward and a backward to what leaves the first layer's heads, with nothing of a contender's in it; attribution
patching of all sites, which is one of each; and what attribution takes beyond the two, as a share of them: what a contender's code
adds to its model.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from side_by_side.contenders import by_hand, ours
from side_by_side.models import SHAPES, Setting, make_setting, score
from side_by_side.questions import SWEEPS
from torch import Tensor
from transformers import PreTrainedModel

from taia_lens.engine import Reads, run_reads
from taia_lens.sites import Site

MODELS = ("demo", "gqa", "gpt2", "vocab")
Job = Callable[[], object]


def leaf(kept: list[Tensor], act: Tensor) -> Tensor:
    """The graph begins here: no weight has a gradient."""
    kept.append(act.detach().requires_grad_())
    return kept[0]


def jobs(setting: Setting) -> dict[str, tuple[Job, Job, Job]]:
    """By name: a forward, that and a backward, and attribution patching."""
    sweep, first = SWEEPS["attribution"](setting), Site("head", 0, 0)
    batch, reads, bridge = sweep.batch, Reads.last(sweep.batch), setting.pair.base

    def both(model: PreTrainedModel) -> object:
        kept: list[Tensor] = []
        o = model.get_submodule(f"{setting.parts.blocks}.0.{setting.parts.o}")
        handle = o.register_forward_pre_hook(lambda _, args: (leaf(kept, args[0]),))
        with torch.enable_grad():
            found = by_hand.forward(model, batch).sum()
            handle.remove()
            return torch.autograd.grad(found, kept)

    def bridged() -> object:
        kept: list[Tensor] = []
        with torch.enable_grad(), bridge.hooks(fwd_hooks=[(first.hook, lambda act, hook: leaf(kept, act))]):
            logits = run_reads(bridge, batch.tokens, batch.mask, reads.rows, reads.positions, grad=True)
            return torch.autograd.grad(score(logits, batch).sum(), kept)

    found: dict[str, tuple[Job, Job, Job]] = {}
    for attention in ("sdpa", "eager"):
        model, job = setting.own("base", attention), by_hand.loop(setting, sweep, attention=attention)
        assert not isinstance(job, str)
        one, two = (lambda model=model: by_hand.forward(model, batch)), (lambda model=model: both(model))
        found[f"transformers, {attention}, by hand"] = one, two, job
    job = ours.shared(setting, sweep)
    assert not isinstance(job, str)
    found["TransformerBridge, taia-lens"] = (lambda: reads.run(bridge)), bridged, job
    return found


def medians(setting: Setting, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, taking turns; the first round warms up."""
    todo = jobs(setting)
    times: dict[str, list[list[float]]] = {name: [[], [], []] for name in todo}
    for _ in range(rounds + 1):
        for name, some in todo.items():
            for job, kept in zip(some, times[name], strict=True):
                start = time.perf_counter()
                job()
                kept.append((time.perf_counter() - start) * 1e3)
    return {name: [statistics.median(kept[1:]) for kept in some] for name, some in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| model | by | a forward, ms | forward and backward, ms | attribution, ms | beyond the two |\n|---|---|---|---|---|---|")
    with torch.no_grad():
        for name in MODELS:
            for by, (one, two, job) in medians(make_setting(name), options.rounds).items():
                print(f"| {SHAPES[name].title} | {by} | {one:.1f} | {two:.1f} | {job:.1f} | {job / (one + two) - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    main()
