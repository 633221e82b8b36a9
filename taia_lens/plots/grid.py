"""The picture of the grid: every recipe's value with its interval, a panel a group."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.plots.layers import cell_of
from taia_lens.plots.layout import (
    ACROSS,
    Row,
    blank,
    check_some,
    domains_of,
    group_note,
    metric_text,
    panel_title,
    panels,
    ragged,
    side_by_side,
)
from taia_lens.plots.look import ALPHA, COLOURS, framed, shown, wrapped

LINE = 22  # pixels of a recipe
ROLE_NAMES = {"end": "base and vanilla", "named": "TAIA and TAIF", "rival": "trained apart", "player": "other coalitions"}
ROLE_NAMES |= {"asked": "asked for", "control": "controls"}
ROLE_COLOURS = {"rival": COLOURS["resid"], "player": COLOURS["rest"], "asked": COLOURS["head"], "control": COLOURS["control"]}
ROLE_SYMBOLS = {"end": "diamond", "named": "circle", "rival": "square", "player": "triangle-up", "asked": "star", "control": "circle"}
_OWN = {"base": COLOURS["base"], "vanilla": COLOURS["tuned"], "TAIA": COLOURS["attn"], "TAIF": COLOURS["mlp"]}


def colour_of(recipe: str, role: str) -> str:
    """A recipe's colour: TAIA is attention's update, TAIF the FFN's, and those two have their colours.

    >>> colour_of("TAIA", "named") == COLOURS["attn"]
    True
    """
    return ROLE_COLOURS.get(role) or _OWN.get(recipe, COLOURS["tuned"])


def compare_figure(summary: xr.Dataset) -> go.Figure:
    """Recipes down the side, a panel a suite, domain and metric; dotted lines where base and vanilla are.

    Args:
        summary: What `summaries.grid_summary` returned.

    Raises:
        ResultError: The summary holds no recipe or no group.
    """
    check_some(summary, "value", "give what summaries.grid_summary returned")
    blocks, columns, n = side_by_side(summary), domains_of(summary), summary.sizes["recipe"]
    titles = [tuple("" if i is None else panel_title(summary.isel(group=i), summary) for i in block) for block in blocks]
    several = len(set(summary.metric.values.tolist())) > 1
    figure, inside = panels(
        [Row(LINE * n + 12, some, ticks=several or ragged(blocks)) for some in titles], len(columns), same_x=not several
    )
    for row, block in enumerate(blocks, 1):
        for column, i in enumerate(block, 1):
            if i is None:
                blank(figure, row, column)
                continue
            group = summary.isel(group=i)
            for role in dict.fromkeys(summary.role.values.tolist()):
                _add_role(figure, group, str(role), row, column)
            _add_lines(figure, group, row, column)
            words = wrapped(metric_text(group), ACROSS - 4) if several or row == len(blocks) else None
            figure.update_xaxes(title={"text": words, "standoff": 4}, showgrid=True, row=row, col=column)
    names = [shown(name, 20) for name in summary.recipe.values]
    figure.update_yaxes(tickvals=list(range(n)), ticktext=names, range=[n - 0.4, -0.6], showgrid=True)
    _add_key(figure, summary)
    legend = len(set(summary.role.values.tolist()))
    hollow = "hollow: not told apart from vanilla after correction (q > 0.05, Benjamini-Hochberg over all differences)"
    notes = [group_note(summary), f"means and 95% intervals; dotted: base and vanilla; {hollow}"]
    return framed(
        figure, "Recipes, their values and intervals", notes, inside=inside, below=64, legend=legend, panels=Row(0, titles[0]).lines
    )


def _add_lines(figure: go.Figure, group: xr.Dataset, row: int, column: int) -> None:
    for name in ("base", "vanilla"):
        x = float(group.value.sel(recipe=name)) if name in group.recipe.values else np.nan
        if np.isfinite(x):
            figure.add_vline(x=x, line={"dash": "dot", "width": 1, "color": _OWN[name]}, row=row, col=column)


def _add_role(figure: go.Figure, group: xr.Dataset, role: str, row: int, column: int) -> None:
    where = np.flatnonzero(group.role.values == role)
    part = group.isel(recipe=where)
    value, names = part.value.values, [str(name) for name in part.recipe.values]
    against = np.nan_to_num(part.q.sel(reference="vanilla").values, nan=1.0)
    hollow = (against > ALPHA) & (np.array(names) != "vanilla")
    symbol, colours = ROLE_SYMBOLS[role], [colour_of(name, role) for name in names]
    figure.add_scatter(
        x=value,
        y=where,
        mode="markers",
        marker={
            "size": 8,
            "color": colours,
            "symbol": [f"{symbol}-open" if h else symbol for h in hollow],
            "line": {"width": 1.5, "color": colours},
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": part.high.values - value,
            "arrayminus": value - part.low.values,
            "thickness": 1.5,
            "color": colours[0] if len(set(colours)) == 1 else "#444444",
        },
        name=ROLE_NAMES[role],
        legendgroup=role,
        showlegend=False,
        text=[_hover(part.isel(recipe=i)) for i in range(part.sizes["recipe"])],
        hovertemplate="%{text}<extra></extra>",
        meta={"at": cell_of(group), "points": [{"recipe": name} for name in names]},
        row=row,
        col=column,
    )


def _add_key(figure: go.Figure, summary: xr.Dataset) -> None:
    """The legend: it would show a role's first mark otherwise, hollow or not, in a colour of its own."""
    for role in dict.fromkeys(str(role) for role in summary.role.values):
        colour = ROLE_COLOURS.get(role, COLOURS["tuned"] if role == "end" else COLOURS["attn"])
        look = {"size": 8, "color": colour, "symbol": ROLE_SYMBOLS[role]}
        figure.add_scatter(
            x=[None], y=[None], mode="markers", marker=look, name=ROLE_NAMES[role], legendgroup=role, hoverinfo="skip", row=1, col=1
        )


def _hover(cell: xr.Dataset) -> str:
    name, value, low, high = shown(cell.recipe.item(), 60), float(cell.value), float(cell.low), float(cell.high)
    against = [
        f"- {reference}: {float(c['diff']):+.4g} [{float(c.diff_low):+.4g}, {float(c.diff_high):+.4g}], q = {float(c.q):.2g}"
        for reference in cell.reference.values.tolist()
        if np.isfinite(float((c := cell.sel(reference=reference))["diff"]))
    ]
    head = f"<b>{name}</b>: {value:.4g} [{low:.4g}, {high:.4g}], n = {int(cell.n)}"
    return "<br>".join([head, *against, shown(cell.text.item(), 90)])
