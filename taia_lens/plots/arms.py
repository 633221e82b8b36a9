"""The picture of the causal check: what the same step does on each ranker's top heads, its bottom heads, and random ones."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.look import ALPHA, COLOURS, framed, shown
from taia_lens.plots.stacks import TITLE_ROW, Panels, Stack, at, axis_title, downwards, models, ticks

ROW = 30  # pixels of a line
ENDS = {"top": "top K", "bottom": "bottom K", "draw": "random K", "all": "all heads"}
_SYMBOL = {"top": "circle", "bottom": "triangle-down", "draw": "diamond", "all": "square"}
_CHECKS = {"offsets": "offsets: trained on the heads", "graft": "graft: tuned's weights of the heads"}
_WHOLES = {"base": (COLOURS["base"], "dot"), "vanilla": (COLOURS["tuned"], "dot"), "TAIA": (COLOURS["attn"], "dash")}
_NAME = 16  # characters of a ranker's name


def heads_figure(summary: xr.Dataset) -> go.Figure:
    """A row a metric, suite and check, a column a domain: every line's mean with its interval; dotted lines at whole models.

    Args:
        summary: What `summaries.heads_summary` returned.

    Raises:
        ResultError: No check was run.
    """
    checks = [check for check in _CHECKS if check in summary.check.values]
    if not checks:
        raise ResultError("the result holds rankings and no check; draw plots.head_maps_figure or plots.agreement_figure")
    panels = Panels.of(summary)
    parts = {check: summary.isel(line=summary.check.values == check) for check in checks}
    names = {check: list(dict.fromkeys(part.by.values.tolist())) for check, part in parts.items()}
    heights = [max(60, ROW * len(names[check])) for _ in range(panels.rows) for check in checks]
    stack = Stack(tuple(heights), 62 + panels.lines * TITLE_ROW)
    titles = [title for line in panels.titles(summary) for _ in checks for title in line]
    figure = stack.figure(len(panels.columns), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.06)
    for i, (line, col) in enumerate(panels.places):
        group = summary.isel(group=i)
        for j, check in enumerate(checks):
            row = (line - 1) * len(checks) + j + 1
            for end in ENDS:
                _add_end(figure, parts[check].isel(group=i), names[check], end, row, col)
            _add_wholes(figure, group, len(names[check]), row, col)
            labels = ticks([shown(name, _NAME) for name in names[check]])
            figure.update_yaxes(downwards(labels), showgrid=True, zeroline=False, row=row, col=col)
            if panels.leads((line, col)):
                figure.update_yaxes(title_text=check, showticklabels=True, row=row, col=col)
            figure.update_xaxes(title_text=axis_title(group), range=_range(group), row=row, col=col)
    figure.update_xaxes(title_font_size=12, title_standoff=6, nticks=5, showgrid=True)
    panels.clear(figure, len(checks))
    _name_once(figure)
    k, n = summary.attrs["k"], summary.attrs["n_heads"]
    notes = [
        f"{models(summary.attrs)}; {panels.note}".removeprefix("; "),
        "; ".join(_CHECKS[check] for check in checks),
        f"K = {k} of {n} heads; means over prompts and seeds, 95% intervals over prompts; small ticks: least and most over seeds or draws",
        "open: not told apart from random heads, random and all heads not from base (5% after Benjamini-Hochberg)",
    ]
    shown_ends = len({trace.name for trace in figure.data if trace.showlegend})
    title = "What the same step does on each ranker's heads"
    return framed(figure, title, notes, inside=stack.inside, below=76, legend=shown_ends, panels=panels.lines)


def _range(group: xr.Dataset) -> list[float]:
    """All means and intervals of a group: every check has the same axis."""
    known = np.concatenate([group[name].values for name in ("value", "low", "high", "least", "most")])
    known = known[np.isfinite(known)] if np.isfinite(known).any() else np.array([0.0, 1.0])
    room = 0.04 * float(known.max() - known.min()) or 0.5
    return [float(known.min()) - room, float(known.max()) + room]


def _name_once(figure: go.Figure) -> None:
    """Each name stands in the legend once."""
    known: set[str] = set()
    for trace in figure.data:
        trace.showlegend = bool(trace.name) and trace.name not in known
        known.add(str(trace.name))


def _heights(part: xr.Dataset, end: str, names: list[str]) -> np.ndarray:
    """Where each line stands: a ranker's top and bottom heads one above the other."""
    shift = {"top": -0.17, "bottom": 0.17}.get(end, 0.0)
    return np.array([names.index(name) + shift for name in part.by.values.tolist()])


def _add_end(figure: go.Figure, group: xr.Dataset, names: list[str], end: str, row: int, col: int) -> None:
    part = group.isel(line=group.end.values == end)
    if not part.sizes["line"]:
        return
    value, y, colour = part.value.values, _heights(part, end, names), COLOURS["head"]
    error = {"type": "data", "symmetric": False, "array": part.high.values - value, "arrayminus": value - part.low.values}
    figure.add_scatter(
        x=value,
        y=y,
        mode="markers",
        marker={"size": 9, "color": colour, "symbol": [_SYMBOL[end] + ("" if sure else "-open") for sure in _sure(part)]},
        error_x=error | {"thickness": 2, "width": 0, "color": colour},
        name=ENDS[end],
        legendgroup=end,
        text=[_hover(part.isel(line=i)) for i in range(part.sizes["line"])],
        hovertemplate="%{text}<extra></extra>",
        meta={"at": at(group), "points": _selected(part)},
        row=row,
        col=col,
    )
    several = part.runs.values > 1
    if several.any():
        figure.add_scatter(
            x=np.stack([part.least.values[several], part.most.values[several]], axis=-1).ravel(),
            y=np.repeat(y[several], 2),
            mode="markers",
            marker={"size": 6, "symbol": "line-ns", "line": {"width": 1.5, "color": colour}},
            hoverinfo="skip",
            legendgroup=end,
            row=row,
            col=col,
        )


def _sure(part: xr.Dataset) -> np.ndarray:
    """Lines that are told apart from random heads, or from base where that is no comparison."""
    random, base = (part.sel(reference=name) for name in ("random", "base"))
    return np.where(np.isnan(random["diff"]), base.q, random.q) <= ALPHA


def _selected(part: xr.Dataset) -> list[dict[str, str]]:
    keys = ("check", "by", "end")
    return [dict(zip(keys, line, strict=True)) for line in zip(*(part[key].values.tolist() for key in keys), strict=True)]


def _add_wholes(figure: go.Figure, group: xr.Dataset, n: int, row: int, col: int) -> None:
    """Lines across a panel where base, vanilla and TAIA are."""
    for name, (colour, dash) in _WHOLES.items():
        found = np.flatnonzero((group.by.values == name) & (group.end.values == "reference"))
        if not len(found):
            continue
        line = group.isel(line=found[:1])
        figure.add_scatter(
            x=[float(line.value[0])] * 2,
            y=[-0.5, n - 0.5],
            mode="lines",
            line={"dash": dash, "width": 1.5, "color": colour},
            name=name,
            legendgroup=name,
            text=[_hover(line.isel(line=0))] * 2,
            hovertemplate="%{text}<extra></extra>",
            meta={"at": at(group), "points": _selected(line) * 2},
            row=row,
            col=col,
        )


def _hover(line: xr.Dataset) -> str:
    end = ENDS.get(str(line.end.item()), "")
    text = [f"{shown(line.by.item())} {end}".strip() + f": {float(line.value):.4g} [{float(line.low):.4g}, {float(line.high):.4g}]"]
    text.append(f"n = {int(line.n)}; {int(line.numbers):,} numbers, {int(line.runs)} {'run' if int(line.runs) == 1 else 'runs'}")
    for reference in line.reference.values.tolist():
        cell = line.sel(reference=reference)
        if not np.isnan(float(cell["diff"])):
            ends = f"[{float(cell.diff_low):+.4g}, {float(cell.diff_high):+.4g}]"
            text.append(f"- {reference}: {float(cell['diff']):+.4g} {ends}, q = {float(cell.q):.2g}")
    return "<br>".join(text)
