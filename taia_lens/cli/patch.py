"""`taia-lens patch`: the main job."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common
from taia_lens.metric_names import check_metrics, metrics_of
from taia_lens.sites import parse_positions, parse_span, patchable

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console


_EACH = "each: a map of all, each patched by itself, counted from the start; each-from-end: counted from the end (-1 predicts the answer)."


def patch(
    component: str = typer.Option(..., help="attn, mlp, resid or head; attn,mlp for several."),
    layer: str = typer.Option("all", help="A layer, a range, a list, or all: 12, 8-15, 0,3,8-9. Counted from 0."),
    head: str | None = typer.Option(None, help="With --component head: which heads; all where left out."),
    pos: str = typer.Option("all", help="Token positions: all, last, or numbers: 0,3,-1 (negative from the prompt's end). " + _EACH),
    source: str = typer.Option("tuned", help="Which side the activation comes from; the other one is the host."),
    metric: str = typer.Option("accuracy,logprob", help=f"One or several of {', '.join(metrics_of('next'))}."),
    base: str | None = typer.Option(None, help=common.BASE_HELP),
    tuned: str | None = typer.Option(None, help=common.TUNED_HELP),
    suite: str | None = typer.Option(None, help="A JSONL file of prompts, or demo:routing, demo:routing-order, demo:truth."),
    limit: int | None = typer.Option(None, help="At most this many prompts of each domain, drawn with --seed."),
    batch_size: int = typer.Option(128, help="Prompts at a time; changes speed and memory, not results."),
    call_tokens: int | None = typer.Option(None, min=1, help=common.CALL_HELP),
    device: str = typer.Option("auto", help=common.DEVICES_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    seed: int = typer.Option(0, min=0, help="Of the bootstrap and of --limit."),
    cache: Path | None = typer.Option(None, help="Keep the donor's activations in this folder and use them again."),
    store: Path | None = typer.Option(None, help=common.STORE_HELP),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/patch-DATE-TIME."),
    dry_run: bool = typer.Option(False, "--dry-run", help=common.DRY_HELP),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Put the tuned model's attention or FFN output back into the base, layer by layer, and measure what it does.

    Writes result.nc, meta.json and figure.html into a run folder and prints the folder's path.

    Example: taia-lens patch --component mlp --layer 12

    Example: taia-lens patch --component attn,mlp --layer all --pos each --limit 20

    Example: taia-lens patch --component attn,mlp --layer 8-15 --base ./base --tuned ./adapter --suite prompts.jsonl
    """
    started = time.time()
    options = common.PairOptions(base, tuned, device, dtype, allow_pickle, trust_remote_code, call_tokens)
    options.check()
    metrics = check_metrics(common.names(metric, "metric"))
    patchable(component, with_heads=head is not None)
    for asked, what in ((layer, "layer"), (head, "head")):
        if asked not in (None, "all"):
            parse_span(asked, what)
    positions = parse_positions(pos, each=True)
    rows = common.read_suite(None, options) if suite is None else common.one_suite(suite, options)
    rows = rows if limit is None else rows.limit(limit, seed=seed)
    folder = common.run_folder(out, "patch")
    with common.status("loading and checking the pair"):
        from taia_lens.studies import patching

        pair = options.load()
    if dry_run:
        cost = patching.patch_cost(
            pair,
            rows,
            component=component,
            layers=layer,
            heads=head,
            positions=positions,
            source=source,  # type: ignore[arg-type]  # the study says which there are
            batch_size=batch_size,
        )
        print(cost)
        return
    with common.maybe_store(store) as cells:
        result = patching.patch(
            pair,
            rows,
            component=component,
            layers=layer,
            heads=head,
            positions=positions,
            source=source,  # type: ignore[arg-type]  # the study says which there are
            metrics=metrics,
            batch_size=batch_size,
            seed=seed,
            cache=cache,
            store=cells,
            progress=sys.stderr.isatty(),
        )
    for note in pair.report.notes:
        print(f"taia-lens: note: {note}", file=sys.stderr)
    meta = common.meta(pair, started=started, seed=seed) | {"suite": common.suite_meta(rows, suite), "limit": limit}
    _report(folder, result, meta, as_json)


def _report(folder: Path, result: xr.Dataset, meta: dict[str, Any], as_json: bool) -> None:
    from taia_lens import plots, results, summaries, tables

    summary = summaries.patch_summary(result)
    figure = plots.patch_figure(summary)
    shown = common.console()
    print_summary(shown, summary)  # before writing: a disk that is full must not cost the numbers
    results.write_run(folder, result, meta, {"figure.html": lambda path: figure.write_html(path, include_plotlyjs=True)})
    if as_json:
        print(json.dumps({"run": str(folder), "attrs": result.attrs, "results": tables.records(summary)}, indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)


def print_summary(shown: Console, summary: xr.Dataset) -> None:
    """The tables of a patching result, with what they are about above and the noise floor below."""
    from taia_lens import tables

    a = summary.attrs
    shown.print(f"host {a['host']}, donor {a['donor']}, suite {a['suite']}; 95% paired bootstrap intervals", markup=False)
    for table in tables.patch_tables(summary):
        shown.print(table)
    shown.print(tables.noise_line(summary), markup=False)
