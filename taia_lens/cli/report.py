"""`taia-lens report`: what several runs found, in one file for a colleague."""

from __future__ import annotations

from pathlib import Path

import typer

from taia_lens.cli import common


def report(
    runs: list[Path] = typer.Argument(
        ..., metavar="RUN...", help="Run folders of one pair, as the studies wrote them.", show_default=False
    ),
    out: Path = typer.Option(Path("report.html"), "--out", "-o", help="The file to write; must not exist."),
    question: str | None = typer.Option(None, help="What stands on top. Default: which parts of the update help, where, on what data."),
) -> None:
    """Write what some runs found into one HTML file that needs nothing else: no network, no server, no other file.

    The sentences, the pair and its check, figures, tables, the examples that each cell fixed and broke, versions, hashes, seeds,
    and the command of every run. Prints the file's path.

    Example: taia-lens report runs/compare-* runs/layers-* -o report.html

    Example: taia-lens report runs/patch-20260101-120000 --question "Where does the damage sit?" -o damage.html
    """
    folders = [run for run in runs if not run.name.startswith(common.STORE.name)]  # runs/* holds the store of finished cells too
    with common.status("reading the runs and drawing"):
        from taia_lens.report import write_report

        path = write_report(folders, out, question=question)
    print(path)
