"""`taia-lens heads`: which heads matter, by every way of ranking them, and whether the same step does more on theirs."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common
from taia_lens.errors import PairError, SuiteError
from taia_lens.suite import Suite

if TYPE_CHECKING:
    import xarray as xr

    from taia_lens.loaded import Loaded
    from taia_lens.lofit import Settings
    from taia_lens.pair import Pair

TRAIN_HELP = "What rankers and offsets learn from: FILE.jsonl (rows of domain id), or demo:NAME. Default: demo:truth-train."
K_HELP = "How many heads: 16, or a share such as 3%."
SEEDS_HELP = "Runs of every ranker that trains or draws, and of the offsets' training, with seeds 0, 1, ..."
DRAWS_HELP = "Random sets of as many heads, each checked in the same way."
LR_HELP = "Offsets' learning rate. Default: the LoFiT paper's for a model of this size (1e-2, above 10B parameters 2e-2)."
SELECT_LR_HELP = "Selection's learning rate. Default: the paper's (5e-3, above 10B 1e-3)."
L1_HELP = "Selection's penalty. Default: the paper's (5e-4, above 10B 1e-3)."
EPOCHS_HELP = "Passes over the training rows, at most, in selection and in the offsets' training. Default: 5."
TRAIN_BATCH_HELP = "Rows a step of training. Default: 8, the paper's."
LOSS_HELP = "ce: cross-entropy of the answer; dpo: the answer against the contrast (or the wrong choices). Default: ce."


def heads(
    base: str | None = typer.Option(None, "--base", "--model", help=common.MODEL_HELP),
    tuned: str | None = typer.Option(None, help="Its fine-tuned version, for rankers and checks that need a pair. Default: none."),
    train: str | None = typer.Option(None, "--train", "--data", help=TRAIN_HELP),
    suite: list[str] | None = typer.Option(None, help=common.SUITES_HELP + " Default: demo:truth."),
    by: str | None = typer.Option(
        None,
        help="Rankers, with commas between: lofit, lofit-relative, lofit-effect, lofit-offset, jola, iti, mass-mean, mean-diff, ablate, "
        "random; with --tuned also patch, graft, atp, update. Default: lofit,lofit-relative,iti,mean-diff; with --tuned atp,update too.",
    ),
    k: str = typer.Option("3%", help=K_HELP),
    check: str | None = typer.Option(
        None, help="offsets, graft (with --tuned), none; with commas for both. Default: offsets, and graft with --tuned."
    ),
    seeds: int = typer.Option(1, min=1, help=SEEDS_HELP),
    draws: int = typer.Option(3, min=0, help=DRAWS_HELP),
    validation: str | None = typer.Option(None, help="Rows that judge each epoch of the offsets' training. Default: a fifth of --train."),
    every: bool = typer.Option(False, "--every", help="Also learn and rank from rows that are out of distribution."),
    rank_metric: str | None = typer.Option(None, help="Whose change patch, graft, ablate and atp rank by. Default: the log-probability."),
    magnitude: bool = typer.Option(False, "--magnitude", help="patch, graft, ablate, atp: rank by size, helpful or harmful."),
    steps: int = typer.Option(0, min=0, help="atp: integrated gradients with so many steps; 0 for one gradient."),
    lr: float | None = typer.Option(None, help=LR_HELP),
    select_lr: float | None = typer.Option(None, help=SELECT_LR_HELP),
    l1: float | None = typer.Option(None, help=L1_HELP),
    epochs: int | None = typer.Option(None, help=EPOCHS_HELP),
    train_batch: int | None = typer.Option(None, help=TRAIN_BATCH_HELP),
    loss: str | None = typer.Option(None, help=LOSS_HELP),
    norms: str | None = typer.Option(None, help=common.NORMS_HELP),
    embed: str | None = typer.Option(None, help=common.EMBED_HELP),
    metric: str | None = typer.Option(None, help="Metrics, with commas between. Default: the main one of each suite's task."),
    limit: int | None = typer.Option(None, help=common.LIMIT_HELP + " Of --suite only."),
    batch_size: int = typer.Option(128, help="Prompts at a time; changes speed and memory, not results."),
    call_tokens: int | None = typer.Option(None, min=1, help=common.CALL_HELP),
    device: str = typer.Option("auto", help=common.DEVICES_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    seed: int = typer.Option(0, min=0, help="Of the random heads, of the bootstrap and of --limit."),
    store: Path = typer.Option(common.STORE, help=common.STORE_HELP),
    no_store: bool = typer.Option(False, "--no-store", help="Keep no cells."),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/heads-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Rank attention heads in several ways, compare the rankings, and do the same to each one's top, bottom and random heads.

    Writes result.nc, meta.json, figure.html (the check), maps.html and agreement.html into a run folder and prints its path.

    Example: taia-lens heads --limit 100

    Example: taia-lens heads --by lofit,iti,patch,atp --k 3% --base ./base --tuned ./tuned --train train.jsonl --suite test.jsonl
    """
    started = time.time()
    options = common.PairOptions(base, tuned, device, dtype, allow_pickle, trust_remote_code, call_tokens)
    if base is None and tuned is not None:
        raise PairError("--tuned was given without --base; give both, or neither for the demo's base")
    one = common.ModelOptions(base, device, dtype, allow_pickle, trust_remote_code, call_tokens)
    sides = common.check_side("norms", norms), common.check_side("embed", embed)
    names = common.names(by, "by") if by is not None else None
    checks = None if check is None else () if check == "none" else common.names(check, "check")
    metrics = None if metric is None else common.names(metric, "metric")
    learn = one_of(train, "train", "demo:truth-train", options)
    suites = common.read_suites(suite if suite or base else ["demo:truth"], options, limit=limit, seed=seed)
    judge = None if validation is None else one_of(validation, "validation", "", options)
    folder = common.run_folder(out, "heads")
    with common.maybe_store(None if no_store else store) as cells:
        with common.status("loading"):
            from taia_lens.rankers import Options
            from taia_lens.studies import heads as study

            subject = one.load() if tuned is None else options.load()
        tuning, selecting = settings(subject, lr=lr, select_lr=select_lr, l1=l1, epochs=epochs, loss=loss, train_batch=train_batch)
        ranking = Options(
            metric=rank_metric, batch_size=batch_size, steps=steps, every=every, selecting=selecting, tuning=tuning, magnitude=magnitude
        )
        result = study.heads(
            subject,
            learn,
            suites,
            by=names or (study.BY if tuned is None else (*study.BY, "atp", "update")),
            k=k,
            check=checks,
            draws=draws,
            seeds=tuple(range(seeds)),
            options=ranking,
            settings=tuning,
            validation=judge,
            norms=sides[0],
            embed=sides[1],
            metrics=metrics,
            batch_size=batch_size,
            seed=seed,
            store=cells,
            progress=sys.stderr.isatty(),
        )
    meta = common.meta(subject, started=started, seed=seed) | {"limit": limit, "train": common.suite_meta(learn, train)}
    asked = suite or [None] * len(suites)  # type: ignore[list-item]
    meta |= {"suites": [common.suite_meta(rows, text) for rows, text in zip(suites, asked, strict=True)]}
    _report(folder, result, meta, as_json)


def one_of(asked: str | None, what: str, default: str, options: common.PairOptions) -> Suite:
    """The suite of an option; the demo's where the demo's base is used and none is named."""
    if asked is None and not options.demo:
        raise SuiteError(f"your own model needs rows to learn from: give --{what} FILE.jsonl (rows with prompt, answer and domain)")
    return common.one_suite(asked or default, options)


def settings(
    subject: Pair | Loaded,
    *,
    lr: float | None,
    select_lr: float | None,
    l1: float | None,
    epochs: int | None,
    loss: str | None,
    train_batch: int | None,
) -> tuple[Settings, Settings]:
    """How offsets are trained, and how heads are selected: the paper's by size of model, but for what was asked."""
    from taia_lens.loaded import Loaded
    from taia_lens.lofit import select_settings, tune_settings

    n = (subject if isinstance(subject, Loaded) else subject.loaded("base")).n_parameters
    tuning, selecting = tune_settings(n), select_settings(n)
    if epochs is not None:
        tuning, selecting = replace(tuning, epochs=epochs), replace(selecting, epochs=epochs)
    if train_batch is not None:
        tuning, selecting = replace(tuning, batch_size=train_batch), replace(selecting, batch_size=train_batch)
    if loss is not None:
        tuning, selecting = replace(tuning, loss=loss), replace(selecting, loss=loss)
    selecting = replace(selecting, lr=selecting.lr if select_lr is None else select_lr, l1=selecting.l1 if l1 is None else l1)
    return (tuning if lr is None else replace(tuning, lr=lr)), selecting


def _report(folder: Path, result: xr.Dataset, meta: dict[str, Any], as_json: bool) -> None:
    from taia_lens import plots, results, summaries, tables

    summary = summaries.heads_summary(result)
    said = summaries.heads_sentences(summary)
    shown = common.console()
    for note in result.attrs["notes"]:
        print(f"taia-lens: note: {note}", file=sys.stderr)
    a = result.attrs
    pair = f"base {a.get('base')}, tuned {a.get('tuned')}; TAIA takes norms of {a.get('norms')}, embeddings of {a.get('embed')}"
    shown.print(pair if "tuned" in a else f"model {a['model']}", markup=False, soft_wrap=True)
    for table in tables.heads_tables(summary):
        shown.print(table)
    shown.print(tables.heads_note(summary), markup=False, soft_wrap=True)
    for sentence in said:
        shown.print(sentence, markup=False, soft_wrap=True)
    figures = {"maps.html": plots.head_maps_figure(summary), "agreement.html": plots.agreement_figure(summary)}
    figures |= {"figure.html": plots.heads_figure(summary)} if result.attrs["checks"] else {}
    writers = {name: lambda path, figure=figure: figure.write_html(path, include_plotlyjs=True) for name, figure in figures.items()}
    results.write_run(folder, result, meta | {"sentences": said}, writers)
    if as_json:
        print(json.dumps({"run": str(folder), "sentences": said} | tables.heads_report(summary), indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)
