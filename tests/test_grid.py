"""The grid holds what its recipes compute, its arithmetic is exact, and its sentence says what the numbers support."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from architectures import component_of, make
from transformers import PreTrainedTokenizerBase

from taia_lens import plots, results, summaries, tables
from taia_lens.batch import Batch, make_batches
from taia_lens.engine import evaluate
from taia_lens.errors import PairError, RecipeError, TaiaLensError
from taia_lens.loading import load_pair
from taia_lens.pair import Pair
from taia_lens.recipe import Recipe, taia
from taia_lens.recipe_text import parse_recipe
from taia_lens.store import CellStore, open_store
from taia_lens.studies.grid import Controls, attention_share, coalitions, compare, entries
from taia_lens.suite import Suite, make_suite

FEW = Controls(seeds=1)


def right(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Log-probability of the answer."""
    return logits.log_softmax(-1).gather(-1, batch.answer[:, None])[:, 0]


def tuned_in(base: Any, components: tuple[str, ...], seed: int = 0) -> Any:
    """A copy of base with noise on the weights of these components."""
    tuned, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if component_of(name) in components:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return tuned


@pytest.fixture(scope="module")
def lora(tokenizer: PreTrainedTokenizerBase) -> Pair:
    """A pair that differs in attention and FFN only, as after a LoRA."""
    base = make("llama", 0)
    return load_pair(base, tuned_in(base, ("attn", "mlp")), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def found(lora: Pair, suite: Suite) -> xr.Dataset:
    return compare(lora, suite, metrics=["logprob", "accuracy"], controls=FEW)


def test_every_value_is_what_the_engine_computes(found: xr.Dataset, lora: Pair, suite: Suite) -> None:
    (batch,) = make_batches(suite, lora.tokenizer, len(suite))
    for name, text in zip(found.recipe.values.tolist(), found.text.values.tolist(), strict=True):
        wanted = evaluate(lora, [parse_recipe(text)], batch, lambda logits: {"m": right(logits, batch)})["m"][0]
        np.testing.assert_allclose(found.value.sel(metric="logprob", recipe=name).values[list(batch.rows)], wanted.numpy(), atol=1e-5)
    assert found.recipe.values.tolist()[:4] == ["base", "vanilla", "TAIA", "TAIF"]


def test_controls_change_as_much_as_attention_is(lora: Pair) -> None:
    share = attention_share(lora)
    sizes = {
        d.name: p.numel()
        for d in lora.differences
        for n, p in lora.base.named_parameters()
        if n.replace("._original_component", "") == d.name
    }
    attn = sum(sizes[d.name] for d in lora.differences if d.component == "attn")
    assert share == attn / sum(sizes.values()) and 0 < share < 1
    names = [e.name for e in entries(lora, "base", "base", Controls(seeds=2, scales=(0.3, 0.5)))]
    keep = f"{share:.2g}"
    assert names[4:] == ["update x0.3", "update x0.5", f"DARE {keep} #0", f"DARE {keep} #1", "random layer #0", "random layer #1"]
    drawn = [str(e.recipe) for e in entries(lora, "base", "base", Controls(seeds=9)) if "random" in e.name]
    assert len(drawn) == len(set(drawn)) == 3  # one of three layers: there are no more
    assert len(entries(lora, "base", "base", Controls(seeds=0, scales=()))) == 4


def test_two_players_have_no_third_and_three_have_every_coalition(lora: Pair, llama: Pair) -> None:
    assert list(coalitions(lora)) == ["attn", "mlp"]
    assert list(coalitions(llama)) == ["attn", "mlp", "attn+mlp", "rest", "attn+rest", "mlp+rest"]
    names = [e.name for e in entries(llama, "tuned", "tuned", FEW)]
    # TAIA with tuned's norms and embeddings is attn+rest, TAIF is mlp+rest; the other four are there beside them.
    assert [n for n in names if n in coalitions(llama)] == ["attn", "mlp", "attn+mlp", "rest"]


@pytest.mark.parametrize("which", ["lora", "llama"])
def test_shapley_values_sum_to_vanilla_minus_base_and_the_interaction_is_the_paper_s(which: str, request: Any, suite: Suite) -> None:
    pair: Pair = request.getfixturevalue(which)
    result = compare(pair, suite, metrics=["logprob"], norms="base", embed="base", controls=Controls(seeds=0, scales=()))
    summary = summaries.grid_summary(result)
    for i in range(summary.sizes["group"]):
        group = summary.isel(group=i)
        value = {name: float(group.value.sel(recipe=name)) for name in group.recipe.values.tolist()}
        effect = {name: float(group.effect_value.sel(effect=name)) for name in group.effect.values.tolist()}
        shares = [v for name, v in effect.items() if name.endswith("Shapley")]
        assert len(shares) == (2 if which == "lora" else 3)
        assert sum(shares) == pytest.approx(value["vanilla"] - value["base"], abs=1e-9)
        assert effect["attn alone"] == pytest.approx(value["TAIA"] - value["base"], abs=1e-9)
        if which == "lora":
            assert effect["attn x mlp"] == pytest.approx(value["vanilla"] - value["TAIA"] - value["TAIF"] + value["base"], abs=1e-9)
            assert effect["attn Shapley"] == pytest.approx((effect["attn alone"] + effect["attn last"]) / 2, abs=1e-9)


@pytest.mark.parametrize("component", ["attn", "mlp"])
def test_an_update_of_one_component_is_all_of_taia_or_none(component: str, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    base = make("llama", 0)
    pair = load_pair(base, tuned_in(base, (component,)), tokenizer=tokenizer)
    value = compare(pair, suite, metrics=["logprob"], controls=FEW).value.sel(metric="logprob")
    same, other = ("vanilla", "base") if component == "attn" else ("base", "vanilla")
    assert np.array_equal(value.sel(recipe="TAIA"), value.sel(recipe=same))
    assert np.array_equal(value.sel(recipe="TAIF"), value.sel(recipe=other))
    assert not np.allclose(value.sel(recipe="base"), value.sel(recipe="vanilla"), atol=1e-3)


def test_norms_that_differ_must_be_said(llama: Pair, suite: Suite) -> None:
    with pytest.raises(RecipeError, match="7 tensors of norms differ in this pair"):
        compare(llama, suite)


def test_a_rival_is_scored_and_must_share_the_base(lora: Pair, llama: Pair, suite: Suite, tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    toa = load_pair(base, tuned_in(base, ("attn",), seed=9), tokenizer=tokenizer)
    result = compare(lora, suite, metrics=["logprob"], controls=FEW, rivals={"TOA": toa})
    alone = compare(toa, suite, metrics=["logprob"], controls=FEW)
    assert np.array_equal(result.value.sel(recipe="TOA"), alone.value.sel(recipe="vanilla"))
    assert result.role.sel(recipe="TOA") == "rival" and "TOA" in summaries.sentences(summaries.grid_summary(result))[0]
    stranger = load_pair(make("llama", 5), make("llama", 6), tokenizer=tokenizer)
    with pytest.raises(PairError, match="TOA's base is another model"):
        compare(lora, suite, rivals={"TOA": stranger})


def test_what_does_not_fit_is_refused(lora: Pair, suite: Suite) -> None:
    with pytest.raises(TaiaLensError, match="no metric 'bleu'; there are accuracy"):
        compare(lora, suite, metrics=["bleu"])
    with pytest.raises(TaiaLensError, match="none of exact_match fits the suite words, whose task is next; write one of accuracy"):
        compare(lora, suite, metrics=["exact_match"])
    with pytest.raises(TaiaLensError, match="two suites are called 'words'"):
        compare(lora, [suite, suite])
    with pytest.raises(RecipeError, match=r"'patch L1.mlp <- tuned' puts an activation; here weights are grafted"):
        compare(lora, suite, recipes={"p": parse_recipe("base; patch L1.mlp <- tuned")}, controls=FEW)
    with pytest.raises(RecipeError, match="two recipes are called 'TAIA'"):
        compare(lora, suite, recipes={"TAIA": Recipe("base")})
    with pytest.raises(TaiaLensError, match="keep between 0 and 1"):
        Controls(keep=1.5)


def counted(store: CellStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is put into stores from now on."""
    put, seen = CellStore.put, []

    def spy(self: CellStore, what: Any, cell: Any) -> None:
        seen.append(what["recipe"])
        put(self, what, cell)

    monkeypatch.setattr(CellStore, "put", spy)
    return seen


def test_a_study_that_was_stopped_computes_only_what_is_missing(
    lora: Pair, suite: Suite, found: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "cells.sqlite") as store:
        seen = counted(store, monkeypatch)
        compare(lora, suite, metrics=["logprob", "accuracy"], controls=Controls(seeds=0, scales=()), store=store)
        assert len(seen) == 4
        again = compare(lora, suite, metrics=["logprob", "accuracy"], controls=FEW, store=store)
        assert len(seen) == again.sizes["recipe"] > 4
        last = compare(lora, suite, metrics=["logprob", "accuracy"], controls=FEW, store=store)
        assert len(seen) == again.sizes["recipe"]
    xr.testing.assert_identical(again.drop_attrs(), last.drop_attrs())
    np.testing.assert_array_equal(last.value, found.value)


def test_a_cell_of_another_model_never_answers(
    lora: Pair, suite: Suite, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make("llama", 0)
    tuned = tuned_in(base, ("attn", "mlp"))
    tuned.model.layers[1].mlp.down_proj.weight.data[0, 0] += 0.5  # one number of one tensor
    other = load_pair(base, tuned, tokenizer=tokenizer)
    with open_store(tmp_path / "cells.sqlite") as store:
        compare(lora, suite, metrics=["logprob"], controls=FEW, store=store)
        seen = counted(store, monkeypatch)
        result = compare(other, suite, metrics=["logprob"], controls=FEW, store=store)
    assert "base" not in seen and {"tuned", "base; graft mlp <- tuned"} <= set(seen)  # base is the same model, and is found
    fresh = compare(other, suite, metrics=["logprob"], controls=FEW)
    assert np.array_equal(result.value, fresh.value)


def synthetic(means: dict[str, float], n: int = 400, better: int = 1) -> xr.Dataset:
    """A result whose recipes have these accuracies, drawn per example."""
    rng = np.random.default_rng(0)
    value = np.stack([(rng.random(n) < mean).astype(float) for mean in means.values()])[None]
    roles = [
        "end" if n in ("base", "vanilla") else "named" if n in ("TAIA", "TAIF") else "rival" if n == "TOA" else "control" for n in means
    ]
    coords = {
        "metric": ["accuracy"],
        "unit": ("metric", ["fraction"]),
        "better": ("metric", [better]),
        "recipe": list(means),
        "role": ("recipe", roles),
        "text": ("recipe", list(means)),
        "example": list(range(n)),
        "suite": ("example", ["made"] * n),
        "domain": ("example", ["ood"] * n),
    }
    attrs = {"seed": 0, "coalitions": {"": "base", "attn": "TAIA", "mlp": "TAIF", "attn+mlp": "vanilla"}}
    return xr.Dataset({"value": (("metric", "recipe", "example"), value)}, coords, attrs)


def test_a_suite_on_which_nothing_differs_says_so_and_one_that_is_another_is_named() -> None:
    result = synthetic(ENDS | {"DARE": 0.2})
    same = result.assign(value=0 * result.value)
    (sentence,) = summaries.sentences(summaries.grid_summary(same))
    assert sentence.endswith("every recipe gives the same value on every prompt, so this suite tells none of them apart.")
    result.value[:, 2] = result.value[:, 1]
    (sentence,) = summaries.sentences(summaries.grid_summary(result))
    assert "TAIA gives what vanilla gives on every prompt and beats base (+0." in sentence or "and is not told apart from base" in sentence


def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_scored(lora: Pair, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    from taia_lens.scoring import cells, many

    monkeypatch.setattr(many, "parts_of_recipes", None)
    monkeypatch.setattr(cells, "score", None)
    for text, message in (
        ("base; graft L0-9.attn <- tuned", "no layer 3, 4, 5, 6, 7"),
        ("base; graft L1.mlp.q <- tuned", "its mlp in layer 1 has"),
    ):
        with pytest.raises(TaiaLensError, match=message):
            compare(lora, suite, recipes={"mine": parse_recipe(text)})


ENDS = {"base": 0.1, "vanilla": 0.2, "TAIA": 0.7, "TAIF": 0.1}


@pytest.mark.parametrize(
    ("means", "better", "said"),
    [
        (ENDS | {"update x0.5": 0.3, "DARE": 0.2}, 1, ["TAIA beats vanilla (+0.", "beats base", "it beats every control (2 of 2)"]),
        (ENDS | {"update x0.5": 0.9, "DARE": 0.2}, 1, ["it beats 1 of 2 controls: update x0.5 beats it"]),
        (ENDS | {"update x0.5": 0.7, "DARE": 0.2}, 1, ["it beats 1 of 2 controls: it does not beat update x0.5"]),
        (ENDS | {"vanilla": 0.7}, 1, ["TAIA is not told apart from vanilla"]),
        (ENDS | {"vanilla": 0.9, "TOA": 0.9}, 1, ["TAIA is worse than vanilla (-0.", "TOA beats TAIA (+0."]),
        (ENDS, -1, ["TAIA is worse than vanilla (+0.", "is worse than base"]),
    ],
)
def test_the_sentence_says_what_the_numbers_support(means: dict[str, float], better: int, said: list[str]) -> None:
    (sentence,) = summaries.sentences(summaries.grid_summary(synthetic(means, better=better)))
    assert sentence.startswith("Out of distribution (made, accuracy, n = 400): TAIA")
    for part in said:
        assert part in sentence


def test_the_family_is_corrected_and_rates_have_exact_intervals() -> None:
    from scipy.stats import binomtest

    summary = summaries.grid_summary(synthetic(ENDS | {"TOA": 0.21}))
    assert (summary.q >= summary.p).where(summary.p.notnull(), True).all() and (summary.q > summary.p).any()
    cell = summary.sel(recipe="TAIA").isel(group=0)
    exact = binomtest(round(float(cell.value) * 400), 400).proportion_ci(method="exact")
    assert (float(cell.low), float(cell.high)) == pytest.approx((exact.low, exact.high))
    assert np.isnan(summary["diff"].sel(recipe="base", reference="base")).all()


def test_tables_and_figure_hold_the_numbers(found: xr.Dataset, tmp_path: Path) -> None:
    from rich.console import Console

    summary = summaries.grid_summary(found)
    shown = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    for table in tables.grid_tables(summary):
        shown.print(table)
    text = shown.export_text()
    assert "TAIA" in text and "what each part of the update adds" in text and "too few prompts" in text
    value = float(summary.value.sel(recipe="TAIA").isel(group=0))
    assert f"{value:.3f}" in text
    figure = plots.compare_figure(summary)
    assert {value} <= {x for trace in figure.data for x in trace.x}
    records = tables.grid_records(summary)
    assert len(records) == summary.sizes["group"] * summary.sizes["recipe"] and records[2]["recipe"] == "TAIA"
    results.save(found, tmp_path / "grid.nc")
    xr.testing.assert_identical(summaries.grid_summary(results.load(tmp_path / "grid.nc")).drop_attrs(), summary.drop_attrs())


def test_the_same_prompts_under_two_domains_are_two_groups(lora: Pair) -> None:
    rows = [{"prompt": f"w{i} w{i + 1}", "answer": f" w{i + 2}", "domain": d, "id": f"{d}{i}"} for i in range(6) for d in ("id", "ood")]
    summary = summaries.grid_summary(compare(lora, make_suite("both", rows), metrics=["logprob"], controls=FEW))
    assert summary.domain.values.tolist() == ["id", "ood"] and summary.n.values.tolist() == [6, 6]
    assert np.array_equal(summary.value.isel(group=0), summary.value.isel(group=1))
    assert str(taia(norms="base", embed="base")) in summary.text.values
