"""`taia-lens steer`: ITI's and RepE's directions added to a model, by strength, beside what LoFiT learnt."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common
from taia_lens.errors import SuiteError, TaiaLensError
from taia_lens.sites import Site, parse_sites, parse_span

if TYPE_CHECKING:
    import xarray as xr

    from taia_lens.scales import Scales


def steer(
    base: str | None = typer.Option(None, "--base", "--model", help=common.MODEL_HELP),
    train: str | None = typer.Option(
        None, "--train", "--data", help="Rows with right and wrong answers to fit on. Default, with the demo: demo:truth-train."
    ),
    suite: list[str] | None = typer.Option(None, help=common.SUITES_HELP + " Default, with the demo: demo:truth."),
    validation: str | None = typer.Option(None, help="Rows that alpha is chosen on. Default: a fifth of --train, which is not fitted on."),
    method: str = typer.Option("iti", help="iti (a probe's weight), iti-mass-mean, repe (first principal component), repe-mean."),
    k: str = typer.Option("3%", "--k", help="iti: how many heads, 16 or 3%, those that a probe reads best."),
    heads: str | None = typer.Option(None, help="iti: these heads instead: L3.h5,L4.h0-2."),
    layer: str | None = typer.Option(None, help="repe: after which layers: 12, 8-15, 0,3,8-9, or all. Default: the middle half."),
    alphas: str | None = typer.Option(None, help="In standard deviations along the direction. Default: up to 30 (iti), to 5 (repe)."),
    scales: list[str] | None = typer.Option(None, help="DIR or NAME=DIR: what LoFiT (or RED) learnt, on the same prompts; several times."),
    controls: int = typer.Option(3, min=0, help="How many random directions of the same length."),
    metric: str | None = typer.Option(None, help="Metrics, with commas between. Default: the main one of each suite's task."),
    limit: int | None = typer.Option(None, help=common.LIMIT_HELP),
    batch_size: int = typer.Option(64, help="Prompts at a time; changes speed and memory, not results."),
    call_tokens: int | None = typer.Option(None, min=1, help=common.CALL_HELP),
    device: str = typer.Option("auto", help=common.DEVICE_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    seed: int = typer.Option(0, min=0, help="Of the held-out rows, the folds, the random directions, the bootstrap and --limit."),
    store: Path = typer.Option(common.STORE, help=common.STORE_HELP),
    no_store: bool = typer.Option(False, "--no-store", help="Keep no cells."),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/steer-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Steer a model by a direction at several strengths, in and out of distribution, beside scales that were learnt.

    alpha is chosen on validation rows and reported on the prompts; random directions of the same length are the control. Writes
    result.nc, meta.json and figure.html into a run folder and prints the folder's path.

    Example: taia-lens steer --limit 200

    Example: taia-lens steer --base ./base --train train.jsonl --suite id=a.jsonl --suite ood=b.jsonl --scales lofit=runs/lofit
    """
    started = time.time()
    options = common.ModelOptions(base, device, dtype, allow_pickle, trust_remote_code, call_tokens)
    asked = _asked(base, train, suite)
    suites, fit = common.read_suites(asked[1:], options, limit=limit, seed=seed), common.one_suite(asked[0], options)
    strengths, sites = None if alphas is None else common.numbers(alphas, "alphas"), None if heads is None else _heads(heads)
    if layer not in (None, "all"):
        parse_span(str(layer), "layer")
    folder = common.run_folder(out, "steer")
    with common.maybe_store(None if no_store else store) as cells:
        with common.status("loading the model"):
            from taia_lens.studies.steering import steer as study

            arms, loaded = _arms(scales or []), options.load()
        result = study(
            loaded,
            fit,
            suites,
            validation=None if validation is None else common.one_suite(validation, options),
            method=method,
            k=k,
            heads=sites,
            layers=layer,
            alphas=strengths,
            arms=arms,
            controls=controls,
            metrics=None if metric is None else common.names(metric, "metric"),
            batch_size=batch_size,
            seed=seed,
            store=cells,
            progress=sys.stderr.isatty(),
        )
    used = [common.suite_meta(rows, text) for rows, text in zip((fit, *suites), asked, strict=True)]
    meta = common.meta(loaded, started=started, seed=seed)
    _report(folder, result, meta | {"train": used[0], "suites": used[1:], "limit": limit}, as_json)


def _asked(base: str | None, train: str | None, suite: list[str] | None) -> list[str]:
    """What to fit on, then the prompts; the demo's truth task where the demo's base is steered and none is named."""
    if base not in (None, common.DEMO_BASE) and (train is None or not suite):
        raise SuiteError("your own model needs --train FILE.jsonl (rows with right and wrong answers) and --suite FILE.jsonl")
    return [train or "demo:truth-train", *(suite or ["demo:truth"])]


def _heads(text: str) -> tuple[Site, ...]:
    found = tuple(dict.fromkeys(site for part in common.names(text, "heads") for site in parse_sites(part)))
    for site in found:
        if site.component != "head":
            raise TaiaLensError(f"--heads {text!r}: {site} is no head; write L3.h5, or L3.h0-2")
    return found


def _arms(asked: list[str]) -> dict[str, Scales]:
    """Scales by name; the folder's own where none is given."""
    from taia_lens.scales import load_scales

    found: dict[str, Scales] = {}
    for text in asked:
        name, _, path = ("", "", text) if Path(text).exists() or "=" not in text else text.partition("=")
        label = name or Path(path).resolve().name
        if label in found:
            raise TaiaLensError(f"two --scales are called {label!r}; write NAME=DIR to tell them apart")
        found[label] = load_scales(path)
    return found


def _report(folder: Path, result: xr.Dataset, meta: dict[str, Any], as_json: bool) -> None:
    from taia_lens import plots, results, summaries, tables

    summary = summaries.steering_summary(result)
    shown = common.console()
    for note in result.attrs["notes"]:
        print(f"taia-lens: note: {note}", file=sys.stderr)
    shown.print(f"model {result.attrs['model']}, {result.attrs['method']} at {result.attrs['sites']}", markup=False, soft_wrap=True)
    for table in tables.steering_tables(summary):
        shown.print(table)
    shown.print(tables.steering_note(summary), markup=False, soft_wrap=True)
    figure = plots.steering_figure(summary)
    results.write_run(folder, result, meta, {"figure.html": lambda path: figure.write_html(path, include_plotlyjs=True)})
    if as_json:
        print(json.dumps({"run": str(folder), "results": tables.steering_records(summary)}, indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)
