"""`taia-lens lofit apply` and `lofit export`: an adapter of scales on prompts, and folded into a checkpoint."""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common
from taia_lens.cli.graft import tensor_table

if TYPE_CHECKING:
    import xarray as xr

    from taia_lens.export.scales import ExportedScales
    from taia_lens.scales import Scales

ADAPTER_HELP = "A folder of scales, as 'taia-lens lofit fit' writes it."


def apply(
    adapter: list[Path] = typer.Argument(..., help=f"{ADAPTER_HELP} Several for several, each applied alone.", show_default=False),
    base: str | None = typer.Option(None, "--base", "--model", help=common.MODEL_HELP),
    suite: list[str] | None = typer.Option(None, help=f"{common.SUITES_HELP} Default with the demo's base: demo:truth."),
    metric: str | None = typer.Option(None, help="Metrics, with commas between. Default: the main one of each suite's task."),
    limit: int | None = typer.Option(None, help=common.LIMIT_HELP),
    other_model: bool = typer.Option(False, "--other-model", help=common.OTHER_MODEL_HELP),
    batch_size: int = typer.Option(64, help="Prompts at a time; changes speed and memory, not results."),
    call_tokens: int | None = typer.Option(None, min=1, help=common.CALL_HELP),
    device: str = typer.Option("auto", help=common.DEVICE_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    seed: int = typer.Option(0, min=0, help="Of the bootstrap and of --limit."),
    store: Path = typer.Option(common.STORE, help=common.STORE_HELP),
    no_store: bool = typer.Option(False, "--no-store", help="Keep no cells."),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/lofit-apply-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Score base, and base under an adapter, in and out of distribution: paired differences with intervals.

    Any other study takes the adapter as the tuned side of a pair: taia-lens layers --base BASE --tuned ADAPTER. Writes result.nc
    and meta.json into a run folder and prints the folder's path.

    Example: taia-lens lofit apply adapter

    Example: taia-lens lofit apply adapter --base ./base --suite id=train_like.jsonl --suite ood=other.jsonl
    """
    started = time.time()
    options = common.ModelOptions(base, device, dtype, allow_pickle, trust_remote_code, call_tokens)
    asked = suite or (["demo:truth"] if options.demo else None)
    suites = common.read_suites(asked, options, limit=limit, seed=seed)
    metrics = None if metric is None else common.names(metric, "metric")
    folder = common.run_folder(out, "lofit-apply")
    with common.maybe_store(None if no_store else store) as cells:
        with common.status("loading"):
            from taia_lens.scales import load_scales
            from taia_lens.studies.adapters import score_adapters

            adapters = {name: load_scales(path) for name, path in _named(adapter).items()}
            model = options.load()
        result = score_adapters(
            model,
            adapters,
            suites,
            other_model=other_model,
            metrics=metrics,
            batch_size=batch_size,
            seed=seed,
            store=cells,
            progress=sys.stderr.isatty(),
        )
    about = {name: _about(path, adapters[name]) for name, path in _named(adapter).items()}
    suite_meta = [common.suite_meta(rows, text) for rows, text in zip(suites, asked or [None], strict=True)]  # type: ignore[list-item]
    meta = common.meta(model, started=started, seed=seed) | {"adapters": about, "suites": suite_meta, "limit": limit}
    _report(folder, result, meta, about, as_json)


def export(
    adapter: Path = typer.Argument(..., help=ADAPTER_HELP, show_default=False),
    out: Path = typer.Option(..., help="The folder to write; must not exist."),
    base: str | None = typer.Option(None, "--base", "--model", help=common.MODEL_HELP),
    other_model: bool = typer.Option(False, "--other-model", help=common.OTHER_MODEL_HELP),
    no_verify: bool = typer.Option(False, "--no-verify", help="Do not load what was written and hold it against base under the adapter."),
    device: str = typer.Option("auto", help=common.DEVICE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Fold an adapter into its base: a checkpoint that transformers and every other tool loads, with no hook and no adapter.

    1 + A goes into the output projections' columns, v into their bias, or into the values' bias where that is exact. An
    architecture without a place for v is refused in a line. Then it is loaded and held against base under the adapter.
    README.md in the folder says what was done, tensors.json lists every tensor. Prints the folder's path.

    Example: taia-lens lofit export adapter --out folded

    Example: taia-lens lofit export adapter --base ./base --out folded
    """
    from taia_lens.results import check_out

    check_out(out)
    with common.status("reading, folding and verifying"):
        from taia_lens.export.scales import export_scales

        common.quiet()
        gc.freeze()
        gc.enable()
        made = export_scales(
            common.model_source(base),
            adapter,
            out,
            verified=not no_verify,
            other_model=other_model,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    _report_export(made)


def _named(paths: list[Path]) -> dict[str, Path]:
    """Each adapter by its folder's name, or by its path where two have one name."""
    found = {path: path.expanduser().resolve().name for path in dict.fromkeys(paths)}
    short = list(found.values())
    return {name if short.count(name) == 1 else str(path): path for path, name in found.items()}


def _about(path: Path, scales: Scales) -> dict[str, Any]:
    """What meta.json keeps of an adapter."""
    sites = [str(site) for site in scales.sites]
    return {"path": str(path), "key": scales.key, "numbers": scales.numbers, "sites": sites, "made": dict(scales.made)}


def _report(folder: Path, result: xr.Dataset, meta: dict[str, Any], about: dict[str, dict[str, Any]], as_json: bool) -> None:
    from taia_lens import results, summaries, tables

    summary = summaries.adapters_summary(result)
    shown = common.console()
    for name, found in about.items():
        sites = ", ".join(found["sites"][:8]) + (f" and {len(found['sites']) - 8} more" if len(found["sites"]) > 8 else "")
        shown.print(
            f"{name} ({found['made'].get('method', 'scales')}): {found['numbers']:,} numbers at {sites}", markup=False, soft_wrap=True
        )
    for table in tables.adapters_tables(summary):
        shown.print(table)
    shown.print(tables.adapters_note(), markup=False, soft_wrap=True)
    results.write_run(folder, result, meta, {})
    if as_json:
        print(json.dumps({"run": str(folder), "adapters": about, "results": tables.adapters_records(summary)}, indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)


def _report_export(made: ExportedScales) -> None:
    common.console().print(tensor_table(made.tensors))
    print(f"offsets in: {made.slot}", file=sys.stderr)
    for note in made.notes:
        print(f"taia-lens: note: {note}", file=sys.stderr)
    print(f"verified: {made.proof or 'no (--no-verify)'}", file=sys.stderr)
    print(made.folder)
