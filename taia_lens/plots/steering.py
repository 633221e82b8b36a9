"""The picture of the steering study: the metric against alpha, in and out of distribution, with learnt scales as lines across."""

from __future__ import annotations

import html

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from taia_lens.plots.patching import COLOURS
from taia_lens.suite import DOMAIN_NAMES

ARMS = (COLOURS["tuned"], COLOURS["mlp"], COLOURS["head"], COLOURS["resid"])
ABOVE, BELOW, INSIDE = 120, 120, 320


def steering_figure(summary: xr.Dataset) -> go.Figure:
    """A panel a suite, domain and metric: the fitted direction and the random ones by alpha, a star where alpha was chosen.

    Args:
        summary: What `summaries.steering_summary` returned.
    """
    n = summary.sizes["group"]
    titles = [_panel(summary.isel(group=i)) for i in range(n)]
    figure = make_subplots(1, n, column_titles=titles, horizontal_spacing=0.06)
    for col in range(1, n + 1):
        group = summary.isel(group=col - 1)
        for i in range(summary.sizes["direction"]):
            _add_line(figure, group.isel(direction=i), i, col)
        for i in range(summary.sizes.get("arm", 0)):
            _add_arm(figure, group.isel(arm=i), i, col)
        down = "" if int(group.better) > 0 else ", smaller is better"
        figure.update_yaxes(title_text=f"{group.metric.item()} ({group.unit.item()}{down})", row=1, col=col)
    figure.update_xaxes(title_text="alpha (standard deviations)")
    note = "bars, and bands of further scales: 95% intervals; star: alpha chosen on other rows; grey: random directions"
    title = f"Steering {html.escape(str(summary.attrs['model']).rstrip('/').rpartition('/')[2])}<br><sup>{note}</sup>"
    figure.update_layout(
        template="simple_white",
        title={"text": title, "x": 0.02, "xanchor": "left", "font": {"size": 15}},
        height=ABOVE + BELOW + INSIDE,
        legend={"orientation": "h", "y": -70 / INSIDE, "yanchor": "top"},  # 70 pixels below the axis, its title between
        margin={"t": ABOVE, "b": BELOW},
    )
    figure.update_annotations(font_size=13)
    return figure


def _panel(group: xr.Dataset) -> str:
    return f"{html.escape(str(group.suite.item()))}<br>{DOMAIN_NAMES[str(group.domain.item())]}, n = {int(group.n)}"


def _add_line(figure: go.Figure, line: xr.Dataset, i: int, col: int) -> None:
    value, alpha = line.value.values, line.alpha.values
    ends = {"type": "data", "symmetric": False, "array": line.high.values - value, "arrayminus": value - line.low.values, "thickness": 1}
    fitted, chosen = i == 0, alpha == float(line.chosen)
    figure.add_scatter(
        x=alpha,
        y=value,
        mode="lines+markers",
        line={"color": COLOURS["attn"] if fitted else COLOURS["base"], "width": 2 if fitted else 1, "dash": "solid" if fitted else "dot"},
        marker={"size": [13 if c else 5 for c in chosen], "symbol": ["star" if c else "circle" for c in chosen]},
        error_y=ends | {"visible": fitted},
        name=str(line.direction.item()) if fitted else "random direction",
        legendgroup=str(i > 0),
        showlegend=col == 1 and i < 2,
        customdata=list(zip(line.low.values, line.high.values, line["diff"].values, line.q.values, strict=True)),
        hovertemplate=f"{line.direction.item()}, alpha %{{x:g}}: %{{y:.4g}} [%{{customdata[0]:.4g}}, %{{customdata[1]:.4g}}]"
        "<br>- base: %{customdata[2]:+.4g}, q = %{customdata[3]:.2g}<extra></extra>",
        row=1,
        col=col,
    )


def _add_arm(figure: go.Figure, arm: xr.Dataset, i: int, col: int) -> None:
    """A line across with its interval as a band."""
    colour, ends = ARMS[i % len(ARMS)], [float(arm.alpha.min()), float(arm.alpha.max())]
    value, low, high = (float(arm[f"arm_{name}"]) for name in ("value", "low", "high"))
    name = html.escape(str(arm.arm.item()))
    figure.add_scatter(
        x=ends,
        y=[value, value],
        mode="lines",
        line={"color": colour, "dash": "dash"},
        name=f"{name} ({int(arm.arm_numbers)} numbers)",
        legendgroup=f"arm {name}",
        showlegend=col == 1,
        hovertemplate=f"{name}: {value:.4g} [{low:.4g}, {high:.4g}]<br>- base: {float(arm.arm_diff):+.4g}, q = {float(arm.arm_q):.2g}"
        "<extra></extra>",
        row=1,
        col=col,
    )
    figure.add_hrect(y0=low, y1=high, fillcolor=colour, opacity=0.12, line_width=0, row=1, col=col)
