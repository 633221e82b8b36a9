"""`taia-lens layers`: which layers, and which parts of them, carry the gain."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common
from taia_lens.sites import parse_span

if TYPE_CHECKING:
    import xarray as xr

    from taia_lens.pair import Pair


def layers(
    base: str | None = typer.Option(None, help=common.BASE_HELP),
    tuned: str | None = typer.Option(None, help=common.TUNED_HELP),
    suite: list[str] | None = typer.Option(None, help=common.SUITES_HELP),
    unit: str = typer.Option("component", help="What is credited at each layer: component (attn, mlp), projection, or head."),
    view: str | None = typer.Option(None, help="Some of alone, last, cumulative (components only), shapley. Default: all."),
    layer: str = typer.Option("all", help="Layers whose parts are credited: 12, 8-15, 0,3,8-9, or all."),
    budget: int = typer.Option(400, min=1, help="Shapley: at most this many recipes are evaluated; one pair of orders is the least."),
    target_se: float | None = typer.Option(None, help="Shapley: stop once every part's standard error is at most this."),
    metric: str | None = typer.Option(None, help="Metrics, with commas between. Default: the main one of each suite's task."),
    limit: int | None = typer.Option(None, help=common.LIMIT_HELP),
    batch_size: int = typer.Option(128, help="Prompts at a time; changes speed and memory, not results."),
    call_tokens: int | None = typer.Option(None, min=1, help=common.CALL_HELP),
    device: str = typer.Option("auto", help=common.DEVICES_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    seed: int = typer.Option(0, min=0, help="Of the permutations, of the bootstrap and of --limit."),
    store: Path = typer.Option(common.STORE, help=common.STORE_HELP),
    no_store: bool = typer.Option(False, "--no-store", help="Keep no cells."),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/layers-DATE-TIME."),
    dry_run: bool = typer.Option(False, "--dry-run", help=common.DRY_HELP),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Credit each layer's attention and FFN with their share of the gain, in and out of distribution.

    Writes result.nc, meta.json and figure.html into a run folder and prints the folder's path.

    Example: taia-lens layers --limit 200

    Example: taia-lens layers --base ./base --tuned ./tuned --suite id=a.jsonl --suite ood=b.jsonl --unit head --view alone
    """
    started = time.time()
    options = common.PairOptions(base, tuned, device, dtype, allow_pickle, trust_remote_code, call_tokens)
    options.check()
    if layer != "all":
        parse_span(layer, "layer")
    suites = common.read_suites(suite, options, limit=limit, seed=seed)
    folder = common.run_folder(out, "layers")
    views = None if view is None else [name.strip() for name in view.split(",")]
    metrics = None if metric is None else common.names(metric, "metric")
    with common.status("loading and checking the pair"):
        from taia_lens.studies import layers as study

        sampling = study.Sampling(target_se, budget, seed)
        pair = options.load()
    if dry_run:
        cost = study.layers_cost(
            pair, suites, unit=unit, views=views, which=layer, sampling=sampling, metrics=metrics, batch_size=batch_size
        )
        print(cost)
        return
    with common.maybe_store(None if no_store else store) as cells:
        result = study.layers(
            pair,
            suites,
            unit=unit,
            views=views,
            which=layer,
            sampling=sampling,
            metrics=metrics,
            batch_size=batch_size,
            seed=seed,
            store=cells,
            progress=sys.stderr.isatty(),
        )
    suite_meta = [common.suite_meta(rows, asked) for rows, asked in zip(suites, suite or [None], strict=True)]  # type: ignore[list-item]
    _report(folder, pair, result, common.meta(pair, started=started, seed=seed) | {"suites": suite_meta, "limit": limit}, as_json)


def _report(folder: Path, pair: Pair, result: xr.Dataset, meta: dict[str, Any], as_json: bool) -> None:
    from taia_lens import plots, results, summaries, tables

    summary = summaries.layers_summary(result)
    shown = common.console()
    for note in (*pair.report.notes, *result.attrs["notes"]):
        print(f"taia-lens: note: {note}", file=sys.stderr)
    shown.print(f"base {result.attrs['base']}, tuned {result.attrs['tuned']}", markup=False)
    views = tables.layers_tables(summary) if any(view in summary for view in ("alone", "last", "shapley")) else []
    for table in (*views, *tables.cumulated_tables(summary), *tables.shift_tables(summary)):
        shown.print(table)
    shown.print(tables.layers_note(summary), markup=False, soft_wrap=True)
    figure = plots.layers_figure(summary)
    results.write_run(folder, result, meta, {"figure.html": lambda path: figure.write_html(path, include_plotlyjs=True)})
    if as_json:
        print(json.dumps({"run": str(folder)} | tables.layers_report(summary), indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)
