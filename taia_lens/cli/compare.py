"""`taia-lens compare`: the grid of base, vanilla, TAIA, TAIF, their rivals and their controls."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common
from taia_lens.errors import RecipeError
from taia_lens.recipe import Recipe, Side
from taia_lens.recipe_text import named_recipe

if TYPE_CHECKING:
    import xarray as xr

    from taia_lens.pair import Pair


def compare(
    base: str | None = typer.Option(None, help=common.BASE_HELP),
    tuned: str | None = typer.Option(None, help=common.TUNED_HELP),
    suite: list[str] | None = typer.Option(None, help=common.SUITES_HELP),
    norms: str | None = typer.Option(None, help=common.NORMS_HELP),
    embed: str | None = typer.Option(None, help=common.EMBED_HELP),
    toa: str | None = typer.Option(None, help="A run from the same base that trained attention only."),
    tof: str | None = typer.Option(None, help="A run from the same base that trained the FFN only."),
    recipe: list[str] | None = typer.Option(
        None, help="A further recipe: NAME='base; graft L8-15.attn <- tuned'. Several times for several."
    ),
    seeds: int = typer.Option(3, min=0, help="Draws of each random control."),
    scale: str = typer.Option("0.5", help="Controls: the whole update times these numbers."),
    keep: float | None = typer.Option(
        None, help="Control: fraction of the update kept at random. Default: the share of its entries that lie in attention."
    ),
    metric: str | None = typer.Option(None, help="Metrics, with commas between. Default: the main one of each suite's task."),
    limit: int | None = typer.Option(None, help=common.LIMIT_HELP),
    batch_size: int = typer.Option(128, help="Prompts at a time; changes speed and memory, not results."),
    call_tokens: int | None = typer.Option(None, min=1, help=common.CALL_HELP),
    device: str = typer.Option("auto", help=common.DEVICES_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    seed: int = typer.Option(0, min=0, help="Of the bootstrap and of --limit."),
    store: Path = typer.Option(common.STORE, help=common.STORE_HELP),
    no_store: bool = typer.Option(False, "--no-store", help="Keep no cells."),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/compare-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Hold TAIA (base with the tuned model's attention) against base, the tuned model, and controls, in and out of distribution.

    Writes result.nc, meta.json and figure.html into a run folder and prints the folder's path.

    Example: taia-lens compare

    Example: taia-lens compare --base ./base --tuned ./tuned --suite id=train_like.jsonl --suite ood=other.jsonl
    """
    started = time.time()
    options = common.PairOptions(base, tuned, device, dtype, allow_pickle, trust_remote_code, call_tokens)
    options.check()
    sides = common.check_side("norms", norms), common.check_side("embed", embed)
    further = _recipes(recipe or [], *sides)
    scales = common.numbers(scale, "scale")
    suites = common.read_suites(suite, options, limit=limit, seed=seed)
    folder = common.run_folder(out, "compare")
    with common.maybe_store(None if no_store else store) as cells:
        with common.status("loading and checking the pair"):
            from taia_lens.studies import grid

            controls = grid.Controls(seeds, scales, keep)
            pair = options.load()
            rivals = {
                name: replace(options, base=pair.origin.base, tuned=path).load() for name, path in (("TOA", toa), ("TOF", tof)) if path
            }
        result = grid.compare(
            pair,
            suites,
            norms=sides[0],
            embed=sides[1],
            rivals=rivals,
            controls=controls,
            recipes=further,
            metrics=None if metric is None else common.names(metric, "metric"),
            batch_size=batch_size,
            seed=seed,
            store=cells,
            progress=sys.stderr.isatty(),
        )
    suite_meta = [common.suite_meta(rows, asked) for rows, asked in zip(suites, suite or [None], strict=True)]  # type: ignore[list-item]
    _report(folder, pair, result, common.meta(pair, started=started, seed=seed) | {"suites": suite_meta, "limit": limit}, as_json)


def _recipes(asked: list[str], norms: Side | None, embed: Side | None) -> dict[str, Recipe]:
    out = {}
    for text in asked:
        name, sign, spelled = text.partition("=")
        if not sign or not name.strip() or not spelled.strip():
            raise RecipeError(f"cannot read --recipe {text!r}; give it a name: --recipe early='base; graft L0-3.attn <- tuned'")
        out[name.strip()] = named_recipe(spelled, norms=norms, embed=embed)
    return out


def _report(folder: Path, pair: Pair, result: xr.Dataset, meta: dict[str, Any], as_json: bool) -> None:
    from taia_lens import plots, results, summaries, tables

    summary = summaries.grid_summary(result)
    said = summaries.sentences(summary)
    shown = common.console()
    for note in (*pair.report.notes, *result.attrs["notes"]):
        print(f"taia-lens: note: {note}", file=sys.stderr)
    shown.print(
        f"base {result.attrs['base']}, tuned {result.attrs['tuned']}; TAIA and TAIF take norms of {result.attrs['norms']}, ",
        end="",
        markup=False,
    )
    shown.print(
        f"embeddings of {result.attrs['embed']}; q: sign-flip p, adjusted over all differences (false-discovery rate); * at most .05",
        markup=False,
        soft_wrap=True,
    )
    for table in tables.grid_tables(summary):
        shown.print(table)
    for sentence in said:
        shown.print(sentence, markup=False, soft_wrap=True)
    figure = plots.compare_figure(summary)
    meta = meta | {"sentences": said}
    results.write_run(folder, result, meta, {"figure.html": lambda path: figure.write_html(path, include_plotlyjs=True)})
    if as_json:
        record = {"run": str(folder), "sentences": said, "results": tables.grid_records(summary), "effects": tables.effect_records(summary)}
        print(json.dumps(record, indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)
