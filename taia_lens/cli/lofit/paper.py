"""`taia-lens lofit paper`: the paper's experiments from end to end, on its own splits."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common
from taia_lens.errors import TaiaLensError

if TYPE_CHECKING:
    from taia_lens.lofit_paper import Outcome


def paper(
    task: str = typer.Argument(help="truthfulqa (2 folds, DPO, MC1 and MC2), mquake or clutrr (exact match)."),
    data: Path = typer.Option(..., help="The folder that holds LoFiT's splits of the task (or a folder of the task's name)."),
    base: str = typer.Option(..., "--base", "--model", help="The model: a local folder or a Hub id."),
    folds: str | None = typer.Option(None, help="truthfulqa: which folds, 0,1. Default: all."),
    k: str | None = typer.Option(None, "--k", help="How many heads: 32, or 3%. Default: the paper's for this model; 3% for others."),
    seeds: str = typer.Option("42", help="Of training, with commas between."),
    control: str | None = typer.Option(None, help="Also tune offsets on these heads: random, bottom, or both."),
    pairs: str | None = typer.Option(None, help="truthfulqa: one pair of answers a question, as the paper's code (default), or all."),
    select_lr: float | None = typer.Option(None, help="Learning rate of step 1. Default: the paper's for this model and task."),
    l1: float | None = typer.Option(None, help="Step 1's penalty on the sum of |A|. Default: the same."),
    tune_lr: float | None = typer.Option(None, help="Learning rate of step 2. Default: the same."),
    epochs: int | None = typer.Option(None, help="Of both steps. Default: 5."),
    train_batch: int | None = typer.Option(None, help="Rows a step. Default: 8."),
    micro_batch: int | None = typer.Option(None, help="Rows at a time, at most, in training; changes memory, not results."),
    max_length: int | None = typer.Option(None, help="Longest training text in tokens. Default: 256 for truthfulqa, else 400."),
    limit: int | None = typer.Option(None, min=1, help="At most this many rows of each split: for a trial."),
    batch_size: int = typer.Option(32, help="Sequences at a time in testing; changes speed and memory, not results."),
    call_tokens: int | None = typer.Option(None, min=1, help=common.CALL_HELP),
    device: str = typer.Option("auto", help=common.DEVICE_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    seed: int = typer.Option(0, min=0, help="Of the bootstrap."),
    store: Path = typer.Option(common.STORE, help=common.STORE_HELP),
    no_store: bool = typer.Option(False, "--no-store", help="Keep no cells."),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/lofit-TASK-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Run an experiment of the LoFiT paper: score the model, select heads, tune offsets on them, score again.

    Settings are those of the paper's training scripts for this model, or for the nearest by size. Writes result.nc, table.txt and
    meta.json, and for every fold and seed selection.nc and the adapters, into a run folder and prints the folder's path. A run
    that was killed goes on from its last finished epoch.

    Example: taia-lens lofit paper truthfulqa --base meta-llama/Llama-2-7b-hf --data truthfulqa --control random,bottom

    Example: taia-lens lofit paper mquake --base ./llama --data mquake --seeds 42,43
    """
    started = time.time()
    options = common.ModelOptions(base, device, dtype, allow_pickle, trust_remote_code, call_tokens)
    which, chosen = None if folds is None else _whole(folds, "folds"), _whole(seeds, "seeds")
    controls = () if control is None else common.names(control, "control")
    with common.status("reading the splits"):
        from taia_lens import lofit_paper

        common.quiet()
        splits = lofit_paper.folds(task, data, which=which, pairs=pairs or "one", limit=limit)
    folder = common.run_folder(out, f"lofit-{task}")
    with common.maybe_store(None if no_store else store) as cells:
        with common.status("loading the model"):
            model = options.load()
        shape = model.shape
        how = lofit_paper.protocol(
            task,
            (shape.n_layers, shape.n_heads, shape.d_head),
            model.n_parameters,
            k=k,
            select_lr=select_lr,
            l1=l1,
            tune_lr=tune_lr,
            epochs=epochs,
            batch_size=train_batch,
            micro_batch=micro_batch,
            max_length=max_length,
            pairs=pairs,
        )
        shown = sys.stderr.isatty()
        outcome = lofit_paper.run(
            model, splits, how, seeds=chosen, controls=controls, batch_size=batch_size, seed=seed, store=cells, progress=shown
        )
    _report(folder, outcome, common.meta(model, started=started, seed=seed) | {"data": data.name, "limit": limit}, as_json)


def _whole(text: str, what: str) -> tuple[int, ...]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or not all(part.isascii() and part.isdigit() for part in found):
        raise TaiaLensError(f"cannot read --{what} {text!r}; write whole numbers from 0 with commas between: 0,1")
    return tuple(map(int, found))


def _report(folder: Path, outcome: Outcome, meta: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    from taia_lens import results, summaries, tables
    from taia_lens.scales import write_scales

    summary = summaries.lofit_paper_summary(outcome.result)
    made, note = tables.lofit_paper_tables(summary), tables.lofit_paper_note(summary)
    shown = common.console()
    for table in made:
        shown.print(table)
    shown.print(note, markup=False, soft_wrap=True)
    with results.whole_folder(folder) as partial:
        results.save(outcome.result, partial / "result.nc")
        about = {"protocol": outcome.result.attrs["protocol"], "folds": outcome.result.attrs["folds"]}
        (partial / "meta.json").write_text(json.dumps(meta | about, indent=1) + "\n", encoding="utf-8")
        for name, selection in outcome.selections.items():
            (partial / name).mkdir()
            results.save(selection, partial / name / "selection.nc")
        for name, scales in outcome.scales.items():
            (partial / name).mkdir()
            write_scales(partial / name, scales)
        with (partial / "table.txt").open("w", encoding="utf-8") as file:
            text = Console(file=file, width=200)
            for table in made:
                text.print(table)
            text.print(note, markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps({"run": str(folder), "results": tables.lofit_paper_records(summary)}, indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)
