"""Patching against independent oracles: TransformerLens by hand, and plain transformers with torch hooks, one prompt at a time."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import D_HEAD, D_VOCAB, N_LAYERS, PARTS, make
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from taia_lens import results
from taia_lens.batch import Batch, make_batches
from taia_lens.budget import Budget
from taia_lens.engine import ActivationStore, Part, Reads, Run, applied, evaluate, parts_of_recipes, run_plain
from taia_lens.engine import store as store_module
from taia_lens.errors import ResultError, SiteError, SuiteError, TaiaLensError
from taia_lens.pair import Pair
from taia_lens.recipe import Patch, Recipe, Side
from taia_lens.sites import Positions, Site
from taia_lens.studies import patching
from taia_lens.studies.patching import patch
from taia_lens.suite import Suite, Task, make_suite
from taia_lens.weights import Model

# Two float32 forwards of a 3-layer model in different order of summation; measured, the worst is 2e-6.
CLOSE = 1e-5
SITES = [Site("attn", 0), Site("attn", 2), Site("mlp", 1), Site("head", 1, 0), Site("head", 2, 3), Site("resid", 0)]
POSITIONS: list[Positions] = ["all", "last", (0,), (1, -1)]


def answers(pair: Pair, recipe: Recipe, batch: Batch) -> Tensor:
    """The engine's logits at the answer positions, (batch, d_vocab)."""
    found = evaluate(pair, [recipe], batch, lambda logits: {str(i): logits[:, i] for i in range(logits.shape[1])})
    return torch.stack([values[0] for values in found.values()], 1)


def place(act: Tensor, donor: Tensor, length: int, positions: Positions, head: int | None) -> Tensor:
    """`act` with `donor` in it, for one row of `length` tokens without padding."""
    if positions == "all":
        where = list(range(length))
    elif positions == "last":
        where = [length - 1]
    else:
        where = [p % length for p in positions]
    act = act.clone()
    for position in where:
        if head is None:
            act[0, position] = donor[0, position]
        else:
            act[0, position, head] = donor[0, position, head]
    return act


# Oracle 1: TransformerLens by hand


def lens_by_hand(pair: Pair, tokens: Tensor, site: Site, positions: Positions) -> Tensor:
    _, cache = pair.tuned.run_with_cache(tokens)
    write = partial(lambda act, hook: place(act, cache[site.hook], tokens.shape[1], positions, site.head))
    return pair.base.run_with_hooks(tokens, fwd_hooks=[(site.hook, write)])[0, -1]


@pytest.mark.lens39
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "neox"])
@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_a_patch_is_what_transformer_lens_gives_by_hand(
    architecture: str, pair_of: Callable[[str], Pair], batch: Batch, positions: Positions
) -> None:
    pair = pair_of(architecture)
    for site in SITES:
        got = answers(pair, Recipe("base", (Patch(site, "tuned", positions),)), batch)
        for i in (0, 10):
            want = lens_by_hand(pair, batch.tokens[i : i + 1, batch.mask[i]], site, positions)
            torch.testing.assert_close(got[i], want, atol=CLOSE, rtol=0)


# Oracle 2: transformers and torch, no TransformerLens


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def module_at(model: PreTrainedModel, name: str, site: Site) -> nn.Module:
    parts = PARTS[name]
    block = model.get_submodule(f"{parts.blocks}.{site.layer}")
    inside = {"attn": parts.attn, "mlp": parts.mlp, "head": parts.o}
    return block if site.component == "resid" else block.get_submodule(inside[site.component])


def torch_by_hand(name: str, host: PreTrainedModel, donor: PreTrainedModel, tokens: Tensor, site: Site, positions: Positions) -> Tensor:
    """The same patch with plain forward hooks: on a module's output, or, for a head, on the output projection's input."""
    kept: list[Tensor] = []
    length = tokens.shape[1]

    def read(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        kept.append(args[0] if site.component == "head" else first(output))

    def write(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        new = place(first(output), kept[0], length, positions, None)
        return new if isinstance(output, Tensor) else (new, *output[1:])

    def write_head(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z, theirs = (t.unflatten(-1, (-1, D_HEAD)) for t in (args[0], kept[0]))
        return (place(z, theirs, length, positions, site.head).flatten(-2), *args[1:])

    handle = module_at(donor, name, site).register_forward_hook(read)
    donor(tokens)
    handle.remove()
    module = module_at(host, name, site)
    handle = module.register_forward_pre_hook(write_head) if site.component == "head" else module.register_forward_hook(write)
    logits = host(tokens).logits[0, -1]
    handle.remove()
    return logits


@pytest.fixture(scope="module")
def plain(name: str) -> dict[Side, PreTrainedModel]:
    """The pair's two models again, never seen by TransformerLens."""
    return {"base": make(name, 0), "tuned": make(name, 1)}


@pytest.mark.lens39
@pytest.mark.parametrize("positions", ["all", (1, -1)], ids=str)
def test_a_patch_is_what_plain_torch_hooks_give(
    pair: Pair, name: str, plain: dict[Side, PreTrainedModel], batch: Batch, positions: Positions
) -> None:
    for site in SITES:
        got = answers(pair, Recipe("base", (Patch(site, "tuned", positions),)), batch)
        unpatched = run_plain(pair.base, batch).logits
        for i in (0, 10):
            want = torch_by_hand(name, plain["base"], plain["tuned"], batch.tokens[i : i + 1, batch.mask[i]], site, positions)
            torch.testing.assert_close(got[i], want, atol=CLOSE, rtol=0)
            assert (want - unpatched[i]).abs().max() > 100 * CLOSE  # the oracle does patch


def test_a_patch_of_base_into_tuned_is_what_plain_torch_hooks_give(
    pair: Pair, name: str, plain: dict[Side, PreTrainedModel], batch: Batch
) -> None:
    got = answers(pair, Recipe("tuned", (Patch(Site("mlp", 1), "base"),)), batch)
    for i in (0, 10):
        tokens = batch.tokens[i : i + 1, batch.mask[i]]
        want = torch_by_hand(name, plain["tuned"], plain["base"], tokens, Site("mlp", 1), "all")
        torch.testing.assert_close(got[i], want, atol=CLOSE, rtol=0)


def test_a_padded_batch_gives_what_transformers_gives_each_prompt_alone(
    pair: Pair, plain: dict[Side, PreTrainedModel], batch: Batch
) -> None:
    for side in ("base", "tuned"):
        got = run_plain(pair.side(side), batch).logits
        for i in range(len(batch.rows)):
            want = plain[side](batch.tokens[i : i + 1, batch.mask[i]]).logits[0, -1]
            torch.testing.assert_close(got[i], want, atol=CLOSE, rtol=0)


def test_padding_on_the_left_without_a_mask_would_be_wrong(llama: Pair, batch: Batch) -> None:
    """The control of the test above: padding can change a result, so that it does not is worth a test."""
    i, width = 0, batch.tokens.shape[1]
    alone = batch.tokens[i : i + 1, batch.mask[i]]
    padded = torch.nn.functional.pad(alone, (width - alone.shape[1], 0), value=0)
    assert (llama.base(padded)[0, -1] - llama.base(alone)[0, -1]).abs().max() > 100 * CLOSE


def test_every_position_patched_by_number_is_all_of_them(llama: Pair, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": "w1 w2 w3", "answer": " w4", "domain": "id"}, {"prompt": "w9 w2 w7", "answer": " w4", "domain": "id"}]
    (batch,) = make_batches(make_suite("three", rows), tokenizer, 2)
    site = Site("attn", 1)
    by_number = answers(llama, Recipe("base", (Patch(site, "tuned", (0, 1, -1)),)), batch)
    assert torch.equal(by_number, answers(llama, Recipe("base", (Patch(site, "tuned"),)), batch))


def test_earlier_positions_reach_the_answer_only_through_attention(llama: Pair, batch: Batch) -> None:
    # The last mlp of all writes at its own position; nothing reads the others any more.
    site = Site("mlp", N_LAYERS - 1)
    alone = answers(llama, Recipe("base", (Patch(site, "tuned", "last"),)), batch)
    assert torch.equal(alone, answers(llama, Recipe("base", (Patch(site, "tuned"),)), batch))
    early = Site("mlp", 0)
    gap = answers(llama, Recipe("base", (Patch(early, "tuned", "last"),)), batch) - answers(
        llama, Recipe("base", (Patch(early, "tuned"),)), batch
    )
    assert gap.abs().max() > 100 * CLOSE


def test_a_donor_that_lacks_an_activation_is_no_bare_key_error(llama: Pair, batch: Batch) -> None:
    recipe = Recipe("base", (Patch(Site("mlp", 1), "tuned"),))
    want = answers(llama, recipe, batch)
    donors: dict[Side, Run] = {"tuned": run_plain(llama.tuned, batch)}  # its logits only
    try:
        found = evaluate(llama, [recipe], batch, lambda logits: {"first": logits[:, 0]}, donors=donors)
    except TaiaLensError as error:
        assert "blocks.1.hook_mlp_out" in str(error) or "L1.mlp" in str(error)
    else:
        assert torch.equal(found["first"][0], want[:, 0])


def test_a_patch_does_not_spread_to_rows_that_it_was_not_computed_on(llama: Pair, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": "w1 w2 w3", "answer": " w4", "domain": "id"}]
    (one,) = make_batches(make_suite("one", rows), tokenizer, 1)
    others = torch.tensor([[4, 5, 6], [7, 8, 9]])
    with (
        pytest.raises(TaiaLensError, match="batch"),
        applied(llama, Recipe("base", (Patch(Site("mlp", 1), "tuned"),)), batch=one) as model,
    ):
        model(others)


# The study


def test_the_study_gives_each_site_and_each_example_its_own_number(llama: Pair, suite: Suite, batch: Batch) -> None:
    found = patch(llama, suite, component="mlp,attn", layers="0,2", metrics=["logprob", "accuracy", "logit_diff"], batch_size=4)
    assert found.patched.dims == ("metric", "component", "layer", "example")
    assert found.component.values.tolist() == ["mlp", "attn"] and found.layer.values.tolist() == [0, 2]
    assert found.example.values.tolist() == [row.id for row in suite.rows]
    contrast = batch.contrast
    for component in ("mlp", "attn"):
        for layer in (0, 2):
            got = found.patched.sel(component=component, layer=layer)
            for i, row in enumerate(batch.rows):
                tokens = batch.tokens[i : i + 1, batch.mask[i]]
                logits = lens_by_hand(llama, tokens, Site(component, layer), "all")
                want = {
                    "logprob": logits.log_softmax(-1)[batch.answer[i]],
                    "accuracy": float(logits.argmax() == batch.answer[i]),
                    "logit_diff": logits[batch.answer[i]] - logits[contrast[i]],
                }
                for metric, value in want.items():
                    assert abs(float(got.sel(metric=metric)[row]) - float(value)) < CLOSE
    ends = {"host": llama.base, "donor": llama.tuned}
    for end, model in ends.items():
        for i, row in enumerate(batch.rows):
            logits = model(batch.tokens[i : i + 1, batch.mask[i]])[0, -1].log_softmax(-1)
            assert abs(float(found[end].sel(metric="logprob")[row]) - float(logits[batch.answer[i]])) < CLOSE


def test_heads_have_a_dim_of_their_own(llama: Pair, suite: Suite, batch: Batch) -> None:
    found = patch(llama, suite, component="head", layers=1, heads="1-2", metrics=["logprob"])
    assert found.patched.dims == ("metric", "component", "layer", "head", "example") and found["head"].values.tolist() == [1, 2]
    for head in (1, 2):
        logits = answers(llama, Recipe("base", (Patch(Site("head", 1, head), "tuned"),)), batch).log_softmax(-1)
        got = found.patched.sel(metric="logprob", component="head", layer=1, head=head).values[list(batch.rows)]
        np.testing.assert_allclose(got, logits.gather(1, batch.answer[:, None])[:, 0].numpy(), atol=CLOSE)


def test_the_last_residual_recovers_nearly_all_and_source_base_swaps_the_ends(llama: Pair, suite: Suite) -> None:
    there = patch(llama, suite, component="mlp", layers=1, metrics=["logprob"])
    back = patch(llama, suite, component="mlp", layers=1, metrics=["logprob"], source="base")
    assert (there.attrs["host"], there.attrs["donor"]) == ("base", "tuned")
    assert (back.attrs["host"], back.attrs["donor"]) == ("tuned", "base")
    np.testing.assert_allclose(there.host, back.donor, atol=CLOSE)
    np.testing.assert_allclose(there.donor, back.host, atol=CLOSE)
    assert float(np.abs(there.patched - back.patched).max()) > 1e-3


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_results_do_not_depend_on_batch_size_or_row_order(architecture: str, pair_of: Callable[[str], Pair], suite: Suite) -> None:
    pair = pair_of(architecture)

    def run(rows: Suite, size: int) -> np.ndarray:
        found = patch(pair, rows, component="attn", layers="0-1", positions="0,-1", metrics=["logprob"], batch_size=size)
        return found.patched.sel(example=[row.id for row in suite.rows]).values

    shuffled = Suite(suite.name, tuple(random.Random(0).sample(suite.rows, len(suite))))
    whole = run(suite, len(suite))
    for rows, size in ((suite, 1), (suite, 7), (shuffled, 7)):
        # The same sums in float32, in matrices of another shape.
        np.testing.assert_allclose(run(rows, size), whole, atol=CLOSE)
    assert np.ptp(whole, axis=-1).min() > 1e-3  # rows put in the wrong place would show


def test_the_noise_floor_of_a_chat_is_of_the_same_prompts(llama: Pair, suite: Suite) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}w1 {{ m['content'] }} w2 w3{% endfor %} "
    chat = replace(suite, task=Task(chat=True))
    found = patch(replace(llama, tokenizer=tokenizer), chat, component="mlp", layers=1)
    plain = patch(llama, suite, component="mlp", layers=1)
    assert float(found.noise.max()) < CLOSE
    assert abs(found.host - plain.host).max() > 100 * CLOSE  # the template is read


def test_batches_that_there_is_no_room_for_are_cut(llama: Pair, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = patch(llama, suite, component=["attn", "mlp"])
    seen: list[int] = []

    def little(pair: Pair, recipes: Sequence[Recipe], reads: Reads) -> list[Part]:
        found = parts_of_recipes(pair, recipes, reads, budget=Budget(bytes=40_000))
        seen.append(max(len(part.reads.batch.rows) for part in found))
        return found

    monkeypatch.setattr(patching, "parts_of_recipes", little)
    cut = patch(llama, suite, component=["attn", "mlp"])
    assert len(seen) == 1 and seen[0] < len(suite)
    np.testing.assert_allclose(cut.patched, whole.patched, atol=CLOSE)


def test_the_noise_floor_is_far_below_an_effect(llama: Pair, suite: Suite) -> None:
    found = patch(llama, suite, component="mlp", metrics=["logprob", "kl_host"])
    assert float(found.noise.max()) < CLOSE
    assert float(np.abs(found.patched - found.host).sel(metric="logprob").max()) > 1e-3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"component": "norms"}, r"no component 'norms' to patch; there are attn, mlp, head, resid"),
        ({"component": "attn,head"}, r"heads have a dim of their own"),
        ({"component": "mlp", "heads": "0"}, r"heads go with the component head"),
        ({"component": "mlp", "layers": "2-5"}, r"no layer 3, 4, 5: this model has 3 layers, 0-2"),
        ({"component": "head", "heads": [4]}, r"no head 4: this model has 4 heads, 0-3"),
        ({"component": "mlp", "positions": "first"}, r"cannot read the positions 'first'; write all, last"),
        ({"component": "mlp", "positions": 9}, r"no position 9: the shortest prompt has 2 tokens"),
        ({"component": "mlp", "source": "donor"}, r"no source 'donor'; activations come from base or tuned"),
        ({"component": "mlp", "metrics": ["logprobs"]}, r"no metric 'logprobs'; there are accuracy, choice_accuracy, prob"),
        ({"component": "mlp", "metrics": ["choice_accuracy"]}, r"choice_accuracy needs choices and a label"),
        ({"component": "mlp", "batch_size": 0}, r"a batch size of 0 holds no prompt"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_exist_is_refused_with_what_does(llama: Pair, suite: Suite, asked: dict, message: str) -> None:
    with pytest.raises((SiteError, SuiteError, TaiaLensError), match=message):
        patch(llama, suite, **asked)


# The store


class Forwards:
    """Counts forwards of a model."""

    def __init__(self, model: Model) -> None:
        self.n = 0
        self._handle = model.unembed.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.n += 1

    def remove(self) -> None:
        self._handle.remove()


HOOKS = [Site("mlp", 1).hook, Site("attn", 0).hook]


def test_a_second_run_is_read_from_disk_and_equal(llama: Pair, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = partial(patch, llama, suite, component="attn,mlp", metrics=["logprob"], batch_size=4)
    without, first_time = run(), run(cache=tmp_path / "store")
    with monkeypatch.context() as m:
        m.setattr(store_module, "run_plain", lambda *_: pytest.fail("the donor was run again"))
        second = run(cache=tmp_path / "store")
        with pytest.raises(pytest.fail.Exception):  # of another host, and so another donor, nothing is stored
            run(cache=tmp_path / "store", source="base")
    for found in (first_time, second):
        np.testing.assert_array_equal(found.patched, without.patched)
        np.testing.assert_array_equal(found.donor, without.donor)
    assert results.summary(second).equals(results.summary(without))


def test_the_store_saves_forwards_of_the_donor(llama: Pair, batch: Batch, tmp_path: Path) -> None:
    store, forwards = ActivationStore(tmp_path), Forwards(llama.tuned)
    try:
        one = store.run(llama, "tuned", batch, HOOKS)
        assert forwards.n == 1
        two = store.run(llama, "tuned", batch, HOOKS[:1])  # a part of what is there is there
        assert forwards.n == 1
    finally:
        forwards.remove()
    assert torch.equal(one.logits, two.logits) and torch.equal(one.acts[HOOKS[0]], two.acts[HOOKS[0]])


def test_the_store_never_answers_for_another_model_or_other_tokens(
    llama: Pair, pair_of: Callable[[str], Pair], batch: Batch, suite: Suite, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    store = ActivationStore(tmp_path)
    store.run(llama, "tuned", batch, HOOKS)
    for pair, side, rows in (
        (llama, "base", batch),
        (pair_of("mistral"), "tuned", batch),
        (llama, "tuned", make_batches(suite, tokenizer, 4)[0]),
    ):
        want = run_plain(pair.side(side), rows, HOOKS)
        got = store.run(pair, side, rows, HOOKS)
        assert torch.equal(got.logits, want.logits) and torch.equal(got.acts[HOOKS[0]], want.acts[HOOKS[0]])


@pytest.mark.parametrize("what", ["index", "file", "missing file", "odd index"])
@pytest.mark.usefixtures("unchecked")
def test_a_damaged_store_is_an_error_that_says_what_to_remove(llama: Pair, batch: Batch, tmp_path: Path, what: str) -> None:
    store = ActivationStore(tmp_path)
    store.run(llama, "tuned", batch, HOOKS)
    (data,) = tmp_path.glob("*.safetensors")
    if what == "index":
        (tmp_path / "index.json").write_text('{"a": ')
    elif what == "odd index":
        (tmp_path / "index.json").write_text("[1, 2]")
    elif what == "file":
        data.write_bytes(data.read_bytes()[:100])
    else:
        data.unlink()
    with pytest.raises(ResultError, match=r"damaged.*remove the folder"):
        store.run(llama, "tuned", batch, HOOKS)


def test_a_store_that_cannot_be_written_is_an_error(llama: Pair, batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="cannot keep activations in"):
        ActivationStore(tmp_path / "file").run(llama, "tuned", batch, HOOKS)


def test_the_vocabulary_is_as_these_tests_assume(llama: Pair) -> None:
    assert llama.shape.d_vocab == D_VOCAB
