"""Adapters of scales on prompts: a model by itself and under each adapter, in and out of distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.errors import TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.scales import Scales, check_fits
from taia_lens.scoring import Prepared, Scores, check_suites, metrics_of, model_attrs, prepare_suite, score_many_scales, suites_attr
from taia_lens.store import CellStore
from taia_lens.suite import Suite

BASE = "base"


def score_adapters(
    model: Loaded,
    adapters: Mapping[str, Scales],
    suites: Suite | Sequence[Suite],
    *,
    other_model: bool = False,
    metrics: Sequence[str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    store: CellStore | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Score a model, and it under each adapter, on every prompt.

    Args:
        model: The base.
        adapters: By name; each is applied alone.
        suites: Prompts of one or several suites.
        other_model: Accept adapters that were not made for this model.
        metrics: Names from `metric_names.METRICS`; where None, the main one of each suite's task.
        batch_size: Rows at a time; it changes speed, not results.
        seed: Of the bootstrap.
        store: Where finished cells are kept and found.
        progress: Show a bar.

    Returns:
        `value` (metric, model, example), the first model being `base`, NaN where a metric does not fit an example's task;
        `numbers` and `n_sites` (model): how many numbers an adapter holds, and at how many sites.

    Raises:
        PairError, SiteError: An adapter that does not fit, or was made for another model.
        SuiteError, TaiaLensError: A suite, metric or name that does not fit.
    """
    chosen = check_suites([suites] if isinstance(suites, Suite) else list(suites))
    if not adapters or BASE in adapters:
        raise TaiaLensError("no adapter was given; give at least one" if not adapters else f"no adapter can be called {BASE}; rename it")
    for adapter in adapters.values():
        check_fits(adapter, model, other_model=other_model)
    prepared = [prepare_suite(model, suite, metrics_of(suite, metrics), batch_size) for suite in chosen]
    methods: dict[str, Scales | None] = {BASE: None, **adapters}
    pieces = len(methods) * sum(len(p.pieces) for p in prepared)
    with tqdm(total=pieces, desc="adapters", unit="piece", leave=False, disable=not progress) as bar:
        found = score_many_scales(model, list(methods.values()), prepared, store=store, bar=bar)
    attrs = model_attrs(model) | {"study": "adapters", "batch_size": batch_size, "seed": seed}
    attrs |= {"made": {name: dict(scales.made) for name, scales in adapters.items()}}
    return _dataset(prepared, methods, found).assign_attrs(attrs | {"versions": results.versions()})


def _dataset(prepared: Sequence[Prepared], methods: Mapping[str, Scales | None], found: Sequence[Sequence[Scores]]) -> xr.Dataset:
    metrics = [p.metrics for p in prepared]
    names, coords = results.suite_coords([p.suite for p in prepared], metrics)
    data: dict[str, tuple] = {
        "value": (
            ("metric", "model", "example"),
            np.stack([results.spread(names, metrics, [s.values for s in scores]) for scores in found], axis=1),
        ),
        "numbers": ("model", [0 if scales is None else scales.numbers for scales in methods.values()]),
        "n_sites": ("model", [0 if scales is None else len(scales.sites) for scales in methods.values()]),
    }
    if any(scores.transcripts for row in found for scores in row):
        texts = [[t for p, s in zip(prepared, row, strict=True) for t in (s.transcripts or ("",) * len(p.suite))] for row in found]
        data["transcript"] = (("model", "example"), np.array(texts, dtype=object))
    coords |= {
        **results.metric_coords(names),
        "model": list(methods),
        "sites": ("model", ["" if scales is None else " ".join(map(str, scales.sites)) for scales in methods.values()]),
    }
    used = suites_attr(prepared)
    return xr.Dataset(data, coords, {"suites": used})
