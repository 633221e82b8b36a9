"""The bench of rankers: its arithmetic by hand, planted heads that win the check, a null in which nothing does, and resuming."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from architectures import D_HEAD, N_HEADS, N_LAYERS
from planted_heads import MODE, Planted, plant, task
from transformers import PreTrainedTokenizerBase

from taia_lens import lofit, plots, results, stats, summaries, tables
from taia_lens.engine import scaled
from taia_lens.errors import PairError, RecipeError, ResultError, SiteError, TaiaLensError
from taia_lens.evaluation import prepare, score
from taia_lens.loaded import Loaded
from taia_lens.loading import load_pair
from taia_lens.pair import Pair
from taia_lens.rankers import Options
from taia_lens.scales import Scales
from taia_lens.sites import Site
from taia_lens.store import CellStore, open_store
from taia_lens.studies.heads import heads, transfer
from taia_lens.studies.heads.arms import draw_heads
from taia_lens.suite import Suite, make_suite
from taia_lens.summaries.agreement import agreement, shared, tau
from taia_lens.weights import live_weights

K, TOTAL = 4, 128
RANKERS = ("lofit", "iti", "patch", "random")
SELECT = lofit.Settings(lr=2e-2, l1=5e-3, epochs=20, batch_size=16, patience=20)
TUNE = replace(SELECT, l1=0.0, lr=4e-2, epochs=12)
QUICK = replace(SELECT, epochs=1)


def rankings(rankers: Sequence[str], seeds: Sequence[int], rng: np.random.Generator) -> tuple[xr.Dataset, np.ndarray]:
    """Scores of four rankers: lofit finds four planted heads, patch three of them, the others none; and which those are."""
    planted = np.zeros(TOTAL, dtype=bool)
    planted[[9, 10, 37, 70]] = True
    score, top = np.zeros((len(rankers), len(seeds), TOTAL)), np.zeros((len(rankers), len(seeds), TOTAL), dtype=bool)
    for i, name in enumerate(rankers):
        own = rng.random(TOTAL)
        for j in range(len(seeds)):
            drawn = rng.random(TOTAL)
            found = {"lofit": 5 * planted + drawn, "patch": 5 * (planted & (np.arange(TOTAL) < 40)) + own, "iti": own + 0.3 * drawn}
            score[i, j] = found.get(name, drawn)
            top[i, j, np.argsort(-score[i, j], kind="stable")[:K]] = True
    shape, dims = (len(rankers), len(seeds), 16, 8), ("ranker", "seed", "layer", "head")
    data = {"score": (dims, score.reshape(shape)), "se": (dims, np.full(shape, 0.1)), "top": (dims, top.reshape(shape))}
    coords = {"ranker": list(rankers), "seed": list(seeds), "score_unit": ("ranker", ["<nats>"] * len(rankers))}
    return xr.Dataset(data, coords | {"layer": range(16), "head": range(8)}), planted


def made(
    effect: float = 0.4,
    *,
    pair: bool = True,
    rankers: Sequence[str] = RANKERS,
    seeds: Sequence[int] = (0, 1),
    draws: int = 3,
    seed: int = 0,
) -> xr.Dataset:
    """A heads result in which an arm's accuracy is base's .4, plus `effect` times the share of its heads that are planted."""
    rng = np.random.default_rng(seed)
    ranked, planted = rankings(rankers, seeds, rng)
    arms: list[tuple[str, str, str, int, float]] = [("", "base", "reference", -1, 0.0)]
    arms += [("", "vanilla", "reference", -1, effect), ("", "TAIA", "reference", -1, effect)] if pair else []
    for check in ("offsets", "graft")[: 2 if pair else 1]:
        for name in rankers:
            for s in seeds:
                hits = float((ranked.top.sel(ranker=name, seed=s).values.ravel() & planted).mean() * TOTAL / K)
                arms += [(check, name, "top", s, effect * hits), (check, name, "bottom", s, 0.0)]
        arms += [(check, "random heads", "draw", i, 0.0) for i in range(draws)]
        arms += [(check, "all heads", "all", -1, effect)]
    n, difficulty = 160, rng.random(160)
    value = np.stack([(difficulty + 0.05 * rng.standard_normal(n) < 0.4 + gain).astype(float) for *_, gain in arms])
    coords = {
        "arm": [f"{c} {b} {e} #{s}" for c, b, e, s, _ in arms],
        **{name: ("arm", [arm[i] for arm in arms]) for i, name in enumerate(("check", "by", "end", "arm_seed"))},
        "metric": ["accuracy"],
        "unit": ("metric", ["fraction"]),
        "better": ("metric", [1]),
        "example": [f"e{i}" for i in range(n)],
        "suite": ("example", ["<b>truth</b>"] * n),
        "domain": ("example", ["id", "ood"] * (n // 2)),
    }
    data = {"value": (("metric", "arm", "example"), value[None]), "numbers": ("arm", [32] * len(arms))}
    attrs = {"seed": 0, "k": K, "n_heads": TOTAL, "seeds": list(seeds), "notes": [], "checks": ["offsets", "graft"][: 2 if pair else 1]}
    return xr.merge([ranked, xr.Dataset(data, coords)]).assign_attrs(attrs)


def line(summary: xr.Dataset, name: str, domain: str = "ood") -> xr.Dataset:
    return summary.isel(group=int(np.flatnonzero(summary.domain.values == domain)[0])).sel(line=name)


def test_shared_heads_have_the_hypergeometrics_chance() -> None:
    a, b = np.arange(12) < 3, (np.arange(12) >= 1) & (np.arange(12) < 4)
    assert shared(a, b) == (pytest.approx(2 / 3), pytest.approx((3 * 9 + 1) / 220))  # two or three of three, of 12 over 3
    assert shared(a, ~a & (np.arange(12) > 8)) == (0, 1)


def test_rankers_agree_with_themselves_and_a_ranking_upside_down_is_the_opposite() -> None:
    ranked, _ = rankings(("lofit", "patch"), (0, 1), np.random.default_rng(0))
    upside = ranked.sel(ranker=["patch"]).assign(score=-ranked.score.sel(ranker=["patch"])).assign_coords(ranker=["down"])
    again = ranked.sel(ranker=["patch"]).assign_coords(ranker=["again"])
    found = agreement(xr.concat([ranked, again, upside], "ranker"))
    assert found.tau.sel(ranker="patch", other="again") == 1 and found.overlap.sel(ranker="patch", other="again") == 1
    assert found.tau.sel(ranker="patch", other="down") == -1 and float(found.chance) == K / TOTAL
    assert np.isnan(found.overlap.sel(ranker="patch", other="patch"))  # it draws nothing: its seeds are one and the same
    assert found.overlap.sel(ranker="lofit", other="lofit") == 1 and 0 < float(found.tau.sel(ranker="lofit", other="lofit")) < 1
    np.testing.assert_array_equal(found.overlap_q, found.overlap_q.T)
    assert (
        float(found.overlap.sel(ranker="lofit", other="patch")) == 0.75 and float(found.overlap_q.sel(ranker="lofit", other="patch")) < 0.01
    )
    assert np.isnan(tau(np.ones(5), np.arange(5.0)))


def test_rankings_drawn_at_random_share_what_chance_gives() -> None:
    rng = np.random.default_rng(0)
    shares = [shared(rng.permutation(TOTAL) < K, rng.permutation(TOTAL) < K)[0] for _ in range(2000)]
    assert np.mean(shares) == pytest.approx(K / TOTAL, abs=4 * 0.086 / 2000**0.5)


def test_a_line_is_the_mean_over_seeds_and_every_difference_is_paired() -> None:
    result = made()
    summary = summaries.heads_summary(result)
    ood = result.isel(example=result.domain.values == "ood").value.sel(metric="accuracy")
    tops, drawn = (
        ood[(result.check == "offsets").values & (result.by == by).values & (result.end == end).values].mean("arm")
        for by, end in (("lofit", "top"), ("random heads", "draw"))
    )
    cell = line(summary, "offsets lofit top")
    assert float(cell.value) == pytest.approx(float(tops.mean()))
    against = cell.sel(reference="random")
    assert float(against["diff"]) == pytest.approx(float((tops - drawn).mean()))
    low, high = stats.mean_interval((tops - drawn).values[None], seed=0)
    assert (float(against.diff_low), float(against.diff_high)) == pytest.approx((low[0], high[0]), abs=0.01)  # other resamples
    assert float(against.p) == stats.sign_flip_p((tops - drawn).values[None], seed=0)[0]
    assert int(cell.draws) == 3 == int(cell.above) and int(cell.runs) == 2
    assert np.isnan(line(summary, "offsets random heads").sel(reference="bottom")["diff"])
    assert np.isnan(cell.sel(reference="first")["diff"])  # it is the first
    assert float(line(summary, "offsets iti top").sel(reference="first")["diff"]) < 0


def test_planted_heads_are_told_apart_and_in_a_null_nothing_is() -> None:
    summary = summaries.heads_summary(made())
    for name in ("lofit", "patch"):
        cell = line(summary, f"offsets {name} top").sel(reference=["random", "bottom"])
        assert (cell.q <= 0.05).all() and (cell["diff"] > 0.2).all()
    cells = line(summary, "offsets iti top").sel(reference=["random", "bottom"])
    assert not (cells.q <= 0.05).any()
    false = [int((summaries.heads_summary(made(0.0, seed=seed)).q <= 0.05).any()) for seed in range(10)]
    assert sum(false) <= 2  # a false-discovery rate of 5%: on average half a one


def test_the_fraction_of_taias_gain_is_one_of_all_heads_and_none_without_a_gain() -> None:
    result = made()
    taia, whole = (
        int(np.flatnonzero((result.by == by).values & (result.check == check).values)[0])
        for by, check in (("TAIA", ""), ("all heads", "graft"))
    )
    result.value[:, whole] = result.value[:, taia].values
    summary = summaries.heads_summary(result)
    assert float(line(summary, "graft all heads").fraction) == 1
    assert abs(float(line(summary, "graft iti bottom").fraction)) < 0.15
    assert np.isnan(line(summary, "offsets lofit top").fraction)
    said = " ".join(summaries.heads_sentences(summary))
    assert "all heads 100% [100%, 100%]" in said and "lofit and patch share 75% (beyond chance, q = " in said
    none = made(0.0)
    none.value[:] = none.value.isel(arm=0).values[:, None]
    said = summaries.heads_sentences(summaries.heads_summary(none))
    assert any(text.startswith("TAIA's gain out of distribution") and "is not told apart from 0" in text for text in said)


def test_sentences_say_who_beats_what_and_no_more() -> None:
    said = summaries.heads_sentences(summaries.heads_summary(made(pair=False)))
    causal = next(text for text in said if text.startswith("Out of distribution"))
    better, level = causal.split("Better than random heads: ")[1].split("ot told apart from random heads: ")
    assert "lofit (" in better and "patch (" in better and "above 3 of 3 draws" in better and "iti (" in level.split(".  ")[0]
    assert not any("TAIA" in text for text in said)
    seeds = next(text for text in said if text.startswith("From seed to seed"))
    assert "lofit keeps 100%" in seeds and "patch does not depend on it" in seeds
    said = summaries.heads_sentences(summaries.heads_summary(made(pair=False, seeds=(0,), draws=0)))
    assert not any("seed" in text or "random heads" in text for text in said)
    same = made(0.0, pair=False)
    same.value[:] = 1.0
    assert (
        "The same on every prompt as random heads: lofit, iti, patch, random" in summaries.heads_sentences(summaries.heads_summary(same))[0]
    )


@pytest.mark.parametrize("options", [{}, {"pair": False}, {"seeds": (0,)}, {"rankers": ("lofit",)}, {"draws": 0}], ids=str)
def test_every_shape_of_result_is_tabled_recorded_and_drawn(options: dict[str, Any]) -> None:
    summary = summaries.heads_summary(made(**options))
    shown = tables.heads_tables(summary)
    assert len(shown) == 3 + 2 * len(summary.attrs.get("checks", ()))
    report = tables.heads_report(summary)
    json.dumps(report, allow_nan=False)
    assert report["results"][0]["by"] == "base" and len(report["results"]) == 2 * summary.sizes["line"]
    assert [t["site"] for t in report["rankings"][0]["top"]][:1] <= ["L8.h6", "L4.h5", "L1.h1", "L1.h2"]
    figures = [plots.heads_figure(summary), plots.head_maps_figure(summary), plots.agreement_figure(summary)]
    assert all(figure.data for figure in figures)
    outlined = next(trace for trace in figures[1].data if trace.type == "scatter")
    assert list(outlined.x).count(None) == K  # lofit's seeds agree


def test_a_result_without_a_check_has_no_picture_of_one() -> None:
    summary = summaries.heads_summary(made(pair=False).isel(arm=[0]))
    with pytest.raises(ResultError, match="rankings and no check"):
        plots.heads_figure(summary)


def moved(n: int = 60, *, own: float = 0.9, other: float = 0.6) -> xr.Dataset:
    """A transfer result: a task's own heads are right with probability `own`, all others with `other`."""
    rng, names, rows = np.random.default_rng(0), ["a", "b"], ["a", "b", "random heads #0", "random heads #1"]
    where = [(name, domain) for name in names for domain in ("id", "ood") for _ in range(n)]
    top = np.zeros((2, 2, 16, 8), dtype=bool)
    top[0, :, 3, :4] = top[1, :, 8, 2:6] = True
    value = np.array([[(rng.random(2) < (own if row == name else other)) for name, _ in where] for row in rows]).transpose(0, 2, 1)
    coords = {
        "task": names,
        "row": rows,
        "seed": [0, 1],
        "layer": range(16),
        "head": range(8),
        "metric": ["accuracy"],
        "unit": ("metric", ["fraction"]),
        "better": ("metric", [1]),
        "example": [f"e{i}" for i in range(len(where))],
        **{key: ("example", [pair[i] for pair in where]) for i, key in ((0, "suite"), (1, "domain"), (0, "tuned_on"))},
    }
    data = {
        "norm": (("task", "seed", "layer", "head"), top.astype(float)),
        "top": (("task", "seed", "layer", "head"), top),
        "value": (("metric", "row", "seed", "example"), value[None].astype(float)),
        "base": (("metric", "example"), (rng.random((1, len(where))) < 0.4).astype(float)),
    }
    return xr.Dataset(data, coords, {"seed": 0, "k": K, "n_heads": TOTAL, "draws": 2, "seeds": [0, 1], "notes": []})


def test_transfer_holds_each_row_against_the_tasks_own_heads() -> None:
    result = moved()
    summary = summaries.transfer_summary(result)
    cell = summary.isel(group=0).sel(row="b")
    assert (cell.own, cell.suite, cell.domain) == ("a", "a", "id")
    some = result.value.isel(metric=0, example=slice(0, 60)).mean("seed")
    assert float(cell["diff"]) == pytest.approx(float((some.sel(row="b") - some.sel(row="a")).mean()))
    assert np.isnan(summary["diff"].isel(group=0).sel(row="a")) and float(cell.q) < 0.05
    drawn = summary.isel(group=0).sel(row="random heads")
    assert float(drawn.value) == pytest.approx(float(some.sel(row=["random heads #0", "random heads #1"]).mean()))
    said = summaries.transfer_sentences(summary)
    assert said[0].startswith("In distribution (a, accuracy, n = 60), offsets tuned on a, against its own heads: b's heads are worse (-0.")
    assert said[-1] == "Of their top 4 of 128 heads the tasks share: a and b 0% (p = 1); chance gives 3%."
    json.dumps(tables.transfer_records(summary), allow_nan=False)
    assert len(tables.transfer_tables(summary)) == 5 and plots.transfer_figure(summary).data
    null = summaries.transfer_summary(moved(own=0.6))
    assert not (null.q <= 0.05).any() and "are worse" not in " ".join(summaries.transfer_sentences(null))


@pytest.fixture(scope="module")
def words() -> Suite:
    return task()


@pytest.fixture(scope="module")
def planted(tokenizer: PreTrainedTokenizerBase) -> Planted:
    return plant("llama", "shift", 0, tokenizer)


@pytest.fixture(scope="module")
def told(planted: Planted, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """The planted model, and one whose planted heads write the true mode: nothing else differs."""
    tuned = plant("llama", "shift", 0, tokenizer).model
    for weight in live_weights(tuned.model):
        if weight.component == "attn" and weight.part == "o":
            weight.parameter[MODE] *= -1
    return load_pair(planted.model.model, tuned.model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def found(told: Pair, words: Suite) -> xr.Dataset:
    options = Options(selecting=SELECT)
    return heads(told, words, words, by=("lofit", "update"), k=3, options=options, settings=TUNE, metrics=["accuracy"], draws=1)


def members(found: xr.Dataset, ranker: str) -> set[Site]:
    return {Site("head", int(i), int(j)) for i, j in np.argwhere(found.top.sel(ranker=ranker, seed=0).values)}


def test_the_planted_heads_win_the_check_and_others_do_not(found: xr.Dataset, planted: Planted) -> None:
    assert members(found, "lofit") == members(found, "update") == set(planted.heads)
    summary = summaries.heads_summary(found)
    for name in ("lofit", "update"):
        for check in ("offsets", "graft"):
            for domain in ("id", "ood"):
                cell = line(summary, f"{check} {name} top", domain)
                assert float(cell.value) >= 0.9 and float(line(summary, f"{check} {name} bottom", domain).value) <= 0.1
                assert float(cell.sel(reference="bottom").q) < 0.01
    assert float(line(summary, "graft lofit top").fraction) == 1 and float(line(summary, "graft lofit bottom").fraction) == 0
    said = " ".join(summaries.heads_sentences(summary))
    assert "lofit and update share 100% (beyond chance" in said and "grafting heads alone gives: lofit's top 100% [100%, 100%]" in said
    assert "64 of 64 prompts of the suite planted are in the training suite planted too" in found.attrs["notes"]


def test_every_arm_is_what_its_parts_compute(found: xr.Dataset, told: Pair, words: Suite) -> None:
    base = told.loaded("base")
    scales = lofit.tune(base, words, sorted(members(found, "lofit")), settings=replace(TUNE, seed=0))
    np.testing.assert_array_equal(found.value.sel(metric="accuracy", arm="offsets lofit top #0"), accuracies(base, words, scales))
    np.testing.assert_array_equal(found.value.sel(metric="accuracy", arm="base"), accuracies(base, words, None))
    np.testing.assert_array_equal(found.value.sel(metric="accuracy", arm="vanilla"), accuracies(told.loaded("tuned"), words, None))
    numbers = found.numbers.to_series().to_dict()
    assert numbers["offsets lofit top #0"] == 3 * D_HEAD and numbers["offsets all heads #0"] == N_LAYERS * N_HEADS * D_HEAD
    layers = len({site.layer for site in members(found, "lofit")})
    assert numbers["vanilla"] == numbers["TAIA"] == layers * 32 * N_HEADS * D_HEAD  # those layers' output projections, whole
    assert numbers["graft lofit top #0"] == 3 * 32 * D_HEAD  # the heads' own columns of them
    assert numbers["base"] == 0


def accuracies(model: Loaded, suite: Suite, scales: Scales | None) -> np.ndarray:
    out = np.zeros(len(suite))
    for piece in prepare(suite, model, ["accuracy"], 64):
        if scales is None:
            out[list(piece.rows)] = score(model.model, piece).values["accuracy"]
        else:
            with scaled(model.model, scales):
                out[list(piece.rows)] = score(model.model, piece).values["accuracy"]
    return out


def test_with_the_planted_heads_removed_nothing_is_told_apart(tokenizer: PreTrainedTokenizerBase, words: Suite) -> None:
    gone = plant("llama", "shift", 0, tokenizer, removed=True).model
    result = heads(gone, words, words, by=("lofit",), k=3, options=Options(selecting=QUICK), settings=QUICK, metrics=["accuracy"])
    summary = summaries.heads_summary(result)
    assert not (summary.q <= 0.05).any()
    assert "The same on every prompt as random heads: lofit" in summaries.heads_sentences(summary)[0]


def bench(model: Loaded | Pair, suite: Suite, store: CellStore | None = None) -> xr.Dataset:
    options = Options(selecting=QUICK)
    return heads(model, suite, suite, by=("lofit", "mean-diff"), k=2, options=options, settings=QUICK, seeds=(0, 1), draws=1, store=store)


def test_a_bench_that_was_stopped_trains_only_what_is_missing(
    planted: Planted, words: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = bench(planted.model, words)
    with open_store(tmp_path / "cells.sqlite") as store:
        put, seen = CellStore.put, list[int]()

        def dying(self: CellStore, what: Any, cell: Any) -> None:
            if len(seen) == 6:
                raise KeyboardInterrupt
            seen.append(1)
            put(self, what, cell)

        monkeypatch.setattr(CellStore, "put", dying)
        with pytest.raises(KeyboardInterrupt):
            bench(planted.model, words, store)
        before = len(store)
        seen = [0] * 100  # from here on it counts and lives
        again = bench(planted.model, words, store)
        trained = len(store) - before
        seen = [0] * 100
        once_more = bench(planted.model, words, store)
        assert before == 6 and trained > 6 and len(seen) == 100
    xr.testing.assert_identical(fresh, again)
    xr.testing.assert_identical(fresh, once_more)


def test_two_runs_give_the_same_bits_and_one_is_kept_whole(planted: Planted, words: Suite, tmp_path: Path) -> None:
    first = bench(planted.model, words)
    results.save(first, tmp_path / "result.nc")
    kept = results.load(tmp_path / "result.nc")
    xr.testing.assert_equal(first, kept)
    assert kept.attrs["seeds"] == [0, 1] and kept.top.dtype == bool
    assert first.replicates.dims == ("ranker", "seed", "replicate", "layer", "head")


def test_random_heads_are_never_drawn_twice() -> None:
    sites = [Site("head", i, j) for i in range(2) for j in range(2)]
    drawn = draw_heads(sites, 2, 50, 0)
    assert len(drawn) == len(set(drawn)) == 6
    assert draw_heads(sites, 2, 3, 0) == drawn[:3] != draw_heads(sites, 2, 3, 1)


def test_head_transfer_on_two_tasks(planted: Planted, words: Suite) -> None:
    rows = [{"id": r.id, "prompt": r.prompt, "answer": r.contrast, "contrast": r.answer, "domain": r.domain} for r in words.rows]
    myths = make_suite("myths", rows)
    tasks = {"truth": (words, words), "myth": (myths, [myths])}
    sites = [Site("head", layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    seed = next(seed for seed in range(99) if not set(draw_heads(sites, 3, 1, seed)[0]) & set(planted.heads))
    result = transfer(planted.model, tasks, k=3, draws=1, selecting=SELECT, tuning=TUNE, metrics=["accuracy"], seed=seed)
    assert {Site("head", int(i), int(j)) for i, j in np.argwhere(result.top.sel(task="truth", seed=0).values)} == set(planted.heads)
    summary = summaries.transfer_summary(result)
    truth = summary.sel(group="planted|ood|accuracy")
    assert float(truth.base) == 0 and float(truth.value.sel(row="truth")) >= 0.9 and float(truth.value.sel(row="random heads")) <= 0.1
    assert float(truth.q.sel(row="random heads")) <= 0.05
    assert float(summary.base.sel(group="myths|ood|accuracy")) == 1  # the model says the myth as it is


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"by": ("lofit", "patch")}, PairError, "the ranker patch needs a tuned model"),
        ({"by": ("lofti",)}, TaiaLensError, r"no ranker 'lofti' \(did you mean 'lofit'\?\)"),
        ({"by": ("lofit", "lofit")}, TaiaLensError, "name at least one, and each once"),
        ({"by": ()}, TaiaLensError, "name at least one"),
        ({"k": 13}, SiteError, "13 heads were asked for, and this model has 12"),
        ({"check": ("graft",)}, TaiaLensError, "takes heads' weights from a tuned model, and there is one model only"),
        ({"check": ("prune",)}, TaiaLensError, "no check 'prune'; there are offsets, graft"),
        ({"seeds": (0, 0)}, TaiaLensError, "write distinct seeds"),
        ({"draws": -1}, TaiaLensError, "0 or more draws"),
        ({"metrics": ["bleu"]}, TaiaLensError, "no metric 'bleu'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(
    options: dict[str, Any], error: type[Exception], said: str, planted: Planted, words: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taia_lens.studies.heads.bench.rank", None)
    with pytest.raises(error, match=said):
        heads(planted.model, words, words, **({"by": ("lofit",)} | options))


def test_norms_that_differ_must_be_said_and_two_tasks_are_needed(llama: Pair, planted: Planted, words: Suite) -> None:
    with pytest.raises(RecipeError, match="tensors of norms differ in this pair"):
        heads(llama, words, words, by=("random",))
    with pytest.raises(TaiaLensError, match="1 tasks, 1 seeds, 3 draws: write two tasks or more"):
        transfer(planted.model, {"only": (words, words)})
