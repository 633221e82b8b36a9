"""Attribution patching: its gradients are slopes, its credits are patches to first order, and two forwards and one backward give all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from architectures import N_HEADS, N_LAYERS, make, tuned_but_for_output_projections
from test_planted import planted
from test_rankers import choices, halfway  # noqa: F401 -- a fixture
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from taia_lens import plots, results, summaries, tables
from taia_lens.engine import Reads, Run, run_attributed, run_plain, run_recipes
from taia_lens.errors import RecipeError, SiteError, TaiaLensError
from taia_lens.loading import load_pair
from taia_lens.pair import Pair
from taia_lens.rankers import Options, rank
from taia_lens.rankers.asked import Asked, ask
from taia_lens.recipe import Patch, Recipe
from taia_lens.sites import PATCHABLE, Site
from taia_lens.store import open_store
from taia_lens.studies import attribution as study
from taia_lens.studies.attribution import attribution
from taia_lens.studies.patching import patch
from taia_lens.suite import Suite

CLOSE = 1e-5  # rounding of float32 log-probabilities after three layers
BOTH = "attn,mlp"
HOOKS = [Site(c, layer, 0 if c == "head" else None).hook for c in PATCHABLE for layer in range(N_LAYERS)]


def whole(pair: Pair, suite: Suite) -> Asked:
    (some,) = ask(pair, suite, "logprob", len(suite), by="atp")
    return some


def attributed(pair: Pair, some: Asked, hooks: list[str] = HOOKS) -> dict[str, Tensor]:
    reads = Reads(some.batch, some.sequences, some.positions)
    return run_attributed(pair.base, pair.tuned, reads, some.value, hooks).products


def effect(found: xr.Dataset) -> xr.DataArray:
    return (found.patched - found.host).squeeze("metric", drop=True)


def error(found: xr.DataArray, real: xr.DataArray) -> float:
    return float(abs(found - real).mean() / abs(real).mean())


# Ground truth: slopes.
def test_every_credit_is_the_slope_of_a_patch_on_every_architecture(name: str, pair: Pair, suite: Suite) -> None:
    some = whole(pair, suite)
    reads, h = Reads(some.batch, some.sequences, some.positions), 0.005
    base, tuned = (run_plain(side, some.batch, HOOKS) for side in pair.models)
    wanted = {n: p.requires_grad for n, p in pair.base.named_parameters()}
    products = attributed(pair, some)
    sites = [Site(c, layer) for c in ("attn", "mlp", "resid") for layer in range(N_LAYERS)] + [Site("head", 1, i) for i in range(N_HEADS)]
    recipes = [Recipe("base", (Patch(site, "tuned"),)) for site in sites]
    ends = []
    for share in (h, -h):
        acts = {hook: base.acts[hook] + share * (tuned.acts[hook] - base.acts[hook]) for hook in HOOKS}
        found = dict(run_recipes(pair, recipes, reads, donors={"tuned": Run(tuned.logits, acts)}))
        ends.append(torch.stack([some.value(found[i]) for i in range(len(sites))]))
    for site, slope in zip(sites, (ends[0] - ends[1]) / (2 * h), strict=True):
        credit = products[site.hook].sum(1)
        credit = credit if site.head is None else credit[:, site.head]
        # Central differences err by the square of the step, and by rounding over it. A row of Mixtral's of which a token goes to
        # another expert on the way jumps.
        off, size = abs(credit - slope), abs(credit).mean()
        assert (off.median() if name == "mixtral" else off.max()) < 0.01 * size + CLOSE / h, site
        if site.component != "head":
            assert abs(credit.roll(1) - slope).median() > 0.1 * size, site  # another row's gradient would be seen
    assert {n: p.requires_grad for n, p in pair.base.named_parameters()} == wanted
    assert all(p.grad is None for p in pair.base.parameters())
    assert not any(point.fwd_hooks for side in pair.models for point in side.hook_dict.values())


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mixtral"])
def test_attribution_is_patching_to_first_order(architecture: str, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    errors = []
    for eps in (0.1, 0.01):
        pair = halfway(architecture, eps, tokenizer)
        said = effect(attribution(pair, suite, component=BOTH))
        real = effect(patch(pair, suite, component=BOTH, metrics=["logprob"]))
        assert said.dims == real.dims
        off, size = abs(said - real), abs(real)
        # Where a token of Mixtral's changes its expert, the change is no small one, however small the update.
        errors.append(float(off.median() / size.median()) if architecture == "mixtral" else float(off.mean() / size.mean()))
        assert error(-said, real) > 1  # what a wrong sign would give
    assert errors[1] < 0.05
    assert errors[1] < errors[0] / 5  # ten times smaller an update: an error of second order falls ten times too


def test_a_result_has_the_form_of_a_patching_studys(llama: Pair, suite: Suite, tmp_path: Path) -> None:
    for component in ("resid", "head"):
        found = attribution(llama, suite, component=component, layers="1-2", metric="logit_diff")
        real = patch(llama, suite, component=component, layers="1-2", metrics=["logit_diff"])
        assert found.patched.dims == real.patched.dims and found.sizes == real.sizes
        for side in ("host", "donor"):
            np.testing.assert_allclose(found[side], real[side], atol=CLOSE)
        assert found.coords.equals(real.coords) and found.attrs["metric"] == "logit_diff"
    results.save(found, tmp_path / "kept.nc")
    xr.testing.assert_identical(results.load(tmp_path / "kept.nc"), found)
    xr.testing.assert_identical(attribution(llama, suite, component="head", layers="1-2", metric="logit_diff"), found)  # the same bits


def test_base_is_patched_into_tuned_as_well(tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    pair = halfway("llama", 0.05, tokenizer)
    asked = {"component": "mlp", "layers": 1, "source": "base"}
    said, real = effect(attribution(pair, suite, **asked)), effect(patch(pair, suite, metrics=["logprob"], **asked))
    assert error(said, real) < 0.1
    assert error(effect(attribution(pair, suite, component="mlp", layers=1)), real) > 1  # not the other direction


def test_heads_are_the_rankers_numbers(llama: Pair, suite: Suite) -> None:
    ranked = rank("atp", llama, suite, options=Options(every=True)).replicates
    found = effect(attribution(llama, suite, component="head")).squeeze("component").transpose("example", "layer", "head")
    np.testing.assert_allclose(found, ranked, atol=1e-12)


# Sums.
@pytest.mark.parametrize("component", [BOTH, "head"])
def test_positions_one_by_one_sum_to_all_of_them(component: str, llama: Pair, suite: Suite) -> None:
    together = effect(attribution(llama, suite, component=component))
    lengths = [len(llama.tokenizer(row.prompt)["input_ids"]) for row in suite.rows]
    for positions in ("each", "each-from-end"):
        apart = attribution(llama, suite, component=component, positions=positions)
        cells = effect(apart)
        # The same float32 numbers, added up in float64 in another order.
        np.testing.assert_allclose(cells.sum("pos"), together, rtol=0, atol=1e-12)
        has = cells.notnull().isel(component=0, layer=0, drop=True)
        has = has.isel(head=0, drop=True) if component == "head" else has
        assert has.sum("pos").values.tolist() == lengths
        first, last = (-max(lengths), -1) if positions == "each-from-end" else (0, max(lengths) - 1)
        assert cells.pos.values.tolist() == list(range(first, last + 1))
        assert has.sel(pos=0 if first == 0 else -1).all() and not has.all()


@pytest.mark.parametrize("position", [0, 1, -1, -2])
def test_a_position_is_the_one_that_patching_names(position: int, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    pair = halfway("llama", 0.05, tokenizer)
    cells = effect(attribution(pair, suite, component=BOTH, positions="each" if position >= 0 else "each-from-end"))
    real = effect(patch(pair, suite, component=BOTH, positions=position, metrics=["logprob"]))
    assert error(cells.sel(pos=position), real) < 0.1
    other = position + 1 if position >= 0 else position - 1
    assert error(cells.sel(pos=other).fillna(0), real) > 0.5  # positive control: its neighbour is another place


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox", "qwen2", "mixtral", "gemma2"])
def test_heads_sum_to_attention_where_the_output_projection_is_equal_in_both(
    architecture: str, tokenizer: PreTrainedTokenizerBase, suite: Suite, pair_of: Callable[[str], Pair]
) -> None:
    base = make(architecture, 0)
    same = load_pair(base, tuned_but_for_output_projections(base, 1), tokenizer=tokenizer)

    def gap(pair: Pair) -> float:
        heads, attn = (effect(attribution(pair, suite, component=c)).squeeze("component") for c in ("head", "attn"))
        return error(heads.sum("head"), attn)

    # A norm that follows the projection (Gemma 2) is not linear, and with projections that differ heads are not all that attention changes.
    assert gap(same) > 1e-2 if architecture == "gemma2" else gap(same) < 1e-4
    assert gap(pair_of(architecture)) > 1e-2


def test_integrated_gradients_sum_to_patching_the_whole_site(llama: Pair, suite: Suite) -> None:
    asked = {"component": BOTH, "layers": 1}
    real = effect(patch(llama, suite, metrics=["logprob"], **asked))
    found = [effect(attribution(llama, suite, steps=steps, positions="each", **asked)).sum("pos") for steps in (0, 4, 16)]
    errors = [error(each, real) for each in found]
    assert errors[2] < 0.02
    assert errors[2] < errors[1] / 4 and errors[0] > 0.05  # midpoints converge with the square of the steps


# Invariances.
def test_a_model_patched_with_itself_is_credited_with_exactly_nothing(pair: Pair, suite: Suite) -> None:
    some = whole(pair, suite)
    reads = Reads(some.batch, some.sequences, some.positions)
    own = run_attributed(pair.base, pair.base, reads, some.value, HOOKS)
    assert torch.equal(own.host, own.donor)
    assert set(own.products) == set(HOOKS) and not any(product.any() for product in own.products.values())
    assert all(product.any() for product in attributed(pair, some).values())  # positive control


@pytest.mark.parametrize("positions", ["all", "each", "each-from-end"])
def test_a_row_of_a_batch_gets_its_own_credit(positions: str, llama: Pair, suite: Suite) -> None:
    asked = {"component": BOTH, "positions": positions}
    together, some, alone = (effect(attribution(llama, suite, batch_size=n, **asked)) for n in (len(suite), 4, 1))
    np.testing.assert_allclose(together, alone, atol=CLOSE)
    np.testing.assert_allclose(together, some, atol=CLOSE)
    assert not np.allclose(together, together.roll(example=1), atol=CLOSE, equal_nan=True)


def test_half_precision_is_summed_in_float32(tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    models = [make("llama", seed).to(torch.bfloat16) for seed in (0, 1)]
    rough = load_pair(*models, tokenizer=tokenizer)
    fine = load_pair(*(model.float() for model in models), tokenizer=tokenizer)
    some = whole(rough, suite)
    assert {product.dtype for product in attributed(rough, some).values()} == {torch.float32}
    said, real = (effect(attribution(pair, suite, component=BOTH)) for pair in (rough, fine))
    assert np.corrcoef(said.values.ravel(), real.values.ravel())[0, 1] > 0.99


# What it costs.
class Counter:
    """How often a module was run."""

    def __init__(self, module: nn.Module) -> None:
        self.n = 0
        self.handle = module.register_forward_hook(self)

    def __call__(self, *args: object) -> None:
        self.n += 1


@pytest.fixture
def passes(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], tuple[int, int, int]]:
    """What a call runs: forwards of base, of tuned, backwards."""
    backwards = []
    grad, backward = torch.autograd.grad, torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or grad(*a, **k))
    monkeypatch.setattr(torch.autograd, "backward", lambda *a, **k: backwards.append(1) or backward(*a, **k))

    def count(call: Callable[[], object]) -> tuple[int, int, int]:
        counters = [Counter(side.blocks[1]) for side in llama.models]
        backwards.clear()
        call()
        for counter in counters:
            counter.handle.remove()
        return counters[0].n, counters[1].n, len(backwards)

    return count


def test_all_sites_of_all_components_cost_two_forwards_and_one_backward_a_batch(
    passes: Callable[[Callable[[], object]], tuple[int, int, int]], llama: Pair, suite: Suite
) -> None:
    some = whole(llama, suite)
    assert passes(lambda: attributed(llama, some)) == (1, 1, 1)
    every = {"component": "attn,mlp,resid", "batch_size": len(suite)}
    assert passes(lambda: attribution(llama, suite, **every)) == (1, 1, 1)
    assert passes(lambda: attribution(llama, suite, positions="each", **every)) == (1, 1, 1)
    assert passes(lambda: attribution(llama, suite, component="head", batch_size=4)) == (3, 3, 3)
    # A step a hook, and base once more for its own value; a loop over sites would be seen.
    assert passes(lambda: attribution(llama, suite, component="mlp", steps=2, batch_size=len(suite))) == (7, 1, 6)


def test_only_changes_of_the_hooks_asked_for_are_held(llama: Pair, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    some = whole(llama, suite)
    taken, grad = [], torch.autograd.grad

    def look(values: Tensor, inputs: list[Tensor]) -> object:
        taken.append(len(inputs))
        return grad(values, inputs)

    monkeypatch.setattr(torch.autograd, "grad", look)
    hooks = [Site("mlp", layer).hook for layer in (1, 2)]
    assert set(attributed(llama, some, hooks)) == set(hooks)
    assert taken == [1]  # one leaf, at the first: nothing below it is differentiated, and no hook keeps a gradient of its own
    with pytest.raises(SiteError, match=r"this model has no blocks\.0\.hook_nothing"):
        attributed(llama, some, ["blocks.0.hook_nothing"])


# The task choice.
@pytest.mark.parametrize("positions", ["all", "each", "each-from-end"])
def test_choices_are_credited(positions: str, tokenizer: PreTrainedTokenizerBase, choices: Suite) -> None:  # noqa: F811
    pair = halfway("llama", 0.02, tokenizer)
    found = attribution(pair, choices, component=BOTH, positions=positions, check=4, batch_size=7)
    assert found.attrs["metric"] == "choice_logprob" and found.unit.item() == "nats"
    assert error(found.check_attributed, found.check_patched) < 0.1
    assert float(abs(found.check_patched).max()) > 100 * CLOSE
    together = effect(attribution(pair, choices, component=BOTH))
    np.testing.assert_allclose(effect(found).sum("pos") if positions != "all" else effect(found), together, atol=CLOSE)
    if positions == "each-from-end":  # a prompt's last token is -1, whatever the lengths of its choices
        assert effect(found).sel(pos=-1).notnull().all() and found.pos.values.max() == 1


# The check.
@pytest.mark.parametrize("positions", ["all", "each", "each-from-end"])
def test_what_is_checked_is_patched_really(positions: str, llama: Pair, suite: Suite) -> None:
    found = attribution(llama, suite, component=BOTH, positions=positions, check=2)
    assert found.chosen.values.tolist() == ["strong"] * 2 + ["random"] * 2 and found.attrs["check"] == 4
    sizes = abs(effect(found).sum("example")).values.ravel()
    np.testing.assert_allclose(np.sort(abs(found.check_attributed.sum("example").values[:2]))[::-1], np.sort(sizes)[::-1][:2])
    assert len(set(found.check.values.tolist())) == 4
    for site in found.check.values.tolist():
        name, _, pos = site.partition(" @")
        layer, component = name[1:].split(".")
        said = effect(found).sel(component=component, layer=int(layer))
        said = said if not pos else said.sel(pos=int(pos))
        np.testing.assert_array_equal(found.check_attributed.sel(check=site), said)
        rows = np.flatnonzero(said.notnull())
        part = Suite("some", tuple(suite.rows[i] for i in rows))
        where = {"positions": int(pos)} if pos else {}
        real = effect(patch(llama, part, component=component, layers=int(layer), metrics=["logprob"], **where)).squeeze(drop=True)
        np.testing.assert_allclose(found.check_patched.sel(check=site)[rows], real, atol=CLOSE)
        assert found.check_patched.sel(check=site).isnull().sum() == len(suite) - len(rows)


def test_a_checks_cells_are_found_again(llama: Pair, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"component": BOTH, "positions": "each", "check": 2, "batch_size": 4}
    with open_store(tmp_path / "cells.sqlite") as store:
        first = attribution(llama, suite, store=store, **asked)
        assert len(store) == 3 * 4

        def refuse(*args: object, **kwargs: object) -> None:
            raise AssertionError("a patch was run")

        monkeypatch.setattr(study, "run_recipes", refuse)
        xr.testing.assert_identical(attribution(llama, suite, store=store, **asked), first)
        with pytest.raises(AssertionError, match="a patch was run"):  # positive control: the other ends are other places
            attribution(llama, suite, store=store, **asked | {"positions": "each-from-end"})


def test_the_planted_component_is_credited_and_no_other(tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    base = make("llama", 0)
    tuned = planted(base, lambda name, data: data if name.startswith("model.layers.2.mlp.") else None, 0)
    found = effect(attribution(load_pair(base, tuned, tokenizer=tokenizer), suite, component=BOTH, positions="each-from-end"))
    size = abs(found).max("example")
    assert size.sel(component="mlp", layer=2, pos=-1) > 100 * CLOSE
    # Nothing but the last layer's last position reaches the answer from there, and nothing before it knows of the update.
    others = size.where(~((size.component == "mlp") & (size.layer == 2) & (size.pos == -1)))
    assert others.max() <= CLOSE


# What is said of it.
def test_the_sentence_says_how_far_off_it_is(llama: Pair, suite: Suite) -> None:
    found = attribution(llama, suite, component=BOTH, check=2)
    said, real = np.tile([[4.0], [-2.0], [1.0], [0.0]], 11), np.tile([[5.0], [-2.0], [0.5], [0.5]], 11)
    known = found.assign(check_attributed=found.check_attributed.copy(data=said), check_patched=found.check_patched.copy(data=real))
    summary = summaries.attribution_summary(known)
    np.testing.assert_allclose(summary.off, [1 / 7, 1, 2 / 8])
    np.testing.assert_allclose(summary.correlation.sel(among="all"), np.corrcoef(said[:, 0], real[:, 0])[0, 1])
    note = tables.attribution_note(summary)
    assert "4 sites were patched really, on all prompts: attribution is off by 25% of what patching does" in note
    assert "(the 2 strongest 14%, 2 drawn at random 100%)" in note
    assert f"farthest off is {found.check.values[0]}: +4 attributed, +5 when patched (nats)" in note and "r = 0.98 over sites" in note
    assert tables.check_records(summary)[0] == {"site": found.check.values[0], "chosen": "strong", "attributed": 4.0, "patched": 5.0}
    figure = plots.check_figure(summary)
    assert list(figure.data[1].y) == [4.0, -2.0] and list(figure.data[2].x) == [0.5, 0.5]
    bare = summaries.attribution_summary(attribution(llama, suite, component="mlp", steps=1))
    assert "integrated over 1 steps" in tables.attribution_note(bare) and "Not checked" in tables.attribution_note(bare)
    assert tables.check_records(bare) == []


@pytest.mark.parametrize("positions", ["all", "each"])
@pytest.mark.parametrize("component", [BOTH, "head"])
def test_summaries_tables_and_figures_hold_the_numbers(component: str, positions: str, llama: Pair, suite: Suite) -> None:
    found = attribution(llama, suite, component=component, positions=positions, check=1)
    summary = summaries.attribution_summary(found)
    known = effect(found).isel(example=np.flatnonzero(found.domain.values == "ood")).mean("example")
    np.testing.assert_allclose(summary.effect.sel(domain="ood").squeeze("metric").transpose(*known.dims), known, atol=1e-12)
    assert len(tables.records(summary)) == 2 * known.size
    headers = [column.header for column in tables.attribution_tables(summary)[0].columns]
    assert "host + attribution" in headers and "patched" not in headers
    title = plots.attribution_figure(summary).layout.title
    assert title.text.startswith("Attribution: base with ") and "first-order estimate" in title.subtitle.text


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({"metric": "accuracy"}, TaiaLensError, "the metric accuracy has no gradient, which attribution needs; write one of prob, logprob"),
        ({"metric": "exact_match"}, TaiaLensError, "the metric exact_match is of the task generate"),
        ({"positions": "last"}, SiteError, "cannot credit the positions 'last'; write all, each or each-from-end"),
        ({"component": "head,mlp"}, SiteError, "heads have a dim of their own"),
        ({"component": "ffn"}, SiteError, "no component 'ffn'"),
        ({"layers": 9}, SiteError, "no layer 9: this model has 3 layers"),
        ({"source": "donor"}, RecipeError, "no source 'donor'; write base or tuned"),
        ({"check": -1}, TaiaLensError, "check is -1; write 0 or more"),
        ({"steps": -1}, TaiaLensError, "steps is -1; write 0 or more"),
        ({"batch_size": 0}, TaiaLensError, "batch_size is 0; write 1 or more"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_credited_is_refused_in_one_line(
    asked: dict[str, object], kind: type[Exception], said: str, llama: Pair, suite: Suite
) -> None:
    with pytest.raises(kind, match=said):
        attribution(llama, suite, **({"component": "mlp"} | asked))
