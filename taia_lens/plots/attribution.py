"""The pictures of the attribution study: a patching study's, named an estimate, and the estimate against what patching did."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.layers import whiskers
from taia_lens.plots.look import COLOURS, framed, shown
from taia_lens.plots.patching import patch_figure
from taia_lens.plots.stacks import models, plain

# Why a site was patched really -> words, symbol. Colours say what kind of site it is.
_WHY = {"strong": ("strongest", "circle"), "random": ("drawn at random", "diamond-open")}


def attribution_figure(summary: xr.Dataset) -> go.Figure:
    """Points, curves or a map, as of a patching study.

    Args:
        summary: What `summaries.attribution_summary` returned.

    Raises:
        ResultError: The summary holds no site.
    """
    how = f"estimate by integrated gradients, {summary.attrs['steps']} steps" if summary.attrs["steps"] else "first-order estimate"
    return patch_figure(summary, lead="Attribution: ", notes=[how])


def check_figure(summary: xr.Dataset) -> go.Figure:
    """Every site that was patched really: what was attributed to it against what patching did, and the line of no error.

    Args:
        summary: What `summaries.attribution_summary` returned, with sites that were patched really.

    Raises:
        ResultError: No site was patched really.
    """
    if not summary.sizes.get("check", 0):
        raise ResultError("no site was patched really, so there is nothing to hold the estimate against; attribute with check=4")
    figure = go.Figure()
    said, found = summary.check_attributed.values, summary.check_patched.values
    sides = [summary[f"{name}_{end}"].values for name in ("check_attributed", "check_patched") for end in ("low", "high")]
    known = np.concatenate([said, found, *sides, [0.0]])
    known = known[np.isfinite(known)]
    room = 0.08 * float(known.max() - known.min()) or 1e-12
    ends = [float(known.min()) - room, float(known.max()) + room]
    line = {"dash": "dot", "width": 1, "color": COLOURS["base"]}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="no error", hoverinfo="skip")
    for why, (words, symbol) in _WHY.items():
        part = summary.isel(check=summary.chosen.values == why)
        sites = part.check.values.tolist()
        figure.add_scatter(
            x=part.check_patched.values,
            y=part.check_attributed.values,
            error_x=_interval(part, "check_patched"),
            error_y=_interval(part, "check_attributed"),
            text=[_said(part.isel(check=i)) for i in range(len(sites))],
            mode="markers",
            marker={"color": [_colour(site) for site in sites], "symbol": symbol, "size": 9},
            name=words,
            hovertemplate="%{text}<extra></extra>",
            meta={"at": {}, "points": plain("check", part.check.values)},
        )
    metric, unit = shown(summary.metric.values[0], 30), str(summary.unit.values[0])
    whole = summary.sel(among="all")
    figure.update_xaxes(title_text=f"patched really: effect on {metric} ({unit})", title_font_size=12, range=ends, nticks=7)
    figure.update_yaxes(title_text=f"attributed ({unit})", title_font_size=12, range=ends, nticks=7)
    notes = [
        models(summary.attrs),
        f"suite {shown(summary.attrs['suite'], 40)}; means over all prompts with 95% intervals; {int(whole.n_sites)} sites",
        f"off by {float(whole.off):.0%} of what patching does; r = {float(whole.correlation):.2f} over sites",
        f"colours: {', '.join(_kinds(summary))}",
    ]
    return framed(figure, "Attribution against patching", notes, inside=340, legend=3)


def _kind(site: str) -> str:
    """`L3.mlp` -> mlp, `L3.h5` -> head."""
    name = site.partition(".")[2].partition("@")[0].strip()
    return name if name in COLOURS else "head"


def _interval(part: xr.Dataset, name: str) -> dict[str, Any]:
    mean, low, high = (part[f"{name}{end}"].values for end in ("", "_low", "_high"))
    return whiskers(high - mean, mean - low)


def _said(site: xr.Dataset) -> str:
    """A site, and both of its means with their intervals."""
    numbers = {
        words: "{:+.4g} [{:+.4g}, {:+.4g}]".format(*(float(site[f"{name}{end}"]) for end in ("", "_low", "_high")))
        for words, name in (("patched", "check_patched"), ("attributed", "check_attributed"))
    }
    return "<br>".join([shown(site.check.item()), *(f"{words} {text}" for words, text in numbers.items()), f"n = {int(site.check_n)}"])


def _colour(site: str) -> str:
    return COLOURS[_kind(site)]


def _kinds(summary: xr.Dataset) -> list[str]:
    words = {"attn": "attn blue", "mlp": "mlp vermilion", "resid": "resid green", "head": "heads pink"}
    return list(dict.fromkeys(words[_kind(site)] for site in summary.check.values.tolist()))
