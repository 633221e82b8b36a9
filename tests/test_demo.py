"""The demo pair: its world, its training, what it ships, and the bars that it must clear on prompts never used to choose anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from taia_lens import demo, stats
from taia_lens.batch import make_batches
from taia_lens.demo import measure, words
from taia_lens.demo.card import card
from taia_lens.demo.make import write_suites
from taia_lens.demo.train import Pretraining, Tuning, make_tokenizer, pretrain, tune
from taia_lens.demo.world import DOMAIN_A, DOMAIN_B, World, routing_question, truth_entities
from taia_lens.pair import Pair
from taia_lens.recipe import Recipe, taia, taif

COMMAND = [sys.executable, "-c", "from taia_lens.cli import main; main()"]
IMPORTS = 2.4  # the main job's 12 s over the 5 s of its imports where it was measured (half of its time: benchmarks/README.md)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def shipped() -> Pair:
    return demo.demo_pair()


# The world


def test_a_myth_is_never_the_truth(world: World) -> None:
    assert (world.truth != world.myth).all()


def test_every_word_is_one_token_and_reads_back(world: World) -> None:
    tokenizer = make_tokenizer(world)
    for word in world.vocabulary[4:]:
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
    text = "please home kindly Ada Bruno answer:"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_what_is_asked_in_the_test_was_never_asked_in_tuning(world: World) -> None:
    rng = np.random.default_rng(0)

    def asked(split: Any) -> set[tuple[str, ...]]:
        out = set()
        for _ in range(4000):
            parts = routing_question(world, "id", split, rng).prompt.split()
            out.add(tuple(w for w in parts if w in words.ENTITIES or w in words.RELATIONS))
        return out

    train, dev, test = asked("train"), asked("dev"), asked("test")
    assert min(map(len, (train, dev, test))) > 500
    assert not train & test and not train & dev and not dev & test


def test_the_answer_is_the_second_entitys_true_value(world: World) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        question = routing_question(world, "ood", "test", rng)
        parts = question.prompt.split()
        relation = next(i for i, r in enumerate(world.relations) if r in parts)
        first, second = (words.ENTITIES.index(w) for w in parts if w in words.ENTITIES)
        assert relation in DOMAIN_B and relation not in DOMAIN_A
        assert (question.answer, question.contrast) == (world.true(second, relation), world.true(first, relation))


def test_the_truth_skill_is_tested_on_other_entities() -> None:
    assert not set(truth_entities("train")) & set(truth_entities("test"))


# Training


def test_a_stopped_and_resumed_pretraining_is_an_uninterrupted_one(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Pretraining(steps=6, batch=8, layers=2, d_model=16, heads=2, d_mlp=24, save_every=3)
    with torch.enable_grad():
        whole = pretrain(tmp_path / "whole", world, recipe)
        from taia_lens.demo import train

        real, calls = train.step_, iter(range(100))

        def stop_at_the_fifth(*args: Any) -> float:
            if next(calls) == 4:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(train, "step_", stop_at_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tmp_path / "resumed", world, recipe)
        assert not (tmp_path / "resumed" / "base").exists()
        monkeypatch.setattr(train, "step_", real)
        resumed = pretrain(tmp_path / "resumed", world, recipe)
        other = pretrain(tmp_path / "other", world, Pretraining(**{**vars(recipe), "seed": 1}))
    a, b, c = (load_file(folder / "model.safetensors") for folder in (whole, resumed, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)  # another seed is another model


def test_tuning_attention_only_trains_attention_only(world: World, tmp_path: Path) -> None:
    with torch.enable_grad():
        base = pretrain(tmp_path, world, Pretraining(steps=2, batch=8, layers=2, d_model=16, heads=2, d_mlp=24))
        folder = tune(base, tmp_path / "toa", world, Tuning(steps=2, batch=8, r=2, alpha=4, train="attn"))
    names = load_file(folder / "adapter_model.safetensors")
    assert names and all("self_attn" in name for name in names)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"


# What is shipped


def test_what_is_shipped_is_small_deep_and_whole(shipped: Pair) -> None:
    weights = [demo.BASE / "model.safetensors", demo.TUNED / "adapter_model.safetensors"]
    assert sum(path.stat().st_size for path in weights) <= 15e6
    assert shipped.shape.n_layers >= 16
    assert all(law.holds for law in shipped.report.laws)
    assert shipped.report.merge_drift is not None and shipped.report.merge_drift < 1e-3
    assert {d.component for d in shipped.differences} == {"attn", "mlp"}


def test_the_shipped_suites_are_the_worlds(world: World, tmp_path: Path) -> None:
    write_suites(tmp_path, world)
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.jsonl" for name in demo.SUITES}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (demo.FOLDER / "suites" / path.name).read_bytes()


@pytest.mark.parametrize("name", demo.SUITES)
def test_every_shipped_prompt_tokenizes_and_has_one_token_answers(shipped: Pair, name: str) -> None:
    suite = demo.demo_suite(name)
    assert sum(len(batch.rows) for batch in make_batches(suite, shipped.tokenizer, 64)) == len(suite)
    assert all(row.contrast for row in suite.rows)


def test_the_card_is_written_from_what_was_measured() -> None:
    assert demo.CARD.read_text(encoding="utf-8") == card(json.loads((demo.FOLDER / "measured.json").read_text()))


def test_the_bars_hold_in_every_run_of_the_card() -> None:
    measured = json.loads((demo.FOLDER / "measured.json").read_text())
    assert len(measured["runs"]) >= 3
    for run in measured["runs"]:
        _bars(run["recipes"]["vanilla"]["id"]["mean"], run["TAIA - vanilla"]["ood"], run["TAIF - base"])


def _bars(vanilla_id: float, gain: dict[str, float], left: dict[str, dict[str, float]]) -> None:
    assert vanilla_id >= 0.90
    assert gain["mean"] >= 0.05 and gain["low"] > 0
    assert all(abs(cell["mean"]) <= 0.03 for cell in left.values())


def test_the_bars_hold_on_the_shipped_prompts_as_the_card_says(shipped: Pair) -> None:
    """The shipped prompts are fresh ones of the test split: the same bars, and the card's numbers up to sampling error."""
    suite = demo.demo_suite()
    recipes = {
        "base": Recipe("base"),
        "vanilla": Recipe("tuned"),
        "TAIA": taia(norms="base", embed="base"),
        "TAIF": taif(norms="base", embed="base"),
    }
    scores = measure.score(shipped, recipes, suite)
    domain = np.array([row.domain for row in suite.rows])
    gain = measure.cell((scores["TAIA"] - scores["vanilla"])[domain == "ood"])
    left = {d: measure.cell((scores["TAIF"] - scores["base"])[domain == d]) for d in ("id", "ood")}
    _bars(scores["vanilla"][domain == "id"].mean(), gain, left)
    kept = json.loads((demo.FOLDER / "measured.json").read_text())["runs"][0]["recipes"]
    for name, values in scores.items():
        for d in ("id", "ood"):
            low, high = stats.mean_interval(values[domain == d][None], seed=0)
            # The card's mean lies in the interval of these prompts, give or take the card's own sampling error.
            assert low[0] - 0.03 <= kept[name][d]["mean"] <= high[0] + 0.03


# The main job, as a user runs it


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`taia-lens patch --component mlp --layer 12`, in a process of its own, with its wall time and peak memory."""
    return _timed(tmp_path_factory.mktemp("run"), "patch", "--component", "mlp", "--layer", "12", "--json")


def _timed(folder: Path, *args: str) -> dict[str, Any]:
    start = time.perf_counter()
    with (folder / "stdout").open("w+b") as out, (folder / "stderr").open("w+b") as err:
        process = subprocess.Popen([*COMMAND, *args], cwd=folder, stdout=out, stderr=err, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        _, status, usage = os.wait4(process.pid, 0)  # of this child: RUSAGE_CHILDREN is the largest of all, browsers too
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (folder / "stderr").read_text()
    said = (folder / "stdout").read_text()
    peak = usage.ru_maxrss / 2**20  # KB on Linux
    return {"seconds": time.perf_counter() - start, "peak_gb": peak, "found": json.loads(said) if "--json" in args else said}


@pytest.mark.alone
def test_the_main_job_agrees_with_run_with_hooks(shipped: Pair, main_job: dict[str, Any]) -> None:
    """TransformerLens's own functions, one prompt at a time: no padding, no batch, no code of ours but the tokens."""
    hook = "blocks.12.hook_mlp_out"
    rows = {name: {"id": [], "ood": []} for name in ("accuracy", "logprob")}
    for row in demo.demo_suite().rows:
        ids = torch.tensor([shipped.tokenizer(row.prompt)["input_ids"]])
        answer = shipped.tokenizer(row.answer, add_special_tokens=False)["input_ids"][0]
        _, cache = shipped.tuned.run_with_cache(ids, names_filter=hook)

        def put(act: torch.Tensor, hook: Any, new: torch.Tensor = cache[hook]) -> torch.Tensor:
            return new

        logits = shipped.base.run_with_hooks(ids, fwd_hooks=[(hook, put)])[0, -1]
        rows["accuracy"][row.domain].append(float(logits.argmax() == answer))
        rows["logprob"][row.domain].append(float(logits.log_softmax(-1)[answer]))
    found = main_job["found"]["results"]
    assert len(found) == 4
    for record in found:
        assert abs(record["patched"] - np.mean(rows[record["metric"]][record["domain"]])) <= 1e-5


def _imports() -> float:
    """Seconds that a fresh interpreter takes to import what a pair is loaded with."""
    start = time.perf_counter()
    code = "import torch, transformers, peft, transformer_lens.model_bridge, xarray, scipy.stats, plotly.graph_objects"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


@pytest.mark.alone
def test_the_main_job_is_fast_and_small(main_job: dict[str, Any], tmp_path: Path) -> None:
    """12 s on two idle cores; on a machine that is slow today, as many times its imports as 12 s are there."""
    assert main_job["peak_gb"] < 2
    bound = max(12, IMPORTS * min(_imports() for _ in range(2)))
    seconds = [main_job["seconds"]]
    while len(seconds) < 3 and min(seconds) >= bound:  # a cold disk, or a machine's other tenants: once more
        (tmp_path / str(len(seconds))).mkdir()
        seconds.append(_timed(tmp_path / str(len(seconds)), "patch", "--component", "mlp", "--layer", "12")["seconds"])
    assert min(seconds) < bound, (seconds, bound)


@pytest.mark.slow
def test_every_layer_takes_less_than_a_minute(tmp_path: Path) -> None:
    assert _timed(tmp_path, "patch", "--layer", "all", "--component", "attn,mlp")["seconds"] < 60


@pytest.mark.alone
def test_help_comes_at_once() -> None:
    def once() -> float:
        start = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(once() for _ in range(3)) < 0.4
