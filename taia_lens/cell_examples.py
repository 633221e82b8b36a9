"""The examples that a cell of a result fixed and broke, to be read: as HTML and as text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from taia_lens.html import Html, inline, paragraph, table
from taia_lens.summaries.changed import better_and_worse, changed

Cell = dict[str, str | int | float]
"""What a cell is, by dim or coord."""

SHOWN = 10  # examples in each of the two lists


def named(cell: Cell) -> str:
    """A cell on one line.

    >>> named({"component": "mlp", "layer": 12})
    'component mlp, layer 12'
    """
    return ", ".join(f"{name} {value}" for name, value in cell.items())


@dataclass(frozen=True)
class Examples:
    """What a cell changed, as HTML and as text."""

    html: Html
    text: str


def examples_of(result: xr.Dataset, cell: Cell) -> Examples:
    """The examples that a cell fixed and broke, those that changed most first.

    Args:
        result: What a study returned.
        cell: As `summaries.changed.changed` takes it.

    Raises:
        ResultError: There is no such cell, or it has no examples before and after.
    """
    found = changed(result, cell)
    before, after = found.attrs["before"], found.attrs["after"]
    # Of a rate, an example is right or wrong; of another metric it gets better or worse.
    rate = bool(np.isin((found.before.values, found.after.values), (0, 1)).all())
    words = ("fixed", "broke") if rate else ("better", "worse")
    sides = dict(zip(words, better_and_worse(found.change.values), strict=True))
    counts = ", ".join(f"{word} {len(rows)}" for word, rows in sides.items())
    said = (
        f"{counts} of {found.sizes['example']} examples ({found.attrs['metric']}, {found.attrs['unit']}); before: {before}; after: {after}"
    )
    parts, lines = [paragraph(inline(said))], [f"{named(cell)}: {said}"]
    texts = "before_text" in found
    heads = ("id", "domain", "prompt", "answer", *(("before", "after") if not texts else ("said before", "said after")))
    for word, rows in sides.items():
        shown = [_row(found.isel(example=int(i)), texts) for i in rows[:SHOWN]]
        more = f", the {'first' if rate else 'largest'} {SHOWN}" if len(rows) > SHOWN else ""
        if shown:
            columns = {"texts": (2, 4, 5)} if texts else {"numbers": (4, 5), "texts": (2,)}
            parts.append(table(heads, shown, caption=f"{word.capitalize()}: {len(rows)}{more}", **columns))
        lines += [f"  {word}: {row[2]!r}, answer {row[3]!r}: {row[4]} -> {row[5]}" for row in shown]
    return Examples(Html("".join(parts)), "\n".join(lines))


def _row(example: xr.Dataset, texts: bool) -> tuple[str, ...]:
    """Id, domain, prompt, answer, and what came before and after: what was said, or the values."""
    known = [str(example[name].item()) for name in ("example", "domain", "prompt", "answer")]
    if texts:
        return (*known, str(example.before_text.item()), str(example.after_text.item()))
    return (*known, f"{float(example.before):.4g}", f"{float(example.after):.4g}")
