"""Parts of the page as HTML. Every text that goes in, ours or a user's, is escaped here."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from rich.table import Table
from rich.text import Text

_JSON = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"})


def esc(text: object) -> str:
    """A text as HTML shows it as it is, in an element or in an attribute's quotes."""
    return html.escape(str(text))


def embedded_json(value: object) -> str:
    """JSON that may stand in a script element: nothing in it can end the element, whatever a prompt holds.

    >>> embedded_json(["</script>"])
    '["\\\\u003c/script\\\\u003e"]'
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_JSON)


def data_block(ident: str, value: object) -> str:
    """Data for the page's script; no browser runs it."""
    return f'<script type="application/json" id="{ident}">{embedded_json(value)}</script>'


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str, numeric: Sequence[bool] = ()) -> str:
    """A table with a caption; the first cell of each row heads it."""
    return _table(columns, [list(rows)], caption, numeric or [False] * len(columns))


def rich_table(made: Table) -> str:
    """A table that a command prints, as HTML: a body for each of its sections, since rows are sorted within one."""
    columns = [_plain(column.header) for column in made.columns]
    rows = list(zip(*([_plain(cell).strip() for cell in column.cells] for column in made.columns), strict=True))
    sections: list[list[Sequence[object]]] = [[]]
    for row, about in zip(rows, made.rows, strict=True):
        sections[-1].append(row)
        if about.end_section:
            sections.append([])
    return _table(columns, [part for part in sections if part], _plain(made.title or ""), [c.justify == "right" for c in made.columns])


def _table(columns: Sequence[str], sections: Sequence[Sequence[Sequence[object]]], caption: str, numeric: Sequence[bool]) -> str:
    kinds = [' class="num"' if right else "" for right in numeric]
    head = "".join(f'<th scope="col"{kind}>{esc(name)}</th>' for name, kind in zip(columns, kinds, strict=True))
    bodies = "".join(f"<tbody>{''.join(_row(row, kinds) for row in rows)}</tbody>" for rows in sections)
    table = f"<table><caption>{esc(caption)}</caption><thead><tr>{head}</tr></thead>{bodies}</table>"
    return f'<div class="tabled"><div class="scroll" role="group" aria-label="{esc(caption)}">{table}</div></div>'


def _row(row: Sequence[object], kinds: Sequence[str]) -> str:
    first, *rest = (f"{kind}>{esc(cell)}" for cell, kind in zip(row, kinds, strict=True))
    return f'<tr><th scope="row"{first}</th>' + "".join(f"<td{cell}</td>" for cell in rest) + "</tr>"


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def facts(pairs: Mapping[str, object]) -> str:
    """A list of names and what they are."""
    kinds = {name: ' class="hash"' if "hash" in name else "" for name in pairs}
    return "<dl>" + "".join(f"<div><dt>{esc(name)}</dt><dd{kinds[name]}>{esc(value)}</dd></div>" for name, value in pairs.items()) + "</dl>"


def listed(texts: Iterable[str], kind: str = "") -> str:
    """A list of sentences; nothing where there are none."""
    rows = "".join(f"<li>{esc(text)}</li>" for text in texts)
    return f"<ul{f' class={kind}' if kind else ''}>{rows}</ul>" if rows else ""


def command(text: str) -> str:
    """A command line, to be typed in; lines end between words only."""
    words = " ".join(f"<span>{esc(word)}</span>" for word in text.split(" "))
    return f'<pre class="command"><code>{words}</code></pre>'


def figure_block(number: int, run: int, figure: go.Figure) -> tuple[str, str]:
    """Where a figure is drawn, with its title for those who do not see it, and its data."""
    plain = json.loads(figure.to_json())
    plain["layout"].pop("template", None)  # the page has one for light and one for dark
    plain["layout"].pop("width", None)
    height = int(plain["layout"].setdefault("height", 450))
    place = f'<div class="plot" id="plot-{number}" data-figure="{number}" data-run="{run}" style="height:{height}px"'
    return f'<figure>{place} role="img" aria-label="{esc(spoken(plain["layout"]))}"></div></figure>', data_block(f"figure-{number}", plain)


def spoken(layout: Mapping[str, Any]) -> str:
    """A figure's title and notes as plain text."""
    title = layout.get("title") or {}
    texts = [title.get("text") or "a figure", (title.get("subtitle") or {}).get("text") or ""]
    lines = [html.unescape(text.replace("<br>", " ").replace("<sup>", " ").replace("</sup>", "")) for text in texts if text]
    return ". ".join(" ".join(line.split()) for line in lines)
