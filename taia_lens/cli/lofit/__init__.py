"""`taia-lens lofit`: which heads learning wants to scale, offsets on them, and what becomes of the adapter."""

from __future__ import annotations

from importlib.util import find_spec

import typer

from taia_lens.cli.lofit import use

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="LoFiT: choose heads, fit offsets on them, apply and export the adapter."
)
if find_spec("taia_lens.cli.lofit.train") is not None:
    from taia_lens.cli.lofit import train  # type: ignore[attr-defined,unused-ignore]

    app.command("select")(train.select)
    app.command("fit")(train.fit)
app.command("apply")(use.apply)
app.command("export")(use.export)


@app.callback()
def lofit(context: typer.Context) -> None:
    """Choose heads by what training wants to scale (LoFiT), fit offsets on them; apply the adapter, export it as a checkpoint."""
    if context.invoked_subcommand is None:
        print(context.get_help())
