"""What HTML reprs are made of: a card with a title, facts and tables. Names and texts go in as they are, and come out escaped.

Colours are the page's own, so that a card reads as well in a dark notebook as in a light one. Without its style sheet (a page
that strips it) it is still headings, lists and tables.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NewType

Html = NewType("Html", str)
"""Markup that was made here, in which every text of a user's is escaped."""

MOST = 300  # characters of a text that are shown
_GREY = "rgba(128, 128, 128, .4)"  # seen on white and on black
STYLE = Html(
    f"""<style>
.taia-lens {{ color: inherit; font-family: inherit; line-height: 1.45; max-width: 72em; overflow-x: auto; }}
.taia-lens h4 {{ font-size: 1.05em; font-weight: 600; margin: 0 0 .3em; }}
.taia-lens p, .taia-lens ul {{ margin: .3em 0; }}
.taia-lens ul {{ padding-left: 1.4em; }}
.taia-lens summary {{ cursor: pointer; }}
.taia-lens.taia-lens table {{ border-collapse: collapse; table-layout: auto; margin: .4em 0; color: inherit; font-size: inherit; }}
.taia-lens.taia-lens caption {{ text-align: start; padding: .2em 0; color: inherit; }}
.taia-lens.taia-lens table :is(th, td) {{ text-align: start; vertical-align: top; padding: .15em 1.2em .15em 0; max-width: 14em;
  border: 0; border-bottom: 1px solid {_GREY}; white-space: pre-wrap; overflow-wrap: break-word; color: inherit; }}
.taia-lens.taia-lens table th {{ font-weight: 600; }}
.taia-lens.taia-lens table .text {{ min-width: 12em; max-width: 46em; overflow-wrap: anywhere; }}
.taia-lens.taia-lens table .number {{ text-align: end; font-variant-numeric: tabular-nums; }}
.taia-lens code {{ font-family: monospace; background: none; color: inherit; white-space: pre-wrap; overflow-wrap: anywhere; }}
</style>"""
)


def cut(text: object, most: int = MOST) -> str:
    """A text, its middle left out where it is longer than `most` characters: a prompt's question and its end are seen.

    >>> cut("abcdefghij", most=7)
    'abc…hij'
    """
    whole = str(text)
    half = (most - 1) // 2
    return whole if len(whole) <= most else f"{whole[:half]}…{whole[-half:]}"


def inline(text: object) -> Html:
    """A name or text within a sentence; one that runs from right to left leaves what stands beside it where it is.

    >>> inline("<b>")
    '<bdi>&lt;b&gt;</bdi>'
    """
    return Html(f"<bdi>{html.escape(cut(text))}</bdi>")


def code(text: object) -> Html:
    """A text in the shape that it has in code."""
    return Html(f"<code>{html.escape(str(text))}</code>")


def paragraph(*parts: Html | str) -> Html:
    """A paragraph; a plain text among its parts is escaped only by `inline` or `code`, so only our own words go in as they are."""
    return Html(f"<p>{''.join(parts)}</p>")


def listed(texts: Iterable[object]) -> Html:
    """A list of texts; nothing where there are none."""
    rows = "".join(f'<li dir="auto">{html.escape(str(text))}</li>' for text in texts)
    return Html(f"<ul>{rows}</ul>" if rows else "")


def table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[int] = (), texts: Sequence[int] = (), caption: str = ""
) -> Html:
    """A table whose cells are texts.

    Args:
        heads: What the columns are called.
        rows: A cell for each column.
        numbers: Which columns stand to the right.
        texts: Which columns hold sentences and get the room.
        caption: What it is a table of.
    """
    kinds = [' class="number"' if i in numbers else ' class="text" dir="auto"' if i in texts else ' dir="auto"' for i in range(len(heads))]
    top = _row(heads, [f' scope="col"{kind}' for kind in kinds], "th")
    body = "".join(_row(row, kinds, "td") for row in rows)
    said = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return Html(f"<table>{said}<thead>{top}</thead><tbody>{body}</tbody></table>")


def _row(cells: Sequence[object], kinds: Sequence[str], tag: str) -> str:
    made = (f"<{tag}{kind}>{_shown(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
    return f"<tr>{''.join(made)}</tr>"


def _shown(cell: object) -> str:
    text = html.escape(cut(cell))
    # An answer begins with a blank, where a narrow column would break the line and show it below its row.
    return f"\u00a0{text[1:]}" if text.startswith(" ") else text


def folded(summary: str, *parts: Html, opened: bool = False) -> Html:
    """Parts behind a line that a click or a key opens."""
    return Html(f"<details{' open' if opened else ''}><summary>{html.escape(summary)}</summary>{''.join(parts)}</details>")


def card(title: str, *parts: Html) -> Html:
    """The whole repr: a title and what stands below it."""
    return Html(f'{STYLE}<div class="taia-lens"><h4>{html.escape(title)}</h4>{"".join(parts)}</div>')
