"""The paper's experiment: base, step 1, step 2 and the test, for every fold and seed; with random and bottom heads as controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from taia_lens import lofit, results
from taia_lens.errors import TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.lofit_paper.protocol import Protocol
from taia_lens.lofit_paper.tasks import Fold
from taia_lens.metric_names import METRICS
from taia_lens.scales import Scales
from taia_lens.scoring import Prepared, Scores, model_attrs, prepare_suite, score_many_scales
from taia_lens.sites import Site
from taia_lens.store import CellStore
from taia_lens.suite import Suite

CONTROLS = ("random", "bottom")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run gave.

    Attributes:
        result: Every value, by example.
        selections: What step 1 found, by `fold0-seed42`.
        scales: What step 2 learnt, by `fold0-seed42/lofit`.
    """

    result: xr.Dataset
    selections: Mapping[str, xr.Dataset]
    scales: Mapping[str, Scales]


def run(
    model: Loaded,
    folds: Sequence[Fold],
    protocol: Protocol,
    *,
    seeds: Sequence[int] = (42,),
    controls: Sequence[str] = (),
    batch_size: int = 64,
    seed: int = 0,
    store: CellStore | None = None,
    progress: bool = False,
) -> Outcome:
    """Score the model as it is; select heads, tune offsets on them and score again, for every fold and seed.

    Args:
        model: Nothing of it is changed.
        folds: From `tasks.folds`.
        protocol: From `protocol.protocol`.
        seeds: Of training (and of the rows that are drawn for it).
        controls: `random`: as many heads drawn by chance; `bottom`: those with the smallest norm.
        batch_size: Sequences at a time when testing.
        seed: Of the bootstrap.
        store: Where finished epochs and cells are kept and found: a run that was killed goes on from there.
        progress: Show bars.

    Returns:
        `result`: `base` (metric, example) and `value` (arm, seed, metric, example), NaN where a metric is not of an example; for
        generated answers `base_text` (example) and `text` (arm, seed, example); `heads` (arm, seed, fold, rank); `numbers` (arm).
        `summaries.lofit_paper_summary` gives folds, means and intervals.

    Raises:
        TaiaLensError and its kinds: Something asked for does not exist, or a split cannot be used with this model.
    """
    for name in controls:
        if name not in CONTROLS:
            raise TaiaLensError(f"no control {name!r}; there are {', '.join(CONTROLS)}")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise TaiaLensError(f"seeds {', '.join(map(str, seeds)) or 'none'}: write distinct numbers from 0")
    arms = ("lofit", *dict.fromkeys(controls))
    prepared = [tuple(prepare_suite(model, t.suite, (t.metric,), batch_size) for t in fold.tests) for fold in folds]
    base, found = [], dict[str, list[Scores]]()
    selections, kept = dict[str, xr.Dataset](), dict[str, Scales]()
    with tqdm(desc="test", unit="piece", leave=False, disable=not progress) as bar:
        for fold, tests in zip(folds, prepared, strict=True):
            here = dict[str, Scales]()
            for s in seeds:
                where = f"{fold.name}-seed{s}"
                selections[where] = _select(model, fold, protocol, s, store, progress)
                for arm in arms:
                    heads = _heads(arm, selections[where], protocol.k, s)
                    here[f"{where}/{arm}"] = _tune(model, fold, protocol, heads, s, store, progress)
            untouched, *scored = score_many_scales(model, [None, *here.values()], tests, store=store, bar=bar)
            base.append(untouched)
            found |= zip(here, scored, strict=True)
            kept |= here
    out = _dataset(folds, prepared, arms, seeds, base, found, kept)
    attrs = _attrs(model, protocol, folds) | {"seed": seed, "batch_size": batch_size, "versions": results.versions()}
    return Outcome(out.assign_attrs(attrs), selections, kept)


def _select(model: Loaded, fold: Fold, protocol: Protocol, seed: int, store: CellStore | None, progress: bool) -> xr.Dataset:
    how = replace(protocol.selecting, seed=seed)
    return lofit.select(model, fold.training(seed), validation=fold.validation, settings=how, store=store, progress=progress)


def _tune(
    model: Loaded, fold: Fold, protocol: Protocol, heads: tuple[Site, ...], seed: int, store: CellStore | None, progress: bool
) -> Scales:
    how = replace(protocol.tuning, seed=seed)
    return lofit.tune(model, fold.training(seed), heads, validation=fold.validation, settings=how, store=store, progress=progress)


def _heads(arm: str, selection: xr.Dataset, k: int, seed: int) -> tuple[Site, ...]:
    norm = selection["norm"]
    if arm == "random":
        drawn = np.random.default_rng(seed).permutation(norm.size).reshape(norm.shape).astype(float)
        norm = norm.copy(data=drawn)
    return lofit.bottom_heads(norm, k) if arm == "bottom" else lofit.top_heads(norm, k)


def _dataset(
    folds: Sequence[Fold],
    prepared: Sequence[tuple[Prepared, ...]],
    arms: Sequence[str],
    seeds: Sequence[int],
    base: Sequence[Sequence[Scores]],
    found: Mapping[str, Sequence[Scores]],
    kept: Mapping[str, Scales],
) -> xr.Dataset:
    """Everything under its name; an example is a question of a fold, whichever test asked it."""
    ids = [list(dict.fromkeys(row.id for test in fold.tests for row in test.suite.rows)) for fold in folds]
    names = list(dict.fromkeys(test.name for fold in folds for test in fold.tests))

    def values(of_fold: Sequence[Sequence[Scores]]) -> np.ndarray:
        return np.concatenate([_values(f, i, names, s) for f, i, s in zip(folds, ids, of_fold, strict=True)], axis=1)

    def arm(name: str, s: int) -> list[Sequence[Scores]]:
        return [found[f"{fold.name}-seed{s}/{name}"] for fold in folds]

    data: dict[str, Any] = {
        "base": (("metric", "example"), values(base)),
        "value": (("arm", "seed", "metric", "example"), np.stack([[values(arm(a, s)) for s in seeds] for a in arms])),
        "heads": (
            ("arm", "seed", "fold", "rank"),
            [[[[str(site) for site in kept[f"{f.name}-seed{s}/{a}"].sites] for f in folds] for s in seeds] for a in arms],
        ),
        "numbers": ("arm", [kept[f"{folds[0].name}-seed{seeds[0]}/{a}"].offset.numel() for a in arms]),
    }
    if base[0][0].transcripts:  # one test a fold, whose rows are the examples
        data["base_text"] = ("example", [text for scores in base for text in scores[0].transcripts])
        texts = [[[text for scores in arm(a, s) for text in scores[0].transcripts] for s in seeds] for a in arms]
        data["text"] = (("arm", "seed", "example"), texts)
    metrics = {test.name: test.metric for fold in folds for test in fold.tests}
    labels = {
        "arm": list(arms),
        "seed": list(seeds),
        "fold": [fold.name for fold in folds],
        "metric": names,
        "unit": ("metric", [METRICS[metrics[name]].unit for name in names]),
        "better": ("metric", [METRICS[metrics[name]].better for name in names]),
        "example": [f"{fold.name}/{i}" for fold, own in zip(folds, ids, strict=True) for i in own],
        "of_fold": ("example", [fold.name for fold, own in zip(folds, ids, strict=True) for _ in own]),
    }
    return xr.Dataset(data, labels)


def _values(fold: Fold, ids: Sequence[str], names: Sequence[str], scores: Sequence[Scores]) -> np.ndarray:
    """(metric, example) of one fold; NaN where a test has no such question."""
    out = np.full((len(names), len(ids)), np.nan)
    for test, found in zip(fold.tests, scores, strict=True):
        out[names.index(test.name), [ids.index(row.id) for row in test.suite.rows]] = found.values[0]
    return out


def _attrs(model: Loaded, protocol: Protocol, folds: Sequence[Fold]) -> dict[str, Any]:
    def rows(suite: Suite) -> dict[str, Any]:
        return {"name": suite.name, "sha256": suite.sha256, "rows": len(suite), "made": dict(suite.made)}

    used: dict[str, Any] = {}
    for fold in folds:
        known = {row.prompt for row in fold.train.rows}
        others = {"validation": fold.validation, **{f"test {exam.name}": exam.suite for exam in fold.tests}}
        shared = {name: n for name, suite in others.items() if (n := sum(row.prompt in known for row in suite.rows))}
        splits = {"train": rows(fold.train), "drawn": fold.draw, "validation": rows(fold.validation)}
        used[fold.name] = splits | {"in_train_too": shared, "tests": [rows(exam.suite) for exam in fold.tests]}
    return model_attrs(model) | {"study": "lofit-paper", "task": protocol.task, "protocol": asdict(protocol), "folds": used}
