"""Scales: as hooks, as the tuned side of a pair, and as recipes, on ten architectures; what they leave behind; wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import D_HEAD, D_VOCAB, N_HEADS, make
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from taia_lens.engine import applied, frozen, run_plain, scaled
from taia_lens.errors import PairError, RecipeError, ResultError, SiteError, TaiaLensError
from taia_lens.grafting import takes
from taia_lens.loading import load_one, load_pair
from taia_lens.pair import Pair
from taia_lens.players import players
from taia_lens.recipe import Ablate, Recipe, Scale
from taia_lens.recipe_text import parse_recipe
from taia_lens.scales import Scales, check_fits, load_scales, save_scales
from taia_lens.scoring import depends_on, scales_depend_on
from taia_lens.sites import Site, parse_sites
from taia_lens.weights import Model, weights

IDS = torch.randint(D_VOCAB, (3, 7), generator=torch.Generator().manual_seed(5))
HEADS = tuple(site for text in ("L0.h1", "L1.h2-3") for site in parse_sites(text))
SITES = {"head": HEADS, "mlp": parse_sites("L0-1.mlp"), "attn": (Site("attn", 2), Site("attn", 0)), "resid": (Site("resid", 1),)}


def scales_at(*sites: Site, seed: int = 0, size: float = 0.5, **made: object) -> Scales:
    generator = torch.Generator().manual_seed(seed)
    width = D_HEAD if sites[0].component == "head" else N_HEADS * D_HEAD
    gain, offset = (size * torch.randn(len(sites), width, generator=generator) for _ in range(2))
    return Scales(sites, gain, offset, {"method": "lofit", "model": "a base", **made})


def zeros(*sites: Site) -> Scales:
    return scales_at(*sites, size=0.0)


def logits(model: Model) -> Tensor:
    return model(IDS, return_type="logits")


def hooked(model: Model, scales: Scales) -> Tensor:
    with scaled(model, scales):
        return logits(model)


Adapted = Callable[[str, Scales], Pair]


@pytest.fixture
def adapted(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Adapted:
    """A pair whose tuned side is scales."""

    def load(name: str, scales: Scales) -> Pair:
        return load_pair(make(name, 0), save_scales(tmp_path / f"adapter-{name}", scales), tokenizer=tokenizer)

    return load


# On a live model


@pytest.mark.parametrize("component", list(SITES))
def test_scales_of_zero_are_the_identity_bit_for_bit(component: str, pair: Pair) -> None:
    assert torch.equal(hooked(pair.base, zeros(*SITES[component])), logits(pair.base))
    assert (hooked(pair.base, scales_at(*SITES[component], size=1e-3)) - logits(pair.base)).abs().max() > 1e-5


def test_a_gain_of_minus_one_is_zero_ablation(pair: Pair) -> None:
    minus_one = Scales(HEADS, torch.full((len(HEADS), D_HEAD), -1.0), torch.zeros(len(HEADS), D_HEAD))
    found = hooked(pair.base, minus_one)
    for recipe in (Recipe("base", tuple(map(Ablate, HEADS))), parse_recipe("base; scale L0.h1 a=-1.0; scale L1.h2-3 a=-1.0")):
        with applied(pair, recipe) as model:
            assert torch.equal(found, logits(model))
    assert not torch.equal(found, logits(pair.base))


def test_scales_as_hooks_are_scales_as_a_recipe(llama: Pair) -> None:
    constant = Scales(HEADS, torch.full((3, D_HEAD), 0.25), torch.full((3, D_HEAD), -0.5))
    found = hooked(llama.base, constant)
    with applied(llama, Recipe("base", tuple(Scale(site, 0.25, -0.5) for site in HEADS))) as model:
        assert torch.equal(found, logits(model))


def test_only_the_named_heads_are_changed(llama: Pair) -> None:
    hook = Site("head", 1, 0).hook
    with scaled(llama.base, scales_at(Site("head", 1, 2))) as model:
        _, cache = model.run_with_cache(IDS, names_filter=hook)
    _, plain = llama.base.run_with_cache(IDS, names_filter=hook)
    assert (cache[hook] != plain[hook]).flatten(0, 1).any(0).any(-1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("text", ["base; scale L1.h2 a=0.0 v=0.0", "tuned; scale L0.mlp a=0; scale L1.attn", "base; scale L2.resid v=0"])
def test_scale_of_zero_is_the_identity(text: str, llama: Pair) -> None:
    recipe = parse_recipe(text)
    assert parse_recipe(str(recipe)) == recipe
    with applied(llama, recipe) as model:
        assert torch.equal(logits(model), logits(llama.side(recipe.host)))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("base; scale L1.h2 b=1", "b=1"),
        ("base; scale L1.h2 a=1 a=2", "a=2"),
        ("base; scale L1.h2 a=x", "a=x"),
        ("base; scale L1.h2 a=nan", "L1.h2"),
        ("base; scale L1.q a=1", "L1.q"),
        ("base; scale L1.h2 <- tuned", "tuned"),
    ],
)
def test_a_scale_that_cannot_be_read_is_pointed_at(text: str, word: str) -> None:
    with pytest.raises(TaiaLensError) as found:
        parse_recipe(text)
    assert isinstance(found.value, RecipeError)
    line, carets = found.value.shown.splitlines()
    start = carets.index("^")
    assert line[start : start + carets.count("^")] == word


# What they leave behind


def hooks_on(model: Model) -> int:
    points = {id(point): point for point in model.hook_dict.values()}  # several names may mean one
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in points.values())


def test_no_hook_is_left_and_weights_ask_for_what_they_asked_for(llama: Pair) -> None:
    first = next(llama.base.parameters())
    first.requires_grad_(True)
    try:
        for error in (None, KeyError):
            try:
                with frozen(llama.base) as model, scaled(model, scales_at(*HEADS)):
                    assert hooks_on(llama.base) == 2 and not any(p.requires_grad for p in llama.base.parameters())
                    if error is not None:
                        raise error
            except KeyError:
                pass
            assert hooks_on(llama.base) == 0
            assert [p.requires_grad for p in llama.base.parameters()] == [True] + [False] * (len(list(llama.base.parameters())) - 1)
    finally:
        first.requires_grad_(False)


@pytest.mark.parametrize("component", ["head", "mlp"])
def test_gradients_reach_the_scales_and_no_weight(component: str, pair: Pair) -> None:
    start = scales_at(*SITES[component])
    live = Scales(start.sites, start.gain.requires_grad_(True), start.offset.requires_grad_(True))
    with frozen(pair.base) as model, scaled(model, live):
        logits(model).square().mean().backward()
    for tensor in (live.gain, live.offset):
        assert tensor.grad is not None and (tensor.grad.abs().amax(1) > 0).all()
    assert all(p.grad is None for p in pair.base.parameters())


def test_in_bfloat16_a_gain_of_a_thousandth_stays_alive(tokenizer: PreTrainedTokenizerBase, llama: Pair) -> None:
    """1 + A is never rounded to bfloat16, and its gradient is the float32 model's, but for rounding."""
    half = load_one(make("llama", 0).bfloat16(), tokenizer=tokenizer).model
    gains = []
    for model in (half, llama.base):
        gain = torch.full((3, D_HEAD), 1e-3, requires_grad=True)
        with frozen(model), scaled(model, Scales(HEADS, gain, torch.zeros(3, D_HEAD))):
            logits(model).float().square().mean().backward()
        gains.append(gain.grad)
    assert torch.equal(1 + torch.full((1,), 1e-3).bfloat16(), torch.ones(1))  # what it must not become
    assert gains[0].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in gains), dim=0) > 0.99


def test_in_bfloat16_activations_are_rounded_once(tokenizer: PreTrainedTokenizerBase) -> None:
    model, hook = load_one(make("llama", 0).bfloat16(), tokenizer=tokenizer).model, Site("head", 0, 1).hook
    scales = scales_at(HEADS[0], size=0.02)
    _, plain = model.run_with_cache(IDS, names_filter=hook)
    with scaled(model, scales):
        _, cache = model.run_with_cache(IDS, names_filter=hook)
    wanted = ((1 + scales.gain[0].double()) * plain[hook][:, :, 1].double() + scales.offset[0].double()).bfloat16()
    coarse = (1 + scales.gain[0].bfloat16()) * plain[hook][:, :, 1] + scales.offset[0].bfloat16()
    assert cache[hook].dtype == torch.bfloat16
    assert (cache[hook][:, :, 1] != wanted).float().mean() < 0.01 < 0.2 < (coarse != wanted).float().mean()


# As the tuned side of a pair


@pytest.mark.parametrize("component", ["head", "mlp", "attn"])
def test_a_pair_with_an_adapter_is_base_and_base_under_hooks(component: str, name: str, pair: Pair, adapted: Adapted) -> None:
    scales = scales_at(*SITES[component])
    made = adapted(name, scales)
    assert torch.equal(logits(made.base), logits(pair.base))
    assert torch.equal(logits(made.tuned), hooked(pair.base, scales))
    assert not torch.equal(logits(made.tuned), logits(made.base))
    assert made.fingerprint["base"] == pair.fingerprint["base"] != made.fingerprint["tuned"]
    assert {(d.component, d.layer) for d in made.differences} == {
        ("attn" if s.component == "head" else component, s.layer) for s in scales.sites
    }
    assert made.report.laws[-1].name == "tuned is base with the scales applied by hooks" and made.report.laws[-1].value == 0


def test_the_scales_of_heads_are_part_of_the_output_projection(name: str, adapted: Adapted) -> None:
    made = adapted(name, scales_at(*HEADS))
    found = [w for w in weights(made.tuned) if w.name.endswith((".gain", ".offset"))]
    assert {(w.component, w.layer, w.part, w.head_dim, tuple(w.parameter.shape)) for w in found} == {
        ("attn", layer, "o", 0, (N_HEADS * D_HEAD,)) for layer in (0, 1)
    }
    assert len(found) == 4


def test_grafts_move_scales_like_weights(name: str, pair: Pair, adapted: Adapted) -> None:
    scales = scales_at(*HEADS)
    made = adapted(name, scales)
    one = Scales(HEADS[2:], scales.gain[2:], scales.offset[2:])
    for text, wanted in (
        ("base; graft attn <- tuned", hooked(pair.base, scales)),
        ("tuned; graft attn.o <- base", logits(pair.base)),
        ("base; graft mlp <- tuned", logits(pair.base)),
        ("base; graft L1.h3 <- tuned", hooked(pair.base, one)),
        ("tuned; graft L0.h1 <- base; graft L1.h2 <- base", hooked(pair.base, one)),
    ):
        with applied(made, parse_recipe(text)) as model:
            assert torch.equal(logits(model), wanted), text
    assert torch.equal(logits(made.base), logits(pair.base))  # restored


def test_a_head_s_activation_is_its_scaled_one(name: str, pair: Pair, adapted: Adapted) -> None:
    """So that a patch carries the scales, which a graft does too, and an ablation leaves no offset."""
    scales = scales_at(HEADS[0])
    made = adapted(name, scales)
    from taia_lens.check import probe

    batch, hook = probe(made), HEADS[0].hook
    with scaled(pair.base, scales):
        wanted = run_plain(pair.base, batch, [hook])
    assert torch.equal(run_plain(made.tuned, batch, [hook]).acts[hook], wanted.acts[hook])
    with applied(made, parse_recipe(f"base; patch {HEADS[0]} <- tuned"), batch=batch) as model:
        assert torch.equal(run_plain(model, batch).logits, wanted.logits)
    ablated = []
    for side in ("base", "tuned"):
        with applied(made, parse_recipe(f"{side}; ablate {HEADS[0]}")) as model:
            ablated.append(logits(model))
    assert torch.equal(*ablated)


def test_the_heads_that_differ_are_those_with_scales(adapted: Adapted) -> None:
    made = adapted("llama", scales_at(*HEADS))
    found = players(made, "head", (0, 1, 2))
    with applied(made, found.coalition(found.all, rest=False)) as model:
        assert torch.equal(logits(model), logits(made.tuned))
    assert {str(p) for p in found.active} == {f"L{layer}.h{h}" for layer in (0, 1) for h in range(N_HEADS)} and not found.rest
    assert takes(parse_recipe("base; graft L2.h0 <- tuned"), weights(made.base), made.shape)  # a layer without scales has its heads


def test_a_base_keeps_its_name_in_the_store(llama: Pair, adapted: Adapted, tokenizer: PreTrainedTokenizerBase) -> None:
    """Cells of a base are found again whatever its tuned side is."""
    made, alone = adapted("llama", scales_at(*HEADS)), load_one(make("llama", 0), tokenizer=tokenizer)
    keys = [depends_on(p, Recipe("base"), "x") for p in (llama, made)] + [scales_depend_on(alone, None, "x")]
    assert keys[0] == keys[1] == keys[2]
    assert depends_on(made, Recipe("tuned"), "x")["models"] != depends_on(llama, Recipe("tuned"), "x")["models"]


def test_a_model_in_memory_is_left_as_it_was(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make("llama", 0)
    before, names = model(IDS).logits, [n for n, _ in model.named_modules()]
    made = load_pair(model, save_scales(tmp_path / "adapter", scales_at(*HEADS)), tokenizer=tokenizer)
    assert torch.equal(model(IDS).logits, before) and [n for n, _ in model.named_modules()] == names
    held = {p.data_ptr() for p in model.parameters()}
    assert sum(p.data_ptr() not in held for side in made.models for p in side.parameters()) == 8  # the scales of two layers


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_scales_stay_float32_whatever_the_model_s_dtype(dtype: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    make("llama", 0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    scales = scales_at(*HEADS, size=1e-3)
    made = load_pair(tmp_path / "base", save_scales(tmp_path / "adapter", scales), device="cpu", dtype=dtype)
    assert {w.parameter.dtype for w in weights(made.tuned) if w.name.endswith((".gain", ".offset"))} == {torch.float32}
    assert logits(made.tuned).dtype == getattr(torch, dtype) and all(law.holds for law in made.report.laws)
    assert torch.equal(logits(made.tuned), hooked(made.base, scales)) and not torch.equal(logits(made.tuned), logits(made.base))


# Wrong input


def test_an_adapter_that_cannot_be_a_side_is_refused_in_a_line(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, llama: Pair) -> None:
    resid, heads = save_scales(tmp_path / "resid", scales_at(*SITES["resid"])), save_scales(tmp_path / "heads", scales_at(*HEADS))
    with pytest.raises(PairError, match=r"changes the residual stream \(L1.resid\).*engine.scaled"):
        load_pair(make("llama", 0), resid, tokenizer=tokenizer)
    with pytest.raises(PairError, match="is an adapter; give its base model as base, and the adapter as tuned"):
        load_pair(heads, heads, tokenizer=tokenizer)
    with pytest.raises(PairError, match="is an adapter; give a whole model"):
        load_one(heads, tokenizer=tokenizer)
    with pytest.raises(PairError, match=r"on a TransformerLens model apply it by hand, with engine.scaled"):
        load_pair(llama.base, heads, tokenizer=tokenizer)
    with pytest.raises(PairError, match="in memory as float32, and dtype bfloat16 was asked for"):
        load_pair(make("llama", 0), heads, tokenizer=tokenizer, dtype="bfloat16")
    with pytest.raises(PairError, match="base and tuned are identical: no tensor differs"):
        load_pair(make("llama", 0), save_scales(tmp_path / "zeros", zeros(*HEADS)), tokenizer=tokenizer)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, llama: Pair) -> None:
    made_for = {"fingerprint": llama.fingerprint["base"], "dtype": "float32"}
    folder = save_scales(tmp_path / "own", scales_at(*HEADS, **made_for))
    assert load_pair(make("llama", 0), folder, tokenizer=tokenizer)
    with pytest.raises(PairError, match="were made for a base, whose weights are not those of"):
        load_pair(make("llama", 1), folder, tokenizer=tokenizer)
    assert load_pair(make("llama", 1), folder, tokenizer=tokenizer, other_model=True)
    far = save_scales(tmp_path / "far", scales_at(Site("head", 3, 0)))
    with pytest.raises(SiteError, match=r"name L3.h0, and .* has 3 layers of 4 heads"):
        load_pair(make("llama", 0), far, tokenizer=tokenizer)
    wide = Scales(HEADS[:1], torch.ones(1, 9), torch.ones(1, 9))
    with pytest.raises(PairError, match=r"are 9 wide, and head of .* is 8 wide"):
        load_pair(make("llama", 0), save_scales(tmp_path / "wide", wide), tokenizer=tokenizer)


def damage(folder: Path, how: str) -> str:
    """Break an adapter; returns what must be said of it."""
    config, numbers = folder / "scales.json", folder / "scales.safetensors"
    if how == "cut":
        numbers.write_bytes(numbers.read_bytes()[:-5])
        return "the files are damaged"
    if how == "gone":
        numbers.unlink()
        return "it lacks scales.safetensors"
    if how == "nan":
        tensors = load_file(numbers)
        tensors["gain"][0, 0] = torch.nan
        save_file(tensors, numbers)
        return "hold NaN or inf"
    head = json.loads(config.read_text())
    head |= {"format": {"format": 99}, "sites": {"sites": ["L0.h1"]}, "site": {"sites": ["L0.hx", "L1.h2", "L1.h3"]}}[how]
    config.write_text(json.dumps(head))
    return {"format": "of format 99", "sites": "1 sites, gains", "site": "no component 'hx'"}[how]


@pytest.mark.parametrize("how", ["cut", "gone", "nan", "format", "sites", "site"])
def test_a_damaged_adapter_is_one_line(how: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = save_scales(tmp_path / "adapter", scales_at(*HEADS))
    said = damage(folder, how)
    with pytest.raises((ResultError, SiteError)) as found:
        load_pair(make("llama", 0), folder, tokenizer=tokenizer)
    assert said in str(found.value) and "\n" not in str(found.value)


def test_scales_read_back_are_what_was_saved(tmp_path: Path) -> None:
    made = scales_at(*HEADS, data={"rows": 3})
    found = load_scales(save_scales(tmp_path / "adapter", made))
    assert found.key == made.key and found.sites == made.sites and found.made == made.made
    assert torch.equal(found.gain, made.gain) and torch.equal(found.offset, made.offset)


def test_a_hook_point_that_is_passed_by_fails_the_law(llama: Pair, adapted: Adapted) -> None:
    """The positive control of the law: scales that the forward pass does not see."""
    from taia_lens.loading.scaled import scaled_law

    scales = scales_at(*HEADS)
    made = adapted("llama", scales)
    assert scaled_law(made, scales).holds
    deaf = Pair(made.base, llama.base, made.tokenizer, made.origin, made.differences, made.changed)
    assert not scaled_law(deaf, scales).holds


def test_an_adapter_of_another_model_is_refused_in_another_dtype_too(tokenizer: PreTrainedTokenizerBase) -> None:
    mine, other = load_one(make("llama", 0), tokenizer=tokenizer), load_one(make("llama", 7), tokenizer=tokenizer)
    scales = scales_at(*HEADS, fingerprint=mine.fingerprint, rounded=mine.rounded, dtype="float32")
    half = [load_one(make("llama", seed).to(torch.bfloat16), tokenizer=tokenizer) for seed in (0, 7)]
    check_fits(scales, mine)
    check_fits(scales, half[0])  # the same weights, rounded
    for model in (other, half[1]):
        with pytest.raises(PairError, match="whose weights are not those of"):
            check_fits(scales, model)
        check_fits(scales, model, other_model=True)
