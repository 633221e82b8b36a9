"""Probes and steering: planted directions are found, at planted heads and nowhere else, and no row is on both sides of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import D_HEAD, N_HEADS, N_LAYERS, make, make_tokenizer
from sklearn.exceptions import ConvergenceWarning
from transformers import PreTrainedTokenizerBase

from taia_lens import lofit
from taia_lens.engine import run_last, scaled
from taia_lens.errors import SiteError, TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.loading import load_one, load_pair
from taia_lens.pair import Pair
from taia_lens.rankers import Options, directions, iti_scales, probes, rank, repe_directions, repe_scales
from taia_lens.rankers.texts import Texts, right_and_wrong
from taia_lens.scales import check_fits
from taia_lens.sites import Site
from taia_lens.suite import Suite, make_suite

ROWS = 80
WORDS = [f"w{i}" for i in range(4 * ROWS)]
PLANTED = {(1, 0), (1, 3)}  # in the arrays
ALL = Options(every=True)


def drawn(seed: int, *, rows: int = ROWS, shift: float = 3.0, per_row: tuple[int, int] = (1, 1)) -> tuple[np.ndarray, Texts]:
    """Random z of two layers of four heads; at PLANTED, right answers are shifted. Every row has a vector of its own too."""
    rng = np.random.default_rng(seed)
    right = np.tile(np.repeat([True, False], per_row), rows)
    row = np.repeat(np.arange(rows), sum(per_row))
    z = rng.normal(size=(len(row), 2, 4, 8)) + rng.normal(size=(rows, 2, 4, 8))[row]
    for layer, head in PLANTED:
        z[right, layer, head] += shift * probes.unit(rng.normal(size=8))
    return z, Texts(tuple((i,) for i in range(len(row))), right, row, 0)


def accuracy(z: np.ndarray, texts: Texts, kind: str, *, folds: int = 5) -> np.ndarray:
    return probes.held_out(z, texts, kind, folds, 0)[0].mean(0)


def first(score: np.ndarray, k: int = 2) -> set[tuple[int, int]]:
    return {(int(i) // score.shape[1], int(i) % score.shape[1]) for i in np.argsort(-score.ravel())[:k]}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", probes.PROBES)
def test_shifted_heads_are_found_and_with_shuffled_labels_none_is(kind: str, seed: int) -> None:
    z, texts = drawn(seed)
    found = accuracy(z, texts, kind)
    assert first(found) == PLANTED and min(found[at] for at in PLANTED) > 0.75
    others = np.array([found[at] for at in np.ndindex(found.shape) if at not in PLANTED])
    assert others.max() < 0.7
    # Half of the rows with right and wrong exchanged: chance, which of 160 texts is 0.5 +- 0.04, and the best of 8 heads more.
    turned = texts.right ^ (np.random.default_rng(seed).random(ROWS) < 0.5)[texts.row]
    null = accuracy(z, Texts(texts.ids, turned, texts.row, 0), kind)
    assert abs(null.mean() - 0.5) < 0.06 and null.max() < 0.7
    # The planted heads without their shift are not found.
    assert accuracy(*drawn(seed, shift=0.0), kind).max() < 0.7


@pytest.mark.parametrize("per_row", [(1, 3), (1, 7), (2, 3)])
@pytest.mark.parametrize("kind", probes.PROBES)
def test_shifted_heads_are_found_where_most_answers_are_wrong(kind: str, per_row: tuple[int, int]) -> None:
    """Plain accuracy would be that of calling everything wrong, at every head alike."""
    for seed in range(5):
        z, texts = drawn(seed, rows=40, shift=2.0, per_row=per_row)
        assert first(accuracy(z, texts, kind)) == PLANTED
        null = accuracy(*drawn(seed, rows=40, shift=0.0, per_row=per_row), kind)
        assert abs(null.mean() - 0.5) < 0.07 and null.max() < 0.75


def test_rows_of_one_prompt_are_one_group(tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_one(make("llama", 0), tokenizer=tokenizer)
    rows = [
        {"id": str(i), "prompt": f"w50 w{i // 2}", "answer": f" w{i % 2}", "contrast": f" w{3 + i % 2}", "domain": "id"} for i in range(20)
    ]
    texts = right_and_wrong(model, make_suite("twice", rows))
    assert len(set(texts.row.tolist())) == 10 and texts.left_out == 0
    for train, test in probes.splits(texts.row, 5, 0):
        prompts = [{texts.ids[i][:2] for i in side} for side in (train, test)]
        assert not prompts[0] & prompts[1]


@pytest.mark.parametrize("seed", range(5))
def test_mean_differences_are_found_and_of_no_difference_are_about_zero(seed: int) -> None:
    z, texts = drawn(seed)
    found = probes.mean_difference(z, texts)
    assert first(found.mean(0)) == PLANTED
    null = probes.mean_difference(*drawn(seed, shift=0.0))
    # Each row along the others' mean: zero on average. Along its own as well, eight dims would give about sqrt(8 * 2 / 80) = 0.4.
    assert abs(null.mean(0).mean()) < 0.15
    whole = probes.pair_differences(z, texts).mean(0)
    sd = np.sqrt(2)  # of what was drawn along any direction
    np.testing.assert_allclose(found.mean(0)[1, 0], np.linalg.norm(whole[1, 0]) / sd, rtol=0.15)


def clusters(seed: int) -> tuple[np.ndarray, Texts]:
    """Three right answers of a row are one point, three wrong ones another, and points of different rows have nothing in common."""
    rng = np.random.default_rng(seed)
    right, row = np.tile(np.repeat([True, False], 3), 20), np.repeat(np.arange(20), 6)
    points = rng.normal(size=(2, 20, 1, 1, 256))
    z = points[right.astype(int), row] + 0.01 * rng.normal(size=(120, 1, 1, 256))
    return z, Texts(tuple((i,) for i in range(120)), right, row, 0)


@pytest.mark.parametrize("kind", probes.PROBES)
def test_texts_of_one_row_leak_nothing_to_each_other(kind: str) -> None:
    found = np.mean([accuracy(*clusters(seed), kind) for seed in range(5)])
    assert found < 0.6  # chance: what is learnt of some rows says nothing of others
    # Positive control: were texts split and not rows, the same probe would remember.
    leaky = []
    for seed in range(5):
        z, texts = clusters(seed)
        leaky.append(accuracy(z, Texts(texts.ids, texts.right, np.random.default_rng(seed).permutation(120), 0), kind))
    assert np.mean(leaky) > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_splits_hold_out_every_row_once_and_whole(seed: int) -> None:
    row = np.repeat(np.arange(30) * 7, np.arange(30) % 4 + 2)
    held: list[int] = []
    for train, test in probes.splits(row, 5, seed):
        assert not set(row[train]) & set(row[test])
        assert len(train) + len(test) == len(row)
        held += sorted(set(row[test]))
    assert sorted(held) == sorted(set(row))
    again, other = (np.concatenate([test for _, test in probes.splits(row, 5, s)]) for s in (seed, seed + 1))
    assert np.array_equal(again, np.concatenate([test for _, test in probes.splits(row, 5, seed)]))
    assert not np.array_equal(again, other)


def test_probes_that_do_not_converge_are_counted_and_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MAX_ITER", 1)
    z, texts = drawn(0, rows=10)
    assert probes.fit(z, texts.right, "probe").unfinished == 8
    with pytest.warns(ConvergenceWarning):  # what scikit-learn would have said
        probes.LogisticRegression(max_iter=1).fit(z[:, 0, 0], texts.right)
    with pytest.raises(TaiaLensError, match="no probe 'svm'; there are probe, mass-mean"):
        probes.fit(z, texts.right, "svm")


# In a model: a class of tokens lies along one dim of the embedding, and one head's values read it.
@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return make_tokenizer(tmp_path_factory.mktemp("words"), WORDS)


@pytest.fixture(scope="module")
def truths() -> Suite:
    """No answer stands in two rows, so that nothing can be learnt of a word by itself: right ones are w0-w79, wrong ones w80-w159."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(ROWS):
        prompt = " ".join(WORDS[w] for w in rng.integers(2 * ROWS, 4 * ROWS, 1 + i % 4))
        rows.append({"prompt": prompt, "answer": f" {WORDS[i]}", "contrast": f" {WORDS[ROWS + i]}", "domain": "id"})
    return make_suite("truths", rows)


def model_with(seed: int, layer: int, kv_head: int | None, kv_heads: int, tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """A Llama in which the class of a token reaches z through the values of one key-value head only, and hardly any further."""
    made = make("llama", seed, vocab_size=4 + len(WORDS), num_key_value_heads=kv_heads)
    table = made.model.embed_tokens.weight
    table[:, 0] = 0
    table[4 : 4 + ROWS, 0], table[4 + ROWS : 4 + 2 * ROWS, 0] = 1, -1
    group = N_HEADS // kv_heads
    for block in made.model.layers:
        for reader in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj, block.mlp.gate_proj, block.mlp.up_proj):
            reader.weight[:, 0] = 0
    if kv_head is not None:
        attention = made.model.layers[layer].self_attn
        attention.v_proj.weight[kv_head * D_HEAD : (kv_head + 1) * D_HEAD, 0] = 1
        # Not zero: loading asks that ablating a head changes something.
        attention.o_proj.weight[:, kv_head * group * D_HEAD : (kv_head + 1) * group * D_HEAD] *= 1e-3
    other = make("llama", seed + 1, vocab_size=4 + len(WORDS), num_key_value_heads=kv_heads)
    return load_pair(made, other, tokenizer=tokenizer).loaded("base")


@pytest.mark.parametrize("ranker", ["iti", "mass-mean", "mean-diff"])
@pytest.mark.parametrize(("seed", "kv_heads"), [(0, 2), (1, 4), (2, 2), (3, 4), (4, 2)])
def test_heads_that_read_the_truth_are_exactly_the_first(
    seed: int, kv_heads: int, ranker: str, words: PreTrainedTokenizerBase, truths: Suite
) -> None:
    layer, kv_head, group = seed % N_LAYERS, seed % kv_heads, N_HEADS // kv_heads
    score = rank(ranker, model_with(seed, layer, kv_head, kv_heads, words), truths).score
    readers = {(layer, kv_head * group + i) for i in range(group)}
    assert {(site.layer, site.head) for site in lofit.top_heads(score, len(readers))} == readers
    sorted_scores = np.sort(score.values.ravel())
    least, most = sorted_scores[-group], sorted_scores[-group - 1]
    assert least > (1.5 if ranker == "mean-diff" else 0.8) > 0.7 > most
    # Without them no head is found: 0.5 +- 0.04 of 160 texts, the best of 12 heads.
    null = rank(ranker, model_with(seed, layer, None, kv_heads, words), truths).score
    assert null.max() < 0.7


def test_right_and_wrong_answers_of_all_kinds_of_rows(llama: Pair) -> None:
    rows = [
        {"prompt": "w1 w2", "answer": " w3", "contrast": " w4", "domain": "id"},
        {"prompt": "w1", "choices": [" w5", " w6", " w7"], "label": 1, "domain": "id"},
        {"prompt": "w1", "choices": [" w5", " w6", " w7"], "label": 1, "labels": [1, 2], "domain": "id"},
        {"prompt": "w1", "choices": [" w5", " w6", " w7"], "label": 1, "contrast": " w9", "domain": "id"},
        {"prompt": "w8", "answer": " w9", "domain": "id"},
    ]
    model = llama.loaded("base")
    found = right_and_wrong(model, make_suite("mixed", rows))
    texts = [model.tokenizer.decode(ids) for ids in found.ids]
    assert [t.split()[-1] for t in texts] == ["w3", "w4", "w6", "w5", "w7", "w6", "w7", "w5", "w6", "w9"]
    assert found.right.tolist() == [True, False, True, False, False, True, True, False, True, False]
    assert found.row.tolist() == [0, 0, *[1] * 8]  # one prompt is one group
    assert found.left_out == 1
    result = rank("iti", model, make_suite("mixed", rows), options=Options(folds=2))
    assert result.attrs["notes"][0] == "left out: 1 rows that have no wrong answer"
    assert result.attrs["chance"] == 0.5


def test_what_is_read_is_z_at_the_last_token_in_the_texts_own_order(llama: Pair, suite: Suite) -> None:
    model = llama.loaded("base")
    texts = right_and_wrong(model, suite)
    z = probes.read(model, texts, "head", 3)
    for i in (0, 5, len(texts.ids) - 1):
        ids = torch.tensor([texts.ids[i]])
        one = run_last(model.model, ids, torch.ones_like(ids, dtype=torch.bool), [Site("head", 2, 0).hook])
        np.testing.assert_allclose(z[i, 2], one[Site("head", 2, 0).hook][0], atol=1e-6)


# Steering.
@pytest.mark.parametrize("kind", probes.PROBES)
def test_a_direction_points_from_wrong_to_right_and_its_scales_move_z_by_alpha_sigma(kind: str, llama: Pair, suite: Suite) -> None:
    model = llama.loaded("base")
    found = directions(model, suite, kind, options=ALL)
    assert found.theta.shape == (N_LAYERS, N_HEADS, D_HEAD)
    torch.testing.assert_close(found.theta.norm(dim=-1), torch.ones(N_LAYERS, N_HEADS))
    score = rank("iti" if kind == "probe" else kind, model, suite, options=ALL).score
    np.testing.assert_allclose(found.accuracy, score, rtol=1e-6)
    texts = right_and_wrong(model, suite)
    z = probes.read(model, texts, "head", 64)
    along = probes.project(z, found.theta.double().numpy())
    assert (along[texts.right].mean(0) > along[~texts.right].mean(0)).all()
    np.testing.assert_allclose(found.sigma, along.std(0), rtol=1e-5)
    scales = iti_scales(found, [Site("head", 1, 2), Site("head", 1, 0)], 4.0)
    check_fits(scales, model)
    assert scales.made["settings"]["alpha"] == 4 and scales.made["method"] == "iti"
    assert scales.numbers == scales.made["numbers"] == 2 * D_HEAD
    with scaled(model.model, scales):
        moved = probes.project(probes.read(model, texts, "head", 64), found.theta.double().numpy()) - along
    np.testing.assert_allclose(moved[:, 1, [2, 0]], np.broadcast_to(4 * found.sigma[1, [2, 0]], (len(z), 2)), rtol=1e-4)
    np.testing.assert_allclose(moved[:, [0, 1], [0, 1]], 0, atol=1e-5)  # heads that were not named, in and below the layer


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_direction_of_pair_differences_is_the_planted_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = probes.unit(rng.normal(size=(3, 16)))
    change = rng.normal(size=(60, 3, 16)) + 4 * truth
    found = probes.principal(change)
    assert ((found * truth).sum(-1) > 0.95).all()  # along it, and with its sign
    centred = probes.principal(change - change.mean(0))
    assert (abs((centred * truth).sum(-1)) < 0.8).all()  # positive control: with the mean taken out it is not there


@pytest.mark.parametrize("kind", ["pca", "mean"])
def test_a_residual_direction_moves_the_residual_stream(kind: str, llama: Pair, suite: Suite) -> None:
    model = llama.loaded("base")
    found = repe_directions(model, suite, kind, options=ALL)
    assert found.theta.shape == (N_LAYERS, N_HEADS * D_HEAD)
    scales = repe_scales(found, "1-2", 3.0)
    check_fits(scales, model)
    assert [str(site) for site in scales.sites] == ["L1.resid", "L2.resid"]
    texts = right_and_wrong(model, suite)
    before = probes.read(model, texts, "resid", 64)
    assert (np.einsum("tld,ld->tl", probes.pair_differences(before, texts), found.theta).mean(0) > 0).all()
    with scaled(model.model, scales):
        after = probes.read(model, texts, "resid", 64)
    np.testing.assert_allclose((after - before)[:, 1], np.broadcast_to(3 * found.theta[1], before[:, 1].shape), atol=1e-5)
    np.testing.assert_allclose((after - before)[:, 0], 0, atol=1e-6)


def test_what_cannot_be_steered_is_refused(llama: Pair, suite: Suite, tmp_path: Path) -> None:
    model = llama.loaded("base")
    found = directions(model, suite, "mass-mean", options=ALL)
    with pytest.raises(SiteError, match=r"L0\.h4 is no head of this model, which has layers 0-2 and heads 0-3"):
        iti_scales(found, [Site("head", 0, 4)], 1.0)
    with pytest.raises(SiteError, match=r"L1\.mlp is no head of this model"):
        iti_scales(found, [Site("mlp", 1)], 1.0)
    with pytest.raises(SiteError, match="scales need a site"):
        iti_scales(found, [], 1.0)
    with pytest.raises(TaiaLensError, match="no direction 'lda'; there are pca, mean"):
        repe_directions(model, suite, "lda")
    with pytest.raises(SiteError, match="no layer 3"):
        repe_scales(repe_directions(model, suite, options=ALL), [3], 1.0)
