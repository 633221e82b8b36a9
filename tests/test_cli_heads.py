"""heads and transfer as a user meets them: what is printed where, what is written, and one line for each wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import Run, folders, models, prompts  # noqa: F401 -- fixtures

from taia_lens import results

SIDES = ("--norms", "base", "--embed", "base")
QUICK = ("--epochs", "1", "--draws", "1", "--k", "2")


@pytest.fixture
def one(folders: Path, prompts: Path, tmp_path: Path) -> list[str]:  # noqa: F811
    """One model, its rows to learn from and to be tested on, and a store."""
    data = ["--train", str(prompts), "--suite", str(prompts)]
    return ["--base", str(folders / "base"), *data, "--store", str(tmp_path / "cells.sqlite")]


def test_heads_of_one_model_prints_tables_and_sentences_and_writes_a_run_folder(run: Run, one: list[str]) -> None:
    code, out, err = run("heads", "--by", "lofit,mean-diff,random", "--seeds", "2", *QUICK, *one)
    assert code == 0, err
    folder = Path(out.strip())
    assert sorted(p.name for p in folder.iterdir()) == ["agreement.html", "figure.html", "maps.html", "meta.json", "result.nc"]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["model"]["fingerprint"] and meta["train"]["name"] == "prompts" and meta["seed"] == 0
    assert meta["sentences"] and all(s in " ".join(err.split()) for s in meta["sentences"])
    for words in ("top 2 of 12 heads, in how many of 2 seeds", "Kendall's tau", "offsets trained on 2 heads", "trained parameters"):
        assert words in " ".join(err.split())
    assert "note: 11 of 11 prompts of the suite prompts are in the training suite prompts too" in err
    result = results.load(folder)
    assert result.attrs["by"] == ["lofit", "mean-diff", "random"] and result.attrs["seeds"] == [0, 1]
    assert (result.numbers.sel(arm="offsets lofit top #0"), result.numbers.sel(arm="offsets all heads #0")) == (2 * 8, 12 * 8)
    code, _, again = run("heads", "--by", "lofit,mean-diff,random", "--seeds", "2", *QUICK, *one, "--out", "again")
    assert code == 0 and ": 0 new cells" in again
    assert results.load("again").drop_attrs().equals(result.drop_attrs())


def test_heads_of_a_pair_in_json_with_the_bridge_to_taia(run: Run, one: list[str], folders: Path) -> None:  # noqa: F811
    command = ["heads", "--json", "--by", "lofit,update,atp", "--check", "graft", *QUICK, *SIDES, *one, "--tuned", str(folders / "tuned")]
    code, out, err = run(*command, "--metric", "logprob", "--limit", "3")
    assert code == 0, err
    record = json.loads(out)
    assert {r["by"] for r in record["results"]} == {"base", "vanilla", "TAIA", "lofit", "update", "atp", "random heads", "all heads"}
    assert {r["check"] for r in record["results"]} == {"", "graft"} and {r["n"] for r in record["results"]} == {3}
    assert any("lofit and update share" in s and "lofit and atp share" in s for s in record["sentences"])
    assert any("each k and v is shared by 2 heads" in note for note in record["notes"])
    assert {(a["ranker"], a["other"]) for a in record["agreement"]} >= {("update", "lofit"), ("atp", "update"), ("lofit", "lofit")}
    code, _, err = run("heads", "--by", "random", "--check", "none", *SIDES, *one, "--tuned", str(folders / "tuned"), "--out", "bare")
    assert code == 0 and "offsets trained" not in err and not Path("bare/figure.html").exists()


def test_the_defaults_are_the_demos_base_and_its_truth_suites(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from taia_lens.demo import BASE, demo_suite
    from taia_lens.studies import heads as study

    asked = {}

    class Reached(Exception):  # noqa: N818 -- it is no error
        pass

    def stop(subject: object, train: object, suites: object, **named: object) -> None:
        asked.update(named | {"subject": subject, "train": train, "suites": suites})
        raise Reached

    monkeypatch.setattr(study, "heads", stop)
    with pytest.raises(Reached):
        run("heads", "--no-store")
    assert asked["subject"].name == str(BASE) and asked["train"] == demo_suite("truth-train")  # type: ignore[attr-defined]
    assert asked["suites"] == [demo_suite("truth")] and asked["by"] == study.BY and asked["k"] == "3%"


def test_transfer_prints_its_matrix_and_sentences(run: Run, folders: Path, prompts: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = [json.loads(text) for text in prompts.read_text().splitlines()]
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(json.dumps(row | {"answer": row["contrast"], "contrast": row["answer"]}) for row in rows))
    tasks = ["--task", f"one={prompts},{prompts}", "--task", f"two={other},{other}"]
    command = ["transfer", *tasks, "--base", str(folders / "base"), *QUICK, "--no-store", "--metric", "logprob"]
    code, out, err = run(*command, "--out", "run")
    assert code == 0, err
    assert sorted(p.name for p in Path(out.strip()).iterdir()) == ["figure.html", "meta.json", "result.nc"]
    assert "offsets tuned on one; untouched" in " ".join(err.split()) and "the tasks share: one and two" in err
    code, out, err = run(*command, "--json")
    record = json.loads(out)
    assert code == 0 and {r["selected_on"] for r in record["results"]} == {"one", "two", "random heads"}
    assert {(r["tuned_on"], r["suite"]) for r in record["results"]} == {("one", "prompts"), ("two", "other")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["heads", "--by", "lofti"], "no ranker 'lofti' (did you mean 'lofit'?); there are lofit, "),
        (["heads", "--by", "lofit,patch"], "the ranker patch needs a tuned model beside"),
        (["heads", "--by", ","], "--by ',' names nothing"),
        (["heads", "--k", "13"], "13 heads were asked for, and this model has 12"),
        (["heads", "--k", "many"], "cannot read the number of heads 'many'; write 16, or 3%"),
        (["heads", "--check", "graft"], "there is one model only; give a pair, or write offsets"),
        (["heads", "--check", "prune"], "no check 'prune'; there are offsets, graft"),
        (["heads", "--metric", "bleu"], "no metric 'bleu'"),
        (["heads", "--lr", "0"], "lr is 0; write a number above 0"),
        (["heads", "--loss", "mse"], "no loss 'mse'; there are ce, dpo"),
        (["heads", "--epochs", "0"], "epochs is 0; write 1 or more"),
        (["heads", "--validation", "nowhere.jsonl"], "no suite file nowhere.jsonl"),
        (["heads", "--norms", "mine"], "no norms 'mine'; write base or tuned"),
        (["heads", "--seeds", "0"], "--seeds"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run: Run, one: list[str], arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments, *one)
    assert (code, out) == (2, "") and message in err
    assert err.strip().splitlines()[-1].startswith("taia-lens: ") and "Traceback" not in err
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["heads", "--tuned", "somewhere"], "--tuned was given without --base"),
        (["heads", "--base", "somewhere"], "give --train FILE.jsonl"),
        (["heads", "--base", "somewhere", "--train", "demo:truth-train"], "your own"),
        (["transfer", "--task", "truth"], "cannot read --task 'truth'; write NAME=TRAIN,TEST"),
        (["transfer", "--task", "truth=demo:truth-train"], "write NAME=TRAIN,TEST"),
        (["transfer", "--task", "t=demo:truth-train,demo:truth", "--task", "t=demo:routing,demo:routing"], "two tasks have one name"),
        (["transfer", "--task", "t=demo:truth-train,demo:truth", "--no-store"], "1 tasks, 1 seeds, 3 draws: write two tasks or more"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and message in err and "Traceback" not in err
