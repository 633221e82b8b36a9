"""Drift is what its definitions say, of the models it says; CKA's interval covers; nothing depends on padding or batches."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from architectures import make, tuned_from, tuned_in_attention_only
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from taia_lens import plots, results, summaries, tables
from taia_lens.batch import Batch
from taia_lens.engine import applied, run_plain
from taia_lens.errors import RecipeError, SuiteError, TaiaLensError
from taia_lens.loading import load_pair
from taia_lens.pair import Pair
from taia_lens.recipe import taia
from taia_lens.store import open_store
from taia_lens.studies.drift import cka_interval, drift, linear_cka, residual_measure
from taia_lens.suite import Suite, Task, make_suite

Run = Callable[..., tuple[int, str, str]]
LAST = "blocks.2.hook_resid_post"


def hsic(x: np.ndarray, y: np.ndarray) -> float:
    """By the definition: the squared norm of the covariance between two sets of features."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.square(x.T @ y).sum())


def test_cka_is_its_definition_and_does_not_see_rotation_scale_or_shift() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 7)), rng.normal(size=(40, 5))
    assert linear_cka(x, y) == pytest.approx(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)))
    assert linear_cka(x, x) == pytest.approx(1)
    turned = 3.7 * x @ np.linalg.qr(rng.normal(size=(7, 7))).Q + rng.normal(size=7) * 100
    assert linear_cka(x, turned) == pytest.approx(1)
    assert linear_cka(x, x * np.arange(1, 8)) < 0.95  # a control: stretching some directions is seen
    assert linear_cka(x, x[rng.permutation(40)]) < 0.5


def test_cka_of_independent_noise_is_what_so_few_examples_give() -> None:
    rng = np.random.default_rng(0)
    for n, d in ((50, 20), (200, 20), (50, 100)):
        found = [linear_cka(rng.normal(size=(n, d)), rng.normal(size=(n, d))) for _ in range(40)]
        # E|X'Y|^2 = (n-1) d^2 and E|X'X|^2 = (n-1) d (n + d) for centred normal X: their ratio, to leading order.
        assert np.mean(found) == pytest.approx(d / (n + d), rel=0.03), (n, d)


def grams(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x @ x.T, y @ y.T


def test_the_chance_level_is_the_mean_over_shuffles() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 12)) * np.arange(1, 13)
    y = x[:, :9] + rng.normal(size=(30, 9))
    value, low, high, chance = cka_interval(*grams(x, y), seed=0)
    shuffled = [linear_cka(x, y[rng.permutation(30)]) for _ in range(2000)]
    assert chance == pytest.approx(np.mean(shuffled), abs=3 * np.std(shuffled) / 2000**0.5)
    assert value == pytest.approx(linear_cka(x, y)) and chance < low < value < high < 1


def test_ckas_interval_covers_and_stays_between_0_and_1() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    for noise in (0.1, 2.0):
        draws = [(x, x @ mix + noise * rng.normal(size=(60, 6))) for x in (rng.normal(size=(60, 6)) for _ in range(300))]
        found = np.array([cka_interval(*grams(x, y), seed=0) for x, y in draws])
        truth = found[:, 0].mean()
        covered = (found[:, 1] <= truth) & (truth <= found[:, 2])
        assert 0.91 <= covered.mean() <= 0.99  # 300 trials: two standard errors are 2.5%
        narrow = np.abs(found[:, 0] - truth) < (found[:, 2] - found[:, 1]) / 8
        assert narrow.mean() < 0.6  # a control: a quarter of the width
        assert (found[:, 1] > 0).all() and (found[:, 2] < 1).all()
    x = rng.normal(size=(30, 4))
    assert cka_interval(*grams(x, x), seed=0)[:3] == pytest.approx((1, 1, 1))
    assert np.isnan(cka_interval(*grams(x[:3], x[:3]), seed=0)[1:3]).all()
    assert np.isnan(cka_interval(*grams(x, np.ones((30, 2))), seed=0)).all()


def test_the_residual_measure_is_0_for_equal_rows_and_worked_out_by_hand_for_others() -> None:
    mask = torch.tensor([[True, True, False]])
    equal = torch.tensor([[[1.0, -2.0, 4.0], [1.0, -2.0, 4.0], [9.0, 9.0, 9.0]]])
    assert residual_measure(equal, mask).tolist() == [0.0]
    assert residual_measure(equal, torch.ones_like(mask)).item() > 0.3  # a control: the third row counts where it is no padding
    rows = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    # res = [[-1, -2], [1, 2]]: columns 2 and 4, rows 3; X: columns 4 and 4, rows 1 and 7.
    want = (4 * 3 / (4 * 7)) ** 0.5
    assert residual_measure(rows, torch.ones(1, 2, dtype=torch.bool)).item() == pytest.approx(want)
    assert residual_measure(1000 * rows, torch.ones(1, 2, dtype=torch.bool)).item() == pytest.approx(want)


def activations(model: object, batch: Batch, layer: int) -> torch.Tensor:
    hook = f"blocks.{layer}.hook_resid_post"
    return run_plain(model, batch, [hook]).acts[hook]


@pytest.fixture(scope="module")
def found(llama: Pair, suite: Suite) -> xr.Dataset:
    return drift(llama, suite, norms="tuned", embed="tuned", batch_size=3)


def test_it_measures_the_models_it_names(found: xr.Dataset, llama: Pair, suite: Suite, batch: Batch) -> None:
    live = {"base": llama.base, "vanilla": llama.tuned}
    with applied(llama, taia(norms="tuned", embed="tuned")) as model:
        acts = {"taia": [activations(model, batch, layer) for layer in range(3)]}
    acts |= {name: [activations(model, batch, layer) for layer in range(3)] for name, model in live.items()}
    rows = list(batch.rows)
    for name, by_layer in acts.items():
        for layer, act in enumerate(by_layer):
            want = residual_measure(act, batch.mask).numpy()
            np.testing.assert_allclose(found.residual.sel(recipe=name, layer=layer).values[rows], want, rtol=1e-4)
    ood = [i for i, row in enumerate(rows) if suite.rows[row].domain == "ood"]
    vectors = {name: by_layer[2][torch.arange(len(rows)), batch.last][ood].numpy() for name, by_layer in acts.items()}
    for comparison in found.comparison.values.tolist():
        a, b = comparison.split("-")
        got = found.cka.sel(comparison=comparison, group="words|ood", layer=2)
        assert float(got) == pytest.approx(linear_cka(vectors[a], vectors[b]), abs=1e-5)
    assert found.n.values.tolist() == [7, 4] and found.attrs["taia"].startswith("base; graft attn <- tuned")


def test_neither_batches_nor_padding_change_anything(found: xr.Dataset, llama: Pair, suite: Suite) -> None:
    again = drift(llama, suite, norms="tuned", embed="tuned", batch_size=50)
    for name in ("residual", "cka", "cka_low"):
        np.testing.assert_allclose(again[name].values, found[name].values, atol=2e-5)


def test_where_only_attention_was_tuned_taia_is_vanilla(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    result = drift(load_pair(base, tuned_in_attention_only(base, 1), tokenizer=tokenizer), suite)
    np.testing.assert_allclose(result.cka.sel(comparison="vanilla-taia"), 1, atol=1e-9)
    assert (result.cka.sel(comparison="base-vanilla") < 0.999).all()
    summary = summaries.drift_summary(result)
    assert (summary.change == 0).all() and summary.change_q.isnull().all()  # no change is no finding
    other = drift(load_pair(base, tuned_from(base, 1, "mlp"), tokenizer=tokenizer), suite)
    np.testing.assert_allclose(other.cka.sel(comparison="base-taia"), 1, atol=1e-9)  # and where only FFNs were, it is base


def test_layers_below_the_first_change_do_not_drift(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    result = drift(load_pair(base, tuned_from(base, 1, "layers.1.self_attn"), tokenizer=tokenizer), suite)
    cka = result.cka.sel(comparison="base-vanilla")
    np.testing.assert_allclose(cka.sel(layer=0), 1, atol=1e-9)
    assert (cka.sel(layer=[1, 2]) < 0.9999).all()


def test_suites_of_any_task_will_do_and_several_at_once(llama: Pair, suite: Suite) -> None:
    texts = make_suite("texts", [{"prompt": f"w{i} w{i + 1} w3 w{2 * i}", "domain": "ood"} for i in range(6)], task=Task(kind="text"))
    both = drift(llama, [suite, texts], norms="base", embed="base")
    assert both.group.values.tolist() == ["words|id", "words|ood", "texts|ood"] and both.residual.shape == (3, 3, 17)
    alone = drift(llama, texts, norms="base", embed="base")
    np.testing.assert_allclose(both.cka.sel(group="texts|ood"), alone.cka.sel(group="texts|ood"), atol=1e-6)
    np.testing.assert_allclose(both.residual.isel(example=slice(11, None)), alone.residual, atol=1e-6)


def test_wrong_input_is_an_error_in_words(llama: Pair, suite: Suite) -> None:
    with pytest.raises(RecipeError, match="--norms base"):
        drift(llama, suite)
    with pytest.raises(TaiaLensError, match="the seed is -1"):
        drift(llama, suite, norms="base", embed="base", seed=-1)
    with pytest.raises(SuiteError, match="batch size of 0"):
        drift(llama, suite, norms="base", embed="base", batch_size=0)
    long = Suite("long", (replace(suite.rows[0], prompt="w1 " * 100),))
    with pytest.raises(SuiteError, match="row row-0: 100 tokens, and the model has 64 positions"):
        drift(llama, long, norms="base", embed="base")


def test_the_summary_holds_means_intervals_and_adjusted_p(found: xr.Dataset) -> None:
    summary = summaries.drift_summary(found)
    own = found.residual.isel(example=np.flatnonzero(found.domain.values == "id"))
    np.testing.assert_allclose(summary.residual.isel(group=0), own.mean("example"))
    change = (own.sel(recipe="taia") - own.sel(recipe="vanilla")).mean("example")
    np.testing.assert_allclose(summary.change.isel(group=0), change)
    assert (summary.change_low <= summary.change).all() and (summary.change <= summary.change_high).all()
    assert (summary.change_q >= summary.change_p).all() and not np.allclose(summary.change_q, summary.change_p)
    assert summary.domain.values.tolist() == ["id", "ood"] and summary.attrs == found.attrs


def test_it_is_drawn_and_tabled_and_comes_back_from_disk(found: xr.Dataset, tmp_path: Path) -> None:
    results.save(found, tmp_path / "d.nc")
    loaded = results.load(tmp_path / "d.nc")
    xr.testing.assert_identical(loaded, found)
    summary = summaries.drift_summary(loaded)
    figure = plots.drift_figure(summary)
    names = [trace.name for trace in figure.data if trace.showlegend is not False]
    cka = [f"CKA {what}" for what in ("base and vanilla", "base and TAIA", "vanilla and TAIA")]
    assert names == [*cka, "res(X) base", "res(X) vanilla", "res(X) TAIA", "CKA prompts shuffled"]
    console = Console(width=80, file=io.StringIO())
    for table in tables.drift_tables(summary):
        console.print(table)
    text = console.file.getvalue()
    assert "too few prompts" in text and "…" not in text and text.count("linear CKA") == 2
    records = tables.drift_records(summary)
    assert len(records) == 6 and records[0]["comparison"]["base-taia"]["cka"] == float(summary.cka[1, 0, 0])
    json.dumps(records, allow_nan=False)
    assert "would be 0." in tables.drift_note(summary)


def test_a_suites_name_is_text_and_not_markup(llama: Pair, suite: Suite) -> None:
    summary = summaries.drift_summary(drift(llama, Suite("<b>[red]x", suite.rows), norms="base", embed="base"))
    assert "&lt;b&gt;[red]x" in plots.drift_figure(summary).layout.title.subtitle.text
    console = Console(width=100, file=io.StringIO())
    console.print(tables.drift_tables(summary)[0])
    assert "<b>[red]x" in console.file.getvalue()


def test_the_command_prints_tables_and_writes_a_run_folder(run: Run) -> None:
    code, out, err = run("drift", "--limit", "8", "--out", "here")
    assert (code, out.strip()) == (0, "here") and "out of distribution" in err and "prompts of one side shuffled" in err
    assert sorted(p.name for p in Path("here").iterdir()) == ["figure.html", "meta.json", "result.nc"]
    meta = json.loads(Path("here/meta.json").read_text())
    assert meta["limit"] == 8 and meta["suites"][0]["rows"] == {"id": 8, "ood": 8}
    assert run("drift", "--norms", "mine")[0] == 2


def test_a_run_that_was_stopped_goes_on_where_it_stopped(
    llama: Pair, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taia_lens.studies import drift as study

    sides = {"norms": "base", "embed": "base"}
    whole, calls = study.run_plain, list[int]()

    def counting(model: object, batch: Batch, hooks: object = ()) -> object:
        calls.append(len(batch.rows))
        return whole(model, batch, hooks)

    monkeypatch.setattr(study, "run_plain", counting)
    fresh = study.drift(llama, suite, batch_size=4, **sides)
    assert len(calls) == 3 * 3
    with open_store(tmp_path / "cells.sqlite") as store:
        first = study.drift(llama, suite, batch_size=4, store=store, **sides)
        with store.connection:  # as if it had been stopped before this one
            store.connection.execute("DELETE FROM cells WHERE rowid IN (SELECT max(rowid) FROM cells)")
        calls.clear()
        again = study.drift(llama, suite, batch_size=4, store=store, **sides)
        assert len(calls) == 1
    for found in (first, again):
        np.testing.assert_array_equal(found.residual, fresh.residual)
        np.testing.assert_array_equal(found.cka, fresh.cka)
