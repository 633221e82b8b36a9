"""The laws of grafting, patching and restoring, on ten architectures, and that the self-check notices a model that breaks one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from architectures import ARCHITECTURES, N_LAYERS, TIED, component_of, make, tuned_but_for_output_projections, tuned_in_attention_only
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformers import PreTrainedTokenizerBase

from taia_lens import check
from taia_lens.batch import Batch
from taia_lens.engine import applied, run_plain
from taia_lens.errors import CheckError, PairError, RecipeError, SiteError
from taia_lens.loading import load_pair
from taia_lens.pair import Law, Pair, Report
from taia_lens.recipe import Ablate, Edit, Graft, Patch, Recipe, Side, other, taia
from taia_lens.recipe_text import parse_recipe
from taia_lens.sites import GRAFTABLE, Site
from taia_lens.weights import Model, weights

EVERYWHERE = [Site(c, layer) for layer in range(N_LAYERS) for c in ("attn", "mlp")]


def logits(model: Model, batch: Batch) -> Tensor:
    """Logits at every position that is no padding."""
    return model(batch.tokens, attention_mask=batch.mask.long(), return_type="logits")[batch.mask]


def after(pair: Pair, recipe: Recipe, batch: Batch) -> Tensor:
    with applied(pair, recipe, batch=batch) as model:
        return logits(model, batch)


def grafts(components: object, source: Side) -> tuple[Graft, ...]:
    return tuple(Graft(c, source) for c in components)


# Grafts


def test_grafting_nothing_is_the_host_bit_for_bit(pair: Pair, batch: Batch) -> None:
    for side in ("base", "tuned"):
        assert torch.equal(after(pair, Recipe(side), batch), logits(pair.side(side), batch))


def test_grafting_everything_is_the_donor_bit_for_bit(pair: Pair, batch: Batch) -> None:
    for side in ("base", "tuned"):
        donor = other(side)
        assert torch.equal(after(pair, Recipe(side, grafts(GRAFTABLE, donor)), batch), logits(pair.side(donor), batch))


def test_leaving_one_component_out_is_not_the_donor(pair: Pair, name: str, batch: Batch) -> None:
    donor = logits(pair.tuned, batch)
    for left_out in GRAFTABLE:
        if name in TIED and left_out in ("embed", "unembed"):
            continue  # they are one tensor and go together
        most = Recipe("base", grafts((c for c in GRAFTABLE if c != left_out), "tuned"))
        assert (after(pair, most, batch) - donor).abs().max() > 1e-3, left_out


def test_every_parameter_is_in_its_component_and_its_layer(pair: Pair, name: str) -> None:
    theirs = dict(make(name, 0).named_parameters())
    ours = weights(pair.base)
    assert len({id(w.parameter) for w in ours}) == len({w.name for w in ours}) == len(ours)
    for weight in ours:
        assert weight.component == component_of(weight.name), weight.name
        assert (weight.layer is not None) == (f".{weight.layer}." in weight.name), weight.name
    for parameter_name, parameter in theirs.items():  # none is left out, under whatever name the bridge gives it
        copies = [w for w in ours if w.parameter.shape == parameter.shape and torch.equal(w.parameter, parameter)]
        assert {w.component for w in copies} == {component_of(parameter_name)}, parameter_name


def test_components_partition_the_parameters_of_the_transformers_model(pair: Pair, name: str) -> None:
    theirs = list(make(name, 0).parameters())
    assert sum(w.parameter.numel() for w in weights(pair.base) if not w.copy) == sum(p.numel() for p in theirs)
    assert len(pair.differences) == len(theirs)  # nothing is equal in this pair, so each tensor differs, once


def test_a_weight_under_no_component_is_refused(llama: Pair) -> None:
    model = copy.deepcopy(llama.base)
    model.blocks[1].register_parameter("extra", nn.Parameter(torch.ones(3)))
    with pytest.raises(PairError, match=r"extra lies under none of embed, attn, mlp, norms, unembed"):
        weights(model)


def test_a_weight_under_two_components_is_refused(llama: Pair) -> None:
    model = copy.deepcopy(llama.base)
    shared = next(model.blocks[1].attn.parameters())
    model.blocks[1].mlp.register_parameter("extra", shared)
    with pytest.raises(PairError, match="lies under both attn and mlp"):
        weights(model)


FIXED = {"mixed": ("attn", "norms"), "with the embedding": ("embed", "unembed", "mlp")}


@pytest.mark.parametrize("taken", FIXED.values(), ids=FIXED)
def test_base_with_some_of_tuned_is_tuned_with_the_rest_of_base(pair: Pair, batch: Batch, taken: tuple[str, ...]) -> None:
    rest = [c for c in GRAFTABLE if c not in taken]
    from_base, from_tuned = Recipe("base", grafts(taken, "tuned")), Recipe("tuned", grafts(rest, "base"))
    assert torch.equal(after(pair, from_base, batch), after(pair, from_tuned, batch))
    if "embed" not in taken:
        # The law can fail: with one component of the rest forgotten, the two differ.
        forgotten = Recipe("tuned", grafts([c for c in rest if c != "mlp"], "base"))
        assert (after(pair, from_base, batch) - after(pair, forgotten, batch)).abs().max() > 1e-3


CELLS = [(c, layer) for c in ("attn", "mlp") for layer in range(N_LAYERS)]


@pytest.mark.parametrize("architecture", ["llama", "neox"])
@given(whole=st.sets(st.sampled_from(("embed", "norms", "unembed"))), cells=st.sets(st.sampled_from(CELLS)))
@settings(max_examples=15, deadline=None)
def test_any_set_of_layers_and_its_complement_are_one_model(
    architecture: str, pair_of: Callable[[str], Pair], batch: Batch, whole: set[str], cells: set[tuple[str, int]]
) -> None:
    def recipe(host: Side, parts: set[str], at: set[tuple[str, int]]) -> Recipe:
        edits = [Graft(c, other(host)) for c in sorted(parts)] + [Graft(c, other(host), (layer,)) for c, layer in sorted(at)]
        return Recipe(host, tuple(edits))

    pair = pair_of(architecture)
    ours = recipe("base", whole, cells)
    theirs = recipe("tuned", {"embed", "norms", "unembed"} - whole, set(CELLS) - cells)
    assert torch.equal(after(pair, ours, batch), after(pair, theirs, batch))


def test_taia_is_base_with_tuneds_attention(pair: Pair, batch: Batch) -> None:
    by_hand = make_grafted_by_hand(pair, {"attn"})
    assert torch.equal(after(pair, taia(norms="base", embed="base"), batch), logits(by_hand, batch))
    assert torch.equal(after(pair, Recipe("base", (Graft("attn", "tuned"),)), batch), logits(by_hand, batch))


def make_grafted_by_hand(pair: Pair, components: set[str]) -> Model:
    """A copy of base into which tuned's numbers are written, parameter by parameter."""
    model = copy.deepcopy(pair.base)
    theirs = {w.name: w.parameter for w in weights(pair.tuned)}
    for name, parameter in model.named_parameters():
        name = name.replace("._original_component", "")
        if component_of(name) in components:
            parameter.data = theirs[name].data.clone()
    return model


# Patches


def test_patching_a_model_with_itself_changes_nothing(pair: Pair, batch: Batch) -> None:
    heads = [Site("head", layer, head) for layer in range(N_LAYERS) for head in range(pair.shape.n_heads)]
    sites = [Site("embed"), *EVERYWHERE, *heads, *(Site("resid", layer) for layer in range(N_LAYERS))]
    for side in ("base", "tuned"):
        want = logits(pair.side(side), batch)
        got = after(pair, Recipe(side, tuple(Patch(site, side) for site in sites)), batch)
        assert (got - want).abs().max() <= check.noise(want)


@pytest.mark.parametrize("site", [Site("embed"), Site("attn", 1), Site("mlp", 1), Site("head", 1, 3), Site("resid", 1)], ids=str)
def test_zero_ablation_and_a_patch_from_tuned_do_something(pair: Pair, batch: Batch, site: Site) -> None:
    want = logits(pair.base, batch)
    for edit in (Ablate(site), Patch(site, "tuned")):
        assert (after(pair, Recipe("base", (edit,)), batch) - want).abs().max() > 100 * check.noise(want), edit


@pytest.mark.lens39
def test_patching_embed_and_every_output_gives_tuneds_final_residual(pair: Pair, batch: Batch) -> None:
    last = Site("resid", N_LAYERS - 1).hook
    want = run_plain(pair.tuned, batch, [last]).acts[last][batch.mask]
    sites = [Site("embed"), *EVERYWHERE]

    def residual(chosen: list[Site]) -> Tensor:
        with applied(pair, Recipe("base", tuple(Patch(site, "tuned") for site in chosen)), batch=batch) as model:
            return run_plain(model, batch, [last]).acts[last][batch.mask]

    # Exactly: base's blocks add the same terms in the same order as tuned's did.
    assert torch.equal(residual(sites), want)
    for left_out in sites:  # and no site is idle
        assert (residual([s for s in sites if s != left_out]) - want).abs().max() > 1e-3, left_out


@pytest.mark.lens39
def test_patching_the_last_residual_and_grafting_what_reads_it_gives_tuneds_logits(pair: Pair, batch: Batch) -> None:
    edits: tuple[Edit, ...] = (Patch(Site("resid", N_LAYERS - 1), "tuned"), *grafts(("norms", "embed", "unembed"), "tuned"))
    assert torch.equal(after(pair, Recipe("base", edits), batch), logits(pair.tuned, batch))


def test_all_heads_together_are_attention_where_the_output_projections_agree(
    name: str, tokenizer: PreTrainedTokenizerBase, batch: Batch, pair_of: Callable[[str], Pair]
) -> None:
    base = make(name, 0)
    agreeing = load_pair(base, tuned_but_for_output_projections(base, 1), tokenizer=tokenizer)
    heads = Recipe("base", tuple(Patch(Site("head", 1, h), "tuned") for h in range(agreeing.shape.n_heads)))
    attn = Recipe("base", (Patch(Site("attn", 1), "tuned"),))
    torch.testing.assert_close(after(agreeing, heads, batch), after(agreeing, attn, batch), atol=1e-6, rtol=0)
    other_projections = pair_of(name)
    assert (after(other_projections, heads, batch) - after(other_projections, attn, batch)).abs().max() > 1e-3


def test_a_patch_is_a_graft_only_where_both_models_read_the_same(name: str, tokenizer: PreTrainedTokenizerBase, batch: Batch) -> None:
    base = make(name, 0)
    pair = load_pair(base, tuned_in_attention_only(base, 1), tokenizer=tokenizer)

    def gap(layer: int) -> float:
        patched = after(pair, Recipe("base", (Patch(Site("attn", layer), "tuned"),)), batch)
        grafted = after(pair, Recipe("base", (Graft("attn", "tuned", (layer,)),)), batch)
        return (patched - grafted).abs().max().item()

    # Embeddings and norms are equal, so layer 0 reads the same in both; layer 1 reads what each one's layer 0 wrote.
    assert gap(0) <= 1e-6
    assert gap(1) > 1e-3


# Restoring

HAND = "base; graft attn <- tuned; graft L0-1.mlp <- tuned; patch L2.mlp <- tuned; patch L1.h2 <- tuned @last; ablate L0.attn"


def parameters(model: Model) -> dict[str, tuple[int, int, Tensor]]:
    return {name: (id(p), p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}


def same(before: dict[str, tuple[int, int, Tensor]], now: dict[str, tuple[int, int, Tensor]]) -> bool:
    return before.keys() == now.keys() and all(before[k][:2] == now[k][:2] and torch.equal(before[k][2], now[k][2]) for k in before)


def hooks_left(model: Model) -> list[str]:
    points = [(name, module) for name, module in model.named_modules() if isinstance(module, HookPoint)]
    assert points
    return [name for name, p in points if p.fwd_hooks or p.bwd_hooks or p._forward_hooks or p._forward_pre_hooks]


@pytest.mark.parametrize("raised", [None, RuntimeError, KeyboardInterrupt])
def test_everything_is_as_before_after_a_recipe(pair: Pair, batch: Batch, raised: type[BaseException] | None) -> None:
    before = {side: parameters(pair.side(side)) for side in ("base", "tuned")}
    want = logits(pair.base, batch)
    try:
        with applied(pair, parse_recipe(HAND), batch=batch) as model:
            assert model is pair.base
            # The check below can fail: inside, hooks hang in the model and weights are tuned's.
            assert hooks_left(model) and not same(before["base"], parameters(model))
            assert (logits(model, batch) - want).abs().max() > 1e-3
            if raised is not None:
                raise raised
    except (RuntimeError, KeyboardInterrupt) as error:
        assert type(error) is raised
    for side in ("base", "tuned"):
        assert same(before[side], parameters(pair.side(side)))
        assert hooks_left(pair.side(side)) == []
    assert torch.equal(logits(pair.base, batch), want)


def test_a_refused_recipe_leaves_nothing_behind(llama: Pair, batch: Batch) -> None:
    before = parameters(llama.base)
    for text in ("base; graft attn <- tuned; graft attn <- tuned", "base; graft attn <- tuned; patch L9.mlp <- tuned"):
        with pytest.raises((RecipeError, SiteError)), applied(llama, parse_recipe(text), batch=batch):
            pass
    assert same(before, parameters(llama.base)) and hooks_left(llama.base) == []


def test_hooks_that_the_user_attached_stay(llama: Pair, batch: Batch) -> None:
    calls: list[int] = []
    model = copy.deepcopy(llama.base)
    tuned = copy.deepcopy(llama.tuned)
    pair = Pair(model, tuned, llama.tokenizer, llama.origin, llama.differences, llama.changed)
    for side in (model, tuned):
        side.add_hook("blocks.2.hook_mlp_out", lambda act, hook: calls.append(1))
    left = {"base": hooks_left(model), "tuned": hooks_left(tuned)}
    assert left["base"] and left["tuned"]
    after(pair, parse_recipe(HAND), batch)
    assert {"base": hooks_left(model), "tuned": hooks_left(tuned)} == left
    calls.clear()
    logits(model, batch)
    assert calls == [1]


def test_transformer_lens_tools_work_on_the_live_model(llama: Pair, batch: Batch) -> None:
    site = Site("mlp", 1)
    want = run_plain(llama.tuned, batch, [site.hook]).acts[site.hook]
    with applied(llama, Recipe("base", (Patch(site, "tuned"),)), batch=batch) as model:
        once = logits(model, batch)
        _, cache = model.run_with_cache(batch.tokens, attention_mask=batch.mask.long(), names_filter=[site.hook])
        assert torch.equal(cache[site.hook][batch.mask], want[batch.mask])
        seen: list[Tensor] = []
        model.run_with_hooks(batch.tokens, attention_mask=batch.mask.long(), fwd_hooks=[(site.hook, lambda act, hook: seen.append(act))])
        assert torch.equal(seen[0][batch.mask], want[batch.mask])
        assert torch.equal(logits(model, batch), once)  # neither tool took the patch away


def test_a_grafted_model_generates_as_the_same_model_made_by_hand(llama: Pair, batch: Batch) -> None:
    by_hand = make_grafted_by_hand(llama, {"attn"})
    prompt, options = batch.tokens[-1:], {"max_new_tokens": 5, "do_sample": False, "verbose": False, "return_type": "tokens"}
    with applied(llama, taia(norms="base", embed="base")) as model:
        assert torch.equal(model.generate(prompt, **options), by_hand.generate(prompt, **options))


# Exactly once: what a recipe names exists, once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base; patch L3.mlp <- tuned", r"no layer 3: this model has 3 layers, 0-2"),
        ("base; patch L0.h4 <- tuned", r"no head 4: this model has 4 heads, 0-3"),
        ("base; ablate L0-7.attn", r"no layer 3: this model has 3 layers, 0-2"),
        ("base; graft L1-3.attn <- tuned", r"no layer 3: this model has 3 layers, 0-2"),
        ("base; patch L0.mlp <- tuned @40", r"no position 40: the shortest prompt has 2 tokens; positions are -2 to 1"),
        ("base; patch L0.mlp <- tuned @-3", r"no position -3: the shortest prompt has 2 tokens"),
        ("base; patch norms <- tuned", r"norms has weights but no activation to patch; patch one of attn, mlp, head, resid"),
        ("base; graft attn <- base", r"the host is base already; graft from the other side"),
        ("base; graft attn <- tuned; graft L1.attn <- tuned", r"overlap: both take .*q_proj.weight; let each weight be named once"),
        ("base; graft L0.embed <- tuned", r"embed"),
        ("base; graft embed <- tuned; graft L0.unembed <- tuned", r"unembed"),
    ],
)
def test_a_recipe_that_names_what_does_not_exist_is_refused(llama: Pair, batch: Batch, text: str, message: str) -> None:
    with pytest.raises((SiteError, RecipeError), match=message):
        after(llama, parse_recipe(text), batch)


def test_a_tied_unembedding_goes_with_the_embedding_or_not_at_all(pair_of: Callable[[str], Pair], batch: Batch) -> None:
    with pytest.raises(RecipeError, match="ties unembed to embed; graft embed as well, or neither"):
        after(pair_of("qwen2"), parse_recipe("base; graft unembed <- tuned"), batch)


def test_a_patch_without_a_batch_is_refused_with_what_to_write(llama: Pair) -> None:
    with (
        pytest.raises(RecipeError, match=r"puts activations, which belong to a batch; write applied\(pair, recipe, batch=batch\)"),
        applied(llama, parse_recipe("base; patch L1.mlp <- tuned")),
    ):
        pass


def test_a_hook_that_the_architecture_lacks_is_refused_with_those_it_has(pair_of: Callable[[str], Pair], batch: Batch) -> None:
    with pytest.raises(SiteError, match=r"this model has no blocks.1.hook_resid_middle; under blocks.1 it has .*hook_mlp_out"):
        run_plain(pair_of("neox").base, batch, ["blocks.1.hook_resid_middle"])


# The self-check: every law holds on every architecture, and fails on a model that breaks it


def test_every_law_holds_on_every_architecture(pair: Pair) -> None:
    found = pair.report.laws
    assert len(found) == 8 and len({law.name for law in found}) == 8
    assert all(law.holds for law in found)
    check.require(pair.report)


def broken(pair: Pair) -> Pair:
    """Copies, to be broken."""
    return Pair(copy.deepcopy(pair.base), copy.deepcopy(pair.tuned), pair.tokenizer, pair.origin, pair.differences, pair.changed)


def failing(pair: Pair) -> list[str]:
    return [law.name for law in check.laws(pair) if not law.holds]


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_the_residual_law_notices_what_enters_the_stream_elsewhere(llama: Pair, side: Side) -> None:
    pair = broken(llama)
    pair.side(side).add_hook("blocks.1.hook_resid_post", lambda act, hook: act + 0.01)
    assert f"resid_pre + attn + mlp == resid_post ({side}; ulps)" in failing(pair)


def test_the_patch_everything_law_notices_what_enters_tuneds_stream_between_blocks(llama: Pair) -> None:
    pair = broken(llama)
    pair.tuned.add_hook("blocks.1.hook_resid_pre", lambda act, hook: act + 0.01)
    # The same hook is what makes base with tuned's weights another model than tuned.
    assert failing(pair) == [
        "embed and every attn and mlp patched from tuned give tuned's final residual (ulps)",
        "base with every weight of tuned is tuned",
    ]


def test_the_self_patch_law_notices_a_model_that_is_not_deterministic(llama: Pair) -> None:
    pair = broken(llama)
    generator = torch.Generator().manual_seed(0)
    pair.base.add_hook("ln_final.hook_out", lambda act, hook: act + 0.01 * torch.randn(act.shape, generator=generator))
    assert "base patched with itself at every site is base" in failing(pair)


@pytest.mark.parametrize(
    ("module", "sites"), [("attn.o", ["L1.attn", "L1.h0"]), ("mlp.out", ["L1.mlp"])], ids=["attention writes nothing", "mlp writes nothing"]
)
def test_the_zero_ablation_law_notices_a_module_that_writes_nothing(llama: Pair, module: str, sites: list[str]) -> None:
    pair = broken(llama)
    for parameter in pair.base.blocks[1].get_submodule(module).parameters():
        parameter.zero_()
    assert failing(pair) == [f"zero-ablating {site} changes the logits" for site in sites]


def test_the_first_law_that_fails_is_an_error_with_what_was_measured() -> None:
    laws = (Law("good", 0.0, 1.0, True), Law("bad", 2.0, 1.0, False), Law("worse", 3.0, 1.0, False))
    with pytest.raises(CheckError, match=r"the self-check fails: 'bad' measured 2, bound 1;"):
        check.require(Report(laws=laws))


def test_a_pair_that_fails_a_law_is_not_loaded(tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    base.model.layers[1].mlp.down_proj.weight.zero_()
    with pytest.raises(CheckError, match=r"'zero-ablating L1.mlp changes the logits' measured 0"):
        load_pair(base, make("llama", 1), tokenizer=tokenizer)


def test_every_architecture_is_in_the_laws() -> None:
    assert len(ARCHITECTURES) == 10
