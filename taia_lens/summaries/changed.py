"""What a cell of a result fixed and broke: its examples before and after, with their texts. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from taia_lens.errors import ResultError
from taia_lens.metric_names import METRICS
from taia_lens.summaries.heads import lines
from taia_lens.summaries.transfer import RANDOM

SAME = 1e-6
"""A change no larger than this is none: rounding moves a log-probability by less."""
_TEXTS = ("prompt", "answer", "token", "unit", "better")  # coords that name no cell
_REST = {"part": "rest"}  # weights that are in no player of a layers study
_DEFAULTS = ("metric", "reference")  # where a cell does not name these, the first is meant


@dataclass(frozen=True, eq=False)
class Trial:
    """Every example before and after, for all cells of one kind.

    Attributes:
        at: What tells these cells from the study's others: `{"view": "alone"}`.
        values: `before` and `after` (metric, the cells' dims, example); where text was generated, `before_text` and `after_text`.
        words: What before and after are; `{layer}` stands for the cell's layer.
    """

    at: Mapping[str, str]
    values: xr.Dataset
    words: tuple[str, str]


def trials(result: xr.Dataset) -> list[Trial]:
    """What a study's cells do to each example, by kind of cell.

    Args:
        result: What a study returned.

    Raises:
        ResultError: The study measures no example before and after, or the result keeps no prompts.
    """
    study = str(result.attrs.get("study", "of no name"))
    if study not in _TRIALS:
        raise ResultError(f"the study {study} measures no example before and after; cells of these do: {', '.join(_TRIALS)}")
    if "prompt" not in result.coords:
        written = result.attrs.get("versions", {}).get("taia-lens", "of no known version")
        raise ResultError(f"a result of taia-lens {written} that keeps no prompts; run its command again, and it will")
    return _TRIALS[study](result)


def changed(result: xr.Dataset, cell: Mapping[str, Any]) -> xr.Dataset:
    """The examples of one cell, before and after.

    Args:
        result: What a study returned.
        cell: What the cell is, by dim or coord: `{"component": "mlp", "layer": 12, "metric": "accuracy", "domain": "ood"}`. Without
            `metric`, the first; without `domain` or `suite`, all examples; of a grid, `reference` is base where not named.

    Returns:
        By example: `before`, `after` (in the metric's unit) and `change`, signed so that + is better; with the coords `prompt`,
        `answer`, `domain`. Examples that the metric does not fit, or that lack the position, are left out. The attrs `before`
        and `after` say what these are in words.

    Raises:
        ResultError: There is no such cell, or it has no examples before and after.
    """
    found = trials(result)
    asked = dict(cell)
    if "suite" in asked and "suite" not in result.coords and result.attrs.get("suite") == asked["suite"]:
        del asked["suite"]  # a study of one suite
    fitting = [trial for trial in found if _fits(trial, asked)]
    fitting = [trial for trial in fitting if _has(trial, asked)] or fitting  # or the first, which says what it lacks
    if not fitting:
        known = dict.fromkeys(str(name) for trial in found for name in (*trial.at, *trial.values.dims, *_labels(trial)))
        names = ", ".join(name for name in known if name != "example")
        raise ResultError(f"no cell {_said(cell)} in this result; a cell is named by some of {names}")
    trial = fitting[0]
    one = trial.values
    for name, value in asked.items():
        one = one if name in trial.at else _only(one, name, value)
    one = _squeezed(one)
    metric = str(one.metric.item())
    one = one.assign(change=METRICS[metric].better * (one.after - one.before))
    one = one.isel(example=np.flatnonzero(one.change.notnull().values))
    places = {str(name): coord.item() for name, coord in one.coords.items() if not coord.dims}
    before, after = (words.format(**places) for words in trial.words)
    return one.assign_attrs(metric=metric, unit=METRICS[metric].unit, before=before, after=after)


def better_and_worse(change: NDArray[np.floating]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where examples got better and where worse, the largest changes first, equal ones in their order.

    >>> [found.tolist() for found in better_and_worse(np.array([0.0, 1.0, -0.5, np.nan, 2.0]))]
    [[4, 1], [2]]
    """
    order = np.argsort(-np.abs(np.nan_to_num(change)), kind="stable")
    with np.errstate(invalid="ignore"):
        return order[change[order] > SAME], order[change[order] < -SAME]


def _fits(trial: Trial, asked: Mapping[str, Any]) -> bool:
    known = {*trial.values.dims, *_labels(trial)}
    return all(value == trial.at[name] if name in trial.at else name in known for name, value in asked.items())


def _has(trial: Trial, asked: Mapping[str, Any]) -> bool:
    return all(name in trial.at or value in trial.values[name].values.tolist() for name, value in asked.items())


def _labels(trial: Trial) -> list[str]:
    """Coords that a cell may be named by beside the dims themselves."""
    return [str(name) for name, coord in trial.values.coords.items() if len(coord.dims) == 1 and name not in _TEXTS]


def _only(values: xr.Dataset, name: str, value: object) -> xr.Dataset:
    """The cells, or the examples, of that name."""
    (dim,) = values[name].dims
    there = values[name].values.tolist()
    chosen = [i for i, other in enumerate(there) if other == value]
    if not chosen:
        known = list(dict.fromkeys(map(str, there)))
        listed = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        raise ResultError(f"no {name} {value!r} in this result; there are {listed}")
    return values.isel({dim: chosen})


def _squeezed(values: xr.Dataset) -> xr.Dataset:
    """One cell: dims that may be left out are their first, and no other one may be open."""
    values = values.isel({name: [0] for name in _DEFAULTS if name in values.dims})
    for dim in [d for d in values.dims if d != "example"]:
        if values.sizes[dim] > 1:
            known = ", ".join(map(str, values[dim].values[:6])) + (", ..." if values.sizes[dim] > 6 else "")
            raise ResultError(f"the cell leaves {dim} open; name one of {known}")
    return values.squeeze([d for d in values.dims if d != "example"])


def _said(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in cell.items()) or "of no name"


def _pair(before: xr.DataArray, after: xr.DataArray, words: tuple[str, str], at: Mapping[str, str] | None = None) -> Trial:
    return Trial(at or {}, xr.Dataset({"before": before, "after": after}), words)


def _patch(result: xr.Dataset) -> list[Trial]:
    host, donor = result.attrs["host"], result.attrs["donor"]
    return [_pair(result.host, result.patched, (host, f"{host} with {donor}'s {_site(result)} patched in"))]


def _site(result: xr.Dataset) -> str:
    places = [("head", "head {head}"), ("layer", "layer {layer}"), ("pos", "position {pos}")]
    return ", ".join(["{component}", *(words for dim, words in places if dim in result.patched.dims)])


def _attribution(result: xr.Dataset) -> list[Trial]:
    host, donor = result.attrs["host"], result.attrs["donor"]
    found = [_pair(result.host, result.patched, (host, f"{host} + attribution of {donor}'s {_site(result)}, which estimates a patch"))]
    if "check" not in result.dims:
        return found
    after = (result.host + result.check_patched).transpose("metric", "check", "example")
    return [*found, _pair(result.host, after, (host, f"{host} with {donor}'s {{check}} patched in"))]


def _grid(result: xr.Dataset) -> list[Trial]:
    recipes = [name for name in ("base", "vanilla", "TAIA") if name in result.recipe.values]

    def against(values: xr.DataArray) -> xr.DataArray:
        return values.sel(recipe=recipes).drop_vars(("role", "text")).rename(recipe="reference")

    trial = _pair(against(result.value), result.value, ("{reference}", "{recipe}"))
    if "transcript" not in result:
        return [trial]
    return [Trial({}, trial.values.assign(before_text=against(result.transcript), after_text=result.transcript), trial.words)]


def _layers(result: xr.Dataset) -> list[Trial]:
    base, vanilla, found = result.base, result.vanilla, []
    if "alone" in result:
        found.append(_pair(base, base + result.alone, ("base", "base with {part} of layer {layer} from tuned"), {"view": "alone"}))
    if "last" in result:
        found.append(_pair(vanilla - result["last"], vanilla, ("tuned with {part} of layer {layer} from base", "tuned"), {"view": "last"}))
    if "shapley" in result:
        words = "base", "base + the Shapley share of {part} of layer {layer}, a mean over orders that no one model has"
        found.append(_pair(base, base + result.shapley, words, {"view": "shapley"}))
    if "cumulated" in result:
        total = result.cumulated.assign_coords(direction=["below", "above"], series=["attn", "mlp", "both"])
        words = "base", "base with {series} of all layers from {direction} to layer {layer} from tuned"
        found.append(_pair(base, base + total, words, {"view": "cumulative"}))
    if "rest_alone" in result:
        found.append(_pair(base, base + result.rest_alone, ("base", "base with all else from tuned"), _REST | {"view": "alone"}))
    if "rest_last" in result:
        found.append(_pair(vanilla - result.rest_last, vanilla, ("tuned with all else from base", "tuned"), _REST | {"view": "last"}))
    if "rest_shapley" in result:
        words = "base", "base + the Shapley share of all else, a mean over orders that no one model has"
        found.append(_pair(base, base + result.rest_shapley, words, _REST | {"view": "shapley"}))
    return found


def _heads(result: xr.Dataset) -> list[Trial]:
    found = lines(result)
    means = [result.value.isel(arm=line.arms).mean("arm") for line in found]
    labels = {name: ("line", [getattr(line, name) for line in found]) for name in ("check", "by", "end")}
    after = xr.concat(means, "line").transpose("metric", "line", "example").assign_coords(labels)
    after = after.assign_coords(line=[line.name for line in found])
    base = next(mean for line, mean in zip(found, means, strict=True) if (line.end, line.by) == ("reference", "base"))
    return [_pair(base, after, ("base", "{line}, the mean over seeds and draws"))]


def _transfer(result: xr.Dataset) -> list[Trial]:
    value = result.value.mean("seed")
    rows = result.row.values.tolist()
    groups = {row: [row] for row in rows if not row.startswith(RANDOM)} | {RANDOM: [row for row in rows if row.startswith(RANDOM)]}
    means = [value.sel(row=some).mean("row") for some in groups.values() if some]
    after = xr.concat(means, "row").assign_coords(row=[name for name, some in groups.items() if some])
    words = "the untouched model", "offsets tuned on the heads of {row}, the mean over seeds and draws"
    return [_pair(result.base, after.transpose("metric", "row", "example"), words)]


def _steering(result: xr.Dataset) -> list[Trial]:
    unsteered = result.value.isel(direction=0).sel(alpha=0.0).drop_vars(("direction", "alpha"))
    found = [_pair(unsteered, result.value, ("the model itself", "the model steered by {direction}, alpha {alpha}"))]
    return [*found, _pair(unsteered, result.arm_value, ("the model itself", "the model under {arm}"))] if "arm" in result.dims else found


def _adapters(result: xr.Dataset) -> list[Trial]:
    base = result.value.sel(model="base").drop_vars(("model", "sites"))
    trial = _pair(base, result.value, ("base", "{model}"))
    if "transcript" not in result:
        return [trial]
    texts = {"before_text": result.transcript.sel(model="base").drop_vars(("model", "sites")), "after_text": result.transcript}
    return [Trial({}, trial.values.assign(texts), trial.words)]


_TRIALS: dict[str, Callable[[xr.Dataset], list[Trial]]] = {
    "patch": _patch,
    "attribution": _attribution,
    "compare": _grid,
    "layers": _layers,
    "heads": _heads,
    "transfer": _transfer,
    "steering": _steering,
    "adapters": _adapters,
}
EXAMPLED = tuple(_TRIALS)
"""The studies whose cells have examples before and after."""
