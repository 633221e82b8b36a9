"""`taia-lens transfer`: heads that one task selects, tuned and tested on another."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common
from taia_lens.cli.heads import (
    DRAWS_HELP,
    EPOCHS_HELP,
    K_HELP,
    L1_HELP,
    LOSS_HELP,
    LR_HELP,
    SEEDS_HELP,
    SELECT_LR_HELP,
    TRAIN_BATCH_HELP,
    settings,
)
from taia_lens.errors import TaiaLensError
from taia_lens.suite import Suite

if TYPE_CHECKING:
    import xarray as xr

TASK_HELP = "A task: NAME=TRAIN,TEST or NAME=TRAIN,TEST,TEST, each a FILE.jsonl or demo:NAME; give it twice or more often."


def transfer(
    task: list[str] = typer.Option(..., help=TASK_HELP),
    base: str | None = typer.Option(None, "--base", "--model", help=common.MODEL_HELP),
    k: str = typer.Option("3%", help=K_HELP),
    seeds: int = typer.Option(1, min=1, help=SEEDS_HELP),
    draws: int = typer.Option(3, min=0, help=DRAWS_HELP),
    every: bool = typer.Option(False, "--every", help="Also learn from rows that are out of distribution."),
    lr: float | None = typer.Option(None, help=LR_HELP),
    select_lr: float | None = typer.Option(None, help=SELECT_LR_HELP),
    l1: float | None = typer.Option(None, help=L1_HELP),
    epochs: int | None = typer.Option(None, help=EPOCHS_HELP),
    train_batch: int | None = typer.Option(None, help=TRAIN_BATCH_HELP),
    loss: str | None = typer.Option(None, help=LOSS_HELP),
    metric: str | None = typer.Option(None, help="Metrics, with commas between. Default: the main one of each suite's task."),
    limit: int | None = typer.Option(None, help=common.LIMIT_HELP + " Of the test suites only."),
    batch_size: int = typer.Option(128, help="Prompts at a time; changes speed and memory, not results."),
    call_tokens: int | None = typer.Option(None, min=1, help=common.CALL_HELP),
    device: str = typer.Option("auto", help=common.DEVICE_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    seed: int = typer.Option(0, min=0, help="Of the random heads, of the bootstrap and of --limit."),
    store: Path = typer.Option(common.STORE, help=common.STORE_HELP),
    no_store: bool = typer.Option(False, "--no-store", help="Keep no cells."),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/transfer-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Take the heads that LoFiT selects on one task, tune and test offsets on them on another, and hold them against its own.

    Writes result.nc, meta.json and figure.html into a run folder and prints the folder's path.

    Example: taia-lens transfer --task truth=demo:truth-train,demo:truth --task facts=facts-train.jsonl,facts-test.jsonl
    """
    started = time.time()
    options = common.ModelOptions(base, device, dtype, allow_pickle, trust_remote_code, call_tokens)
    tasks = dict(_task(text, options, limit, seed) for text in task)
    if len(tasks) < len(task):
        raise TaiaLensError("two tasks have one name; give each --task a name of its own")
    metrics = None if metric is None else common.names(metric, "metric")
    folder = common.run_folder(out, "transfer")
    with common.maybe_store(None if no_store else store) as cells:
        with common.status("loading"):
            from taia_lens.studies import heads as study

            model = options.load()
        tuning, selecting = settings(model, lr=lr, select_lr=select_lr, l1=l1, epochs=epochs, loss=loss, train_batch=train_batch)
        result = study.transfer(
            model,
            tasks,
            k=k,
            draws=draws,
            seeds=tuple(range(seeds)),
            selecting=selecting,
            tuning=tuning,
            every=every,
            metrics=metrics,
            batch_size=batch_size,
            seed=seed,
            store=cells,
            progress=sys.stderr.isatty(),
        )
    suites = [common.suite_meta(rows, None) for _, tests in tasks.values() for rows in tests]
    meta = common.meta(model, started=started, seed=seed) | {"limit": limit, "tasks": task, "suites": suites}
    _report(folder, result, meta, as_json)


def _task(text: str, options: common.ModelOptions, limit: int | None, seed: int) -> tuple[str, tuple[Suite, list[Suite]]]:
    name, sign, files = text.partition("=")
    parts = [part.strip() for part in files.split(",") if part.strip()]
    if not sign or not name.strip() or len(parts) < 2:
        raise TaiaLensError(f"cannot read --task {text!r}; write NAME=TRAIN,TEST: --task truth=demo:truth-train,demo:truth")
    return name.strip(), (common.one_suite(parts[0], options), common.read_suites(parts[1:], options, limit=limit, seed=seed))


def _report(folder: Path, result: xr.Dataset, meta: dict[str, Any], as_json: bool) -> None:
    from taia_lens import plots, results, summaries, tables

    summary = summaries.transfer_summary(result)
    said = summaries.transfer_sentences(summary)
    shown = common.console()
    for note in result.attrs["notes"]:
        print(f"taia-lens: note: {note}", file=sys.stderr)
    shown.print(f"model {result.attrs['model']}; q: sign-flip p, adjusted over all differences; * at most .05", markup=False)
    for table in tables.transfer_tables(summary):
        shown.print(table)
    for sentence in said:
        shown.print(sentence, markup=False, soft_wrap=True)
    figure = plots.transfer_figure(summary)
    results.write_run(
        folder, result, meta | {"sentences": said}, {"figure.html": lambda path: figure.write_html(path, include_plotlyjs=True)}
    )
    if as_json:
        record = {"run": str(folder), "sentences": said, "results": tables.transfer_records(summary)}
        print(json.dumps(record, indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)
