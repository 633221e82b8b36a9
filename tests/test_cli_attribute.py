"""attribute as a user meets it: what is printed where, what is written, and one line for each wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import Run, folders, models, prompts  # noqa: F401 -- fixtures

from taia_lens import results


def test_attribute_prints_tables_and_its_check_and_writes_a_run_folder(run: Run, models: list[str], tmp_path: Path) -> None:  # noqa: F811
    command = ["attribute", "--pos", "each-from-end", "--check", "2", *models, "--store", str(tmp_path / "cells.sqlite")]
    code, out, err = run(*command)
    assert code == 0, err
    folder = Path(out.strip())
    assert sorted(p.name for p in folder.iterdir()) == ["check.html", "figure.html", "meta.json", "result.nc"]
    meta = json.loads((folder / "meta.json").read_text())
    (sentence,) = meta["sentences"]
    assert "4 sites were patched really" in sentence and sentence in " ".join(err.split())
    assert "host + attribution" in err and "out of distribution" in err and ": 4 new cells" in err
    result = results.load(folder)
    assert result.patched.dims == ("metric", "component", "layer", "pos", "example") and result.sizes["check"] == 4
    code, _, again = run(*command, "--out", "again")
    assert code == 0 and ": 0 new cells" in again
    assert results.load("again").drop_attrs().equals(result.drop_attrs())


def test_attribute_in_json_of_heads_without_a_check(run: Run, models: list[str]) -> None:  # noqa: F811
    code, out, err = run("attribute", "--json", "--component", "head", "--layer", "1", "--metric", "logit_diff", "--check", "0", *models)
    assert code == 0, err
    record = json.loads(out)
    assert {(r["layer"], r["head"], r["metric"]) for r in record["results"]} == {(1, head, "logit_diff") for head in range(4)}
    assert record["check"] == [] and "Not checked" in record["sentence"] and not (Path(record["run"]) / "check.html").exists()
    code, out, _ = run("attribute", "--json", "--limit", "2", "--positions", "each", "--check", "1", *models)
    assert {r["chosen"] for r in json.loads(out)["check"]} == {"strong", "random"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--component", "ffn"], "no component 'ffn' to patch; there are attn, mlp, head, resid"),
        (["--component", "head,mlp"], "heads have a dim of their own"),
        (["--layer", "9"], "no layer 9: this model has 3 layers, 0-2"),
        (["--pos", "last"], "cannot credit the positions 'last'; write all, each or each-from-end"),
        (["--metric", "accuracy"], "the metric accuracy has no gradient"),
        (["--metric", "choice_logprob"], "the metric choice_logprob is of the task choice"),
        (["--source", "donor"], "no source 'donor'; write base or tuned"),
        (["--check", "-1"], "Invalid value for '--check'"),
        (["--steps", "-1"], "Invalid value for '--steps'"),
        (["--limit", "0"], "a limit of 0 leaves no prompt"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run: Run, models: list[str], arguments: list[str], message: str) -> None:  # noqa: F811
    code, out, err = run("attribute", *arguments, *models)
    assert (code, out) == (2, "") and message in err
    assert err.strip().splitlines()[-1].startswith("taia-lens: ") and "Traceback" not in err
    assert not Path("runs").exists()
