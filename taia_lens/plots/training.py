"""The picture of a training of scales (LoFiT): its loss and its validation loss by epoch."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.look import COLOURS, framed, shown
from taia_lens.plots.stacks import Stack, models, plain, step, to_the_left

HEIGHT = 170
_LINES = {"loss": ("training, as it went", "dot", "circle-open"), "validation": ("validation", "solid", "circle")}


def training_figure(history: xr.Dataset) -> go.Figure:
    """Training and validation loss by epoch, a panel a training, the best epoch marked; and the penalty's curve where there is one.

    Args:
        history: What `summaries.training_history` returned.

    Raises:
        ResultError: There is no training or no finished epoch.
    """
    if 0 in (history.sizes["run"], history.sizes["epoch"]):
        raise ResultError("the history holds no finished epoch; there is nothing to draw")
    panels = [(i, what) for i in range(history.sizes["run"]) for what in ("loss", "penalty") if what == "loss" or _penalised(history, i)]
    stack = Stack((HEIGHT,) * len(panels), 76)
    titles = [shown(history.run.values[i], 40) + ("" if what == "loss" else ": penalty") for i, what in panels]
    figure = stack.figure(subplot_titles=titles)
    to_the_left(figure)
    for row, (i, what) in enumerate(panels, 1):
        one = history.isel(run=i)
        if what == "penalty":
            _add_curve(figure, one, "penalty", "penalty on the scales (l1 x sum |A|)", "dash", "diamond", row)
        else:
            for name, (label, dash, symbol) in _LINES.items():
                _add_curve(figure, one, name, label, dash, symbol, row)
            _add_best(figure, one, row)
        n = int(one.loss.notnull().sum())
        figure.update_yaxes(title_text="nats", nticks=5, row=row, col=1)
        figure.update_xaxes(title_text="epoch", tick0=0, dtick=step(n + 1, 10), range=[0.5, max(n, 2) + 0.5], row=row, col=1)
    names = [str(trace.name) for trace in figure.data]
    for i, trace in enumerate(figure.data):
        trace.showlegend = names[i] not in names[:i]
    notes = [models(history.attrs), "mean loss over the texts; the star's epoch is what is kept", *_stopped(history)]
    return framed(figure, "Training of the scales", notes, inside=stack.inside, below=52, legend=len(set(names)), panels=1)


def _penalised(history: xr.Dataset, i: int) -> bool:
    return bool((np.nan_to_num(history.penalty.isel(run=i).values) != 0).any())


def _stopped(history: xr.Dataset) -> list[str]:
    """Why trainings ended before their time."""
    pairs = zip(history.run.values.tolist(), history.stopped.values.tolist(), strict=True)
    return [f"{shown(run, 24)} stopped: {shown(why, 160)}" for run, why in pairs if why]


def _add_curve(figure: go.Figure, one: xr.Dataset, name: str, label: str, dash: str, symbol: str, row: int) -> None:
    figure.add_scatter(
        x=one.epoch.values,
        y=one[name].values,
        mode="lines+markers",
        line={"color": COLOURS["head"], "dash": dash, "width": 1.5},
        marker={"symbol": symbol, "size": 6},
        name=label,
        legendgroup=name,
        hovertemplate=f"epoch %{{x}}, {label}: %{{y:.4f}}<extra></extra>",
        meta={"at": {"run": str(one.run.item())}, "points": plain("epoch", one.epoch.values)},
        row=row,
        col=1,
    )


def _add_best(figure: go.Figure, one: xr.Dataset, row: int) -> None:
    epoch = int(one.best)
    value = float(one.validation.sel(epoch=epoch))
    figure.add_scatter(
        x=[epoch],
        y=[value],
        mode="markers",
        marker={"symbol": "star", "size": 14, "color": COLOURS["head"], "line": {"width": 1, "color": COLOURS["tuned"]}},
        name="the best epoch",
        legendgroup="best",
        hovertemplate=f"epoch {epoch}, the best: validation {value:.4f}<extra></extra>",
        meta={"at": {"run": str(one.run.item())}, "points": [{"epoch": epoch}]},
        row=row,
        col=1,
    )
