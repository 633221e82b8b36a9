"""Sweeps of patches and grafts by taia-lens, its peers and by hand: one run, the same prompts, the same machine.

Run: python benchmarks/sweeps.py [--model NAME ...] [--sweep NAME ...] [--rounds N] [--quick] [--device cuda --dtype bfloat16].

For each model and sweep: every contender gives its numbers, which must agree, before anything is timed. Then each runs once for
its peak memory, and once a round for its time, contenders taking turns. The limit is the work that is left when no prefix is
computed twice, in forwards, times the seconds of this package's plain forward on the same batch. Tables go into README.md, all
numbers into sweeps.json, the picture into sweeps.svg. With --quick small models are run twice and nothing is written.

The usual models take some three hours on two cores that do nothing else; each sweep is kept as soon as it is measured, and --model and
--sweep run a part, which then takes the place of the same part of an earlier run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # TransformerLens draws a bar a sweep
os.environ["HF_HUB_OFFLINE"] = "1"  # models are made here

import torch
from side_by_side import figure, report
from side_by_side.contenders import Contender, by_hand, lens, ours, with_nnsight, with_pyvene
from side_by_side.models import QUICK, SHAPES, USUAL, make_setting
from side_by_side.questions import SWEEPS
from side_by_side.rounds import measure

HERE = Path(__file__).resolve().parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The last one is what the others' numbers are held against: eager attention is what a TransformerBridge runs.
CONTENDERS: dict[str, Contender] = {
    report.OURS: ours.shared,
    "plain plan": ours.plain,
    "TransformerLens": lens.functions,
    "nnsight": partial(with_nnsight.traces, batched=False),
    "nnsight, a trace a layer": partial(with_nnsight.traces, batched=True),
    "pyvene": with_pyvene.interventions,
    "by hand": partial(by_hand.loop, attention="sdpa"),
    "by hand, eager": partial(by_hand.loop, attention="eager"),
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read and check the options; what cannot be done ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=list(SHAPES), metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("--sweep", nargs="+", choices=list(SWEEPS), metavar="NAME", help=", ".join(SWEEPS))
    parser.add_argument("--rounds", type=int, default=None, help="how often each contender is timed (5; 2 with --quick)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (2)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default=None, choices=list(DTYPES), help="float32 on cpu, bfloat16 on cuda")
    parser.add_argument("--quick", action="store_true", help="small models, two rounds, nothing written")
    parser.add_argument("--out", type=Path, default=None, help="where sweeps.json and the picture go (here)")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no device cuda here: torch sees no NVIDIA GPU; leave --device out, or run this on a machine that has one")
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    usual = QUICK if options.quick else USUAL if options.device == "cpu" else ("1b", "8b")
    options.model = options.model or list(usual)
    large = [name for name in options.model if SHAPES[name].device != options.device == "cpu"]
    if large:
        parser.error(f"{large[0]} is too large for the cpu; add --device cuda, or choose one of {', '.join(USUAL)}")
    options.rounds = options.rounds or (2 if options.quick else 5)
    if options.rounds < 1 or options.threads < 1:
        parser.error(f"--rounds {options.rounds} --threads {options.threads}: both are 1 or more")
    return options


def run(options: argparse.Namespace) -> list[report.Record]:
    """Measure everything that was asked for."""
    where = report.machine(options.device, options.dtype, options.threads)
    records = []
    for model in options.model:
        _say(f"{SHAPES[model].title}: making it")
        setting = make_setting(model, options.device, DTYPES[options.dtype])
        for name in options.sweep or SWEEPS:
            sweep = SWEEPS[name](setting)
            lengths = sweep.batch.mask.sum(1)
            span = sorted({int(lengths.min()), int(lengths.max())})
            batch = f"{len(lengths)} prompts of {' to '.join(map(str, span))} tokens"
            outcome = measure(setting, sweep, CONTENDERS, options.rounds, lambda text, to=f"{model}, {name}": _say(f"{to}: {text}"))
            records.append(
                report.record(outcome, model=model, title=SHAPES[model].title, sweep=name, words=sweep.name, batch=batch, where=where)
            )
            if options.out or not options.quick:  # a run of hours that is stopped keeps what it has
                _keep(options.out or HERE, records)
    return records


def _keep(folder: Path, records: Sequence[report.Record]) -> list[report.Record]:
    """Write what was measured beside what was kept of other models and sweeps, and here the tables of all of it."""
    kept = report.merged(report.load(folder / "sweeps.json"), records)
    models, sweeps = list(SHAPES), list(SWEEPS)
    kept.sort(key=lambda one: (models.index(one["model"]), sweeps.index(one["sweep"])))  # measured in parts, read in one order
    report.save(kept, folder / "sweeps.json")
    if folder == HERE:
        report.write_block(HERE / "README.md", report.markdown(kept))
        report.write_block(HERE.parent / "README.md", report.brief(kept))
    return kept


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        records = run(options)
    print(report.markdown(records))
    if options.quick and options.out is None:
        return
    folder = options.out or HERE
    path = figure.write(_keep(folder, records), folder, HERE.parent / "runs")
    print(f"{folder / 'sweeps.json'}, {path}")


if __name__ == "__main__":
    main()
