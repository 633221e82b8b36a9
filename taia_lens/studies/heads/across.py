"""Head transfer: heads that LoFiT selects on one task, with offsets tuned and tested on another (arXiv 2406.01563, Figures 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.errors import TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.lofit import Settings, heads_of, how_many, select, select_settings, top_heads, tune_settings
from taia_lens.scoring import Prepared, check_suites, metrics_of, model_attrs, prepare_suite, score_many_scales, suites_attr
from taia_lens.sites import Site
from taia_lens.store import CellStore
from taia_lens.studies.heads.arms import Arm, Bench, draw_heads, kept, mask_of, overlap_notes, spread_scores
from taia_lens.suite import Suite

Task = tuple[Suite, Suite | Sequence[Suite]]


def transfer(
    model: Loaded,
    tasks: Mapping[str, Task],
    *,
    k: str | int | float = "3%",
    draws: int = 3,
    seeds: Sequence[int] = (0,),
    selecting: Settings | None = None,
    tuning: Settings | None = None,
    every: bool = False,
    metrics: Sequence[str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    store: CellStore | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """For each two tasks: offsets on the heads that the one selects, tuned and tested on the other.

    Args:
        model: Nothing of it is changed.
        tasks: Name -> its training suite, and the suite or suites that it is tested on.
        k: How many heads: `16`, or `3%` of all.
        draws: Random sets of K heads, as rows of their own.
        seeds: Of selection and of training.
        selecting: Settings of the first step; where None, the paper's for a model of this size.
        tuning: Of the second.
        every: Also learn from rows that are out of distribution.
        metrics: Names from `metric_names.METRICS`; where None, the main one of each suite's task.
        batch_size: Rows at a time when scoring; it changes speed, not results.
        seed: Of the random heads and of the bootstrap.
        store: Where finished cells are kept and found.
        progress: Show a bar.

    Returns:
        `norm`, `top` (task, seed, layer, head): the selection on each task; `value` (metric, row, seed, example): a row is the task
        whose heads were taken, or a random draw, and an example's task (`tuned_on`) is what was tuned and tested; `base` (metric,
        example). `summaries.transfer_summary` gives means, intervals and tests.

    Raises:
        TaiaLensError and its kinds: Something asked for does not exist, or does not fit.
    """
    if len(tasks) < 2 or not seeds or len(set(seeds)) < len(seeds) or draws < 0:
        raise TaiaLensError(
            f"{len(tasks)} tasks, {len(seeds)} seeds, {draws} draws: write two tasks or more, a seed or more (each once), 0 or more draws"
        )
    selecting, tuning = selecting or select_settings(model.n_parameters), tuning or tune_settings(model.n_parameters)
    shape = model.shape.n_layers, model.shape.n_heads
    sites = heads_of(model)
    number = how_many(k, len(sites))
    tests = {name: [test] if isinstance(test, Suite) else list(test) for name, (_, test) in tasks.items()}
    check_suites([suite for found in tests.values() for suite in found])
    prepared = {
        name: tuple(prepare_suite(model, suite, metrics_of(suite, metrics), batch_size) for suite in found) for name, found in tests.items()
    }
    with kept(store) as cells:
        norms = np.stack([[_norm(model, train, selecting, s, every, cells, progress) for s in seeds] for train, _ in tasks.values()])
        rows = _rows(norms, list(tasks), seeds, sites, number, draws, seed)
        benches = {name: Bench(model, model, train, None, tuning, every, prepared[name], cells) for name, (train, _) in tasks.items()}
        data = _run(benches, rows, seeds, progress)
    attrs: dict[str, object] = model_attrs(model) | {"study": "transfer", "k": number, "n_heads": len(sites), "seeds": list(seeds)}
    attrs |= {"draws": draws, "seed": seed, "batch_size": batch_size, "selecting": asdict(selecting), "tuning": asdict(tuning)}
    attrs |= {"trains": {name: {"name": train.name, "sha256": train.sha256} for name, (train, _) in tasks.items()}}
    attrs |= {"notes": [note for name, (train, _) in tasks.items() for note in overlap_notes(train, tests[name])]}
    every_prepared = [p for found in prepared.values() for p in found]
    attrs |= {"suites": suites_attr(every_prepared), "versions": results.versions()}
    selected = xr.DataArray(norms, dims=("task", "seed", "layer", "head"))
    top = np.stack([[mask_of(rows[name][s], shape) for s in seeds] for name in tasks])
    coords = {"task": list(tasks), "row": list(rows), "seed": list(seeds), "layer": np.arange(shape[0]), "head": np.arange(shape[1])}
    return xr.Dataset({"norm": selected, "top": (selected.dims, top)} | data, _coords(prepared) | coords, attrs)


def _norm(model: Loaded, train: Suite, settings: Settings, seed: int, every: bool, store: CellStore, progress: bool) -> np.ndarray:
    return select(model, train, settings=replace(settings, seed=seed), every=every, store=store, progress=progress)["norm"].values


Rows = dict[str, dict[int, tuple[Site, ...]]]


def _rows(norms: np.ndarray, tasks: Sequence[str], seeds: Sequence[int], sites: Sequence[Site], k: int, draws: int, seed: int) -> Rows:
    """Row -> seed -> heads."""
    rows: Rows = {}
    for i, name in enumerate(tasks):
        found = [top_heads(xr.DataArray(norms[i, j], dims=("layer", "head")), k) for j in range(len(seeds))]
        rows[name] = {s: tuple(sorted(heads)) for s, heads in zip(seeds, found, strict=True)}
    for i, drawn in enumerate(draw_heads(sites, k, draws, seed)):
        rows[f"random heads #{i}"] = dict.fromkeys(seeds, drawn)
    return rows


def _run(benches: Mapping[str, Bench], rows: Rows, seeds: Sequence[int], progress: bool) -> dict[str, tuple]:
    names, _ = _examples({name: bench.prepared for name, bench in benches.items()})
    pieces = sum(len(p.pieces) for bench in benches.values() for p in bench.prepared)
    value, base = [], []
    with tqdm(total=pieces * (1 + len(rows) * len(seeds)), desc="arms", unit="piece", leave=False, disable=not progress) as bar:
        for task, bench in benches.items():
            arms = [Arm(f"{task}:", row, "top", s, by_seed[s]) for row, by_seed in rows.items() for s in seeds]
            tuned = [bench.tuned(arm, bar) for arm in arms]
            scores = score_many_scales(bench.base, [None, *tuned], bench.prepared, store=bench.store, bar=bar)
            untouched, *of_arms = [spread_scores(bench.prepared, names, one) for one in scores]
            base.append(untouched)
            value.append(np.array(of_arms).reshape(len(rows), len(seeds), *untouched.shape))  # (row, seed, metric, example)
    whole = np.concatenate(value, axis=-1).transpose(2, 0, 1, 3)
    return {"value": (("metric", "row", "seed", "example"), whole), "base": (("metric", "example"), np.concatenate(base, axis=-1))}


def _examples(prepared: Mapping[str, Sequence[Prepared]]) -> tuple[tuple[str, ...], dict]:
    found = [p for some in prepared.values() for p in some]
    return results.suite_coords([p.suite for p in found], [p.metrics for p in found])


def _coords(prepared: Mapping[str, Sequence[Prepared]]) -> dict:
    names, examples = _examples(prepared)
    tuned_on = [name for name, found in prepared.items() for p in found for _ in range(len(p.suite))]
    return examples | results.metric_coords(names) | {"tuned_on": ("example", tuned_on)}
