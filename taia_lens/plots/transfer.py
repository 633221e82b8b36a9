"""The picture of head transfer: a matrix of what one task's heads do on another, and where each task's heads lie."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.look import COLOURS, DIVERGING, SEQUENTIAL, framed, shown, unsure
from taia_lens.plots.stacks import Stack, at, downwards, gap, models, plain, step, ticks, to_the_left
from taia_lens.suite import DOMAIN_NAMES, DOMAINS

ROW = 36  # pixels of a row of a matrix: two lines of text
FIT, NARROW = 4, 9  # columns whose labels fit upright beside one another, and whose numbers do
_NAME = 14  # characters of a task's name


def transfer_figure(summary: xr.Dataset) -> go.Figure:
    """A matrix a metric and domain, rows: heads selected on, columns: tuned and tested on, coloured by the difference to the
    task's own heads; below, how many of each task's top heads lie in each layer.

    Args:
        summary: What `summaries.transfer_summary` returned.

    Raises:
        ResultError: There is no task, or no number.
    """
    if 0 in summary.value.shape or not summary.sizes["task"]:
        raise ResultError("the result holds no task with a number; there is nothing to draw")
    places = list(zip(summary.metric.values.tolist(), summary.domain.values.tolist(), strict=True))
    found = [(m, d) for m in dict.fromkeys(summary.metric.values.tolist()) for d in DOMAINS if (m, d) in places]
    heights = [max(70, ROW * summary.sizes["row"])] * len(found) + [max(60, 24 * summary.sizes["task"])]
    stack = Stack(tuple(heights), 84 if _fits(places) else 124)
    titles = [_title(summary, *place) for place in found] + ["how many of each task's top heads lie in each layer"]
    figure = stack.figure(subplot_titles=titles)
    to_the_left(figure)
    for row, (metric, _) in enumerate(found, 1):
        chosen = [i for i, place in enumerate(places) if place == found[row - 1]]
        _add_matrix(figure, summary.isel(group=chosen), _limit(summary, metric), stack, row)
    _add_layers(figure, summary, stack, len(heights))
    k, n = summary.attrs["k"], summary.attrs["n_heads"]
    narrow = max(places.count(place) for place in places) > NARROW
    notes = [
        models(summary.attrs),
        f"offsets on the top {k} of {n} heads of the task at the left, trained and tested on the task below",
        ("in the hover" if narrow else "in a cell") + ": the mean, and the difference to the task's own heads (framed)",
        "red: better than these, blue: worse",
        "dot: not told apart from its own heads (5% after Benjamini-Hochberg); intervals are in the hover",
    ]
    return framed(figure, "Heads of one task on another", notes, inside=stack.inside, below=56, panels=1)


def _fits(places: list[tuple[str, str]]) -> bool:
    """Whether no matrix has more columns than fit upright labels."""
    return max(places.count(place) for place in places) <= FIT


def _title(summary: xr.Dataset, metric: str, domain: str) -> str:
    group = summary.isel(group=[m == metric for m in summary.metric.values.tolist()]).isel(group=0)
    down = "" if int(group.better) > 0 else ", smaller is better"
    return f"{shown(metric, 24)} ({group.unit.item()}{down}), {DOMAIN_NAMES[domain]}"


def _limit(summary: xr.Dataset, metric: str) -> float:
    """The largest difference under a metric: its matrices have one scale."""
    cells = np.abs(summary["diff"].isel(group=summary.metric.values == metric).values)
    known = cells[np.isfinite(cells)]
    return max(float(known.max()) if known.size else 0.0, 1e-3)


def _add_matrix(figure: go.Figure, summary: xr.Dataset, limit: float, stack: Stack, row: int) -> None:
    cells = summary.transpose("row", "group", ...)
    difference = np.nan_to_num(cells["diff"].values) * cells.better.values  # blue is worse, whatever the metric
    names, n_groups = summary.row.values.tolist(), summary.sizes["group"]
    marks = unsure(cells.q.values)
    figure.add_heatmap(
        z=difference,
        zmin=-limit,
        zmax=limit,
        colorscale=DIVERGING,
        text=[
            [_cell(cells.isel(row=i, group=j), str(marks[i, j]), n_groups <= NARROW) for j in range(n_groups)] for i in range(len(names))
        ],
        texttemplate="%{text}",
        textfont={"size": 11 if n_groups <= FIT else 9},
        xgap=1,
        ygap=1,
        customdata=[[_hover(cells.isel(row=i, group=j)) for j in range(n_groups)] for i in range(len(names))],
        hovertemplate="%{customdata}<extra></extra>",
        colorbar=stack.bar(row),
        meta={"at": {}, "rows": plain("row", summary.row.values), "columns": [at(summary.isel(group=j)) for j in range(n_groups)]},
        row=row,
        col=1,
    )
    x: list[float | None] = []
    y: list[float | None] = []
    for j, own in enumerate(summary.own.values.tolist()):
        i = names.index(own)
        x += [j - 0.5, j + 0.5, j + 0.5, j - 0.5, j - 0.5, None]
        y += [i - 0.5, i - 0.5, i + 0.5, i + 0.5, i - 0.5, None]
    line = {"color": COLOURS["tuned"], "width": 2}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False, row=row, col=1)
    rows = ticks([shown(name, _NAME) for name in names])
    figure.update_yaxes(downwards(rows), zeroline=False, row=row, col=1)
    columns = ticks([_column(summary.isel(group=j)) for j in range(n_groups)])
    figure.update_xaxes(columns, zeroline=False, tickangle=0 if n_groups <= FIT else -40, row=row, col=1)


def _column(group: xr.Dataset) -> str:
    """The task, the suite where it is called otherwise, and n."""
    own, suite = shown(group.own.item(), _NAME), shown(group.suite.item(), _NAME)
    return "<br>".join([own, *([suite] if suite != own else []), f"n = {int(group.n)}"])


def _cell(cell: xr.Dataset, mark: str, whole: bool) -> str:
    """The mean, the difference and the mark; in narrow columns the mark alone."""
    value = f"{float(cell.value):.3f}"
    if not whole:
        return "" if np.isnan(float(cell["diff"])) else mark
    return value if np.isnan(float(cell["diff"])) else f"{value}<br>{float(cell['diff']):+.3f}{mark}"


def _hover(cell: xr.Dataset) -> str:
    where = f"{shown(cell.suite.item())}, {DOMAIN_NAMES[str(cell.domain.item())]}, n = {int(cell.n)}"
    lines = [f"heads of {shown(cell.row.item())}, tuned on {shown(cell.own.item())}", where]
    lines.append(f"{shown(cell.metric.item())} {float(cell.value):.4g} [{float(cell.low):.4g}, {float(cell.high):.4g}]")
    if not np.isnan(float(cell["diff"])):
        ends = f"[{float(cell.diff_low):+.4g}, {float(cell.diff_high):+.4g}]"
        lines.append(f"- its own heads: {float(cell['diff']):+.4g} {ends}, q = {float(cell.q):.2g}")
    return "<br>".join(lines)


def _add_layers(figure: go.Figure, summary: xr.Dataset, stack: Stack, row: int) -> None:
    counts = summary.per_layer.transpose("task", "layer")
    figure.add_heatmap(
        x=summary.layer.values,
        z=counts.values,
        zmin=0,
        colorscale=SEQUENTIAL,
        xgap=gap(summary.sizes["layer"]),
        ygap=1,
        customdata=[[f"{shown(name)}, layer {layer}" for layer in summary.layer.values.tolist()] for name in summary.task.values.tolist()],
        hovertemplate="%{customdata}: %{z:.3g} of its top heads<extra></extra>",
        colorbar=stack.bar(row),
        meta={"at": {}, "rows": plain("task", summary.task.values), "columns": plain("layer", summary.layer.values)},
        row=row,
        col=1,
    )
    rows = ticks([shown(name, _NAME) for name in summary.task.values.tolist()])
    figure.update_yaxes(downwards(rows), row=row, col=1)
    figure.update_xaxes(title_text="layer", tick0=0, dtick=step(summary.sizes["layer"], 10), row=row, col=1)
