"""`explore(result)`: pick a cell of a study's map, by a click or from lists, and read the examples that it fixed and broke.

The map is a plotly FigureWidget and the lists are ipywidgets; where a page runs no widgets, or they are not installed, what is
shown instead is the figure and its strongest cell. Which cells a figure has is said by its traces' `meta`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens import plots, summaries
from taia_lens.cell_examples import Cell, examples_of, named
from taia_lens.errors import ResultError, TaiaLensError
from taia_lens.html import card, inline, paragraph
from taia_lens.summaries.changed import changed

Place = tuple[int, ...]
"""Where a cell is drawn: the number of its trace, and of its point, or of its row and column."""

_ANY = object()  # in a list: no value of this dim; ipywidgets takes None for no choice
_NEEDED = ("ipywidgets", "anywidget")
_VIEW, _PLOTLY = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"
_NO_WIDGETS = "Cells cannot be picked here: this page runs no Jupyter widgets."
_FIGURES: dict[str, Callable[[xr.Dataset], go.Figure]] = {
    "patch": lambda result: _patch_map(summaries.patch_summary(result)),
    "attribution": lambda result: plots.attribution_figure(summaries.attribution_summary(result)),
    "compare": lambda result: plots.compare_figure(summaries.grid_summary(result)),
    "layers": lambda result: _layers_map(summaries.layers_summary(result)),
    "heads": lambda result: plots.heads_figure(summaries.heads_summary(result)),
    "transfer": lambda result: plots.transfer_figure(summaries.transfer_summary(result)),
    "steering": lambda result: plots.steering_figure(summaries.steering_summary(result)),
}


@dataclass(frozen=True, eq=False)
class Explorer:
    """A figure, its cells, and the result that they are cells of; made by `explore`, and shown by ending a notebook's cell in it."""

    result: xr.Dataset
    figure: go.Figure
    cells: Mapping[Place, Cell]
    strongest: Cell

    def _ipython_display_(self) -> None:
        """Two outputs, each in several forms: a page takes the first form that it can show."""
        from IPython.display import display

        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        why = _NO_WIDGETS
        if missing:
            why = f"Cells cannot be picked here: {missing[0]} is not installed (pip install 'taia-lens[notebooks]')."
        examples = examples_of(self.result, self.strongest)
        static = {_PLOTLY: json.loads(self.figure.to_json()), "text/plain": repr(self)}
        title = f"The strongest cell: {named(self.strongest)}"
        listed = {"text/html": card(title, paragraph(why), examples.html), "text/plain": f"{title}\n{why}\n{examples.text}"}
        views: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        if not missing:
            views = {_VIEW: _view(self.widgets.map)}, {_VIEW: _view(self.widgets.panel)}
        for view, instead in zip(views, (static, listed), strict=True):
            display(view | instead, raw=True)

    @cached_property
    def widgets(self) -> Widgets:
        """The live figure, the lists of cells and the examples; what the lists hold, the figure's clicks set.

        Raises:
            ImportError: ipywidgets or anywidget is not installed.
        """
        return _widgets(self)

    def __repr__(self) -> str:
        return f"Explorer({self.result.attrs.get('study')}: {len(self.cells)} cells; the strongest: {named(self.strongest)})"


@dataclass(frozen=True, eq=False)
class Widgets:
    """What `explore` shows where widgets run: plotly's FigureWidget and its box, a list for each dim, the examples, and their box."""

    figure: Any
    map: Any
    lists: Mapping[str, Any]
    examples: Any
    panel: Any

    @property
    def cell(self) -> Cell:
        """What the lists say."""
        return {name: chosen.value for name, chosen in self.lists.items() if chosen.value is not _ANY}


def explore(result: xr.Dataset, figure: go.Figure | None = None) -> Explorer:
    """Pick a cell of a study's map, and see the examples that it fixed and broke, with their text.

    Args:
        result: What `patch`, `attribution`, `compare`, `layers`, `heads`, `transfer` or `steer` returned, or `results.load` read.
        figure: Another figure of this result whose cells are to be picked; None for the study's own map.

    Returns:
        What a notebook shows as a figure and lists to pick from (each works with the keyboard alone); where widgets do not
        run, as the figure and the strongest cell.

    Raises:
        ResultError: The study has no cells, or the figure has none.
    """
    if figure is None:
        study = str(result.attrs.get("study"))
        if study not in _FIGURES:
            raise ResultError(f"explore has no map of the study {study!r}; give a result of one of {', '.join(_FIGURES)}")
        figure = _FIGURES[study](result)
    cells = cells_of(figure)
    if not cells:
        raise ResultError("no cell of this figure can be picked: no trace says which it draws; give a map of this result")
    return Explorer(result, figure, cells, _strongest(result, figure, cells))


def cells_of(figure: go.Figure) -> dict[Place, Cell]:
    """The cells that a figure's traces say that they draw.

    >>> meta = {"at": {"domain": "ood"}, "rows": [{"layer": 3}], "columns": [{"head": 0}, {"head": 1}]}
    >>> cells_of(go.Figure(go.Heatmap(z=[[1, 2]], meta=meta)))[0, 0, 1]
    {'domain': 'ood', 'layer': 3, 'head': 1}
    """
    found: dict[Place, Cell] = {}
    for number, trace in enumerate(figure.data):
        meta = trace.meta
        if not isinstance(meta, Mapping) or "at" not in meta:
            continue
        if "points" in meta:
            found |= {(number, i): {**meta["at"], **point} for i, point in enumerate(meta["points"])}
        else:
            lines = [(i, j, row, column) for i, row in enumerate(meta["rows"]) for j, column in enumerate(meta["columns"])]
            found |= {(number, i, j): {**meta["at"], **row, **column} for i, j, row, column in lines}
    return found


def _patch_map(summary: xr.Dataset) -> go.Figure:
    """Layers by components where there are several layers; by heads or positions where the study has these; else points."""
    by_layer = not {"head", "pos"} & set(summary.dims) and summary.sizes["layer"] > 1
    return plots.gains_figure(summary) if by_layer else plots.patch_figure(summary)


def _layers_map(summary: xr.Dataset) -> go.Figure:
    """Layers by parts, of the views that credit a part; else the cumulative curves."""
    mapped = any(view in summary for view in ("alone", "last", "shapley"))
    return plots.gains_figure(summary) if mapped else plots.layers_figure(summary)


def _strongest(result: xr.Dataset, figure: go.Figure, cells: Mapping[Place, Cell]) -> Cell:
    """The cell of the largest value on a map; where there is no map, of the largest mean change. Of the first metric, if it moves.

    Raises:
        ResultError: No cell has examples before and after; says why for the first.
    """
    size: dict[Place, float] = {
        place: abs(float(np.asarray(figure.data[place[0]].z, float)[place[1:]])) for place in cells if len(place) == 3
    }
    size = size or {place: _mean_change(result, cell) for place, cell in cells.items()}
    first = result.metric.values[0]
    # Units differ from metric to metric; NaN is not >= 0.
    key = {place: (cells[place].get("metric", first) != first or value == 0, -value) for place, value in size.items() if value >= 0}
    found = next((cells[place] for place in sorted(key, key=lambda place: key[place]) if _mean_change(result, cells[place]) >= 0), None)
    if found is None:
        changed(result, next(iter(cells.values())))
        raise ResultError("no cell of this figure has a value; there is nothing to pick")
    return found


def _mean_change(result: xr.Dataset, cell: Cell) -> float:
    """Size of a cell's mean change; below 0 where it has no examples before and after."""
    try:
        change = changed(result, cell).change.values
    except ResultError:
        return -1.0
    return abs(float(change.mean())) if len(change) else -1.0


def _view(widget: Any) -> dict[str, Any]:
    """What a page finds a widget by."""
    return {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}


def _widgets(explorer: Explorer) -> Widgets:
    import ipywidgets

    names = list(dict.fromkeys(name for cell in explorer.cells.values() for name in cell))
    lists = {name: _list(ipywidgets, name, explorer) for name in names}
    examples = ipywidgets.HTML()
    row = ipywidgets.HBox([chosen for chosen in lists.values() if len(chosen.options) > 1], layout=ipywidgets.Layout(flex_flow="row wrap"))
    # Out of its JSON: a map's arrays would be sent as lists, in which JSON has no NaN.
    figure = go.FigureWidget(json.loads(explorer.figure.to_json()))
    figure._config = {**figure._config, "responsive": True, "displayModeBar": False}  # which would stand on a narrow title
    found = Widgets(figure, _boxed(figure), lists, examples, _boxed(row, examples))

    def show(_: object = None) -> None:
        examples.value = _listed(explorer, found.cell)

    def pick(_: object, points: Any, __: object) -> None:
        places = [(points.trace_index, *np.atleast_1d(point).tolist()) for point in points.point_inds]
        for cell in [explorer.cells[place] for place in places if place in explorer.cells][:1]:
            for name, chosen in lists.items():
                chosen.unobserve(show, "value")  # the examples are listed once, not once for each dim
                chosen.value = cell.get(name, _ANY)
                chosen.observe(show, "value")
            show()

    for name, chosen in lists.items():
        chosen.value = explorer.strongest.get(name, _ANY)
        chosen.observe(show, "value")
    for number in {place[0] for place in explorer.cells}:
        found.figure.data[number].on_click(pick)
    show()
    return found


def _boxed(*widgets: Any) -> Any:
    """Widgets in a box that tells the page two things which plotly and ipywidgets do not.

    anywidget draws a figure before the page has it: plotly then measures nothing, sets the notes on the title, and takes 700
    pixels. A responsive figure is drawn again when the window is resized, so the box says that it was, when it is first seen too.
    And in a list, arrow keys are the list's: JupyterLab would move to another cell.
    """
    import anywidget
    import ipywidgets

    class Told(anywidget.AnyWidget):
        _esm = """
        export default {
          render({ el }) {
            let box = null;
            const seen = new ResizeObserver(() => {
              if (!box && (box = el.closest(".widget-vbox"))) seen.observe(box);
              box?.querySelectorAll("select").forEach((list) => list.setAttribute("data-lm-suppress-shortcuts", ""));
              if (box?.querySelector(".js-plotly-plot")) window.dispatchEvent(new Event("resize"));
            });
            seen.observe(el);
            return () => seen.disconnect();
          }
        };
        """

    return ipywidgets.VBox([*widgets, Told()])


def _list(ipywidgets: Any, name: str, explorer: Explorer) -> Any:
    """The values that cells have of one dim, to choose from with the mouse or the keyboard."""
    values = list(dict.fromkeys(cell.get(name, _ANY) for cell in explorer.cells.values()))
    options = [("any" if value is _ANY else str(value), value) for value in values]
    layout = ipywidgets.Layout(width="auto", max_width="22em")
    return ipywidgets.Dropdown(options=options, description=name, layout=layout, style={"description_width": "initial"})


def _listed(explorer: Explorer, cell: Cell) -> str:
    """The examples of a cell, or why there are none; read out by a screen reader when it changes."""
    if cell not in explorer.cells.values():
        content = card(named(cell), paragraph("The figure has no such cell; choose another."))
    else:
        try:
            content = card(named(cell), examples_of(explorer.result, cell).html)
        except TaiaLensError as error:
            content = card(named(cell), paragraph(inline(error)))
    return f'<div role="status" aria-live="polite">{content}</div>'
