"""Maps and panels in rows one below the other, in pixels; ticks that do not overlap; cells without a value; what a point selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from taia_lens.errors import ResultError
from taia_lens.plots import layout
from taia_lens.plots.layout import ACROSS
from taia_lens.plots.look import NOTHING, shown, wrapped
from taia_lens.suite import DOMAIN_NAMES

TITLE_ROW = 18  # pixels of a line of a panel's title
_GREY = [[0, NOTHING], [1, NOTHING]]


@dataclass(frozen=True)
class Stack:
    """Rows of panels one below the other.

    Attributes:
        heights: Of each row, in pixels.
        between: Pixels from the bottom of a row to the top of the next: its axis, and the next one's title.
    """

    heights: tuple[int, ...]
    between: int

    @property
    def inside(self) -> int:
        """Pixels from the top of the first row to the bottom of the last."""
        return sum(self.heights) + self.between * (len(self.heights) - 1)

    def figure(self, columns: int = 1, **settings: Any) -> go.Figure:
        """An empty figure of so many columns; `settings` are those of plotly's make_subplots."""
        rows = len(self.heights)
        space = self.between / self.inside if rows > 1 else 0.0
        return make_subplots(rows, columns, row_heights=list(self.heights), vertical_spacing=space, **settings)

    def bar(self, row: int, *, most: int = 160) -> dict[str, Any]:
        """Where the colour bar of a row (from 1) stands: right of it, as high as the row, or so many pixels."""
        top = sum(self.heights[: row - 1]) + self.between * (row - 1)
        length = min(self.heights[row - 1], most)
        place = {"y": 1 - top / self.inside, "yanchor": "top", "len": length, "lenmode": "pixels", "x": 1.01, "xanchor": "left"}
        return place | {"thickness": 10, "ypad": 0, "tickfont": {"size": 10}, "nticks": max(2, min(6, length // 24))}


@dataclass(frozen=True)
class Panels:
    """Panels of a summary's groups: under each metric a suite's domains beside each other, so never more than two columns.

    Attributes:
        rows: How many.
        columns: Domains.
        places: Row and column, from 1, of each group.
        suites: Names of the suites.
    """

    rows: int
    columns: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    suites: tuple[str, ...]

    @classmethod
    def of(cls, summary: xr.Dataset) -> Panels:
        """Where each group of a summary stands.

        Raises:
            ResultError: There is no group.
        """
        n = summary.sizes["group"]
        if not n:
            raise ResultError("the result holds no example with a number; there is nothing to draw")
        one = summary if "metric" in summary.coords else summary.assign_coords(metric=("group", [""] * n))
        rows = layout.side_by_side(one)
        where = {group: (i, j) for i, row in enumerate(rows, 1) for j, group in enumerate(row, 1) if group is not None}
        suites = tuple(dict.fromkeys(map(str, summary.suite.values)))
        return cls(len(rows), tuple(layout.domains_of(summary)), tuple(where[group] for group in range(n)), suites)

    @property
    def lines(self) -> int:
        """Lines of the panels' titles."""
        return 2 if len(self.suites) > 1 else 1

    @property
    def note(self) -> str:
        """Whose prompts they are."""
        return f"{'suites' if len(self.suites) > 1 else 'suite'} {', '.join(shown(name, 32) for name in self.suites)}"

    def leads(self, place: tuple[int, int]) -> bool:
        """Whether a panel is the first of its row, so that its y axis is labelled."""
        return place[1] == 1 or (place[0], 1) not in self.places

    def titles(self, summary: xr.Dataset) -> list[list[str]]:
        """Of each panel: its domain and n, and its suite where there are several; nothing where no group stands."""
        out = [["" for _ in self.columns] for _ in range(self.rows)]
        for i, (row, column) in enumerate(self.places):
            group = summary.isel(group=i)
            suite = f"<br>{shown(group.suite.item(), ACROSS)}" if self.lines > 1 else ""
            out[row - 1][column - 1] = f"{DOMAIN_NAMES[str(group.domain.item())]}, n = {int(group.n)}{suite}"
        return out

    def clear(self, figure: go.Figure, each: int = 1) -> None:
        """Leave the places empty where no group stands; `each`: rows of the figure to a row of panels."""
        for row in range(1, self.rows + 1):
            for column in range(1, len(self.columns) + 1):
                if (row, column) not in self.places:
                    for part in range(each):
                        layout.blank(figure, (row - 1) * each + part + 1, column)


def to_the_left(figure: go.Figure) -> None:
    """Titles of panels that are as wide as the figure start where the panels do."""
    figure.update_annotations(x=0, xanchor="left", align="left")


def models(attrs: Mapping[Any, Any]) -> str:
    """Which models a result is of, for the notes; nothing where it does not say."""
    if "tuned" in attrs:
        return layout.models(dict(attrs))
    name = str(attrs.get("model", "base")).rstrip("/").rpartition("/")[2]
    return f"model: {shown(name, 40)}" if name != "base" else ""  # the demo's folder, which says no more than that


def axis_title(group: xr.Dataset) -> str:
    """A group's metric and its unit, in lines that fit beside one another."""
    down = "" if int(group.better) > 0 else ", smaller is better"
    return wrapped(f"{shown(group.metric.item(), 26)} ({shown(group.unit.item(), 26)}{down})", 26)


def step(n: int, most: int) -> int:
    """The smallest of 1, 2, 5, 10, ... that leaves at most so many ticks on n places.

    >>> step(16, 10), step(80, 10), step(3, 10)
    (2, 10, 1)
    """
    sizes = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    return next(size for size in sizes if -(-n // size) <= max(1, most))


def ticks(labels: Sequence[str], most: int = 1000) -> dict[str, Any]:
    """An axis with a label at each place 0, 1, ...; every few of them where there are more than `most`.

    Places are numbers, so two labels that read the same stay two places.
    """
    every = step(len(labels), most)
    some = list(range(0, len(labels), every))
    return {"tickmode": "array", "tickvals": some, "ticktext": [labels[i] for i in some], "range": [-0.5, len(labels) - 0.5]}


def downwards(axis: dict[str, Any]) -> dict[str, Any]:
    """The same axis with its first place at the top."""
    return axis | {"range": axis["range"][::-1]}


def token(text: str, most: int = 16) -> str:
    """A token as it is shown: on one line, escaped, and with what is blank made visible.

    >>> token(" the"), token("\\n"), token("<b>")
    ('the', '&#x27;\\\\n&#x27;', '&lt;b&gt;')
    """
    return shown(text, most) if text.strip() else shown(repr(text), most)


def said(prompt: str) -> str:
    """A prompt for the notes: on one line where it has words too long to be broken between, as Chinese has."""
    return f"prompt: {shown(prompt, 200 if all(len(word) <= 30 for word in prompt.split()) else 64)}"


def gap(n: int) -> int:
    """Pixels between a map's columns, so that they do not hide narrow ones."""
    return 1 if n <= 40 else 0


def add_missing(figure: go.Figure, values: np.ndarray, x: Sequence[int], y: Sequence[int], row: int, col: int) -> None:
    """Grey where a map has no value: white is zero."""
    if np.isnan(values).any():
        grey = np.where(np.isnan(values), 1.0, np.nan)
        scale = {"colorscale": _GREY, "zmin": 0, "zmax": 1, "showscale": False}
        figure.add_heatmap(x=x, y=y, z=grey, hoverinfo="skip", hoverongaps=False, row=row, col=col, **scale)


def limit(values: np.ndarray) -> float:
    """The largest size among some values, for a scale; 1 where all are zero or none is a number."""
    known = np.abs(values[np.isfinite(values)])
    return float(known.max()) if known.size and known.max() > 0 else 1.0


def plain(name: str, values: np.ndarray) -> list[dict[str, Any]]:
    """What each place along a dim selects, as plain values: the rows, columns or points of a trace's `meta`."""
    return [{name: value} for value in np.asarray(values).tolist()]


def at(group: xr.Dataset) -> dict[str, str]:
    """What a group's panel selects."""
    return {name: str(group[name].item()) for name in ("suite", "domain", "metric") if name in group.coords}
