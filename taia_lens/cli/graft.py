"""`taia-lens graft`: the winner as a checkpoint."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from taia_lens.cli import common
from taia_lens.errors import TaiaLensError
from taia_lens.recipe_text import NAMED, parse_recipe

if TYPE_CHECKING:
    from rich.table import Table

    from taia_lens.export import Exported, TensorNote


def graft(
    recipe: str = typer.Option(..., help="base, vanilla, taia, taif, or grafts: 'base; graft L8-15.attn <- tuned'."),
    out: Path = typer.Option(..., help="The folder to write; must not exist."),
    base: str | None = typer.Option(None, help=common.BASE_HELP),
    tuned: str | None = typer.Option(None, help=common.TUNED_HELP),
    norms: str | None = typer.Option(None, help=common.NORMS_HELP),
    embed: str | None = typer.Option(None, help=common.EMBED_HELP),
    form: str = typer.Option("checkpoint", "--as", help="checkpoint; or adapter, where tuned is one: with only the modules taken."),
    no_verify: bool = typer.Option(False, "--no-verify", help="Do not load what was written; saves the memory of both models."),
    device: str = typer.Option("auto", help=common.DEVICE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Write the model that a recipe makes, as a checkpoint that transformers and every other tool loads.

    Tensors go from file to file one at a time, in the base's dtype and shards. README.md in the folder says where all came from,
    tensors.json lists every tensor. Then it is loaded and held against the live graft. Prints the folder's path.

    Example: taia-lens graft --recipe taia --out taia

    Example: taia-lens graft --recipe 'base; graft L8-15.attn <- tuned' --base ./base --tuned ./adapter --out half --as adapter
    """
    from taia_lens.results import check_out

    common.PairOptions(base, tuned, device, "auto", False, trust_remote_code).check()
    sides = common.check_side("norms", norms), common.check_side("embed", embed)
    if form not in ("checkpoint", "adapter"):
        raise TaiaLensError(f"no --as {form!r}; write checkpoint or adapter")
    if recipe.strip().lower() not in NAMED:
        parse_recipe(recipe)
    check_out(out)
    with common.status("reading, writing and verifying"):
        from taia_lens import export
        from taia_lens.demo import BASE, TUNED

        common.quiet()
        gc.freeze()
        gc.enable()
        made = export.export_graft(
            base or BASE,
            tuned or TUNED,
            recipe,
            out,
            norms=sides[0],
            embed=sides[1],
            form=form,  # type: ignore[arg-type]  # checked above
            verified=not no_verify,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    _report(made)


def _report(made: Exported) -> None:
    shown = common.console()
    shown.print(f"{made.recipe}", markup=False)
    shown.print(tensor_table(made.tensors))
    for note in made.notes:
        print(f"taia-lens: note: {note}", file=sys.stderr)
    print(f"verified: {made.verified or 'no (--no-verify)'}", file=sys.stderr)
    print(made.folder)


def tensor_table(tensors: Sequence[TensorNote]) -> Table:
    """How many tensors of each component come from where."""
    from rich.table import Table

    from taia_lens.export.card import counts

    found = counts(tensors)
    kinds = list(dict.fromkeys(kind for _, kind in found))
    table = Table("tensors", *kinds)
    for component in dict.fromkeys(component for component, _ in found):
        table.add_row(component, *(str(found.get((component, kind), 0)) for kind in kinds))
    return table
