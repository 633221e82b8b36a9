"""The pictures of the attribution study: a patching study's, named an estimate, and the estimate against what patching did."""

from __future__ import annotations

import html

import plotly.graph_objects as go
import xarray as xr

from taia_lens.plots.patching import COLOURS, patch_figure

_WORDS = {"strong": "strongest", "random": "drawn at random"}
_MARKS = {"strong": (COLOURS["mlp"], "circle"), "random": (COLOURS["attn"], "diamond")}


def attribution_figure(summary: xr.Dataset) -> go.Figure:
    """Points, curves or a map, as of a patching study.

    Args:
        summary: What `summaries.attribution_summary` returned.

    Raises:
        ResultError: The summary holds no site.
    """
    figure = patch_figure(summary)
    how = "integrated" if summary.attrs["steps"] else "first-order"
    figure.layout.title.text = f"Attribution: {figure.layout.title.text}".replace("<sup>", f"<sup>{how} estimate; ", 1)
    return figure


def check_figure(summary: xr.Dataset) -> go.Figure:
    """Every site that was patched really: what was attributed to it against what patching did, and the line of no error.

    Args:
        summary: What `summaries.attribution_summary` returned, with sites that were patched really.
    """
    figure = go.Figure()
    said, found = summary.check_attributed.values, summary.check_patched.values
    low, high = min(said.min(), found.min(), 0.0), max(said.max(), found.max(), 0.0)
    room = 0.08 * (high - low) or 1e-12
    ends = [low - room, high + room]
    line = {"dash": "dot", "width": 1, "color": COLOURS["base"]}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="no error", hoverinfo="skip")
    for why, (colour, symbol) in _MARKS.items():
        part = summary.isel(check=summary.chosen.values == why)
        figure.add_scatter(
            x=part.check_patched.values,
            y=part.check_attributed.values,
            text=part.check.values,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
            name=_WORDS[why],
            hovertemplate="%{text}<br>patched %{x:+.4g}, attributed %{y:+.4g}<extra></extra>",
        )
    metric, unit = str(summary.metric.values[0]), str(summary.unit.values[0])
    whole = summary.sel(among="all")
    note = f"off by {float(whole.off):.0%} of what patching does; r = {float(whole.correlation):.2f} over sites"
    title = f"Attribution against patching, {html.escape(str(summary.attrs['suite']))}<br><sup>{note}; means over all prompts</sup>"
    figure.update_layout(template="simple_white", title={"text": title, "x": 0.02, "xanchor": "left", "font": {"size": 15}})
    figure.update_layout(width=640, height=560, margin={"t": 95})
    figure.update_xaxes(title_text=f"patched really: effect on {metric} ({unit})", range=ends)
    figure.update_yaxes(title_text=f"attributed ({unit})", range=ends)
    return figure
