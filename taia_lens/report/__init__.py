"""A report: run folders in, one HTML file out that needs no network, no other file and no server. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taia_lens import results
from taia_lens.errors import ResultError
from taia_lens.files import write_whole
from taia_lens.report.page import document
from taia_lens.report.runs import read_runs

__all__ = ["write_report"]


def write_report(runs: Sequence[str | Path], out: str | Path, *, question: str | None = None) -> Path:
    """Write one HTML file with all that some runs found: sentences, figures, tables, changed examples, provenance.

    Args:
        runs: Run folders, all of one pair (or of one of its models).
        out: The file; must not exist.
        question: What stands on top; None for the question that every such report asks.

    Returns:
        The file's path.

    Raises:
        ResultError: A run folder is missing, damaged, of another version or of other models, or the file cannot be written;
            nothing is left behind.
    """
    path = Path(out)
    results.check_out(path)
    text = document(read_runs(runs), question)
    try:
        write_whole(path, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from error
    return path
