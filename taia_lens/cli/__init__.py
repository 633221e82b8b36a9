"""`taia-lens`, the command. One command a study, with the study's own keyword names; torch loads only when work begins."""

from __future__ import annotations

import atexit
import gc
import signal
import sys

import typer

from taia_lens.cli import (
    anatomy,
    attention,
    attribute,
    check,
    compare,
    demo,
    drift,
    eval,
    graft,
    heads,
    layers,
    lens,
    lofit,
    patch,
    report,
    steer,
    suite,
    transfer,
    tune,
)
from taia_lens.errors import RecipeError, TaiaLensError, out_of_memory

app = typer.Typer(
    name="taia-lens",
    help="Find out which parts of a fine-tune help, where, and on what data.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
)
app.command("patch")(patch.patch)
app.command("attribute")(attribute.attribute)
app.command("compare")(compare.compare)
app.command("layers")(layers.layers)
app.command("heads")(heads.heads)
app.command("transfer")(transfer.transfer)
app.command("anatomy")(anatomy.anatomy)
app.command("drift")(drift.drift)
app.command("lens")(lens.lens)
app.command("attention")(attention.attention)
app.command("check")(check.check)
app.command("tune")(tune.tune)
app.command("steer")(steer.steer)
app.command("eval")(eval.evaluate)
app.command("graft")(graft.graft)
app.command("report")(report.report)
app.add_typer(lofit.app, name="lofit")
app.add_typer(demo.app, name="demo")
app.add_typer(suite.app, name="suite")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("taia-lens"))
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and exit.")) -> None:
    pass


def main() -> None:
    """Run the command: an error of the user's is one line and exit code 2, a bug keeps its traceback."""
    # Importing the model libraries makes millions of objects and no garbage; looking for some takes a fifth of the time.
    # `PairOptions.load` turns the collector on again, once all is imported.
    gc.disable()
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="taia-lens", standalone_mode=False)
    except TaiaLensError as error:
        print(f"taia-lens: {error}", file=sys.stderr)
        if isinstance(error, RecipeError) and error.shown:
            print(error.shown, file=sys.stderr)
        code = 2
    except typer.TyperException as error:  # what typer itself refuses: an unknown option, a value of the wrong kind
        print(f"taia-lens: {' '.join(error.format_message().split())}", file=sys.stderr)
        code = 2
    except OSError as error:
        if error.filename is None:
            raise
        # A file of the user's that cannot be used: no permission, a name too long, a disk that is full.
        print(f"taia-lens: {str(error.filename)[:200]}: {error.strerror}", file=sys.stderr)
        code = 2
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        print(f"taia-lens: the device has no memory left; write a smaller --batch-size ({str(error).split('. ')[0]})", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:
        print(
            "taia-lens: interrupted; no half-written result is left (finished cells stay in the store, where there is one)", file=sys.stderr
        )
    # All is said and written: Ctrl-C while the interpreter ends must not turn what succeeded into a failure.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
