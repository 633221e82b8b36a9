"""`lofit apply` and `lofit export` as a user meets them: numbers, files, one line for each wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_cli import Run, folders, prompts  # noqa: F401 -- fixtures
from test_scales import HEADS, IDS, SITES, scales_at
from transformers import AutoModelForCausalLM

from taia_lens import demo, results, stats
from taia_lens.errors import SiteError, TaiaLensError
from taia_lens.loading import load_one
from taia_lens.scales import save_scales
from taia_lens.sites import Site
from taia_lens.studies.adapters import score_adapters
from taia_lens.suite import load_suite
from taia_lens.summaries import adapters_summary


@pytest.fixture
def adapters(folders: Path, tmp_path: Path) -> Path:  # noqa: F811
    """Heads of the random llama, its outputs (RED), its residual stream (RepE), and scales of another model."""
    own = {"fingerprint": load_one(folders / "base", device="cpu").fingerprint, "dtype": "float32"}
    root = tmp_path / "adapters"
    for name, scales in (
        ("heads", scales_at(*HEADS, **own)),
        ("red", scales_at(*SITES["mlp"], **own)),
        ("repe", scales_at(*SITES["resid"], **own)),
        ("foreign", scales_at(*HEADS, fingerprint="of another", dtype="float32")),
        ("far", scales_at(Site("head", 7, 0))),
    ):
        save_scales(root / name, scales)
    return root


def test_apply_prints_a_table_and_writes_a_run_folder(run: Run, folders: Path, prompts: Path, adapters: Path) -> None:  # noqa: F811
    command = ["lofit", "apply", str(adapters / "heads"), "--base", str(folders / "base"), "--suite", str(prompts)]
    code, out, err = run(*command)
    assert code == 0, err
    folder = Path(out.strip())
    assert folder.name.startswith("lofit-apply-") and sorted(p.name for p in folder.iterdir()) == ["meta.json", "result.nc"]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["adapters"]["heads"]["numbers"] == 48 and meta["adapters"]["heads"]["sites"] == ["L0.h1", "L1.h2", "L1.h3"]
    assert meta["model"]["name"].endswith("base") and meta["suites"][0]["rows"] == {"id": 7, "ood": 4}
    assert "heads (lofit): 48 numbers at L0.h1, L1.h2, L1.h3" in err and "prompts, out of distribution (ood): accuracy" in err
    assert "22 new cells" in err or " new cells, 0 from before" in err
    result = results.load(folder)
    assert result.model.values.tolist() == ["base", "heads"] and result.numbers.values.tolist() == [0, 48]
    code, out, err = run(*command)
    assert code == 0 and "store runs/cells.sqlite: 0 new cells" in err
    assert np.array_equal(results.load(Path(out.strip())).value.values, result.value.values)


def test_apply_in_json_is_the_paired_difference_of_the_live_model(run: Run, folders: Path, prompts: Path, adapters: Path) -> None:  # noqa: F811
    names = ("heads", "red", "repe")
    paths = [str(adapters / name) for name in names]
    command = ["--base", str(folders / "base"), "--suite", str(prompts), "--metric", "logprob", "--no-store", "--json", "--out", "run"]
    code, out, err = run("lofit", "apply", *paths, *command)
    assert code == 0, err
    record = json.loads(out)
    assert record["run"] == "run" and {r["model"]: r["numbers"] for r in record["results"]} == {
        "base": 0,
        "heads": 48,
        "red": 128,
        "repe": 64,
    }
    values = results.load(Path("run")).value.sel(metric="logprob")
    model, rows = load_one(folders / "base", device="cpu"), load_suite(prompts).rows
    with torch.no_grad():
        for i in (0, 5):
            ids = model.tokenizer(rows[i].prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
            answer = model.tokenizer(rows[i].answer or "", add_special_tokens=False)["input_ids"][0]
            wanted = model.model(ids, return_type="logits")[0, -1].log_softmax(-1)[answer].item()
            assert abs(float(values.sel(model="base")[i]) - wanted) < 1e-5
    for found in (r for r in record["results"] if r["model"] == "heads"):
        own = values.isel(example=np.flatnonzero(values.domain.values == found["domain"]))
        paired = (own.sel(model="heads") - own.sel(model="base")).values
        low, high = stats.mean_interval(paired[None], seed=0)
        assert np.allclose((found["diff"], found["diff_low"], found["diff_high"]), (paired.mean(), low[0], high[0]))
    assert [r["diff"] for r in record["results"] if r["model"] == "base"] == [None, None]


def test_the_demo_s_base_is_the_default(run: Run, tmp_path: Path) -> None:
    shape = load_one(demo.BASE, device="cpu").shape
    wide = scales_at(Site("mlp", 3))
    made = type(wide)(wide.sites, torch.zeros(1, shape.d_model), torch.zeros(1, shape.d_model))
    made.offset[0, 0] = 30.0
    save_scales(tmp_path / "adapter", made)
    code, out, err = run("lofit", "apply", "adapter", "--limit", "6", "--no-store")
    assert code == 0, err
    assert results.load(Path(out.strip())).attrs["suites"].keys() == {"truth"}


def test_export_prints_the_folder_and_what_was_proved(run: Run, folders: Path, adapters: Path) -> None:  # noqa: F811
    code, out, err = run("lofit", "export", str(adapters / "heads"), "--base", str(folders / "base"), "--out", "folded")
    assert code == 0 and out.strip() == "folded", err
    assert "offsets in: the output projection's bias (attention_bias turned on in config.json)" in err
    assert "verified: in plain transformers its logits are those of base with the adapter on hooks to" in err and "folded" in err
    base, folded = (AutoModelForCausalLM.from_pretrained(path) for path in (folders / "base", "folded"))
    assert (folded(IDS).logits - base(IDS).logits).abs().max() > 1e-1
    assert load_file("folded/model.safetensors")["model.layers.1.self_attn.o_proj.bias"].any()
    code, _, err = run("lofit", "export", str(adapters / "heads"), "--base", str(folders / "base"), "--out", "folded")
    assert code == 2 and "folded exists" in err


def test_every_study_takes_the_adapter_as_tuned(run: Run, folders: Path, prompts: Path, adapters: Path) -> None:  # noqa: F811
    pair = ["--base", str(folders / "base"), "--tuned", str(adapters / "heads")]
    asked = ["--suite", str(prompts), "--metric", "logprob"]
    code, out, err = run("layers", *pair, *asked, "--unit", "head", "--view", "alone", "--json")
    assert code == 0, err
    parts = {(r["layer"], r["part"]) for r in json.loads(out)["results"] if r["alone"]}
    assert parts == {(site.layer, f"h{site.head}") for site in HEADS}
    code, out, err = run("patch", *pair, *asked, "--component", "head", "--layer", "0")
    patched = results.summary(results.load(Path(out.strip())))
    assert code == 0 and (np.abs(patched.effect.values).max((0, 1, 2)).flatten() > 1e-3).tolist() == [False, True, False, False], err
    code, out, err = run("anatomy", *pair)
    assert code == 0 and set(results.load(Path(out.strip())).part.values.tolist()) == {"o"}, err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("apply {a}/foreign --base {m}/base --suite {p}", "were made for a base, whose weights are not those of"),
        ("apply {a}/far --base {m}/base --suite {p}", "name L7.h0, and"),
        ("apply {a}/nothing --base {m}/base --suite {p}", "no folder"),
        ("apply {a}/heads --base {m}/other --suite {p}", "whose weights are not those of"),
        ("apply {a}/heads --base {a}/heads --suite {p}", "is an adapter; give a whole model"),
        ("apply {a}/heads --base {m}/base", "give --suite"),
        ("apply {a}/heads --base {m}/base --suite {p} --metric f9", "no metric 'f9'"),
        ("apply", "Missing argument"),
        ("export {a}/repe --base {m}/base --out x", "multiplies the whole residual stream"),
        ("export {a}/foreign --base {m}/base --out x", "were made for a base, whose weights are not those of"),
        ("export {a}/heads --base {m}/nothing --out x", "no folder"),
        ("export {a}/heads --base {m}/base", "Missing option"),
        ("export {m}/base --base {m}/base --out x", "no scales in"),
    ],
)
def test_each_wrong_input_is_one_line(command: str, said: str, run: Run, folders: Path, prompts: Path, adapters: Path) -> None:  # noqa: F811
    words = command.format(a=adapters, m=folders, p=prompts).split()
    code, out, err = run("lofit", *words)
    lines = [line for line in err.splitlines() if not line.startswith("store ")]
    assert code == 2 and out == "" and len(lines) == 1 and said in lines[0], err
    assert not Path("x").exists()


def test_another_model_can_be_meant(run: Run, folders: Path, prompts: Path, adapters: Path) -> None:  # noqa: F811
    asked = ["--base", str(folders / "base"), "--other-model"]
    code, _, err = run("lofit", "apply", str(adapters / "foreign"), *asked, "--suite", str(prompts), "--no-store")
    assert code == 0, err
    code, _, err = run("lofit", "export", str(adapters / "foreign"), *asked, "--out", "folded")
    assert code == 0, err


def test_lofit_alone_says_what_it_can_do(run: Run) -> None:
    code, out, err = run("lofit")
    assert code == 0 and err == "" and all(word in out for word in ("select", "fit", "apply", "export"))


def test_the_study_refuses_what_does_not_fit(folders: Path, prompts: Path) -> None:  # noqa: F811
    model, suite = load_one(folders / "base", device="cpu"), load_suite(prompts)
    with pytest.raises(TaiaLensError, match="no adapter was given"):
        score_adapters(model, {}, suite)
    with pytest.raises(TaiaLensError, match="no adapter can be called base"):
        score_adapters(model, {"base": scales_at(*HEADS)}, suite)
    with pytest.raises(SiteError, match=r"name L7.h0"):
        score_adapters(model, {"far": scales_at(Site("head", 7, 0))}, suite)


def test_scales_that_do_nothing_are_not_told_apart(folders: Path, prompts: Path) -> None:  # noqa: F811
    model, suite = load_one(folders / "base", device="cpu"), load_suite(prompts)
    found = adapters_summary(score_adapters(model, {"none": scales_at(*HEADS, size=0.0)}, suite, metrics=["logprob"]))
    assert (found["diff"].sel(model="none") == 0).all() and found.p.sel(model="none").isnull().all()
    assert found["diff"].sel(model="base").isnull().all() and found.numbers.values.tolist() == [0, 0]
