"""Rankers: planted heads come first and nothing else does; each score is the recipe it says; attribution is patching to first order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from architectures import D_HEAD, N_HEADS, N_LAYERS, make, tuned_from
from test_planted import planted
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from taia_lens import lofit, results
from taia_lens.batch import Batch, make_batches
from taia_lens.engine import applied, evaluate, run_last, run_plain, run_reads
from taia_lens.errors import PairError, SiteError, SuiteError, TaiaLensError
from taia_lens.loading import load_pair
from taia_lens.lofit import Settings
from taia_lens.metrics import Context, measure
from taia_lens.pair import Pair
from taia_lens.rankers import RANKERS, Options, causal, rank
from taia_lens.rankers.asked import ask
from taia_lens.recipe import Ablate, Patch, Recipe
from taia_lens.recipe_text import parse_recipe
from taia_lens.scoring import prepare_suite, score_recipes
from taia_lens.sites import Site
from taia_lens.store import open_store
from taia_lens.studies.patching import patch
from taia_lens.suite import Suite, Task, make_suite

ALL = Options(every=True)
QUICK = Options(every=True, folds=3, selecting=Settings(lr=1e-2, epochs=1), tuning=Settings(lr=1e-2, epochs=1))
NEED_PAIR = ("patch", "graft", "atp", "update")
CLOSE = 1e-5  # rounding of float32 log-probabilities after three layers
LAST = N_LAYERS - 1


def top(result: xr.DataArray, k: int) -> set[tuple[int, int]]:
    return {(site.layer or 0, site.head or 0) for site in lofit.top_heads(result, k)}


@pytest.fixture(scope="module")
def choices() -> Suite:
    rows = [
        {
            "prompt": f"w{i} w{i + 3} w{2 * i}",
            "choices": [f" w{i + 9} w{i}", f" w{i + 20}", f" w{i + 5} w7 w8"],
            "label": i % 3,
            "domain": "id",
        }
        for i in range(7)
    ]
    return make_suite("choices", rows, task=Task(kind="choice"))


@pytest.fixture(scope="module")
def ranked(llama: Pair, suite: Suite) -> Callable[[str], xr.Dataset]:
    """Each ranker on the pair, run once."""
    known: dict[str, xr.Dataset] = {}

    def get(name: str) -> xr.Dataset:
        if name not in known:
            known[name] = rank(name, llama, suite, options=QUICK)
        return known[name]

    return get


@pytest.mark.parametrize("ranker", RANKERS)
def test_every_ranker_gives_one_kind_of_result_that_is_kept(
    ranker: str, ranked: Callable[[str], xr.Dataset], llama: Pair, suite: Suite, tmp_path: Path
) -> None:
    found = ranked(ranker)
    assert found.score.dims == found.se.dims == ("layer", "head") and found.score.shape == (N_LAYERS, N_HEADS)
    np.testing.assert_allclose(found.score, found.replicates.mean("replicate"))
    kinds = {"example": len(suite), "fold": 3, "seed": 1, "none": 1}
    assert found.sizes["replicate"] == kinds[found.attrs["replicate"]]
    assert np.isfinite(found.score).all() and np.isnan(found.se).all() == (found.sizes["replicate"] == 1)
    assert found.score.values.std() > 0  # it tells heads apart
    assert {"ranker", "unit", "meaning", "better", "needs", "seed", "notes", "suite"} <= set(found.attrs)
    results.save(found, tmp_path / "rank.nc")
    xr.testing.assert_equal(results.load(tmp_path / "rank.nc"), found)
    xr.testing.assert_equal(rank(ranker, llama, suite, options=QUICK), found)  # the same bits again


@pytest.mark.parametrize("ranker", [name for name in RANKERS if name not in NEED_PAIR])
def test_one_model_is_the_pairs_base_or_for_ablation_its_tuned(
    ranker: str, ranked: Callable[[str], xr.Dataset], llama: Pair, suite: Suite
) -> None:
    side, other = ("tuned", "base") if ranker == "ablate" else ("base", "tuned")
    mine, theirs = (rank(ranker, llama.loaded(which), suite, options=QUICK) for which in (side, other))
    np.testing.assert_array_equal(mine.score, ranked(ranker).score)
    assert (ranker == "random") == np.array_equal(theirs.score, mine.score)


@pytest.mark.parametrize("ranker", NEED_PAIR)
def test_a_ranker_that_needs_a_pair_says_so(ranker: str, llama: Pair, suite: Suite) -> None:
    with pytest.raises(PairError, match=rf"the ranker {ranker} needs a tuned model beside .*give a pair.*or rank by lofit"):
        rank(ranker, llama.loaded("base"), suite)


# Planted truth: where a head's own weights lie, its rows of q and its columns of o.
def own(architecture: str, layer: int, head: int, parts: str) -> Callable[[str, torch.Tensor], torch.Tensor | None]:
    at = slice(head * D_HEAD, (head + 1) * D_HEAD)

    def where(name: str, data: torch.Tensor) -> torch.Tensor | None:
        if architecture == "gpt2":
            block = f"transformer.h.{layer}.attn."
            if name == block + "c_attn.weight" and "q" in parts:
                return data[:, at]
            return data[at] if name == block + "c_proj.weight" and "o" in parts else None
        block = f"model.layers.{layer}.self_attn."
        if name == block + "q_proj.weight" and "q" in parts:
            return data[at]
        return data[:, at] if name == block + "o_proj.weight" and "o" in parts else None

    return where


def with_heads(architecture: str, heads: set[tuple[int, int]], parts: str, seed: int, tokenizer: PreTrainedTokenizerBase) -> Pair:
    base = make(architecture, seed)
    tuned = base
    for layer, head in sorted(heads):
        tuned = planted(tuned, own(architecture, layer, head, parts), 10 * seed + head)
    return load_pair(base, tuned, tokenizer=tokenizer)


def check_first(ranker: str, pair: Pair, suite: Suite, heads: set[tuple[int, int]]) -> None:
    score = rank(ranker, pair, suite, options=Options(every=True, magnitude=True)).score
    assert top(score, len(heads)) == heads, ranker
    others = np.sort(score.values.ravel())[: -len(heads)]
    assert others.max() <= CLOSE < 10 * CLOSE < np.sort(score.values.ravel())[-len(heads)], ranker


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])  # grouped queries, and without
def test_planted_heads_are_exactly_the_first(architecture: str, seed: int, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    # In the last layer: what is downstream of a planted head has another z too.
    heads = {(LAST, seed % N_HEADS), (LAST, (seed + 1 + seed % 2) % N_HEADS)}
    pair = with_heads(architecture, heads, "qo", seed, tokenizer)
    for name in NEED_PAIR:
        check_first(name, pair, suite, heads)


@pytest.mark.parametrize("seed", range(2))
def test_grafts_and_updates_find_heads_of_any_layer(seed: int, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    heads = {(0, seed), (1, seed + 2), (LAST, 1)}
    pair = with_heads("llama", heads, "qo", seed, tokenizer)
    for name in ("graft", "update"):
        check_first(name, pair, suite, heads)


def test_without_the_planted_heads_no_head_is_found(tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    base = make("llama", 0)
    tuned = planted(base, lambda n, data: data if n == f"model.layers.{LAST}.mlp.down_proj.weight" else None, 0)
    pair = load_pair(base, tuned, tokenizer=tokenizer)
    for name in ("patch", "graft", "atp", "update"):
        assert abs(rank(name, pair, suite, options=ALL).score).max() <= CLOSE, name
    # Positive control: the metric itself did move.
    assert abs(scored(pair, suite, "tuned") - scored(pair, suite, "base")).max() > 0.01


def scored(pair: Pair, suite: Suite, recipe: str, metric: str = "logprob") -> np.ndarray:
    """What the metric is under grafts, from the library's own scoring."""
    prepared = [prepare_suite(pair, suite, (metric,), 8)]
    return score_recipes(pair, [parse_recipe(recipe)], prepared, store=None, bar=tqdm(disable=True))[0][0].values[0]


def on_batch(pair: Pair, suite: Suite, recipes: list[Recipe]) -> np.ndarray:
    """Log-probabilities (recipe, example), from the engine by hand."""
    (batch,) = make_batches(suite, pair.tokenizer, len(suite))
    values = evaluate(pair, recipes, batch, lambda logits: measure(("logprob",), Context(batch), logits))["logprob"]
    out = np.empty(values.shape)
    out[:, list(batch.rows)] = values.numpy()
    return out


def test_patch_is_the_patching_studys_effect(ranked: Callable[[str], xr.Dataset], llama: Pair, suite: Suite) -> None:
    study = patch(llama, suite, component="head", metrics=["logprob"]).squeeze(("metric", "component"))
    effect = (study.patched - study.host).transpose("example", "layer", "head")
    np.testing.assert_allclose(ranked("patch").replicates, effect, atol=CLOSE)
    assert ranked("patch").replicate.values.tolist() == [row.id for row in suite.rows]
    assert ranked("patch").domain.values.tolist() == [row.domain for row in suite.rows]


def test_graft_is_the_recipe_by_hand(ranked: Callable[[str], xr.Dataset], llama: Pair, suite: Suite) -> None:
    by_hand = scored(llama, suite, "base; graft L1.h2 <- tuned") - scored(llama, suite, "base")
    np.testing.assert_allclose(ranked("graft").replicates.sel(layer=1, head=2), by_hand, atol=CLOSE)
    assert any("grouped queries" in note for note in ranked("graft").attrs["notes"])


def test_ablate_is_the_recipe_by_hand(ranked: Callable[[str], xr.Dataset], llama: Pair, suite: Suite) -> None:
    whole, without = on_batch(llama, suite, [Recipe("tuned"), Recipe("tuned", (Ablate(Site("head", 1, 2)),))])
    np.testing.assert_allclose(ranked("ablate").replicates.sel(layer=1, head=2), whole - without, atol=CLOSE)


def test_a_metric_of_which_less_is_better_is_turned(llama: Pair, suite: Suite) -> None:
    rows = [{"prompt": row.prompt + row.answer, "domain": "id"} for row in suite.rows]
    text = make_suite("plain", rows, task=Task(kind="text"))
    found = rank("graft", llama, text)
    change = scored(llama, text, "base; graft L0.h0 <- tuned", "cross_entropy") - scored(llama, text, "base", "cross_entropy")
    np.testing.assert_allclose(found.replicates.sel(layer=0, head=0), -change, atol=CLOSE)
    assert (found.attrs["metric"], found.attrs["unit"]) == ("cross_entropy", "nats")


def test_heads_are_ranked_on_rows_in_distribution_unless_every_row_is_asked_for(llama: Pair, suite: Suite) -> None:
    mine = [i for i, row in enumerate(suite.rows) if row.domain == "id"]
    found, every = rank("atp", llama, suite), rank("atp", llama, suite, options=ALL)
    np.testing.assert_allclose(found.replicates, every.replicates[mine], atol=CLOSE)
    assert 0 < len(mine) < len(suite) and not np.allclose(found.score, every.score)


# Attribution.
def halfway(name: str, eps: float, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """Tuned is base plus eps times noise on every weight."""
    base, noise = make(name, 0), tuned_from(make(name, 0), 1)
    tuned = copy.deepcopy(base)
    for mine, theirs in zip(tuned.parameters(), noise.parameters(), strict=True):
        mine += eps * (theirs - mine)
    return load_pair(base, tuned, tokenizer=tokenizer)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_attribution_is_patching_to_first_order(architecture: str, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    errors = []
    for eps in (0.2, 0.05):
        pair = halfway(architecture, eps, tokenizer)
        atp, real = (rank(name, pair, suite, options=ALL).replicates for name in ("atp", "patch"))
        errors.append(float(abs(atp - real).mean() / abs(real).mean()))
        assert float(abs(-atp - real).mean() / abs(real).mean()) > 1  # what a wrong sign would give
    assert errors[1] < 0.1
    assert errors[1] < errors[0] / 2.5  # four times smaller an update: an error of second order falls four times too


def whole_layers(pair: Pair, suite: Suite) -> np.ndarray:
    """Effect (layer, example) of patching all heads of a layer together."""
    recipes = [Recipe("base", tuple(Patch(Site("head", layer, head), "tuned") for head in range(N_HEADS))) for layer in range(N_LAYERS)]
    base, *rest = on_batch(pair, suite, [Recipe("base"), *recipes])
    return np.array(rest) - base


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_integrated_gradients_of_a_layer_sum_to_patching_it(architecture: str, pair_of: Callable[[str], Pair], suite: Suite) -> None:
    pair = pair_of(architecture)
    whole = whole_layers(pair, suite)
    errors = []
    for steps in (0, 4, 16):
        found = rank("atp", pair, suite, options=Options(every=True, steps=steps)).replicates.sum("head").transpose("layer", "replicate")
        errors.append(float(abs(found.values - whole).mean() / abs(whole).mean()))
    assert errors[2] < 0.02
    assert errors[2] < errors[1] / 4 and errors[0] > 0.05  # midpoints converge with the square of the steps; one gradient does not sum up


def test_a_row_of_a_batch_gets_its_own_gradient(llama: Pair, suite: Suite) -> None:
    together, alone = (rank("atp", llama, suite, options=Options(every=True, batch_size=n)).replicates for n in (len(suite), 1))
    np.testing.assert_allclose(together, alone, atol=CLOSE)


def test_last_tokens_are_those_of_the_whole_forward(llama: Pair, batch: Batch) -> None:
    hooks = [Site("head", 1, 0).hook, Site("resid", 2).hook]
    whole, last = run_plain(llama.base, batch, hooks).acts, run_last(llama.base, batch.tokens, batch.mask, hooks)
    for hook in hooks:
        torch.testing.assert_close(last[hook], whole[hook][torch.arange(len(batch.rows)), batch.last])
    with pytest.raises(SiteError, match=r"this model has no blocks\.0\.attn\.hook_nothing"):
        run_last(llama.base, batch.tokens, batch.mask, ["blocks.0.attn.hook_nothing"])


# The task choice.
@pytest.mark.parametrize("batch_size", [3, 64])
def test_choices_are_read_as_they_are_scored(batch_size: int, llama: Pair, choices: Suite) -> None:
    found = np.full(len(choices), np.nan)
    for some in ask(llama, choices, "choice_logprob", batch_size, by="patch"):
        with applied(llama, Recipe("base")) as model:
            logits = run_reads(model, some.batch.tokens, some.batch.mask, some.sequences, some.positions)
        found[list(some.rows)] = some.value(logits)
    np.testing.assert_allclose(found, scored(llama, choices, "base", "choice_logprob"), atol=CLOSE)


def test_choices_are_patched_and_attributed(tokenizer: PreTrainedTokenizerBase, choices: Suite) -> None:
    pair = halfway("llama", 0.05, tokenizer)
    real, atp = (rank(name, pair, choices) for name in ("patch", "atp"))
    assert real.attrs["metric"] == "choice_logprob"
    assert abs(atp.replicates - real.replicates).mean() < 0.1 * abs(real.replicates).mean()
    # Positive control, that patches reach the choices: tuned's q of the heads of one layer, by weights, does the same as its z.
    heads = {(LAST, 1)}
    pair = with_heads("llama", heads, "q", 0, tokenizer)
    found = rank("patch", pair, choices)
    gain = scored(pair, choices, "tuned", "choice_logprob") - scored(pair, choices, "base", "choice_logprob")
    np.testing.assert_allclose(found.replicates.sel(layer=LAST, head=1), gain, atol=CLOSE)
    assert abs(gain).min() > 10 * CLOSE


# The store, the size, the seeds.
@pytest.mark.parametrize("ranker", ["patch", "graft", "ablate", "lofit"])
def test_finished_cells_are_found_again(ranker: str, llama: Pair, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path / "cells.sqlite") as store:
        first = rank(ranker, llama, suite, options=QUICK, store=store)
        n = len(store)
        assert n > 0

        def refuse(*args: object, **kwargs: object) -> None:
            raise AssertionError("a forward was run")

        monkeypatch.setattr(causal, "run_recipes", refuse)
        monkeypatch.setattr("taia_lens.scoring.many.parts_of_recipes", refuse)
        monkeypatch.setattr("taia_lens.scoring.many.parts_of_scales", refuse)
        monkeypatch.setattr("taia_lens.lofit.train._epochs", refuse)
        xr.testing.assert_equal(rank(ranker, llama, suite, options=QUICK, store=store), first)
        assert len(store) == n
        with pytest.raises(AssertionError, match="a forward was run"):  # positive control
            rank(ranker, llama, suite, options=QUICK)


def test_with_magnitude_the_score_is_the_size_of_the_mean(ranked: Callable[[str], xr.Dataset], llama: Pair, suite: Suite) -> None:
    size = rank("graft", llama, suite, options=Options(every=True, magnitude=True))
    np.testing.assert_allclose(size.score, abs(ranked("graft").score), atol=CLOSE)
    np.testing.assert_allclose(size.replicates, ranked("graft").replicates, atol=CLOSE)
    assert (ranked("graft").score < 0).any()


@pytest.mark.parametrize("ranker", ["random", "lofit", "lofit-offset", "jola"])
def test_seeds_are_replicates(ranker: str, ranked: Callable[[str], xr.Dataset], llama: Pair, suite: Suite) -> None:
    two = rank(ranker, llama, suite, options=replace(QUICK, seeds=2))
    assert two.replicate.values.tolist() == ["0", "1"]
    np.testing.assert_array_equal(two.replicates[0], ranked(ranker).replicates[0])
    assert not np.array_equal(two.replicates[0], two.replicates[1])
    assert (two.se >= 0).all() and (two.se > 0).any()


def test_learnt_rankers_are_lofits_numbers(ranked: Callable[[str], xr.Dataset], llama: Pair, suite: Suite) -> None:
    chosen = lofit.select(llama.loaded("base"), suite, settings=QUICK.selecting, every=True)
    for ranker, name in (("lofit", "norm"), ("lofit-relative", "relative"), ("lofit-effect", "effect")):
        np.testing.assert_array_equal(ranked(ranker).score, chosen[name].transpose("layer", "head"))
    heads = lofit.heads_of(llama.loaded("base"))
    scales = lofit.tune(llama.loaded("base"), suite, heads, settings=QUICK.tuning, every=True)
    np.testing.assert_allclose(ranked("lofit-offset").score.values.ravel(), scales.offset.norm(dim=-1), rtol=1e-5)


# What is refused.
@pytest.mark.parametrize(
    ("ranker", "options", "said"),
    [
        ("itti", Options(), r"no ranker 'itti' \(did you mean 'iti'\?\); there are lofit, .*, random"),
        ("nothing", Options(), r"no ranker 'nothing'; there are lofit"),
        ("iti", Options(folds=9), r"7 rows have a right and a wrong answer, fewer than the 9 folds; give more rows, or fewer folds"),
        ("atp", Options(metric="accuracy"), r"the metric accuracy has no gradient, which attribution needs; write one of prob, logprob"),
        ("patch", Options(metric="exact_match"), r"the metric exact_match is of the task generate"),
        ("graft", Options(metric="kl_host"), r"the metric kl_host compares with an unedited run"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_line(ranker: str, options: Options, said: str, llama: Pair, suite: Suite) -> None:
    with pytest.raises(TaiaLensError, match=said):
        rank(ranker, llama, suite, options=options)


@pytest.mark.parametrize("ranker", ["iti", "mass-mean", "mean-diff"])
def test_a_suite_without_wrong_answers_is_one_class(ranker: str, llama: Pair) -> None:
    rows = [{"prompt": f"w{i}", "answer": f" w{i + 1}", "domain": "id"} for i in range(9)]
    with pytest.raises(SuiteError, match="no row has a wrong answer, so a probe would see one class; give rows a contrast"):
        rank(ranker, llama, make_suite("right", rows))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": "w1", "contrast": " w2"}, r"row 0: the answer 'w1' joins with the prompt's last word"),
        ({"answer": " w1", "contrast": " nowhere"}, r"row 0: the answer ' nowhere' is not in the vocabulary"),
        ({"answer": " w1", "contrast": "  w1"}, r"row 0: two of its answers are the same tokens"),
        ({"answer": " w1", "contrast": " w2" * 70}, r"row 0: 7\d tokens, and the model has 64 positions"),
    ],
)
def test_answers_that_a_probe_cannot_read_are_refused(row: dict[str, str], said: str, llama: Pair) -> None:
    rows = [{"prompt": f"w{i}", "answer": f" w{i + 1}", "contrast": f" w{i + 2}", "domain": "id"} for i in range(1, 9)]
    with pytest.raises(SuiteError, match=said):
        rank("iti", llama, make_suite("odd", [{"prompt": "w5", "domain": "id", **row}, *rows]))


@pytest.mark.parametrize("ranker", ["patch", "atp"])
def test_a_task_that_is_written_is_grafted_not_patched(ranker: str, llama: Pair, choices: Suite) -> None:
    written = make_suite("written", [{"prompt": "w1", "answer": "w2", "domain": "id"}], task=Task(kind="generate", max_new_tokens=2))
    said = (
        "has no gradient"
        if ranker == "atp"
        else "does not know the task generate of suite written; it knows .*; run layers, or rank by graft"
    )
    with pytest.raises(TaiaLensError, match=said):
        rank(ranker, llama, written)
    assert rank("graft", llama, written).attrs["metric"] == "exact_match"
    with pytest.raises(TaiaLensError, match="does not know the metric choice_accuracy of the task choice"):
        rank("patch", llama, choices, options=Options(metric="choice_accuracy"))


def test_rows_out_of_distribution_choose_no_heads_by_accident(llama: Pair) -> None:
    suite = make_suite("far", [{"prompt": "w1", "answer": " w2", "contrast": " w3", "domain": "ood"}] * 1)
    with pytest.raises(SuiteError, match=r"suite far has no row in distribution .*Options\(every=True\)"):
        rank("patch", llama, suite)


@pytest.mark.parametrize("name", ["batch_size", "seed", "seeds", "folds", "steps"])
def test_options_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(TaiaLensError, match=rf"{name} is -1; write \d or more"):
        Options(**{name: -1})
