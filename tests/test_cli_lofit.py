"""`taia-lens lofit select` and `lofit fit` as typed; a run that is killed goes on; wrong input is one line and exit code 2."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from taia_lens import results
from taia_lens.demo import TUNED as DEMO_LORA
from taia_lens.lofit.losses import Loss
from taia_lens.scales import load_scales
from taia_lens.store import open_store

Call = Callable[..., tuple[int, str, str]]
SMALL = ("--limit", "40", "--epochs", "1", "--batch-size", "16")


def test_select_prints_the_heads_and_writes_all_of_it(run: Call, tmp_path: Path) -> None:
    code, out, err = run("lofit", "select", *SMALL, "--out", "chosen", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["run"] == "chosen" and len(record["heads"]) == 128
    found = results.load(tmp_path / "chosen")
    best = found.norm.stack(site=("layer", "head")).idxmax().item()
    assert f"L{best[0]}.h{best[1]}" in err and "norm ||A||" in err
    top = max(record["heads"], key=lambda head: head["norm"])
    assert top["head"] == f"L{best[0]}.h{best[1]}" and top["norm"] == pytest.approx(float(found.norm.max()))
    assert found.attrs["data"]["suite"] == "truth-train" and json.loads((tmp_path / "chosen" / "meta.json").read_text())["command"]


def test_fit_writes_an_adapter_of_kilobytes_that_says_what_it_is(run: Call, tmp_path: Path) -> None:
    code, out, err = run("lofit", "fit", *SMALL, "--k", "3%", "--out", "adapter")
    assert code == 0, err
    assert out.strip() == "adapter" and "lofit: 64 numbers trained, 64 kept at 4 heads: L" in err
    scales = load_scales(tmp_path / "adapter")
    assert len(scales.sites) == 4 and scales.made["settings"]["epochs"] == 1 and scales.numbers == 64
    size = sum(p.stat().st_size for p in (tmp_path / "adapter").iterdir() if p.name != "selection.nc")
    assert size < 20_000
    selection = results.load(tmp_path / "adapter" / "selection.nc")
    norms = sorted(selection.norm.values.ravel())[-4:]
    assert [float(selection.norm.sel(layer=s.layer, head=s.head)) for s in scales.sites] == pytest.approx(norms[::-1])
    text = (tmp_path / "adapter" / "scales.json").read_text()
    assert str(Path.home()) not in text or str(Path.home()) == "/"


def test_fit_takes_named_heads_and_the_gated_way(run: Call, tmp_path: Path) -> None:
    code, _, err = run("lofit", "fit", *SMALL, "--heads", "L3.h1,L6.h2-3", "--out", "named")
    assert code == 0 and [str(s) for s in load_scales(tmp_path / "named").sites] == ["L3.h1", "L6.h2", "L6.h3"], err
    assert not (tmp_path / "named" / "selection.nc").exists()
    code, _, err = run("lofit", "fit", *SMALL, "--method", "jola", "--no-store", "--out", "gated")
    assert code == 0 and load_scales(tmp_path / "gated").made["method"] == "jola", err


def test_every_study_takes_what_fit_wrote_beside_the_demos_base(run: Call, tmp_path: Path) -> None:
    assert run("lofit", "fit", *SMALL, "--heads", "L3.h1", "--out", "adapter")[0] == 0
    code, _, err = run("anatomy", "--tuned", "adapter")
    assert code == 2 and "--tuned was given without --base; give both (demo:base is the demo's)" in err
    code, _, err = run("anatomy", "--base", "demo:base", "--tuned", "adapter", "--out", "anatomy")
    assert code == 0 and "attn.o" in err and "|dW|" in err and "inf" not in err.replace("info", ""), err
    code, _, err = run("heads", "--base", "demo:base", "--tuned", "adapter", "--rank-metric", "foo")
    assert code == 2 and "no metric 'foo'" in err
    code, _, err = run("lofit", "apply", str(DEMO_LORA))
    assert code == 2 and "is a PEFT adapter and no scales; give it as --tuned" in err


def test_dpo_from_the_command_line(run: Call, tmp_path: Path) -> None:
    code, _, err = run("lofit", "fit", *SMALL, "--loss", "dpo", "--k", "2", "--out", "preferred")
    assert code == 0, err
    assert load_scales(tmp_path / "preferred").made["settings"]["loss"] == "dpo"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("select", "--data", "missing.jsonl"), "no suite file missing.jsonl"),
        (("select", "--base", "/nowhere/model", "--data", "demo:truth-train"), "no folder /nowhere/model"),
        (("select", "--base", "."), "your own model needs something to learn: give --data FILE.jsonl"),
        (("select", *SMALL, "--loss", "rlhf"), "no loss 'rlhf'; there are ce, dpo"),
        (("fit", *SMALL, "--k", "200"), "200 heads were asked for, and this model has 128"),
        (("fit", *SMALL, "--k", "many"), "cannot read the number of heads 'many'; write 16, or 3%"),
        (("fit", *SMALL, "--heads", "L3.h99"), "no head L3.h99: this model has layers 0-15 and heads 0-7"),
        (("fit", *SMALL, "--heads", "L3.mlp"), "L3.mlp is no head"),
        (("fit", *SMALL, "--method", "sgd"), "no method 'sgd'; there are lofit, jola"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(run: Call, tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    code, out, err = run("lofit", *args, "--out", "there")
    assert code == 2 and out == ""
    assert message in err and err.count("taia-lens:") == 1, err
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(("bad", "message"), [(2, "epoch 1, batch 2 of 2 (rows "), (4, "epoch 2, batch 1 of 2 (rows ")])
def test_a_loss_that_is_no_number_ends_with_2_and_what_was_good_is_kept(
    run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int, message: str
) -> None:
    original, calls = Loss.total, []

    def total(self: Loss, items: list, index: list[int]) -> torch.Tensor:
        calls.append(1)
        return original(self, items, index) * (math.nan if len(calls) == bad else 1)

    monkeypatch.setattr(Loss, "total", total)
    code, out, err = run("lofit", "fit", *SMALL, "--epochs", "3", "--heads", "L3.h1", "--no-store", "--out", "there")
    assert code == 2 and f"taia-lens: the loss became nan in {message}" in err, err
    if bad == 2:
        assert out == "" and "no epoch before it was good" in err and not (tmp_path / "there").exists()
    else:
        assert out.strip() == "there" and "there holds epoch 1, the best before it" in err
        assert load_scales(tmp_path / "there").offset.isfinite().all()


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_its_last_epoch(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    asked = ["lofit", "select", "--limit", "120", "--epochs", "6", "--batch-size", "8", "--store", "cells.sqlite"]
    command = [sys.executable, "-c", "from taia_lens.cli import main; main()", *asked]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([*command, "--out", "killed"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    end = time.time() + 120
    while time.time() < end:
        time.sleep(0.2)
        if (tmp_path / "cells.sqlite").exists():
            with open_store(tmp_path / "cells.sqlite") as store:
                if 2 <= len(store):
                    break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    with open_store(tmp_path / "cells.sqlite") as store:
        kept = len(store)
    assert 2 <= kept < 6
    code, _, err = run(*asked, "--out", "again")
    assert code == 0 and f"{6 - kept} new cells, {kept} from before" in err
    assert run(*asked, "--no-store", "--out", "whole")[0] == 0
    again, whole = (results.load(tmp_path / name) for name in ("again", "whole"))
    np.testing.assert_array_equal(again.gain, whole.gain)
