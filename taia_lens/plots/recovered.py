"""The recovered fraction of a patching study by layer: how far the patched host went of the way to the donor."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.curves import add_curve, label_layers
from taia_lens.plots.layout import Row, check_some, panels, say
from taia_lens.plots.look import COLOURS, framed
from taia_lens.plots.maps import is_map
from taia_lens.plots.patching import CORRECTED, component_curve, layers_said, patch_note
from taia_lens.suite import DOMAIN_NAMES

UNDEFINED = "undefined: donor - host is within noise"


def recovered_figure(summary: xr.Dataset) -> go.Figure:
    """Effect / (donor - host) by layer with 95% intervals, a row a metric, a column a domain; gaps where it is undefined.

    Args:
        summary: What `summaries.patch_summary` returned for a study of whole layers: no heads or positions one by one.

    Raises:
        ResultError: The summary holds no site, or heads or positions.
    """
    check_some(summary, "recovered", "give what summaries.patch_summary returned for a result with a site and an example")
    if is_map(summary):
        dims = " and ".join(dim for dim in ("head", "pos") if dim in summary.dims)
        raise ResultError(
            f"recovered fractions are drawn by layer, and this result has a dim {dims}; write patch_figure for a map of effects"
        )
    places = [(metric, domain) for metric in summary.metric.values.tolist() for domain in summary.domain.values.tolist()]
    titles = [f"{DOMAIN_NAMES[d]}, n = {int(summary.n.sel(domain=d).max())}: {metric}" for metric, d in places]
    figure, inside = panels([Row(130, (title,)) for title in titles], 1)
    cut = 0
    for row, (metric, domain) in enumerate(places, 1):
        cut += _add_panel(figure, summary.sel(metric=metric, domain=domain), row)
    label_layers(figure, summary.layer.values)
    figure.update_xaxes(title_text="layer", row=len(places))
    legend, notes = summary.sizes["component"], [patch_note(summary), *_notes(summary, cut)]
    return framed(figure, _title(summary), notes, inside=inside, below=50, legend=legend, panels=1)


def _add_panel(figure: go.Figure, part: xr.Dataset, row: int) -> int:
    """A metric in a domain, on an axis of its own: fractions of a small gap are large. Returns how many intervals are cut."""
    n = part.sizes["component"]
    for i, component in enumerate(part.component.values.tolist()):
        beside = 0.1 * (i - (n - 1) / 2) if part.sizes["layer"] == 1 else 0.0
        add_curve(figure, component_curve(part, component, "recovered", beside=beside), row, 1, named=row == 1)
    for level, side in ((0, "host"), (1, "donor")):
        line = {"width": 1, "dash": "solid" if level == 0 else "dot", "color": COLOURS[str(part.attrs[side])]}
        figure.add_hline(y=level, line=line, row=row, col=1)
    if not bool(part.defined.any()):
        say(figure, row, 1, UNDEFINED)
    least, most, cut = _range(part)
    figure.update_yaxes(title_text="recovered", tickformat=".0%", range=[least, most], row=row)
    return cut


def _title(summary: xr.Dataset) -> str:
    host, donor = summary.attrs["host"], summary.attrs["donor"]
    names = " and ".join(str(c) for c in summary.component.values)
    return f"How far {donor}'s {names} take {host} of the way to {donor}: {layers_said(summary)}"


def _notes(summary: xr.Dataset, cut: int) -> list[str]:
    missing, total = int((~summary.defined.astype(bool)).sum()), summary.defined.size
    ends = f"; intervals that go on beyond the panel: {cut}" if cut else ""
    gaps = f"{missing} of {total} fractions are undefined, since donor - host is within noise: gaps" if missing else ""
    return [f"bands and lines: 95% paired bootstrap intervals{ends}; dotted: the donor (100%)", f"hollow: effect {CORRECTED}", gaps]


def _range(part: xr.Dataset) -> tuple[float, float, int]:
    """What an axis holds: every fraction, 0 and 1, and of wide intervals as much again; how many of them are cut."""
    known = part.recovered.values[np.isfinite(part.recovered.values)]
    least, most = float(known.min(initial=0.0)), float(known.max(initial=1.0))
    room = 0.5 * (most - least)
    low, high = part.recovered_low.values, part.recovered_high.values
    ends = [x[np.isfinite(x)] for x in (low, high)]
    bottom, top = max(float(ends[0].min(initial=least)), least - room), min(float(ends[1].max(initial=most)), most + room)
    pad = 0.05 * (top - bottom)
    return bottom - pad, top + pad, int(((low < bottom - pad) | (high > top + pad)).sum())
