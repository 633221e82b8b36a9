"""`taia-lens lofit`: which heads learning wants to scale, offsets on them, and what becomes of the adapter."""

from __future__ import annotations

import typer

from taia_lens.cli.lofit import paper, train, use

app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
app.command("select")(train.select)
app.command("fit")(train.fit)
app.command("apply")(use.apply)
app.command("export")(use.export)
app.command("paper")(paper.paper)


@app.callback()
def lofit(context: typer.Context) -> None:
    """Choose heads by what training wants to scale (LoFiT), fit offsets on them; apply the adapter, export it as a checkpoint."""
    if context.invoked_subcommand is None:
        print(context.get_help())
