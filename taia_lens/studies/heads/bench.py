"""The bench of rankers: which heads does each way of ranking choose, do they agree, and do their heads do more than random ones?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.errors import TaiaLensError
from taia_lens.grafting import notes, resolve_sides
from taia_lens.loaded import Loaded
from taia_lens.lofit import Settings, bottom_heads, heads_of, how_many, ties, top_heads, tune_settings
from taia_lens.pair import Pair
from taia_lens.rankers import Options, check_ranker, rank
from taia_lens.rankers.options import metric_of
from taia_lens.recipe import Recipe, Side, taia
from taia_lens.scoring import check_grafts, check_suites, metrics_of, model_attrs, pair_attrs, prepare_suite, suites_attr
from taia_lens.sites import Site
from taia_lens.store import CellStore
from taia_lens.studies.heads.arms import Arm, Bench, arms_dataset, draw_heads, graft_heads, kept, mask_of, overlap_notes
from taia_lens.suite import Suite

CHECKS = ("offsets", "graft")
TRAINED = ("lofit", "lofit-relative", "lofit-effect", "lofit-offset", "jola")
BY = ("lofit", "lofit-relative", "iti", "mean-diff")


def heads(
    subject: Pair | Loaded,
    train: Suite,
    suites: Suite | Sequence[Suite],
    *,
    by: Sequence[str] = BY,
    k: str | int | float = "3%",
    check: Sequence[str] | None = None,
    draws: int = 3,
    seeds: Sequence[int] = (0,),
    options: Options | None = None,
    settings: Settings | None = None,
    validation: Suite | None = None,
    every: bool = False,
    norms: Side | None = None,
    embed: Side | None = None,
    metrics: Sequence[str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    store: CellStore | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Rank a model's heads in several ways, and do the same to each ranking's top K, its bottom K and random heads.

    Args:
        subject: A model, or a pair: then its base is the model, and rankers and checks that need the tuned side are there too.
        train: What rankers and offsets learn from; rows of the domain `id` unless `every`.
        suites: What the check is scored on.
        by: Rankers, from `rankers.RANKERS`; the others are held against the first.
        k: How many heads: `16`, or `3%` of all.
        check: `offsets` (LoFiT's second step on those heads), `graft` (base with those heads' weights from tuned; pairs only);
            None for those that fit. Empty: rankings only, no check.
        draws: Random sets of K heads, each checked in the same way.
        seeds: Of rankers that draw or train, and of the offsets' training.
        options: Of the rankers; their seed is taken from `seeds`, and `every` from here.
        settings: Of the offsets' training; where None, the paper's for a model of this size.
        validation: Judges each epoch of training; where None, a part of the training rows is held out.
        every: Also learn from rows that are out of distribution.
        norms: Whose norms TAIA takes; must be said where they differ.
        embed: Whose embeddings and unembedding.
        metrics: Names from `metric_names.METRICS`; where None, the main one of each suite's task.
        batch_size: Rows at a time when scoring; it changes speed, not results.
        seed: Of the random heads and of the bootstrap.
        store: Where finished cells are kept and found.
        progress: Show a bar.

    Returns:
        `score`, `se`, `top` (ranker, seed, layer, head), `replicates` (ranker, seed, replicate, layer, head), NaN where a ranker has
        fewer; `value` (metric, arm, example), `edited` (arm, layer, head), `numbers` (arm): how many numbers the arm changes.
        `summaries.heads_summary` gives agreement, intervals and tests.

    Raises:
        TaiaLensError and its kinds: Something asked for does not exist, or does not fit.
    """
    base = subject.loaded("base") if isinstance(subject, Pair) else subject
    shape = (subject.shape.n_layers, subject.shape.n_heads)
    sites = heads_of(base)
    number = how_many(k, len(sites))
    _check(subject, by, seeds, draws)
    metric_of(options or Options(), train.task.kind)
    checks = _checks(subject, check, sites)
    sides = resolve_sides(subject, norms, embed) if isinstance(subject, Pair) else None
    chosen = check_suites([suites] if isinstance(suites, Suite) else list(suites))
    prepared = tuple(prepare_suite(subject, suite, metrics_of(suite, metrics), batch_size) for suite in chosen)
    settings = settings or tune_settings(base.n_parameters)
    options = replace(options or Options(), every=every, seeds=1)
    with kept(store) as cells:
        rankings = _rankings(subject, train, by, seeds, options, number, cells, progress)
        arms = [*_references(sides), *_arms(rankings, checks, sites, number, draws, seeds, seed)]
        bench = Bench(subject, base, train, validation, settings, every, prepared, cells)
        total = len(arms) * sum(len(p.pieces) for p in prepared)
        with tqdm(total=total, desc="arms", unit="piece", leave=False, disable=not progress) as bar:
            found = bench.run(arms, bar)
    said = [*rankings.attrs["notes"], *overlap_notes(train, chosen)]
    if isinstance(subject, Pair) and "graft" in checks:
        said += notes(graft_heads(sites), subject.shape)
    attrs = (pair_attrs(subject) if isinstance(subject, Pair) else model_attrs(base)) | {"study": "heads", "k": number}
    attrs |= {"n_heads": len(sites), "by": list(by), "checks": list(checks), "draws": draws, "seeds": list(seeds), "seed": seed}
    n = sum(every or row.domain == "id" for row in train.rows)
    attrs |= {"train": {"name": train.name, "sha256": train.sha256, "every": int(every), "n": n}, "settings": asdict(settings)}
    attrs |= {"norms": sides[0], "embed": sides[1]} if sides is not None else {}
    attrs |= {"options": asdict(options), "batch_size": batch_size, "notes": said, "suites": suites_attr(prepared)}
    return rankings.merge(arms_dataset(prepared, arms, found, shape)).assign_attrs(attrs | {"versions": results.versions()})


def _check(subject: Pair | Loaded, by: Sequence[str], seeds: Sequence[int], draws: int) -> None:
    if not by or len(set(by)) < len(by):
        raise TaiaLensError(f"rankers {', '.join(by) or '(none)'}: name at least one, and each once")
    for name in by:
        check_ranker(name, subject)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or draws < 0:
        raise TaiaLensError(
            f"seeds {', '.join(map(str, seeds)) or '(none)'}, {draws} draws: write distinct seeds of 0 or more, and 0 or more draws"
        )


def _checks(subject: Pair | Loaded, asked: Sequence[str] | None, sites: Sequence[Site]) -> tuple[str, ...]:
    for name in asked or ():
        if name not in CHECKS:
            raise TaiaLensError(f"no check {name!r}; there are {', '.join(CHECKS)}, none")
    if not isinstance(subject, Pair):
        if "graft" in (asked or ()):
            raise TaiaLensError(
                "the check graft takes heads' weights from a tuned model, and there is one model only; give a pair, or write offsets"
            )
        return ("offsets",) if asked is None else tuple(dict.fromkeys(asked))
    chosen = CHECKS if asked is None else tuple(dict.fromkeys(asked))
    if "graft" in chosen:
        check_grafts(subject, graft_heads(sites))
    return chosen


def _references(sides: tuple[Side, Side] | None) -> list[Arm]:
    base = Arm("", "base", "reference", recipe=Recipe("base"))
    if sides is None:
        return [base]
    whole = Arm("", "vanilla", "reference", recipe=Recipe("tuned"))
    return [base, whole, Arm("", "TAIA", "reference", recipe=taia(norms=sides[0], embed=sides[1]))]


def _rankings(
    subject: Pair | Loaded,
    train: Suite,
    by: Sequence[str],
    seeds: Sequence[int],
    options: Options,
    k: int,
    store: CellStore,
    progress: bool,
) -> xr.Dataset:
    """Every ranker's scores with every seed, and its top K."""
    by_name = {}
    # Those that only read the model come first: what they refuse is said before anything is trained.
    for name in sorted(by, key=lambda name: name in TRAINED):
        asked = [replace(options, seed=s) for s in seeds]
        by_name[name] = [rank(name, subject, train, options=o, store=store, progress=progress) for o in asked]
    found = [by_name[name] for name in by]
    shape = found[0][0].score.shape
    most = max(r.sizes["replicate"] for row in found for r in row)
    replicates = np.full((len(by), len(seeds), most, *shape), np.nan, dtype=np.float32)
    for i, row in enumerate(found):
        for j, one in enumerate(row):
            replicates[i, j, : one.sizes["replicate"]] = one.replicates.values
    dims = ("ranker", "seed", "layer", "head")
    data = {
        "score": (dims, np.stack([[r.score.values for r in row] for row in found])),
        "se": (dims, np.stack([[r.se.values for r in row] for row in found])),
        "top": (dims, np.stack([[mask_of(top_heads(r.score, k), shape) for r in row] for row in found])),
        "replicates": ((*dims[:2], "replicate", *dims[2:]), replicates),
    }
    coords = {
        "ranker": list(by),
        "score_unit": ("ranker", [str(row[0].attrs["unit"]) for row in found]),
        "spread_over": ("ranker", [str(row[0].attrs["replicate"]) for row in found]),
        "seed": list(seeds),
        "layer": np.arange(shape[0]),
        "head": np.arange(shape[1]),
    }
    notes = [f"{name}: {note}" for name, row in zip(by, found, strict=True) for note in row[0].attrs["notes"]]
    for name, row in zip(by, found, strict=True):
        tied = max(ties(r.score, k) for r in row)
        notes += [f"{name}: {tied} more heads score as much as the last of the top {k}; the lower layers were taken"] if tied else []
    return xr.Dataset(data, coords, {"notes": notes})


def _arms(
    rankings: xr.Dataset, checks: Sequence[str], sites: Sequence[Site], k: int, draws: int, seeds: Sequence[int], seed: int
) -> list[Arm]:
    """For each check: every ranker's top and bottom K with every seed, the random draws, and all heads."""
    drawn = draw_heads(sites, k, draws, seed)
    arms = []
    for check in checks:
        for name in rankings.ranker.values.tolist():
            for s in seeds:
                score = rankings.score.sel(ranker=name, seed=s)
                arms += [_arm(check, name, end, s, pick(score, k)) for end, pick in (("top", top_heads), ("bottom", bottom_heads))]
        arms += [_arm(check, "random heads", "draw", i, heads) for i, heads in enumerate(drawn)]
        # A graft of all heads draws nothing.
        arms += [_arm(check, "all heads", "all", s, sites) for s in (seeds if check == "offsets" else (-1,))]
    return arms


def _arm(check: str, by: str, end: str, seed: int, heads: Sequence[Site]) -> Arm:
    return Arm(check, by, end, seed, tuple(sorted(heads)), graft_heads(heads) if check == "graft" else None)
