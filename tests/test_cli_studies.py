"""compare and layers as a user meets them: numbers, files, one line for each wrong input, kill -9 and on again."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from test_cli import ENV, Run, folders, models, prompts  # noqa: F401 -- fixtures
from test_grid import tuned_in

from taia_lens import results, summaries
from taia_lens.demo import BASE, TUNED

# The random pair differs in everything; a LoRA's does not.
SIDES = ("--norms", "base", "--embed", "base")


@pytest.fixture
def store(tmp_path: Path) -> list[str]:
    return ["--store", str(tmp_path / "cells.sqlite")]


def test_compare_prints_the_grid_and_its_sentence_and_writes_a_run_folder(run: Run, models: list[str], store: list[str]) -> None:  # noqa: F811
    code, out, err = run("compare", "--seeds", "1", *SIDES, *models, *store)
    assert code == 0, err
    folder = Path(out.strip())
    assert sorted(p.name for p in folder.iterdir()) == ["figure.html", "meta.json", "result.nc"]
    meta = json.loads((folder / "meta.json").read_text())
    assert len(meta["sentences"]) == 2 and all(s in " ".join(err.split()) for s in meta["sentences"])
    assert meta["sentences"][1].startswith("Out of distribution (prompts, accuracy, n = 4): TAIA")
    assert "what each part of the update adds" in err and "rest Shapley" in err
    result = results.load(folder)
    assert {"base", "vanilla", "TAIA", "TAIF", "attn+mlp", "rest", "update x0.5"} <= set(result.recipe.values.tolist())


def test_compare_in_json_with_recipes_and_several_suites(run: Run, models: list[str], prompts: Path, store: list[str]) -> None:  # noqa: F811
    again = prompts.with_name("again.jsonl")
    again.write_text("\n".join(json.dumps(json.loads(line) | {"domain": "id"}) for line in prompts.read_text().splitlines()[:5]))
    command = [
        "compare",
        "--json",
        "--seeds",
        "0",
        "--scale",
        "",
        "--recipe",
        "early=base; graft L0.attn <- tuned",
        *SIDES,
        *models,
        *store,
    ]
    code, out, err = run(*command, "--suite", f"ood={again}", "--metric", " logprob,")
    assert code == 0, err
    record = json.loads(out)
    found = {(r["suite"], r["domain"], r["recipe"], r["n"]) for r in record["results"]}
    assert {("again", "ood", "early", 5), ("prompts", "id", "TAIA", 7)} <= found and ("again", "id", "early", 5) not in found
    assert {r["effect"] for r in record["effects"]} >= {"attn alone", "rest last", "attn x mlp"}


def test_layers_prints_every_view_and_says_what_it_cost(run: Run, models: list[str], store: list[str]) -> None:  # noqa: F811
    code, out, err = run("layers", "--budget", "20", *models, *store)
    assert code == 0, err
    for words in ("attn alone", "mlp shapley", "all else that differs", "recipes evaluated", "out-of-distribution gain - in-domain gain"):
        assert words in err
    result = results.load(Path(out.strip()))
    total = result.shapley.sum(("layer", "part")) + result.rest_shapley
    np.testing.assert_allclose(total, result.vanilla - result.base, atol=1e-9)
    code, out, err = run("layers", "--unit", "head", "--view", "alone", "--json", *models, *store)
    assert code == 0 and len(json.loads(out)["results"]) == 2 * 3 * 4 and "largest of 12 by alone" in err
    assert "taia-lens: note: each k and v is shared by 2 heads" in err
    code, out, err = run("layers", "--view", "cumulative", "--metric", " accuracy", "--json", *models, *store)
    assert code == 0 and len(json.loads(out)["cumulative"]) == 2 * 2 * 3 * 3 and "both from above" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--recipe", "base"], "cannot read --recipe 'base'; give it a name: --recipe early='base; graft"),
        (["compare", "--recipe", "x=base; graft atn <- tuned"], "no component 'atn'"),
        (["compare", "--norms", "mine"], "no norms 'mine'; write base or tuned"),
        (["compare", "--scale", "half"], "cannot read --scale 'half'; write numbers with commas"),
        (["compare", "--keep", "2"], "keep 2.0; write 0 or more seeds, and keep between 0 and 1"),
        (["compare", "--suite", "in=nowhere.jsonl"], "no domain 'in'; write id=FILE, ood=FILE"),
        (["compare", "--suite", "id=nowhere.jsonl"], "no suite file nowhere.jsonl"),
        (["compare", "--suite", "ood=demo:routing"], "say their own domain; write --suite demo:routing"),
        (["compare", "--toa", "nowhere"], "no folder nowhere; give a folder that holds a model"),
        (["compare", "--metric", "bleu"], "no metric 'bleu'; there are accuracy"),
        (["layers", "--unit", "neuron"], "no unit 'neuron'; the update is credited by component, projection, head"),
        (["layers", "--view", "first"], "no view 'first'; there are alone, last, cumulative, shapley"),
        (["layers", "--layer", "99"], "no layer 99"),
        (["layers", "--view", "cumulative", "--unit", "head"], "the view cumulative goes with the unit component, not head"),
        (["layers", "--budget", "3"], "one pair of orders of 6 parts evaluates 12 recipes, and the budget is 3; write --budget 12"),
        (["layers", "--target-se", "0"], "write a budget of 1 or more, and a target above 0"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    run: Run,
    models: list[str],  # noqa: F811
    store: list[str],
    arguments: list[str],
    message: str,
) -> None:
    sides = SIDES if arguments[0] == "compare" and "--norms" not in arguments else ()
    code, out, err = run(*arguments, *sides, *models, *store)
    assert (code, out) == (2, "") and message in err
    line, *shown = err.strip().splitlines()
    assert line.startswith("taia-lens: ") and (not shown or set(shown[-1].strip()) == {"^"})
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_a_recipe_that_cannot_be_read_has_a_caret_under_the_word(run: Run, models: list[str]) -> None:  # noqa: F811
    code, _, err = run("compare", "--recipe", "x=base; graft L0.attn <- tund", *SIDES, *models, "--no-store")
    _, text, caret = err.rstrip().splitlines()
    assert code == 2 and text[caret.index("^") : caret.rindex("^") + 1] == "tund"


def test_norms_that_differ_must_be_said_on_the_command_line_too(run: Run, models: list[str], store: list[str]) -> None:  # noqa: F811
    code, _, err = run("compare", *models, *store)
    assert code == 2 and "7 tensors of norms differ in this pair, so TAIA must say whose it takes: say --norms base" in err


def test_a_suite_whose_rows_say_no_domain_says_how_to_say_it(run: Run, models: list[str], tmp_path: Path, store: list[str]) -> None:  # noqa: F811
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps({"prompt": "w1 w2", "answer": " w3"}))
    command = ["compare", "--seeds", "0", *SIDES, *models[:4], *store, "--suite"]
    code, _, err = run(*command, str(path))
    assert code == 2 and "line 1: the domain is None" in err and "id=FILE" in err
    code, _, err = run(*command, f"ood={path}")
    assert code == 0, err


def test_stores_that_cannot_be_used_are_one_line(run: Run, models: list[str], tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "cells.sqlite"
    assert run("compare", "--seeds", "0", *SIDES, *models, "--store", str(path))[0] == 0
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    code, out, err = run("compare", "--seeds", "0", *SIDES, *models, "--store", str(path))
    assert (code, out) == (2, "") and "is a store of version 99, and this taia-lens reads version 1; give another --store" in err
    assert "Traceback" not in err and err.count("\n") == 1


def test_toa_is_scored_beside_the_grid(run: Run, folders: Path, prompts: Path, store: list[str]) -> None:  # noqa: F811
    from architectures import make
    from transformers import AutoTokenizer

    base = make("llama", 0)
    for name, parts in (("toa", ("attn",)), ("all", ("attn", "mlp"))):
        if not (folders / name).exists():
            tuned_in(base, parts).save_pretrained(folders / name)
            AutoTokenizer.from_pretrained(folders / "base").save_pretrained(folders / name)
    command = ["compare", "--base", str(folders / "base"), "--tuned", str(folders / "all"), "--suite", str(prompts), *store]
    code, out, err = run(*command, "--toa", str(folders / "toa"), "--seeds", "0")
    assert code == 0, err
    assert results.load(Path(out.strip())).role.sel(recipe="TOA") == "rival"


def values(folder: Path) -> xr.DataArray:
    return results.load(folder).value


def test_two_files_of_one_name_are_told_apart_by_their_folders(run: Run, models: list[str], prompts: Path, tmp_path: Path) -> None:  # noqa: F811
    for domain in ("id", "ood"):
        (tmp_path / domain).mkdir()
        lines = [json.dumps(json.loads(line) | {"domain": domain}) for line in prompts.read_text().splitlines()[:4]]
        (tmp_path / domain / "test.jsonl").write_text("\n".join(lines))
    both = [part for domain in ("id", "ood") for part in ("--suite", f"{domain}={tmp_path / domain / 'test.jsonl'}")]
    code, out, err = run("compare", "--seeds", "0", *SIDES, *models[:4], *both, "--no-store")
    assert code == 0, err
    assert set(results.load(out.strip()).suite.values.tolist()) == {"id-test", "ood-test"}


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again_only_the_rest_is_computed(run: Run, tmp_path: Path) -> None:
    """On the demo pair, as a process of its own, killed with -9."""
    store, out = tmp_path / "cells.sqlite", tmp_path / "run"
    asked = ["compare", "--limit", "20", "--batch-size", "10", "--base", str(BASE), "--tuned", str(TUNED), "--suite", "demo:routing"]
    command = [sys.executable, "-c", "from taia_lens.cli import main; main()", *asked, "--store", str(store), "--out", str(out)]

    def finished() -> int:
        try:
            with sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=5) as connection:
                return int(connection.execute("SELECT count(*) FROM cells").fetchone()[0])
        except sqlite3.OperationalError:
            return 0

    running = subprocess.Popen(command, env=ENV, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while finished() < 5 and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = finished()
    assert 5 <= before < 44 and not out.exists()
    assert run(*asked, "--store", str(store), "--out", str(out))[0] == 0
    assert finished() == 44  # 11 recipes in 4 pieces
    assert run(*asked, "--store", str(tmp_path / "fresh.sqlite"), "--out", str(tmp_path / "fresh"))[0] == 0
    xr.testing.assert_identical(values(out), values(tmp_path / "fresh"))


def test_patching_goes_on_where_it_stopped(run: Run, models: list[str], store: list[str], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from taia_lens.studies import patching

    command = ["patch", "--component", "attn,mlp", "--metric", "logprob,kl_host", *models, *store]
    code, _, _ = run(*command, "--layer", "0-1", "--out", "first")
    assert code == 0
    calls: list[str] = []
    whole: Callable = patching.run_recipes

    def counting(pair: object, recipes: list, *arguments: object, **named: object) -> object:
        calls.extend(map(str, recipes))
        return whole(pair, recipes, *arguments, **named)

    monkeypatch.setattr(patching, "run_recipes", counting)
    code, _, err = run(*command, "--layer", "all", "--out", "second")
    assert code == 0, err
    new = [text for text in calls if "<- tuned" in text]
    assert sorted(new) == ["base; patch L2.attn <- tuned", "base; patch L2.mlp <- tuned"]
    code, *_ = run("patch", "--component", "attn,mlp", "--metric", "logprob,kl_host", *models, "--out", "third")
    xr.testing.assert_identical(results.load("second").patched, results.load("third").patched)


@pytest.mark.slow
def test_compare_on_the_demo_pair_gives_the_card_s_numbers_in_the_card_s_order(run: Run) -> None:
    code, out, err = run("compare", "--limit", "150", "--seeds", "0", "--no-store")
    assert code == 0, err
    found = summaries.grid_summary(results.load(out.strip()))
    card = json.loads((BASE.parents[1] / "measured.json").read_text())["runs"][0]["recipes"]
    names = {"base": "base", "vanilla": "vanilla", "TAIA": "TAIA", "TAIF": "TAIF", "update x0.5": "half of the update"}
    for domain in ("id", "ood"):
        ours = found.value.sel(group=f"routing|{domain}|accuracy")
        for name, theirs in names.items():
            # 150 other prompts than the card's thousands: three standard errors of a rate.
            assert abs(float(ours.sel(recipe=name)) - card[theirs][domain]["mean"]) <= 3 * 0.5 / 150**0.5
    ood = found.value.sel(group="routing|ood|accuracy", recipe=["TAIA", "update x0.5", "vanilla", "base"]).values
    assert (np.diff(ood) < 0).all()
    assert "Out of distribution (routing, accuracy, n = 150): TAIA beats vanilla" in " ".join(err.split())


@pytest.mark.slow
def test_layers_on_the_demo_pair_finds_layer_0_and_the_late_damage(run: Run) -> None:
    code, out, err = run("layers", "--limit", "40", "--view", "alone,last,shapley", "--budget", "62", "--no-store")
    assert code == 0, err
    result = results.load(out.strip())
    np.testing.assert_allclose(result.shapley.sum(("layer", "part")), result.vanilla - result.base, atol=1e-9)
    summary = summaries.layers_summary(result)
    for domain in ("id", "ood"):
        group = summary.sel(group=f"routing|{domain}|accuracy")
        assert all(group[view].stack(site=("layer", "part")).idxmax().item() == (0, "attn") for view in ("alone", "shapley"))
    late = summary["last"].sel(group="routing|ood|accuracy", part="mlp", layer=slice(10, 15))
    assert float(late.sum()) < -0.2 and float(late.min()) < 0  # the FFNs of the last layers carry the damage


@pytest.mark.parametrize(
    "asked", [("patch", "--component", "attn,mlp"), ("layers", "--budget", "62", "--target-se", "0.01")], ids=["patch", "layers"]
)
def test_a_dry_run_says_what_it_would_cost_and_leaves_nothing(run: Run, asked: tuple[str, ...]) -> None:
    code, out, err = run(*asked, "--limit", "10", "--dry-run")
    assert code == 0, err
    found = re.fullmatch(r"(\d+) recipes, ([\d.]+) forwards' worth of work, \d+ MB beside the models, about [\d.]+ (s|min)\n", out)
    assert found is not None, out
    assert 0.2 < float(found[2]) / int(found[1]) < 0.8  # about half of it is shared
    assert list(Path.cwd().iterdir()) == []


def test_a_dry_run_refuses_what_the_run_would_refuse(run: Run) -> None:
    said = [run("layers", "--budget", "1", "--limit", "10", *more) for more in ((), ("--dry-run",))]
    assert said[0] == said[1] and said[0][0] == 2 and "and the budget is 1; write --budget" in said[0][2]
