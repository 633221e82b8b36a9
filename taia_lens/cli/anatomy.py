"""`taia-lens anatomy`: what fine-tuning did to the weights, with no data at all."""

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


def anatomy(
    base: str | None = typer.Option(None, help=common.BASE_HELP),
    tuned: str | None = typer.Option(None, help=common.TUNED_HELP),
    most: int = typer.Option(16, min=1, help="Overlaps compare at most this many singular directions."),
    device: str = typer.Option("auto", help=common.DEVICES_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/anatomy-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Measure the update itself: its size, its rank, and how it lies in the base weights, by layer and projection.

    Writes result.nc, meta.json and figure.html into a run folder and prints the folder's path.

    Example: taia-lens anatomy

    Example: taia-lens anatomy --base ./base --tuned ./adapter --device cuda
    """
    started = time.time()
    options = common.PairOptions(base, tuned, device, dtype, allow_pickle, trust_remote_code)
    options.check()
    folder = common.run_folder(out, "anatomy")
    with common.status("loading and checking the pair"):
        from taia_lens.studies import anatomy as study

        pair = options.load()
    result = study.anatomy(pair, most=most, progress=sys.stderr.isatty())
    _report(folder, pair, result, common.meta(pair, started=started, seed=None), as_json)


def _report(folder: Path, pair: Pair, result: xr.Dataset, meta: dict[str, Any], as_json: bool) -> None:
    from taia_lens import plots, results, tables

    shown = common.console()
    for note in pair.report.notes:
        print(f"taia-lens: note: {note}", file=sys.stderr)
    shown.print(f"base {result.attrs['base']}, tuned {result.attrs['tuned']}", markup=False)
    for table in tables.anatomy_tables(result):
        shown.print(table)
    figure = plots.anatomy_figure(result)
    results.write_run(folder, result, meta, {"figure.html": lambda path: figure.write_html(path, include_plotlyjs=True)})
    if as_json:
        print(json.dumps({"run": str(folder), "results": tables.anatomy_records(result)}, indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)
