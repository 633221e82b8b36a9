"""The layers study: the sum rule, views against recipes written by hand, and planted updates that must come first."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from architectures import D_HEAD, N_HEADS, N_LAYERS, make
from test_grid import right, tuned_in
from test_planted import MODULES, planted
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, Qwen2MoeConfig

from taia_lens import plots, results, summaries, tables
from taia_lens.batch import make_batches
from taia_lens.engine import applied, evaluate, run_plain
from taia_lens.errors import SiteError, TaiaLensError
from taia_lens.loading import load_pair
from taia_lens.pair import Pair
from taia_lens.players import players
from taia_lens.recipe_text import parse_recipe
from taia_lens.store import open_store
from taia_lens.studies.layers import VIEWS, Sampling, game, layers
from taia_lens.suite import Suite
from taia_lens.weights import live_weights

# Float sums in another order; values are log-probabilities of order 1 to 10.
EXACT = 1e-9
SMALL = Sampling(budget=40)


@pytest.fixture(scope="module")
def lora(tokenizer: PreTrainedTokenizerBase) -> Pair:
    base = make("llama", 0)
    return load_pair(base, tuned_in(base, ("attn", "mlp")), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def found(lora: Pair, suite: Suite) -> xr.Dataset:
    return layers(lora, suite, metrics=["logprob"], sampling=SMALL)


def by_hand(pair: Pair, suite: Suite, text: str) -> np.ndarray:
    (batch,) = make_batches(suite, pair.tokenizer, len(suite))
    values = evaluate(pair, [parse_recipe(text)], batch, lambda logits: {"m": right(logits, batch)})["m"][0]
    out = np.empty(len(suite))
    out[list(batch.rows)] = values.numpy()
    return out


@pytest.mark.parametrize("unit", ["component", "projection", "head"])
@pytest.mark.parametrize("which", ["lora", "llama"])
def test_shapley_values_sum_to_vanilla_minus_base(which: str, unit: str, request: Any, suite: Suite) -> None:
    pair: Pair = request.getfixturevalue(which)
    result = layers(pair, suite, unit=unit, views=["shapley"], metrics=["logprob"], sampling=Sampling(budget=50))
    total = result.shapley.sum(("layer", "part")) + (result.rest_shapley if "rest_shapley" in result else 0)
    np.testing.assert_allclose(total, result.vanilla - result.base, atol=EXACT)
    assert ("rest_shapley" in result) == (which == "llama" or unit == "head")  # norms and embeddings; under heads also the FFN


def test_the_views_are_the_recipes_they_say(found: xr.Dataset, lora: Pair, suite: Suite) -> None:
    base, vanilla = by_hand(lora, suite, "base"), by_hand(lora, suite, "tuned")
    one = found.sel(metric="logprob", layer=1, part="mlp")
    close = {"atol": 1e-5}
    np.testing.assert_allclose(one.alone, by_hand(lora, suite, "base; graft L1.mlp <- tuned") - base, **close)
    np.testing.assert_allclose(one["last"], vanilla - by_hand(lora, suite, "tuned; graft L1.mlp <- base"), **close)
    cumulative = found.cumulated.sel(metric="logprob", layer=1)
    recipes = {
        (0, 0): "base; graft L0-1.attn <- tuned",
        (0, 1): "base; graft L0-1.mlp <- tuned",
        (1, 0): "base; graft L1-2.attn <- tuned",
        (1, 2): "base; graft L1-2.attn <- tuned; graft L1-2.mlp <- tuned",
    }
    for (direction, series), text in recipes.items():
        np.testing.assert_allclose(cumulative[direction, series], by_hand(lora, suite, text) - base, **close)
    ends = found.cumulated.sel(metric="logprob").isel(series=2)
    np.testing.assert_allclose(ends.isel(direction=0, layer=-1), vanilla - base, **close)
    np.testing.assert_allclose(ends.isel(direction=1, layer=0), vanilla - base, **close)


def test_sampled_values_are_the_exact_ones_when_every_order_is_seen(tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    """Three players: an order and its reverse, over all orders, give each order the same weight."""
    base = make("llama", 0)
    tuned = copy.deepcopy(base)
    for i, module in enumerate((tuned.model.layers[0].mlp, tuned.model.layers[1].self_attn, tuned.model.layers[2].mlp)):
        for parameter in module.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    pair = load_pair(base, tuned, tokenizer=tokenizer)
    names = ["L0.mlp", "L1.attn", "L2.mlp"]

    def value(members: tuple[str, ...]) -> np.ndarray:
        return by_hand(pair, suite, "base" + "".join(f"; graft {m} <- tuned" for m in sorted(members)))

    exact = {
        name: np.mean(
            [value((*order[: order.index(name)], name)) - value(order[: order.index(name)]) for order in permutations(names)], axis=0
        )
        for name in names
    }
    result = layers(pair, suite, views=["shapley"], metrics=["logprob"], sampling=Sampling(budget=4 * 60))
    assert result.attrs["evaluations"] == 8 and result.sizes["pair"] == 60  # every coalition once, whatever the orders
    se = summaries.layers_summary(result).shapley_se
    for name in names:
        layer, part = int(name[1]), name[3:]
        sampled = result.shapley.sel(metric="logprob", layer=layer, part=part)
        for domain in ("id", "ood"):
            rows = (result.domain == domain).values
            error = abs(float(sampled[rows].mean()) - exact[name][rows].mean())
            assert error <= 4 * float(se.sel(layer=layer, part=part, group=f"words|{domain}|logprob")) + 1e-6
    rest = result.shapley.sel(metric="logprob").stack(site=("layer", "part"))
    assert (rest.drop_sel(site=[(0, "mlp"), (1, "attn"), (2, "mlp")]) == 0).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("architecture", MODULES)
def test_the_planted_layer_and_component_come_first(architecture: str, seed: int, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    component, layer = ("attn", "mlp")[seed % 2], seed % N_LAYERS
    prefix = MODULES[architecture][component].format(layer)
    base = make(architecture, seed)
    tuned = planted(base, lambda name, data: data if name.startswith(prefix) else None, seed)
    # A hundredth of the noise everywhere else: a second player would get its share.
    tuned = planted(tuned, lambda name, data: data if MODULES[architecture]["mlp"].format((layer + 1) % N_LAYERS) in name else None, seed)
    for name, parameter in tuned.named_parameters():
        if not name.startswith(prefix):
            parameter.data = torch.lerp(dict(base.named_parameters())[name], parameter.data, 0.01)
    pair = load_pair(base, tuned, tokenizer=tokenizer)
    result = layers(pair, suite, views=["alone", "last", "shapley"], metrics=["logprob"], sampling=Sampling(budget=50, seed=seed))
    for view in ("alone", "last", "shapley"):
        size = abs(result[view].sel(metric="logprob")).mean("example").stack(site=("layer", "part"))
        assert size.idxmax().item() == (layer, component), view
        assert size.max() > 10 * size.drop_sel(site=[(layer, component)]).max()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_planted_heads_come_first(architecture: str, seed: int, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    """The update lies in two heads' columns of the output projection, in two layers."""
    chosen = {(seed % N_LAYERS, seed % N_HEADS), ((seed + 1) % N_LAYERS, (seed + 2) % N_HEADS)}
    base = make(architecture, seed)

    def where(name: str, data: torch.Tensor) -> torch.Tensor | None:
        for layer, head in chosen:
            columns = slice(head * D_HEAD, (head + 1) * D_HEAD)
            if name == f"model.layers.{layer}.self_attn.o_proj.weight":
                return data[:, columns]
            if name == f"transformer.h.{layer}.attn.c_proj.weight":
                return data[columns]
        return None

    pair = load_pair(base, planted(base, where, seed), tokenizer=tokenizer)
    result = layers(pair, suite, unit="head", views=["alone", "shapley"], metrics=["logprob"], sampling=Sampling(budget=22))
    for view in ("alone", "shapley"):
        size = abs(result[view].sel(metric="logprob")).mean("example").stack(site=("layer", "part"))
        first = size.sortby(size, ascending=False).site.values[:2].tolist()
        assert {(layer, int(part[1:])) for layer, part in first} == chosen
        assert size.sortby(size, ascending=False)[1] > 1e-3 and size.sortby(size, ascending=False)[2] == 0


def test_the_players_and_the_rest_are_the_whole_update(pair: Pair, name: str) -> None:
    """On every architecture: base with every player and the rest is tuned, and with none of them is base."""
    for unit in ("component", "projection", "head"):
        game = players(pair, unit, range(N_LAYERS))
        assert len(game.active) == len(game.all) and game.rest  # in a random pair everything differs
        with applied(pair, game.coalition(game.active, rest=False)) as model:
            mine = {w.name: w.parameter.data.clone() for w in live_weights(model)}
        with applied(pair, game.coalition([], rest=True)) as model:
            theirs = {w.name: w.parameter.data.clone() for w in live_weights(model)}
        for b, t in zip(live_weights(pair.base), live_weights(pair.tuned), strict=True):
            # Wherever one coalition has tuned's number the other has base's.
            from_tuned = mine[b.name] == t.parameter
            assert torch.equal(torch.where(from_tuned, b.parameter, t.parameter), theirs[b.name]), (unit, b.name)


def test_more_pairs_of_orders_or_an_error_small_enough_stop_the_sampling(lora: Pair, suite: Suite) -> None:
    few = layers(lora, suite, views=["shapley"], metrics=["logprob"], sampling=Sampling(budget=35))
    assert few.sizes["pair"] == 3  # 6 players: 10 recipes a pair of orders
    loose = layers(lora, suite, views=["shapley"], metrics=["logprob"], sampling=Sampling(target_se=100.0, budget=1000))
    assert loose.sizes["pair"] == 3  # the least from which an error is estimated
    tight = layers(lora, suite, views=["shapley"], metrics=["logprob"], sampling=Sampling(target_se=0.02, budget=400))
    assert float(summaries.layers_summary(tight).shapley_se.max()) <= 0.02 or tight.sizes["pair"] == 40
    assert np.isnan(summaries.layers_summary(few.isel(pair=slice(0, 1))).shapley_se).all()


def test_recipes_are_asked_for_together(lora: Pair, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """All views but Shapley's at once; orders at once where the budget alone says how many, else a pair at a time."""
    asked, whole = list[int](), game.score_recipes

    def counting(pair: Pair, recipes: list, *args: Any, **named: Any) -> Any:
        asked.append(len(recipes))
        return whole(pair, recipes, *args, **named)

    monkeypatch.setattr(game, "score_recipes", counting)
    result = layers(lora, suite, metrics=["logprob"], sampling=Sampling(budget=30))
    assert len([n for n in asked if n]) == 2 and asked[0] > 2 + 6 + 6 and sum(asked) == result.attrs["evaluations"]
    assert 0 < result.attrs["work"] < result.attrs["evaluations"]
    asked.clear()
    layers(lora, suite, views=["shapley"], metrics=["logprob"], sampling=Sampling(target_se=1e-9, budget=30))
    assert asked[0] == 2 and len([n for n in asked[1:] if n]) == 3 and max(asked) <= 10  # three pairs of orders of six players


def test_the_same_seed_gives_the_same_bits_with_and_without_a_store(lora: Pair, suite: Suite, found: xr.Dataset, tmp_path: Path) -> None:
    with open_store(tmp_path / "cells.sqlite") as store:
        first = layers(lora, suite, metrics=["logprob"], sampling=SMALL, store=store)
        n = len(store)
        again = layers(lora, suite, metrics=["logprob"], sampling=SMALL, store=store)
        assert len(store) == n > 20
    xr.testing.assert_identical(first.drop_attrs(), again.drop_attrs())
    xr.testing.assert_identical(first.drop_attrs(), found.drop_attrs())
    other = layers(lora, suite, metrics=["logprob"], sampling=Sampling(budget=40, seed=1))
    assert not np.array_equal(other.shapley, found.shapley)


def test_layers_that_are_not_asked_for_belong_to_the_rest(lora: Pair, suite: Suite) -> None:
    result = layers(lora, suite, which="1", views=["alone", "last", "shapley"], metrics=["logprob"])
    assert result.layer.values.tolist() == [1] and "rest_shapley" in result
    rest = by_hand(lora, suite, "base; graft L0,2.attn <- tuned; graft L0,2.mlp <- tuned") - by_hand(lora, suite, "base")
    np.testing.assert_allclose(result.rest_alone.sel(metric="logprob"), rest, atol=1e-5)


def test_summary_tables_and_figures_hold_the_numbers(found: xr.Dataset, lora: Pair, suite: Suite, tmp_path: Path) -> None:
    from rich.console import Console

    summary = summaries.layers_summary(found)
    cell = {"layer": 1, "part": "attn"}
    mean = found.shapley.sel(metric="logprob", **cell)[(found.domain == "ood").values].mean()
    assert float(summary.shapley.sel(group="words|ood|logprob", **cell)) == pytest.approx(float(mean))
    gap = {d: summary.alone.sel(group=f"words|{d}|logprob", **cell) for d in ("id", "ood")}
    assert float(summary.shift_alone.sel(shift_metric="logprob", **cell)) == pytest.approx(float(gap["ood"] - gap["id"]))
    shown = Console(width=250, record=True, file=(tmp_path / "out").open("w"))
    for table in (*tables.layers_tables(summary), *tables.cumulated_tables(summary), *tables.shift_tables(summary)):
        shown.print(table)
    text = shown.export_text()
    assert f"{float(mean):+.3f}".replace("0.", ".") in text and "sum" in text and "both from below" in text
    report = tables.layers_report(summary)
    assert len(report["cumulative"]) == 2 * 2 * 3 * N_LAYERS and len(report["ood_minus_id"]) == N_LAYERS * 2
    assert {g["domain"]: g["gap"] for g in report["groups"]} == {
        d: float(summary.gap.sel(group=f"words|{d}|logprob")) for d in ("id", "ood")
    }
    assert f"{found.attrs['evaluations']} recipes evaluated" in tables.layers_note(summary)
    assert len(tables.layers_records(summary)) == 2 * N_LAYERS * 2
    assert plots.layers_figure(summary).data
    heads = summaries.layers_summary(layers(lora, suite, unit="head", views=["alone"], metrics=["logprob"]))
    assert "largest of 12 by alone" in str(tables.layers_tables(heads)[0].title)
    assert "largest of 12 by alone" in str(tables.shift_tables(heads)[0].title)
    assert plots.layers_figure(heads).data[0].type == "heatmap"
    results.save(found, tmp_path / "layers.nc")
    xr.testing.assert_identical(summaries.layers_summary(results.load(tmp_path / "layers.nc")).drop_attrs(), summary.drop_attrs())


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        ({"unit": "neuron"}, SiteError, "no unit 'neuron'; the update is credited by component, projection, head"),
        ({"views": ["first"]}, TaiaLensError, f"no view 'first'; there are {', '.join(VIEWS)}"),
        ({"views": []}, TaiaLensError, "no view was named; write some of alone, last, cumulative, shapley"),
        (
            {"views": ["cumulative"], "unit": "head"},
            TaiaLensError,
            "the view cumulative goes with the unit component, not head; write some of",
        ),
        ({"sampling": Sampling(budget=9)}, TaiaLensError, "one pair of orders of 6 parts evaluates 10 recipes, and the budget is 9; write"),
        ({"which": "7"}, SiteError, "no layer 7: this model has 3 layers, 0-2"),
    ],
)
def test_what_does_not_exist_is_refused(lora: Pair, suite: Suite, ask: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        layers(lora, suite, **ask)


@pytest.mark.parametrize("make_it", [lambda: Sampling(budget=0), lambda: Sampling(target_se=0.0)])
def test_a_sampling_that_never_starts_or_ends_is_refused(make_it: Callable[[], Sampling]) -> None:
    with pytest.raises(TaiaLensError, match="write a budget of 1 or more, and a target above 0"):
        make_it()


def test_a_model_is_whole_again_after_a_study(lora: Pair, suite: Suite, found: xr.Dataset) -> None:
    (batch,) = make_batches(suite, lora.tokenizer, len(suite))
    values = right(run_plain(lora.base, batch).logits, batch).numpy()
    np.testing.assert_allclose(found.base.sel(metric="logprob").values[list(batch.rows)], values, atol=1e-5)


def test_two_players_are_credited_exactly(tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    base = make("llama", 0)
    tuned = planted(base, lambda name, data: data if "layers.0.self_attn" in name or "layers.2.mlp" in name else None, 0)
    pair = load_pair(base, tuned, tokenizer=tokenizer)
    result = layers(pair, suite, views=["shapley"], metrics=["logprob"])
    summary = summaries.layers_summary(result)
    assert (summary.shapley_se == 0).all() and result.attrs["evaluations"] == 4
    one = by_hand(pair, suite, "base; graft L0.attn <- tuned") - by_hand(pair, suite, "base")
    two = by_hand(pair, suite, "tuned") - by_hand(pair, suite, "base; graft L2.mlp <- tuned")
    np.testing.assert_allclose(result.shapley.sel(metric="logprob", layer=0, part="attn"), (one + two) / 2, atol=1e-5)


def test_layers_may_differ(tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    """One layer has experts, another a dense FFN: each is credited with what it has."""
    config = Qwen2MoeConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0],
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tuned = copy.deepcopy(base)
    for parameter in tuned.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    pair = load_pair(base, tuned, tokenizer=tokenizer)
    game = players(pair, "projection", range(2))
    there = {(p.layer, p.unit) for p in game.active}
    assert (0, "attn.q") in there and {unit for layer, unit in there if layer == 0} != {unit for layer, unit in there if layer == 1}
    result = layers(pair, suite, unit="projection", views=["alone"], metrics=["logprob"])
    assert (result.alone.sel(layer=0, part=[u for u in game.units if (0, u) not in there]) == 0).all()


def test_a_shapley_value_is_told_apart_only_if_its_orders_agree_too(found: xr.Dataset) -> None:
    summary = summaries.layers_summary(found)
    one = summaries.layers_summary(found.isel(pair=slice(0, 1)))
    assert (one.shapley_q.fillna(1) == 1).all()  # one pair of orders says nothing about the others
    noisy = found.copy(deep=True)
    noisy["pairs"] = noisy.pairs + 100 * (-1.0) ** noisy.pair  # orders that disagree
    assert float(summaries.layers_summary(noisy).shapley_p.min()) > 0.3
    sure = found.copy(deep=True)
    sure["pairs"] = 0 * sure.pairs + sure.pairs.mean("pair") * (1 + 1e-6 * sure.pair)
    assert float(summaries.layers_summary(sure).shapley_p.min()) <= float(summary.shapley_p.min()) < 0.2
    # And so must the difference between the domains.
    assert (one.shift_shapley_q.fillna(1) == 1).all()
    apart = found.copy(deep=True)
    apart["pairs"] = apart.pairs + 100 * (-1.0) ** apart.pair * apart["where"].isin(["words|ood"])
    assert float(summaries.layers_summary(apart).shift_shapley_p.min()) > 0.3
    over_examples = float(summaries.layers_summary(sure).shift_shapley_p.min())
    assert over_examples <= float(summary.shift_shapley_p.min())
    cell = summaries.layers_summary(sure).sel(shift_metric="logprob")
    np.testing.assert_allclose(cell.shift_shapley, summary.shift_shapley.sel(shift_metric="logprob"))


def test_finer_parts_are_summed_up_by_component(lora: Pair, suite: Suite) -> None:
    result = layers(lora, suite, unit="projection", views=["shapley"], metrics=["logprob"], sampling=SMALL)
    summary = summaries.layers_summary(result)
    own = [str(part).startswith("mlp.") for part in result.part.values]
    want = result.shapley.sel(metric="logprob").isel(part=own).sum("part").isel(example=(result.domain == "ood").values)
    cell = summary.sel(group="words|ood|logprob", component="mlp")
    np.testing.assert_allclose(cell.component_shapley, want.mean("example"))
    assert (cell.component_shapley_low <= cell.component_shapley).all() and (cell.component_shapley <= cell.component_shapley_high).all()
    np.testing.assert_allclose(summary.component_shapley.sum("component"), summary.shapley.sum("part"))
    assert "component_shapley" not in summaries.layers_summary(layers(lora, suite, views=["shapley"], metrics=["logprob"], sampling=SMALL))
    # The sums are tested as parts of their own would be: over examples and over sampled orders.
    of = np.where(own, "mlp", "attn")
    coarse = xr.Dataset({name: result[name].groupby(xr.DataArray(of, dims="part", name="part")).sum() for name in ("shapley", "pairs")})
    coarse = coarse.transpose("pair", "metric", "layer", "part", ...).merge(result[["base", "vanilla"]]).assign_attrs(result.attrs)
    tested = summaries.layers_summary(coarse)
    for name in ("p", "q"):
        expected = tested[f"shapley_{name}"].sel(part=summary.component.values).values
        np.testing.assert_allclose(summary[f"component_shapley_{name}"].values, expected, rtol=1e-9)
    assert np.isfinite(summary.component_shapley_p.values).any()
