"""`taia-lens lens`: what base, tuned and TAIA would say of one prompt if they stopped after each layer."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import typer

from taia_lens.cli import common


def lens(
    prompt: str = typer.Option(..., help="One prompt, read as it stands."),
    token: list[str] | None = typer.Option(
        None, "--token", "--answer", help="Follow a text's first token (with its leading space); several times for several."
    ),
    base: str | None = typer.Option(None, help=common.BASE_HELP),
    tuned: str | None = typer.Option(None, help=common.TUNED_HELP),
    norms: str | None = typer.Option(None, help=common.NORMS_HELP),
    embed: str | None = typer.Option(None, help=common.EMBED_HELP),
    device: str = typer.Option("auto", help=common.DEVICES_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/lens-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Read each layer's residual stream as a prediction of what follows one prompt (logit lens), in base, tuned and TAIA.

    Writes result.nc, meta.json and figure.html into a run folder and prints its path.

    Example: taia-lens lens --prompt "color user please Quentin Jana please answer:" --token " silver"
    """
    started = time.time()
    options = common.PairOptions(base, tuned, device, dtype, allow_pickle, trust_remote_code)
    options.check()
    sides = common.check_side("norms", norms), common.check_side("embed", embed)
    folder = common.run_folder(out, "lens")
    with common.status("loading the pair"):
        pair = options.load()
    from taia_lens import plots, results, tables
    from taia_lens.studies.lens import lens as study

    found = study(pair, prompt, token or (), norms=sides[0], embed=sides[1])
    figure = plots.lens_figure(found)
    meta = common.meta(pair, started=started, seed=None) | {"prompt": prompt}
    results.write_run(folder, found, meta, {"figure.html": lambda path: figure.write_html(path, include_plotlyjs=True)})
    for note in pair.report.notes:
        print(f"taia-lens: note: {note}", file=sys.stderr)
    shown = common.console()
    shown.print(tables.lens_table(found))
    if as_json:
        print(json.dumps({"run": str(folder), "results": tables.lens_records(found)}, indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)
