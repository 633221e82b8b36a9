"""`taia-lens attention`: where one head looks on one prompt, in base and in tuned."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import typer

from taia_lens.cli import common


def attention(
    prompt: str = typer.Option(..., help="One prompt, read as it stands."),
    layer: int = typer.Option(..., help="The head's layer, from 0."),
    head: int = typer.Option(..., help="Its number, from 0."),
    base: str | None = typer.Option(None, help=common.BASE_HELP),
    tuned: str | None = typer.Option(None, help=common.TUNED_HELP),
    device: str = typer.Option("auto", help=common.DEVICES_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/attention-DATE-TIME."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Draw one head's attention on one prompt: base, tuned, and their difference.

    Writes result.nc, meta.json and figure.html into a run folder and prints its path.

    Example: taia-lens attention --prompt "color user please Quentin Jana please answer:" --layer 0 --head 3
    """
    started = time.time()
    options = common.PairOptions(base, tuned, device, dtype, allow_pickle, trust_remote_code)
    options.check()
    folder = common.run_folder(out, "attention")
    with common.status("loading the pair"):
        pair = options.load()
    from taia_lens import plots, results
    from taia_lens.studies.attention import attention as study

    found = study(pair, prompt, layer, head)
    figure = plots.attention_figure(found)
    meta = common.meta(pair, started=started, seed=None) | {"prompt": prompt}
    results.write_run(folder, found, meta, {"figure.html": lambda path: figure.write_html(path, include_plotlyjs=True)})
    for note in pair.report.notes:
        print(f"taia-lens: note: {note}", file=sys.stderr)
    print(folder)
