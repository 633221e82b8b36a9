"""`taia-lens demo`: the embedded pair, its model card, and its training recipe."""

from __future__ import annotations

from pathlib import Path

import typer

from taia_lens.cli import common

app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)


@app.callback()
def show(context: typer.Context) -> None:
    """The embedded demo pair: where it is, its suites, its model card; and how to make it again.

    Example: taia-lens demo
    """
    if context.invoked_subcommand is not None:
        return
    from taia_lens.demo import BASE, CARD, SUITES, TUNED

    print(f"base   {BASE}\ntuned  {TUNED}")
    for name, what in SUITES.items():
        print(f"suite  demo:{name:14s} {what}")
    print(f"\n{CARD.read_text(encoding='utf-8')}")


@app.command()
def train(
    out: Path = typer.Option(..., help="Folder for the base, the adapters, the suites and the measurements; resumes what it finds there."),
    seed: int = typer.Option(0, min=0, help="Of the base's training and of the first tuning run; further runs use seed + 1, seed + 2."),
    seeds: int = typer.Option(3, min=1, help="How many tuning runs to make and measure."),
    steps: int | None = typer.Option(None, min=1, help="Pretraining steps. Default: the recipe's."),
    device: str = typer.Option("auto", help=common.DEVICE_HELP),
) -> None:
    """Make the demo pair again: pretrain the base, tune the adapters, measure, and write the model card.

    Takes an hour or two on 2 CPU cores. Stopped and started again, the base goes on from its last saved step, and adapters that
    are whole are kept.

    Example: taia-lens demo train --out demo-run
    """
    from taia_lens.demo.make import make_demo
    from taia_lens.loading.models import resolve_device

    make_demo(out, seed=seed, n_seeds=seeds, steps=steps, device=resolve_device(device))
    print(out)
