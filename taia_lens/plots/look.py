"""What every figure shares: colours, the frame with its title and notes, and how names and cells that are not significant are shown.

The same colour means the same thing in every figure (Okabe and Ito's palette, safe for colour-blind readers). Plotly wraps no
text by itself: what is set here fits a figure of 450 pixels, half a notebook's width.
"""

from __future__ import annotations

import html
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

COLOURS = {
    "base": "#7f7f7f",
    "tuned": "#000000",
    "attn": "#0072B2",
    "mlp": "#D55E00",
    "resid": "#009E73",
    "head": "#CC79A7",
    "id": "#56B4E9",
    "ood": "#E69F00",
    "rest": "#882255",
    "control": "#999999",
}
DIVERGING = "RdBu_r"
"""Signed values: white at zero, blue below it, red above it."""
SEQUENTIAL = "Cividis"
"""Values of one sign."""
NOTHING = "#d9d9d9"
"""Behind a map: a cell that has no value is grey; an effect of zero is white."""
UNSURE = "•"
"""In a cell that is not told apart from zero after correction."""
ALPHA = 0.05

TITLE, NOTE, LABEL = 15, 11, 12  # font sizes in pixels: the title, the notes below it, a panel's title
_TITLE_WIDTH, _NOTE_WIDTH = 52, 76  # characters that fit 450 pixels at those sizes
_LEGEND_ROW, _SCALE_ROW = 22, 60
_SIDE = 14  # pixels left and right; axes take what their labels need beyond it


def shades(title: str, values: NDArray[np.floating]) -> dict[str, Any]:
    """A scale of signed values, as a colour axis: white at zero, as far to one side as to the other.

    Args:
        title: What the colours are, with the unit; what is the user's in it is escaped already.
        values: All numbers that are drawn in it; NaN is left out.

    >>> shades("gain", np.array([-1.0, np.nan, 3.0]))["cmin"]
    -3.0
    """
    known = np.abs(values[np.isfinite(values)])
    limit = float(known.max(initial=0.0)) or 1.0
    return {"cmin": -limit, "cmax": limit, "colorscale": DIVERGING, "colorbar": {"title": {"text": title}}}


def shown(text: object, most: int = 48) -> str:
    """A name or text of the user's, as HTML shows it as it is, on one line, and no longer than `most` characters.

    Text that runs from right to left is isolated, so that what stands beside it stays where it is.

    >>> shown("a <b> \\n c"), shown("x" * 100, most=9)
    ('a &lt;b&gt; c', 'xxxx…xxxx')
    """
    line = " ".join(str(text).split())
    if _width(line) > most:
        half = (most - 1) // 2
        end = _first(line[::-1], half)[::-1]
        line = f"{_first(line, half)}…{end}"
    if any(unicodedata.bidirectional(letter) in ("R", "AL", "AN") for letter in line):
        line = f"\u2068{line}\u2069"
    return html.escape(line)


def _width(text: str) -> int:
    """In letters of the Latin script: a Chinese one is as wide as two, an accent has no width."""
    return sum(_columns(letter) for letter in text)


def _columns(letter: str) -> int:
    return 0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")


def _first(text: str, most: int) -> str:
    """As much of a text's beginning as fits."""
    ends = np.cumsum([_columns(letter) for letter in text[: 4 * most + 4]])
    return text[: int(np.searchsorted(ends, most, side="right"))]


def wrapped(text: str, width: int) -> str:
    """Text broken into lines by `<br>`; nothing in it is escaped.

    >>> wrapped("one two three", 8)
    'one two<br>three'
    """
    return "<br>".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))


def unsure(q: NDArray[np.floating]) -> NDArray[Any]:
    """The mark of each cell: a dot where its q-value is above 0.05 or undefined.

    >>> unsure(np.array([0.01, 0.2, np.nan])).tolist()
    ['', '•', '•']
    """
    return np.where(np.nan_to_num(q, nan=1.0) <= ALPHA, "", UNSURE)


def framed(
    figure: go.Figure,
    title: str,
    notes: Sequence[str],
    *,
    inside: int,
    below: int = 60,
    legend: int = 0,
    panels: int = 0,
    scales: Sequence[dict[str, Any]] = (),
) -> go.Figure:
    """Give a figure its title, its notes, its height and its margins, so that nothing stands on anything else.

    Args:
        figure: Changed, and returned.
        title: What the figure shows; its own text, so nothing is escaped.
        notes: What stands below it, a sentence each: suite, n, recipe, what intervals and marks mean.
        inside: Pixels from the top of the first panel to the bottom of the last.
        below: Pixels that tick labels and titles of the x axis take.
        legend: Entries of the legend, which stands at the bottom; 0 for none.
        panels: Lines of the titles above the panels.
        scales: Colour axes (`shades`): `coloraxis`, `coloraxis2`, ...; their bars stand at the bottom, one below the other.
    """
    head, foot = wrapped(title, _TITLE_WIDTH), "<br>".join(wrapped(note, _NOTE_WIDTH) for note in notes if note)
    above = 22 + round(1.3 * (TITLE * _lines(head) + NOTE * _lines(foot) + LABEL * panels)) + 14
    under = below + (_LEGEND_ROW * -(-legend // 2) + 8 if legend else 0)
    under += _SCALE_ROW * len(scales)
    height = above + inside + under
    for i, scale in enumerate(scales):
        down = below + _SCALE_ROW * i
        _add_scale(figure, i, scale, -down / inside, 1 - (above + inside + down + 18) / height)
    figure.update_layout(
        template="simple_white",
        title=_title(head, foot),
        height=height,
        margin={"t": above, "b": under, "l": _SIDE, "r": _SIDE},
        showlegend=bool(legend),
        legend={"orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container", "yanchor": "bottom", "xanchor": "left"},
    )
    figure.update_annotations(font_size=LABEL)
    figure.update_xaxes(title_font_size=LABEL)
    figure.update_yaxes(title_font_size=LABEL)
    return figure


def _title(head: str, foot: str) -> dict[str, Any]:
    """The title and the notes below it, in the corner of the figure."""
    notes = {"text": foot, "font": {"size": NOTE, "color": "#444444"}}
    place = {"x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 20, "l": 12}}
    return {"text": head, "font": {"size": TITLE}, "subtitle": notes} | place


def _add_scale(figure: go.Figure, i: int, scale: dict[str, Any], words_at: float, bar_at: float) -> None:
    """A colour axis with its bar below the panels, and its words above it: the bar's own title would stand on it.

    The bar's place is in parts of the figure, since in parts of the panels plotly takes nothing below -2; an annotation has no such end.
    """
    bar = scale["colorbar"] | {"title": None, "orientation": "h", "thickness": 10, "ypad": 0}
    place = {"x": 0.5, "len": 0.9, "xref": "paper", "y": bar_at, "yref": "container", "yanchor": "top"}
    figure.update_layout({f"coloraxis{i + 1 if i else ''}": scale | {"colorbar": bar | place}})
    words = {"text": scale["colorbar"]["title"]["text"], "x": 0.5, "xref": "paper", "y": words_at, "yref": "paper"}
    figure.add_annotation(words | {"xanchor": "center", "yanchor": "top", "showarrow": False})


def _lines(text: str) -> int:
    return text.count("<br>") + 1 if text else 0
