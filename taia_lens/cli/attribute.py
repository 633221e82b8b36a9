"""`taia-lens attribute`: what patching every site would do, estimated from one gradient, and how good an estimate that is."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common
from taia_lens.metric_names import check_gradient
from taia_lens.sites import parse_each, parse_span, patchable

if TYPE_CHECKING:
    import xarray as xr

_POSITIONS = "all (together), each (one by one, from the start), or each-from-end (-1 predicts the answer)."


def attribute(
    component: str = typer.Option("attn,mlp", help="attn, mlp, resid or head; attn,mlp for several."),
    layer: str = typer.Option("all", help="A layer, a range, a list, or all: 12, 8-15, 0,3,8-9. Counted from 0."),
    positions: str = typer.Option("all", "--pos", "--positions", help=_POSITIONS),
    source: str = typer.Option("tuned", help="Which side the activations come from; the other one is the host."),
    metric: str | None = typer.Option(None, help="logprob, prob, logit_diff or choice_logprob. Default: the task's log-probability."),
    steps: int = typer.Option(0, min=0, help="Integrate the gradient over so many steps, one component and layer at a time; 0: do not."),
    check: int = typer.Option(4, min=0, help="Patch so many of the strongest sites really, and as many others drawn at random."),
    base: str | None = typer.Option(None, help=common.BASE_HELP),
    tuned: str | None = typer.Option(None, help=common.TUNED_HELP),
    suite: str | None = typer.Option(None, help="A JSONL file of prompts, or demo:routing, demo:routing-order, demo:truth."),
    limit: int | None = typer.Option(None, help=common.LIMIT_HELP),
    batch_size: int = typer.Option(64, help="Sequences at a time; changes speed and memory, not results."),
    call_tokens: int | None = typer.Option(None, min=1, help=common.CALL_HELP),
    device: str = typer.Option("auto", help=common.DEVICES_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    seed: int = typer.Option(0, min=0, help="Of the sites drawn, of the bootstrap and of --limit."),
    store: Path | None = typer.Option(None, help="Where the check's finished cells are kept and found."),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/attribute-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Estimate what patching each site would do, for all of them from two forwards and one backward, and check the estimate.

    Writes result.nc, meta.json, figure.html and (with a check) check.html into a run folder and prints the folder's path.

    Example: taia-lens attribute --component attn,mlp --pos each-from-end

    Example: taia-lens attribute --component head --base ./base --tuned ./adapter --suite prompts.jsonl --check 8
    """
    started = time.time()
    options = common.PairOptions(base, tuned, device, dtype, allow_pickle, trust_remote_code, call_tokens)
    options.check()
    patchable(component, with_heads=False)
    if layer != "all":
        parse_span(layer, "layer")
    parse_each(positions)
    check_gradient(metric or "logprob")
    rows = common.read_suite(None, options) if suite is None else common.one_suite(suite, options)
    rows = rows if limit is None else rows.limit(limit, seed=seed)
    folder = common.run_folder(out, "attribute")
    with common.status("loading and checking the pair"):
        from taia_lens.studies.attribution import attribution

        pair = options.load()
    with common.maybe_store(store) as cells:
        result = attribution(
            pair,
            rows,
            component=component,
            layers=layer,
            positions=positions,
            source=source,  # type: ignore[arg-type]  # the study says which there are
            metric=metric,
            steps=steps,
            check=check,
            batch_size=batch_size,
            seed=seed,
            store=cells,
            progress=sys.stderr.isatty(),
        )
    for note in pair.report.notes:
        print(f"taia-lens: note: {note}", file=sys.stderr)
    meta = common.meta(pair, started=started, seed=seed) | {"suite": common.suite_meta(rows, suite), "limit": limit}
    _report(folder, result, meta, as_json)


def _report(folder: Path, result: xr.Dataset, meta: dict[str, Any], as_json: bool) -> None:
    from taia_lens import plots, results, summaries, tables

    summary = summaries.attribution_summary(result)
    figures = {"figure.html": plots.attribution_figure(summary)}
    if "check" in summary.dims:
        figures["check.html"] = plots.check_figure(summary)
    shown, note = common.console(), tables.attribution_note(summary)
    a = summary.attrs
    shown.print(f"host {a['host']}, donor {a['donor']}, suite {a['suite']}; 95% paired bootstrap intervals", markup=False)
    for table in tables.attribution_tables(summary):
        shown.print(table)
    shown.print(note, markup=False, soft_wrap=True)
    writers = {name: lambda path, figure=figure: figure.write_html(path, include_plotlyjs=True) for name, figure in figures.items()}
    results.write_run(folder, result, meta | {"sentences": [note]}, writers)
    if as_json:
        found = {"results": tables.records(summary), "check": tables.check_records(summary), "sentence": note}
        print(json.dumps({"run": str(folder), "attrs": result.attrs} | found, indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)
