"""LoFiT: planted heads are found, on any architecture; what is trained, kept, resumed and refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from architectures import D_HEAD, N_HEADS, N_LAYERS, PARTS, make
from planted_heads import Planted, plant, task
from transformers import PreTrainedTokenizerBase

from taia_lens import lofit
from taia_lens.engine import frozen, label_logprobs, scaled
from taia_lens.errors import SiteError, SuiteError, TaiaLensError
from taia_lens.evaluation import prepare, score
from taia_lens.examples import collate
from taia_lens.loaded import Loaded
from taia_lens.loading import load_one
from taia_lens.lofit import losses
from taia_lens.lofit.texts import make_texts
from taia_lens.scales import Scales
from taia_lens.sites import Site
from taia_lens.store import CellStore, open_store
from taia_lens.suite import Suite, make_suite
from taia_lens.weights import live_weights

# Gemma is left out: it norms what attention adds, so that every head of a layer scales every other one's write.
ARCHITECTURES = ("llama", "gpt2", "neox", "qwen3", "mixtral", "phi3")
SELECT = lofit.Settings(lr=3e-2, l1=5e-3, epochs=10, batch_size=16, patience=20)
TUNE = replace(SELECT, l1=0.0, epochs=20)
QUICK = replace(SELECT, epochs=2, batch_size=8, patience=5)
K = 3


@pytest.fixture(scope="module")
def suite() -> Suite:
    return task()


@pytest.fixture(scope="module")
def small(tokenizer: PreTrainedTokenizerBase) -> Planted:
    return plant("llama", "shift", 0, tokenizer)


def accuracy(model: Loaded, suite: Suite, scales: Scales | None = None) -> float:
    found = []
    for piece in prepare(suite, model, ["accuracy"], 64):
        if scales is None:
            found.append(score(model.model, piece).values["accuracy"])
        else:
            with scaled(model.model, scales):
                found.append(score(model.model, piece).values["accuracy"])
    return float(np.concatenate(found).mean())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["scale", "shift"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_heads_that_must_be_rescaled_or_shifted_are_the_top_k(
    architecture: str, kind: str, seed: int, tokenizer: PreTrainedTokenizerBase, suite: Suite
) -> None:
    planted = plant(architecture, kind, seed, tokenizer)
    found = lofit.select(planted.model, suite, settings=replace(SELECT, seed=seed))
    assert set(lofit.top_heads(found.norm, K)) == set(planted.heads)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["scale", "shift"])
def test_with_the_planted_heads_removed_no_head_is_found(
    architecture: str, kind: str, tokenizer: PreTrainedTokenizerBase, suite: Suite
) -> None:
    there, gone = (plant(architecture, kind, 0, tokenizer, removed=removed) for removed in (False, True))
    norms = [lofit.select(planted.model, suite, settings=SELECT).norm for planted in (there, gone)]
    least = min(float(norms[0].sel(layer=site.layer, head=site.head)) for site in there.heads)
    assert float(norms[1].max()) < 0.65 * least  # at the same settings, no head's gains get as far as the planted ones' do


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_offsets_on_the_planted_heads_solve_the_task_and_on_others_do_not(
    architecture: str, tokenizer: PreTrainedTokenizerBase, suite: Suite
) -> None:
    planted = plant(architecture, "shift", 0, tokenizer)
    chosen, scales = lofit.fit(planted.model, suite, K, selecting=SELECT, tuning=TUNE)
    assert accuracy(planted.model, suite) == 0
    assert accuracy(planted.model, suite, scales) >= 0.9
    others = lofit.top_heads(-chosen.norm, K)
    assert not set(others) & set(planted.heads)
    assert accuracy(planted.model, suite, lofit.tune(planted.model, suite, others, settings=TUNE)) <= 0.1
    assert scales.made["method"] == "lofit" and scales.made["numbers"] == K * D_HEAD


def test_gated_offsets_solve_it_in_one_step_and_the_gates_can_close(small: Planted, suite: Suite) -> None:
    scales = lofit.jola(small.model, suite, settings=replace(TUNE, lr=3e-2), l0=1e-3)
    assert accuracy(small.model, suite, scales) >= 0.9
    moved = (scales.gain.norm(dim=1) + scales.offset.norm(dim=1)).tolist()
    assert {scales.sites[i] for i in np.argsort(moved)[-K:]} == set(small.heads)
    with pytest.raises(TaiaLensError, match=r"every gate closed; lower l0 \(50\)"):
        lofit.jola(small.model, suite, settings=replace(TUNE, lr=4.0, epochs=1), l0=50.0)


def test_another_penalty_on_gates_is_another_training(small: Planted, suite: Suite, tmp_path: Path) -> None:
    with open_store(tmp_path / "cells.sqlite") as store:
        found = [lofit.jola(small.model, suite, settings=QUICK, l0=l0, store=store) for l0 in (1e-3, 5.0)]
    assert found[0].key != found[1].key and found[1].key == lofit.jola(small.model, suite, settings=QUICK, l0=5.0).key
    assert found[0].made["trained"] == N_LAYERS * N_HEADS * (2 * D_HEAD + 2)
    with pytest.raises(TaiaLensError, match="l0 is -1; write 0 or more"):
        lofit.jola(small.model, suite, l0=-1.0)


def test_a_head_that_says_nothing_is_not_the_first(tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    silent = plant("neox", "shift", 0, tokenizer)
    site = next(s for s in lofit.heads_of(silent.model) if s not in silent.heads)
    for weight in live_weights(silent.model.model):
        if weight.layer == site.layer and weight.part == "v":
            weight.parameter.data[site.head * D_HEAD : (site.head + 1) * D_HEAD] = 0.0
    found = lofit.select(silent.model, suite, settings=QUICK)
    assert float(found.scale.sel(layer=site.layer, head=site.head)) == 0
    assert np.isfinite(found.relative).all() and float(found.relative.sel(layer=site.layer, head=site.head)) == 0


def test_rows_of_one_prompt_are_held_out_together(small: Planted) -> None:
    rows = [{"id": str(i), "prompt": f"w50 w{i // 3}", "answer": f" w{20 + i % 3}", "domain": "id"} for i in range(30)]
    texts = make_texts(small.model, make_suite("thrice", rows), QUICK)
    for seed in range(5):
        kept, held = texts.split(0.2, seed)
        assert len(held.items) == 6 and held.shared(kept) == 0
    assert texts.shared(texts) == 30


def test_the_bottom_heads_are_never_the_top_ones_even_where_all_score_alike() -> None:
    score = xr.DataArray(np.zeros((3, 4)), dims=("layer", "head"))
    score[1, 2] = 1.0
    top, bottom = lofit.top_heads(score, 3), lofit.bottom_heads(score, 3)
    assert not set(top) & set(bottom) and top[0] == Site("head", 1, 2)
    assert lofit.ties(score, 3) == 9 and lofit.ties(score, 1) == 0


def test_what_select_reports_is_what_it_says(small: Planted, suite: Suite) -> None:
    found = lofit.select(small.model, suite, settings=QUICK)
    assert found.gain.dims == ("layer", "head", "d_head") and found.gain.shape == (N_LAYERS, N_HEADS, D_HEAD)
    np.testing.assert_allclose(found.norm, np.linalg.norm(found.gain, axis=-1), rtol=1e-6)
    np.testing.assert_allclose(found.relative, found.norm / found.scale)
    training, _ = make_texts(small.model, suite, QUICK).split(QUICK.held_out, QUICK.seed)
    batch = collate(list(training.examples))
    _, cache = small.model.model.run_with_cache(batch["input_ids"], attention_mask=batch["attention_mask"])
    kept = batch["attention_mask"].bool()
    for layer in range(N_LAYERS):
        z = cache[f"blocks.{layer}.attn.hook_z"][kept].double().numpy()  # (token, head, d_head)
        rms = np.sqrt((z**2).sum(-1).mean(0))
        np.testing.assert_allclose(found.scale.sel(layer=layer), rms, rtol=1e-5)
        changed = np.sqrt(((z * found.gain.sel(layer=layer).values) ** 2).sum(-1).mean(0))
        np.testing.assert_allclose(found.effect.sel(layer=layer), changed, rtol=1e-5)
    assert len(found.loss) == len(found.validation) == QUICK.epochs and found.loss[-1] < found.loss[0]
    assert found.attrs["fingerprint"] == small.model.fingerprint and found.attrs["data"]["sha256"] == suite.sha256


def test_gradients_reach_the_scales_only_and_are_right(small: Planted, suite: Suite) -> None:
    model, texts = small.model, make_texts(small.model, suite, QUICK)
    batch = collate(list(texts.examples[:6]))
    before = {name: p.requires_grad for name, p in model.model.named_parameters()}
    sites = lofit.heads_of(model)
    gain = torch.zeros(len(sites), D_HEAD)

    def loss(values: torch.Tensor) -> torch.Tensor:
        with scaled(model.model, Scales(sites, values, torch.zeros_like(values))):
            return -label_logprobs(model.model, batch["input_ids"], batch["attention_mask"].bool(), batch["labels"]).sum()

    with frozen(model.model):
        values = gain.clone().requires_grad_()
        loss(values).backward()
        assert all(p.grad is None and not p.requires_grad for p in model.model.parameters())
    assert {name: p.requires_grad for name, p in model.model.named_parameters()} == before
    assert values.grad is not None
    row = sites.index(small.heads[0])
    step = torch.zeros_like(gain)
    step[row, 0] = 1e-2
    numeric = (loss(step) - loss(-step)).item() / 2e-2
    assert numeric == pytest.approx(values.grad[row, 0].item(), rel=2e-2) and abs(numeric) > 1e-3
    assert not any(point.fwd_hooks for point in model.model.hook_dict.values())


def test_the_gradient_is_that_of_raw_hooks_on_transformers(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """The same step by other means: a pre-hook on each output projection of the transformers model, and its own cross-entropy."""
    raw, parts = make(name, 0), PARTS[name]
    model = load_one(raw, tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 64, (3, 6), generator=generator)
    labels = torch.where(torch.rand(3, 6, generator=generator) < 0.5, tokens, -100)
    labels[:, -1] = tokens[:, -1]
    start = 0.1 * torch.randn(N_LAYERS * N_HEADS, D_HEAD, generator=generator)
    with torch.enable_grad(), frozen(model.model):
        ours = start.clone().requires_grad_()
        with scaled(model.model, Scales(lofit.heads_of(model), ours, torch.zeros_like(start))):
            (-label_logprobs(model.model, tokens, torch.ones_like(tokens).bool(), labels).sum()).backward()
        theirs = start.clone().requires_grad_()
        handles = []
        for layer in range(N_LAYERS):
            flat = theirs[layer * N_HEADS : (layer + 1) * N_HEADS].reshape(-1)
            module = raw.get_submodule(f"{parts.blocks}.{layer}.{parts.o}")
            handles.append(module.register_forward_pre_hook(lambda _, args, flat=flat: (args[0] * (1 + flat), *args[1:])))
        logits = raw(tokens).logits[:, :-1]
        kept = labels[:, 1:] >= 0
        torch.nn.functional.cross_entropy(logits[kept], labels[:, 1:][kept], reduction="sum").backward()
        for handle in handles:
            handle.remove()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert ours.grad.abs().max() > 1e-2


def test_accumulated_gradients_are_those_of_the_whole_batch(small: Planted, suite: Suite) -> None:
    whole, parts = (lofit.select(small.model, suite, settings=replace(QUICK, micro_batch=n)) for n in (64, 3))
    np.testing.assert_allclose(whole.gain, parts.gain, atol=2e-4)  # Adam divides by the gradient: rounding is seen where it is tiny
    other = lofit.select(small.model, suite, settings=replace(QUICK, batch_size=3))
    assert np.abs(whole.gain - other.gain).max() > 1e-2


def test_the_same_seed_gives_the_same_bits_and_another_other_ones(small: Planted, suite: Suite) -> None:
    one, same, other = (lofit.select(small.model, suite, settings=replace(QUICK, seed=seed)) for seed in (0, 0, 1))
    assert one.gain.values.tobytes() == same.gain.values.tobytes()
    assert one.gain.values.tobytes() != other.gain.values.tobytes()
    heads = small.heads[:2]
    one, same = (lofit.tune(small.model, suite, heads, settings=QUICK) for _ in range(2))
    assert one.key == same.key


@pytest.mark.parametrize("method", ["select", "jola"])
def test_a_killed_training_goes_on_from_its_last_epoch_to_the_same_bits(
    method: str, small: Planted, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, epochs=4)

    def run(store: CellStore | None) -> bytes:
        if method == "select":
            return lofit.select(small.model, suite, settings=settings, store=store).gain.values.tobytes()
        return lofit.jola(small.model, suite, settings=settings, store=store).gain.numpy().tobytes()

    whole = run(None)
    steps = []
    original = losses.Loss.total
    monkeypatch.setattr(losses.Loss, "total", lambda *args: (steps.append(1), original(*args))[1])
    with open_store(tmp_path / "cells.sqlite") as store:
        put = CellStore.put

        def killed(self: CellStore, what: dict, cell: object) -> None:
            put(self, what, cell)
            if what["epoch"] == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(CellStore, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            run(store)
        monkeypatch.setattr(CellStore, "put", put)
        first, steps[:] = len(steps), []
        assert run(store) == whole
        assert len(steps) == first  # the other two of four epochs, and no more
        steps[:] = []
        assert run(store) == whole and not steps  # a finished one is read


def test_it_stops_where_validation_no_longer_falls_and_keeps_the_best_epoch(small: Planted, suite: Suite) -> None:
    rows = [{"id": r.id, "prompt": r.prompt, "answer": r.contrast, "domain": "id"} for r in suite.rows]
    against = make_suite("myths", rows)  # what helps on the training rows hurts here
    settings = replace(SELECT, epochs=10, patience=2)
    found = lofit.select(small.model, suite, validation=against, settings=settings)
    assert len(found.validation) == 3 and int(found.validation.argmin()) == 0
    assert found.attrs["training"]["best"] == 0
    first = lofit.select(small.model, suite, validation=against, settings=replace(settings, patience=1))
    assert first.gain.values.tobytes() == found.gain.values.tobytes()  # of the first epoch


def test_a_loss_that_is_no_number_stops_names_the_batch_and_keeps_what_was_good(
    small: Planted, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TaiaLensError, match=r"lr is 1e\+38; write a number above 0, and 1e\+06 at most"):
        replace(QUICK, lr=1e38)
    good = lofit.select(small.model, suite, settings=replace(QUICK, epochs=4))
    original, calls = losses.Loss.total, []

    def total(self: losses.Loss, items: list, index: list[int]) -> torch.Tensor:
        calls.append(1)
        return original(self, items, index) * (math.nan if len(calls) == 15 else 1)

    monkeypatch.setattr(losses.Loss, "total", total)
    found = lofit.select(small.model, suite, settings=replace(QUICK, epochs=4))
    assert found.attrs["training"]["stopped"].startswith("the loss became nan in epoch 3, batch 3 of 5 (rows r")
    assert len(found.loss) == 2 and np.isfinite(found.gain).all()
    np.testing.assert_array_equal(found.validation, good.validation[:2])
    for bad, message in ((2, r"the loss became nan in epoch 1, batch 2 of 5 \(rows"), (6, "the validation loss became nan after epoch 1;")):
        calls[:] = [1] * (15 - bad)
        with pytest.raises(TaiaLensError, match=message + ".*no epoch before it was good; lower the learning rate"):
            lofit.select(small.model, suite, settings=replace(QUICK, epochs=4))
    calls[:] = [1] * 3  # the validation of the second epoch
    found = lofit.select(small.model, suite, settings=replace(QUICK, epochs=4))
    assert found.attrs["training"]["stopped"] == "the validation loss became nan after epoch 2" and len(found.loss) == 1


def test_dpo_learns_from_pairs_against_the_unscaled_model(small: Planted, suite: Suite) -> None:
    settings = replace(SELECT, loss="dpo", l1=0.0, epochs=20)
    texts = make_texts(small.model, suite, settings)
    loss = losses.make_loss(small.model, texts, settings)
    places = list(range(len(texts.items)))
    assert float(loss.total(texts.items, places)) / len(places) == pytest.approx(math.log(2), rel=1e-6)  # nothing moved yet
    found = lofit.select(small.model, suite, settings=settings)
    assert set(lofit.top_heads(found.norm, K)) == set(small.heads)
    assert found.validation.min() < 0.3 and found.loss[0] > found.loss[-1]
    # By hand: log-sigmoid of beta times how much further apart the two answers are than in the unscaled model.
    scales = Scales(small.heads, torch.zeros(K, D_HEAD), torch.full((K, D_HEAD), -0.1))
    item = texts.items[0]
    with scaled(small.model.model, scales):
        moved = losses._answer_logprobs(small.model, [item])
        total = loss.total([item], [0])
    plain = losses._answer_logprobs(small.model, [item])
    margin = (moved[0] - moved[1]) - (plain[0] - plain[1])
    assert float(total) == pytest.approx(-float(torch.nn.functional.logsigmoid(0.5 * margin)), rel=1e-5)
    assert abs(float(margin)) > 0.01


def test_dpo_makes_one_pair_a_row_or_all(small: Planted) -> None:
    rows = [{"id": "a", "prompt": "w50 w1", "choices": [" w1", " w2", " w3", " w4"], "label": 1, "labels": [1, 3], "domain": "id"}]
    suite = make_suite("choices", rows)
    ids = small.model.tokenizer.convert_tokens_to_ids
    for pairs, expected in (("one", [("w2", "w1")]), ("all", [("w2", "w1"), ("w2", "w3"), ("w4", "w1"), ("w4", "w3")])):
        texts = make_texts(small.model, suite, replace(QUICK, loss="dpo", pairs=pairs))
        assert [tuple(e.tokens[-1] for e in item.texts) for item in texts.items] == [tuple(map(ids, pair)) for pair in expected]


def test_half_precision_keeps_small_gains_alive(tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    model = load_one(make("llama", 0).to(torch.bfloat16), tokenizer=tokenizer)
    found = lofit.select(model, suite, settings=replace(QUICK, epochs=1, lr=1e-4))
    assert found.gain.dtype == np.float32
    start = lofit.select(model, suite, settings=replace(QUICK, epochs=1, lr=1e-12))
    moved = np.abs(found.gain - start.gain)
    # bfloat16 has steps of 8e-3 at 1: a gain kept there would not move at all.
    assert float(moved.max()) > 1e-5 and float(found.norm.max()) < 0.05


def test_a_share_a_number_and_what_is_neither() -> None:
    for asked, message in (
        ("0", "0 is no number of heads"),
        ("4.5", "4.5 is no number of heads"),
        ("-3%", "-3% is no number of heads"),
        ("150%", "150% is no number of heads"),
        ("few", "cannot read the number of heads 'few'; write 16, or 3%"),
        (13, "13 heads were asked for, and this model has 12; write 12 or fewer"),
    ):
        with pytest.raises(SiteError, match=message):
            lofit.how_many(asked, 12)


def test_what_cannot_be_learnt_is_refused_in_one_line(small: Planted, suite: Suite) -> None:
    model = small.model
    bare = make_suite("bare", [{"id": str(i), "prompt": f"w{i}", "answer": " w2", "domain": "id"} for i in range(3)])
    far = make_suite("far", [{"id": str(i), "prompt": f"w{i}", "answer": " w2", "domain": "ood"} for i in range(3)])
    cases: list[tuple[Callable[[], object], type, str]] = [
        (lambda: lofit.tune(model, suite, [Site("head", 7, 0)]), SiteError, "no head L7.h0: this model has layers 0-2 and heads 0-3"),
        (lambda: lofit.tune(model, suite, [Site("mlp", 1)]), SiteError, "L1.mlp is no head; LoFiT's offsets are at heads: write L1.h0"),
        (lambda: lofit.tune(model, suite, []), SiteError, "no head was named"),
        (lambda: lofit.tune(model, suite, [Site("head", 0, 0)] * 2), SiteError, "L0.h0 is named twice"),
        (lambda: lofit.fit(model, suite, 99), SiteError, "99 heads were asked for, and this model has 12"),
        (lambda: lofit.select(model, bare, settings=replace(QUICK, loss="dpo")), SuiteError, "dpo needs a wrong answer too; give"),
        (lambda: lofit.select(model, far), SuiteError, "has no row to learn from: 3 out of distribution"),
        (lambda: lofit.select(model, replace(bare, rows=bare.rows[:1])), SuiteError, "has 1 prompt to learn from, and one is held out"),
        (lambda: replace(QUICK, loss="rlhf"), TaiaLensError, "no loss 'rlhf'; there are ce, dpo"),
        (lambda: replace(QUICK, lr=0.0), TaiaLensError, "lr is 0; write a number above 0"),
        (lambda: replace(QUICK, epochs=0), TaiaLensError, "epochs is 0; write 1 or more"),
        (lambda: lofit.train_scales(model, suite, small.heads, ("bias",), "x", QUICK), TaiaLensError, "cannot train bias; write gain"),
    ]  # fmt: skip
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
    assert len(lofit.select(model, far, settings=replace(QUICK, epochs=1), every=True).loss) == 1
