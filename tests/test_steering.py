"""Steering by directions: what is added, how its strength is chosen, what it is held against, and what a user sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from architectures import make, make_tokenizer
from tqdm.auto import tqdm

from taia_lens import plots, results, summaries, tables
from taia_lens.errors import PairError, SiteError, SuiteError, TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.pair import Pair
from taia_lens.rankers import Options, directions, iti_scales, repe_directions
from taia_lens.scales import Scales, save_scales
from taia_lens.scoring import prepare_suite, score_many_scales
from taia_lens.sites import Site
from taia_lens.store import open_store
from taia_lens.studies import steering
from taia_lens.studies.steering import steer
from taia_lens.suite import Suite, make_suite, save_suite

Run = Callable[..., tuple[int, str, str]]


def rows(name: str, start: int, n: int) -> Suite:
    """Questions with a right and two wrong answers; every third one is out of distribution."""
    made = [
        {
            "prompt": f"w{i % 50} w{(3 * i) % 50} w{(i + 7 * (i // 50)) % 50}",
            "choices": [f" w{(5 * i) % 19 + 20}", f" w{(7 * i) % 19}", f" w{(11 * i) % 19 + 40}"],
            "label": 0,
            "domain": "id" if i % 3 else "ood",
        }
        for i in range(start, start + n)
    ]
    return make_suite(name, made)


TRAIN, TEST = rows("lessons", 0, 45), rows("questions", 100, 24)


@pytest.fixture(scope="session")
def base(llama: Pair) -> Loaded:
    return llama.loaded("base")


def scored(model: Loaded, scales: Scales | None, suite: Suite, metric: str) -> np.ndarray:
    prepared = prepare_suite(model, suite, (metric,), 64)
    return score_many_scales(model, [scales], [prepared], store=None, bar=tqdm(disable=True))[0][0].values[0]


# What is added


def test_each_strength_is_the_direction_times_alpha_and_alpha_0_is_the_model(base: Loaded) -> None:
    heads = (Site("head", 1, 2), Site("head", 2, 0))
    result = steer(base, TRAIN, TEST, validation=rows("held", 200, 12), heads=heads, alphas=(2.0, 8.0), metrics=["logprob"], controls=1)
    assert result.value.dims == ("direction", "alpha", "metric", "example") and result.alpha.values.tolist() == [0, 2, 8]
    assert result.direction.values.tolist() == ["iti", "random 0"] and result.numbers.values.tolist() == [16, 16]
    untouched = scored(base, None, TEST, "logprob")
    assert (result.value.sel(alpha=0).values == untouched).all()
    found = directions(base, TRAIN, "probe", options=Options(seed=0))
    for alpha in (2.0, 8.0):
        expected = scored(base, iti_scales(found, heads, alpha), TEST, "logprob")
        assert np.allclose(result.value.sel(direction="iti", alpha=alpha).values, expected, atol=1e-5)
        assert abs(expected - untouched).max() > 1e-3  # it does something
    assert abs(result.value.sel(direction="random 0") - result.value.sel(direction="iti")).sel(alpha=8).max() > 1e-3


def test_repe_is_standard_deviations_along_its_direction_after_the_layers_named(base: Loaded) -> None:
    result = steer(base, TRAIN, TEST, validation=rows("held", 200, 12), method="repe-mean", layers="1", alphas=(3.0,), metrics=["logprob"])
    assert result.attrs["sites"] == "L1.resid" and result.sizes["direction"] == 4
    found = repe_directions(base, TRAIN, "mean")
    offset = 3.0 * found.sigma[1] * found.theta[[1]]
    by_hand = Scales((Site("resid", 1),), torch.zeros_like(offset), offset)
    assert np.allclose(result.value.sel(direction="repe-mean", alpha=3).values, scored(base, by_hand, TEST, "logprob"), atol=1e-5)
    every = steer(base, TRAIN, TEST, method="repe", alphas=(1.0,), controls=0)
    assert every.attrs["sites"] == "L0.resid L1.resid"  # of three layers: from 3 // 4 to below 9 // 4


def test_the_direction_is_held_against_random_ones_each_as_chosen(base: Loaded) -> None:
    result = steer(base, TRAIN, TEST, alphas=(2.0, 8.0), metrics=["logprob"], controls=2)
    summary = summaries.steering_summary(result)
    values = result.value.sel(metric="logprob").values
    at = [result.alpha.values.tolist().index(float(alpha)) for alpha in result.chosen.values]
    wanted = values[0, at[0]] - (values[1, at[1]] + values[2, at[2]]) / 2
    for i, domain in enumerate(summary.domain.values):
        assert float(summary.control_diff[i]) == pytest.approx(wanted[result.domain.values == domain].mean())
    assert tables.steering_note(summary).count("random directions, each as chosen") == summary.sizes["group"]
    assert "control_diff" not in summaries.steering_summary(steer(base, TRAIN, TEST, alphas=(2.0,), controls=0))


def test_random_directions_are_as_long_as_the_fitted_one_at_every_site() -> None:
    sites = (Site("head", 0, 1), Site("head", 2, 3))
    unit = Scales(sites, torch.zeros(2, 8), torch.stack([torch.full((8,), 0.5), torch.zeros(8)]))
    drawn = [steering._shuffled(unit, seed, number) for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0))]
    for scales in drawn:
        assert torch.allclose(scales.offset.norm(dim=1), unit.offset.norm(dim=1)) and scales.sites == sites
    assert torch.equal(drawn[0].offset, drawn[1].offset)
    assert len({scales.key for scales in drawn}) == 3


def test_the_heads_taken_are_those_that_the_probe_reads_best(base: Loaded) -> None:
    result = steer(base, TRAIN, TEST, validation=rows("held", 200, 12), k=2, alphas=(1.0,), controls=0)
    accuracy = directions(base, TRAIN, "probe", options=Options(seed=0)).accuracy
    taken = [accuracy[int(text[1]), int(text[-1])].item() for text in result.attrs["sites"].split()]
    assert taken == sorted(accuracy.flatten().tolist(), reverse=True)[:2]


# How alpha is chosen


def test_alpha_is_the_best_on_the_validation_rows_and_of_equal_ones_the_smallest() -> None:
    values = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert steering._best(values, (-1.0, 0.0, 5.0, 9.0), "accuracy") == 0.0
    assert steering._best(values[[0, 3, 1, 2]], (-1.0, 0.0, 5.0, 9.0), "accuracy") == 5.0
    assert steering._best(values, (-1.0, 0.0, 5.0, 9.0), "cross_entropy") == -1.0  # smaller is better there


def test_alpha_is_chosen_on_rows_that_nothing_else_sees(base: Loaded) -> None:
    result = steer(base, TRAIN, TEST, alphas=(2.0, 8.0), metrics=["logprob"], controls=0)
    fitted, judged = result.attrs["fitted_on"], result.attrs["validated_on"]
    assert (fitted["rows"], judged["rows"], judged["held_out_of_train"]) == (24, 6, True)  # of 30 in distribution
    held = set(result.row.values.tolist())
    own = [row for row in TRAIN.rows if row.domain == "id"]
    fit, judge = (make_suite("part", [_plain(row) for row in own if (row.id in held) == side]) for side in (False, True))
    again = steer(base, fit, TEST, validation=judge, alphas=(2.0, 8.0), metrics=["logprob"], controls=0)
    assert again.value.equals(result.value) and (again.validated.values == result.validated.values).all()
    best = result.validated.mean("row").isel(direction=0)
    assert float(result.chosen[0]) == float(best.alpha[int(best.argmax())])
    # Positive control: the test rows would have it otherwise, or choose by other numbers at least.
    assert not np.allclose(result.value.isel(direction=0, metric=0).mean("example"), best)


def _plain(row: object) -> dict:
    return {"prompt": row.prompt, "choices": list(row.choices), "label": 0, "domain": row.domain}  # type: ignore[attr-defined]


def test_what_is_reported_cannot_be_what_alpha_was_chosen_on(base: Loaded) -> None:
    with pytest.raises(SuiteError, match="alpha would be chosen on the rows of questions, which are reported"):
        steer(base, TRAIN, TEST, validation=replace(TEST, rows=tuple(replace(row, domain="id") for row in TEST.rows)))
    with pytest.raises(SuiteError, match="alpha would be chosen on 3 prompts of early that the direction is fitted on; give other rows"):
        steer(base, TRAIN, TEST, validation=rows("early", 1, 4), alphas=(1.0,), controls=0)
    noted = steer(base, TRAIN, rows("again", 0, 3), alphas=(1.0,), controls=0)
    assert noted.attrs["notes"] == ["3 of the test prompts are also among the rows that the direction or alpha came from"]
    assert steer(base, TRAIN, TEST, alphas=(1.0,), controls=0).attrs["notes"] == []


REFUSED = [
    ({"method": "caa"}, TaiaLensError, "no method 'caa' to steer by; there are iti, iti-mass-mean, repe, repe-mean"),
    ({"layers": "1"}, SiteError, "iti is at heads, and layers were named"),
    ({"method": "repe", "heads": [Site("head", 0, 0)]}, SiteError, "repe is in the residual stream, and heads were named"),
    ({"heads": [Site("head", 9, 0)]}, SiteError, "L9.h0 is no head of this model"),
    ({"method": "repe", "layers": "7"}, SiteError, "no layer 7"),
    ({"alphas": (0.0,)}, TaiaLensError, "no alpha but 0"),
    ({"alphas": (float("nan"),)}, TaiaLensError, "alpha must be a number"),
    ({"k": 13}, SiteError, "13 heads were asked for, and this model has 12"),
    ({"controls": -1}, TaiaLensError, "-1 random directions are none"),
    ({"folds": 40}, SuiteError, "fewer than the 40 folds"),
]


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED)
def test_what_cannot_be_asked_for_is_said(base: Loaded, options: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        steer(base, TRAIN, TEST, **options)


def test_scales_of_another_model_or_name_are_refused(base: Loaded) -> None:
    arm = Scales((Site("head", 0, 0),), torch.zeros(1, 8), torch.ones(1, 8), {"model": "x", "fingerprint": "y", "dtype": "float32"})
    with pytest.raises(PairError, match="the scales were made for x"):
        steer(base, TRAIN, TEST, arms={"lofit": arm})
    with pytest.raises(TaiaLensError, match="the scales called 'iti' have the name of a direction"):
        steer(base, TRAIN, TEST, arms={"iti": replace(arm, made={})})
    with pytest.raises(SuiteError, match="has no row of the domain id"):
        steer(base, replace(TRAIN, rows=tuple(r for r in TRAIN.rows if r.domain == "ood")), TEST)


def test_a_finished_cell_is_found_again(base: Loaded, tmp_path: Path) -> None:
    with open_store(tmp_path / "cells.sqlite") as store:
        first = steer(base, TRAIN, TEST, alphas=(1.0,), controls=1, store=store)
        before = len(store)
        again = steer(base, TRAIN, TEST, alphas=(1.0,), controls=1, store=store)
        assert before > 0 and len(store) == before and again.equals(first)
        steer(base, TRAIN, TEST, alphas=(1.5,), controls=1, store=store)
        assert len(store) > before


# What is said of it


def made(n: int = 120) -> xr.Dataset:
    """The direction raises accuracy of the first domain by 0.3 at alpha 5; the random one does nothing; the arm raises both."""
    rng = np.random.default_rng(0)
    own = rng.random(n)
    value = np.stack([np.stack([own, own, own])] * 2)[:, :, None].copy()
    value[0, 2, 0, : n // 2] += 0.3 + rng.normal(0, 0.05, n // 2)
    data = {
        "value": (("direction", "alpha", "metric", "example"), value),
        "validated": (("direction", "alpha", "row"), np.array([[[0, 0], [0, 1], [1, 1]], [[0, 1], [0, 1], [0, 1]]], float)),
        "chosen": ("direction", [5.0, 0.0]),
        "numbers": ("direction", [16, 16]),
        "arm_value": (("arm", "metric", "example"), (own + 0.5 + rng.normal(0, 0.05, n))[None, None]),
        "arm_numbers": ("arm", [8]),
    }
    coords = {
        "direction": ["iti", "random 0"],
        "alpha": [0.0, 1.0, 5.0],
        "metric": ["logprob"],
        "unit": ("metric", ["nats"]),
        "better": ("metric", [1]),
        "example": [str(i) for i in range(n)],
        "suite": ("example", ["made"] * n),
        "domain": ("example", ["id"] * (n // 2) + ["ood"] * (n // 2)),
        "arm": ["lofit"],
        "row": ["a", "b"],
    }
    attrs = {"seed": 0, "method": "iti", "model": "m", "chosen_by": "accuracy", "validated_on": {"name": "held", "rows": 2}}
    return xr.Dataset(data, coords, attrs)


def test_the_summary_finds_what_is_there_and_nothing_else() -> None:
    summary = summaries.steering_summary(made())
    own, other = (summary.isel(group=i) for i in (0, 1))
    assert summary.domain.values.tolist() == ["id", "ood"]
    steered = own.sel(direction="iti", alpha=5.0)
    assert float(steered["diff"]) == pytest.approx(0.3, abs=0.03) and float(steered.q) < 0.01
    assert float(steered.diff_low) < float(steered["diff"]) < float(steered.diff_high)
    nothing = [own.sel(direction="random 0"), other.sel(direction="iti"), own.sel(direction="iti", alpha=[0.0, 1.0])]
    assert all(bool(cell.q.isnull().all()) and bool((cell["diff"] == 0).all()) for cell in nothing)
    assert own.arm_diff.values == pytest.approx([0.5], abs=0.03) and own.arm_q.item() < 0.01
    assert own.over.values == pytest.approx([0.2], abs=0.03) and other.over.values == pytest.approx([0.5], abs=0.03)
    assert summary.validation.values.tolist() == [1.0, 0.5]


def test_table_note_records_and_figure_say_the_same() -> None:
    summary = summaries.steering_summary(made())
    first, _ = tables.steering_tables(summary)
    cells = [str(cell) for cell in first.columns[0].cells]
    assert cells == ["base", "iti, alpha 1", "iti, alpha 5 <- chosen", "random 0, alpha 1", "random 0, alpha 5", "lofit"]
    assert [str(cell) for cell in first.columns[1].cells] == ["0", "16", "16", "16", "16", "8"]
    note = tables.steering_note(summary)
    assert "alpha 5 of iti was chosen by accuracy on 2 rows of held" in note and "chose 0" in note
    records = tables.steering_records(summary)
    assert json.dumps(records, allow_nan=False) and len(records) == 2 * (6 + 1)
    figure = plots.steering_figure(summary)
    stars = [(trace, [symbol.startswith("star") for symbol in trace.marker.symbol or ()]) for trace in figure.data]
    assert [trace.x[found.index(True)] for trace, found in stars if any(found)] == [0.0, 5.0] * 2  # the fitted one lies on top
    across = next(trace for trace in figure.data if trace.name == "lofit (8 numbers)")
    assert list(across.x) == [0.0, 5.0] and across.y[0] == across.y[1] == pytest.approx(float(summary.arm_value[0, 0]))


# The command


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("steer")
    make("llama", 0).save_pretrained(root / "model")
    make_tokenizer(root / "model")
    for suite in (TRAIN, TEST):
        save_suite(suite, root / f"{suite.name}.jsonl")
    save_scales(root / "learnt", Scales((Site("head", 0, 0),), torch.zeros(1, 8), torch.ones(1, 8), {"method": "lofit"}))
    return root


def test_the_command_prints_every_strength_and_leaves_a_run_folder(run: Run, files: Path) -> None:
    given = ["--model", str(files / "model"), "--train", str(files / "lessons.jsonl"), "--suite", str(files / "questions.jsonl")]
    more = ["--heads", "L1.h0-1", "--alphas", "5", "--controls", "1", "--scales", f"lofit={files / 'learnt'}", "--no-store"]
    code, out, err = run("steer", *given, *more, "--out", "made")
    assert (code, out) == (0, "made\n"), err
    assert sorted(p.name for p in Path("made").iterdir()) == ["figure.html", "meta.json", "result.nc"]
    assert "iti at L1.h0 L1.h1" in err and "iti, alpha 5" in err and "random 0, alpha 5" in err and "lofit" in err
    meta, result = json.loads(Path("made/meta.json").read_text()), results.load("made")
    assert [meta["train"]["name"], meta["suites"][0]["name"]] == ["lessons", "questions"] and result.attrs["study"] == "steering"
    code, out, err = run("steer", *given, "--method", "repe", "--alphas", "2", "--json", "--no-store")
    assert code == 0 and {r["direction"] for r in json.loads(out)["results"]} == {"repe", "random 0", "random 1", "random 2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "your own model needs --train FILE.jsonl"),
        (["--alphas", "a"], "cannot read --alphas 'a'"),
        (["--heads", "L1.mlp"], "L1.mlp is no head; write L3.h5"),
        (["--scales", "nowhere"], "no folder nowhere"),
        (["--method", "caa"], "no method 'caa'"),
        (["--layer", "x"], "cannot read the layer 'x'"),
    ],
)
def test_wrong_input_is_one_line(run: Run, files: Path, options: list[str], message: str) -> None:
    rest = ["--train", str(files / "lessons.jsonl"), "--suite", str(files / "questions.jsonl")] if options else []
    code, out, err = run("steer", "--model", str(files / "model"), *rest, *options, "--no-store")
    assert (code, out) == (2, "") and message in err, err
    assert len(err.strip().splitlines()) == 1
