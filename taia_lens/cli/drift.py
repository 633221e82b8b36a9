"""`taia-lens drift`: how far the representations move, layer by layer."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common

if TYPE_CHECKING:
    import xarray as xr

    from taia_lens.pair import Pair


def drift(
    base: str | None = typer.Option(None, help=common.BASE_HELP),
    tuned: str | None = typer.Option(None, help=common.TUNED_HELP),
    suite: list[str] | None = typer.Option(None, help=common.SUITES_HELP),
    norms: str | None = typer.Option(None, help=common.NORMS_HELP),
    embed: str | None = typer.Option(None, help=common.EMBED_HELP),
    limit: int | None = typer.Option(None, help=common.LIMIT_HELP),
    batch_size: int = typer.Option(64, help="Prompts at a time; changes speed and memory, not results."),
    device: str = typer.Option("auto", help=common.DEVICES_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    seed: int = typer.Option(0, min=0, help="Of the intervals and of --limit."),
    store: Path | None = typer.Option(None, help=common.STORE_HELP),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/drift-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Measure how far the residual stream drifts from the base in the tuned model and in TAIA: CKA and the residual measure.

    Writes result.nc, meta.json and figure.html into a run folder and prints the folder's path.

    Example: taia-lens drift --limit 200

    Example: taia-lens drift --base ./base --tuned ./tuned --norms tuned --embed tuned --suite id=a.jsonl --suite ood=b.jsonl
    """
    started = time.time()
    options = common.PairOptions(base, tuned, device, dtype, allow_pickle, trust_remote_code)
    options.check()
    sides = common.check_side("norms", norms), common.check_side("embed", embed)
    suites = common.read_suites(suite, options, limit=limit, seed=seed)
    folder = common.run_folder(out, "drift")
    with common.status("loading and checking the pair"):
        from taia_lens.studies import drift as study

        pair = options.load()
    with common.maybe_store(store) as cells:
        bar, (norm, embedding) = sys.stderr.isatty(), sides
        result = study.drift(pair, suites, norms=norm, embed=embedding, batch_size=batch_size, seed=seed, store=cells, progress=bar)
    suite_meta = [common.suite_meta(rows, suite[i] if suite else None) for i, rows in enumerate(suites)]
    _report(folder, pair, result, common.meta(pair, started=started, seed=seed) | {"suites": suite_meta, "limit": limit}, as_json)


def _report(folder: Path, pair: Pair, result: xr.Dataset, meta: dict[str, Any], as_json: bool) -> None:
    from taia_lens import plots, results, summaries, tables

    summary = summaries.drift_summary(result)
    shown = common.console()
    for note in pair.report.notes:
        print(f"taia-lens: note: {note}", file=sys.stderr)
    shown.print(f"base {result.attrs['base']}, tuned {result.attrs['tuned']}; taia is '{result.attrs['taia']}'", markup=False)
    for table in tables.drift_tables(summary):
        shown.print(table)
    shown.print(tables.drift_note(summary), markup=False, soft_wrap=True)
    figure = plots.drift_figure(summary)
    results.write_run(folder, result, meta, {"figure.html": lambda path: figure.write_html(path, include_plotlyjs=True)})
    if as_json:
        print(json.dumps({"run": str(folder), "results": tables.drift_records(summary)}, indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)
