"""The paper's experiment: its settings, its splits, its summary, and all steps from end to end on a small real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from tqdm.auto import tqdm

from taia_lens import lofit_paper, results, summaries, tables
from taia_lens.errors import SuiteError, TaiaLensError
from taia_lens.loading import load_one
from taia_lens.lofit_paper import folds, protocol
from taia_lens.lofit_paper.protocol import MODELS, PUBLISHED
from taia_lens.scales import load_scales
from taia_lens.scoring import prepare_suite, score_many_scales

Run = Callable[..., tuple[int, str, str]]
HEADER = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
ROW = "A,B,Why {}?,Because,Because; Since,Never; Always; Often,http\n"


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """Two folds under the names that the paper's own repository gives them."""
    for fold in (0, 1):
        for split, n in (("train", 6), ("val", 3), ("test", 4)):
            rows = "".join(ROW.format(f"{fold}{split}{i}") for i in range(n))
            (tmp_path / f"fold_{fold}_{split}_seed_42.csv").write_text(HEADER + rows)
    return tmp_path


# Settings


@pytest.mark.parametrize(("name", "task"), PUBLISHED)
def test_a_model_of_the_paper_is_known_by_its_shape_and_gets_its_own_settings(name: str, task: str) -> None:
    n = 13_000_000_000 if name == "Llama-2-13B" else 7_000_000_000
    found, row = protocol(task, MODELS[name], n), PUBLISHED[name, task]
    assert (found.selecting.lr, found.selecting.l1, found.tuning.lr, found.k) == (row.select_lr, row.l1, row.tune_lr, row.heads)
    assert found.source == f"the paper's for {name}" and found.tuning.l1 == 0
    assert (found.tuning.epochs, found.tuning.batch_size, found.tuning.seed, found.tuning.weight_decay) == (5, 8, 42, 0.01)
    assert (found.tuning.loss, found.tuning.beta) == (("dpo", 0.5) if task == "truthfulqa" else ("ce", 0.5))


def test_another_model_gets_those_of_the_nearest_and_says_so() -> None:
    small, large = protocol("mquake", (12, 12, 64), 10**8), protocol("mquake", (80, 64, 128), 7 * 10**10)
    assert (small.selecting.lr, small.k) == (5e-3, 4) and "the nearest by size" in small.source and "Llama-2-7B" in small.source
    assert (large.selecting.lr, large.k) == (1e-3, 154) and "Llama-2-13B" in large.source


def test_what_is_said_otherwise_is_used_and_recorded() -> None:
    found = protocol("clutrr", MODELS["Gemma-7B"], 8 * 10**9, k="10%", select_lr=0.1, l1=0.2, tune_lr=0.3, epochs=2, batch_size=4)
    assert (found.selecting.lr, found.selecting.l1, found.tuning.lr, found.k) == (0.1, 0.2, 0.3, 45)
    assert (found.selecting.epochs, found.tuning.batch_size) == (2, 4)
    assert found.source == "the paper's for Gemma-7B; but epochs 2, batch_size 4, k 10%, select_lr 0.1, l1 0.2, tune_lr 0.3"


# Splits


def test_a_fold_is_its_own_files_with_one_pair_a_question(splits: Path) -> None:
    first, second = folds("truthfulqa", splits)
    assert (first.name, second.name) == ("fold0", "fold1")
    assert (len(first.train), len(first.validation), [len(t.suite) for t in first.tests]) == (6, 3, [4, 4])
    assert [(t.name, t.metric) for t in first.tests] == [("MC1", "choice_accuracy"), ("MC2", "mc2")]
    row = first.train.rows[0]
    assert row.prompt == "Q: Why 0train0?\nA:" and row.answer == " Because." and set(row.choices) == {" Because.", " Never."}
    assert len(first.tests[0].suite.rows[0].choices) == 4 and len(first.tests[1].suite.rows[0].labels) == 2
    assert second.train.rows[0].prompt == "Q: Why 1train0?\nA:"
    (every,) = folds("truthfulqa", splits, which=[1], pairs="all")
    assert every.name == "fold1" and set(every.train.rows[0].choices) == {" Because.", " Never.", " Always.", " Often."}


def test_folds_that_are_not_there_are_refused(splits: Path) -> None:
    with pytest.raises(TaiaLensError, match="no fold 2; truthfulqa has 0, 1"):
        folds("truthfulqa", splits, which=[2])
    with pytest.raises(TaiaLensError, match="no task 'gsm8k' of the paper; there are truthfulqa, mquake, clutrr"):
        folds("gsm8k", splits)
    with pytest.raises(TaiaLensError, match="mquake has one split and no folds"):
        folds("mquake", splits, which=[0])
    (splits / "fold_1_val_seed_42.csv").unlink()
    assert folds("truthfulqa", splits, which=[0])
    with pytest.raises(SuiteError, match=r"no val split of truthfulqa in .*no lofit_fold1_val\.csv or fold_1_val_seed_42\.csv; give"):
        folds("truthfulqa", splits)


def test_the_real_splits_are_read_and_clutrr_draws_300_by_seed(shared: Path) -> None:
    sizes = {"truthfulqa": [(162, 34, 212), (175, 37, 196)], "mquake": [(67, 42, 465)], "clutrr": [(1577, 219, 230)]}
    for task, expected in sizes.items():
        # Some rows of MC2's tables cannot be used (an answer both right and wrong); no split may lose more than a few.
        found = folds(task, shared / "data")
        for fold, wanted in zip(found, expected, strict=True):
            got = (len(fold.train), len(fold.validation), len(fold.tests[0].suite))
            assert all(w - 8 <= g <= w for g, w in zip(got, wanted, strict=True)), (task, got)
    drawn = [folds("clutrr", shared / "data")[0].training(seed) for seed in (42, 42, 43)]
    assert [len(d) for d in drawn] == [300] * 3 and drawn[0] == drawn[1] != drawn[2]


# Summary


def made(fold_sizes: tuple[int, int], base: tuple[float, float], gain: float) -> xr.Dataset:
    """A result whose folds have given means under MC1, and whose lofit arm is better by a gain in every question but MC2's NaN."""
    n = sum(fold_sizes)
    rng = np.random.default_rng(0)
    own = np.concatenate([np.full(size, level) + rng.normal(0, 0.1, size) for size, level in zip(fold_sizes, base, strict=True)])
    arms = np.stack([np.stack([own + gain, own + gain + 0.02]), np.stack([own, own])])
    value, whole = np.stack([arms, arms], axis=2), np.stack([own, own])
    value[:, :, 1, 0] = whole[1, 0] = np.nan
    coords = {
        "arm": ["lofit", "random"],
        "seed": [42, 43],
        "fold": ["fold0", "fold1"],
        "metric": ["MC1", "MC2"],
        "unit": ("metric", ["fraction", "probability"]),
        "better": ("metric", [1, 1]),
        "example": [str(i) for i in range(n)],
        "of_fold": ("example", ["fold0"] * fold_sizes[0] + ["fold1"] * fold_sizes[1]),
    }
    data = {"base": (("metric", "example"), whole), "value": (("arm", "seed", "metric", "example"), value), "numbers": ("arm", [64, 64])}
    source = {"source": "made", "selecting": {"lr": 1, "l1": 0}, "tuning": {"lr": 1, "loss": "dpo"}, "k": 2}
    return xr.Dataset(data, coords, {"seed": 0, "task": "made", "protocol": source, "folds": {}})


def test_the_mean_of_folds_is_the_mean_of_their_means() -> None:
    result = made((150, 50), (0.2, 0.8), 0.1)
    summary = summaries.lofit_paper_summary(result).sel(metric="MC1")
    by_fold = [float(result.base.sel(metric="MC1").isel(example=slice(*ends)).mean()) for ends in ((0, 150), (150, 200))]
    at = summary.sel({"where": "mean", "line": "base"})
    assert float(at.value) == pytest.approx(sum(by_fold) / 2)
    # Positive control: the mean over all questions is another number, far outside of the interval.
    assert float(result.base.sel(metric="MC1").mean()) < float(at.low) < float(at.value) < float(at.high)
    gain = summary.sel({"where": "mean", "line": "lofit", "reference": "base"})
    assert float(gain["diff"]) == pytest.approx(0.11) and float(gain.q) < 0.01
    assert float(summary.sel({"where": "fold1", "line": "lofit"}).spread) == pytest.approx(0.02 / 2**0.5)
    assert np.isnan(float(summary.sel({"where": "mean", "line": "random", "reference": "random"})["diff"]))
    assert np.isnan(float(summary.sel({"where": "mean", "line": "random", "reference": "base"}).p))  # one and the same everywhere


def test_a_question_that_a_metric_is_not_of_does_not_count() -> None:
    summary = summaries.lofit_paper_summary(made((30, 20), (0.2, 0.8), 0.1))
    assert summary.n.sel({"where": "mean", "line": "base"}).values.tolist() == [50, 49]
    assert bool(summary.value.notnull().all())
    (first, second), note = tables.lofit_paper_tables(summary), tables.lofit_paper_note(summary)
    assert first.row_count == second.row_count == 9 and "made: step 1 lr 1" in note
    records = tables.lofit_paper_records(summary)
    assert len(records) == 18 and json.dumps(records, allow_nan=False)


# From end to end


@pytest.mark.slow
def test_truthfulqa_from_end_to_end(run: Run, shared: Path) -> None:
    model, data = str(shared / "models/stories260K"), str(shared / "data/truthfulqa")
    command = ["lofit", "paper", "truthfulqa", "--model", model, "--data", data, "--limit", "5", "--epochs", "1", "--tune-lr", "0.5"]
    command += ["--seeds", "42,43", "--control", "random", "--k", "4", "--json", "--store", "cells.sqlite"]
    code, out, err = run(*command, "--out", "one")
    assert code == 0, err
    assert "truthfulqa: MC1 (fraction)" in err and "truthfulqa: MC2 (probability)" in err and "the nearest by size" in err
    folder = Path("one")
    names = {f"fold{fold}-seed{seed}" for fold in (0, 1) for seed in (42, 43)}
    assert {p.name for p in folder.iterdir()} == names | {"result.nc", "meta.json", "table.txt"}
    for name in names:
        assert {p.name for p in (folder / name).iterdir()} == {"selection.nc", "lofit", "random"}
    result, meta = results.load(folder), json.loads((folder / "meta.json").read_text())
    assert meta["folds"]["fold0"]["tests"][0]["made"]["source"] == "lofit_fold0_test.csv" and meta["protocol"]["tuning"]["loss"] == "dpo"
    records = {(r["where"], r["metric"], r["heads"]): r for r in json.loads(out)["results"]}
    both = [records[f"fold{i}", "MC2", "lofit"]["value"] for i in (0, 1)]
    assert records["mean", "MC2", "lofit"]["value"] == pytest.approx(sum(both) / 2)
    # Offsets do something, and other heads or seeds do something else: no folder holds another's numbers.
    mc2 = result.value.sel(metric="MC2")
    assert abs(mc2 - result.base.sel(metric="MC2")).max() > 1e-4
    kept = [load_scales(folder / name / arm).key for name in sorted(names) for arm in ("lofit", "random")]
    assert len(set(kept)) == 8
    check_adapter(result, folder, shared)
    # The same again: nothing is trained or scored, and every bit is the same.
    code, again, err = run(*command, "--out", "two")
    assert code == 0 and "cells.sqlite: 0 new cells" in err
    assert results.load("two").equals(result) and json.loads(again)["results"] == json.loads(out)["results"]


def check_adapter(result: xr.Dataset, folder: Path, shared: Path) -> None:
    """A kept adapter, applied to a fresh model, gives the values that the result holds under its name."""
    model = load_one(shared / "models/stories260K")
    fold = folds("truthfulqa", shared / "data", which=[1], limit=5)[0]
    prepared = [prepare_suite(model, fold.tests[1].suite, ("mc2",), 32)]
    rows = result.of_fold.values == "fold1"
    for arm in ("lofit", "random"):
        scales = load_scales(folder / "fold1-seed43" / arm)
        ((found,),) = score_many_scales(model, [scales], prepared, store=None, bar=tqdm(disable=True))
        held = result.value.sel(arm=arm, seed=43, metric="MC2").values[rows]
        assert np.allclose(found.values[0], held, atol=1e-6)
        assert result.heads.sel(arm=arm, seed=43, fold="fold1").values.tolist() == [str(site) for site in scales.sites]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mquake", "clutrr"])
def test_generated_answers_from_end_to_end(shared: Path, task: str) -> None:
    model = load_one(shared / "models/stories260K")
    (fold,) = folds(task, shared / "data", limit=3)
    how = protocol(task, (5, 8, 8), 260_000, epochs=1, tune_lr=1.0, k=8)
    found = lofit_paper.run(model, [fold], how, controls=["bottom"], batch_size=8)
    result = found.result
    assert result.value.dims == ("arm", "seed", "metric", "example") and result.sizes["example"] == 3
    assert set(found.scales) == {"all-seed42/lofit", "all-seed42/bottom"} and set(found.selections) == {"all-seed42"}
    norm = found.selections["all-seed42"]["norm"]
    most, least = (np.unravel_index(i, norm.shape) for i in (norm.values.argmax(), norm.values.argmin()))
    first = [result.heads.sel(arm=arm).values.ravel()[0] for arm in ("lofit", "bottom")]
    assert first == [f"L{most[0]}.h{most[1]}", f"L{least[0]}.h{least[1]}"]
    assert (result.text.sel(arm="lofit") != result.base_text).any()  # what is written is kept, and the offsets change it
    assert summaries.lofit_paper_summary(result)["where"].values.tolist() == ["all"]


REFUSED = {
    "no such task": (["gsm8k"], "no task 'gsm8k' of the paper"),
    "no such folder": (["mquake", "--data", "nowhere"], "no train split of mquake in nowhere"),
    "no such control": (["truthfulqa", "--control", "worst"], "no control 'worst'; there are random, bottom"),
    "the same seed twice": (["truthfulqa", "--seeds", "1,1"], "write distinct numbers from 0"),
    "no whole seed": (["truthfulqa", "--seeds", "1.5"], "cannot read --seeds '1.5'"),
    "more heads than there are": (["truthfulqa", "--k", "41"], "41 heads were asked for, and this model has 40"),
    "no such pairs": (["truthfulqa", "--pairs", "both"], "no pairs 'both'; there are one, all"),
    "pairs of what has none": (["mquake", "--pairs", "all"], "mquake is learnt by cross-entropy and has no pairs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_line(run: Run, shared: Path, splits: Path, case: str) -> None:
    options, message = REFUSED[case]
    data = [] if "--data" in options else ["--data", str(shared / "data/mquake" if options[0] == "mquake" else splits)]
    code, out, err = run("lofit", "paper", *options, *data, "--model", str(shared / "models/stories260K"), "--no-store")
    assert (code, out) == (2, "") and message in err, err
    assert len(err.strip().splitlines()) == 1
