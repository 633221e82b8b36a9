"""The command line as a user meets it: what it prints where, what it leaves on disk, and one line for each wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import make, make_tokenizer
from safetensors.torch import load_file, save_file

from taia_lens import cli, results, summaries
from taia_lens.suite import Suite

ENV = {**os.environ, "HF_HUB_OFFLINE": "1"}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders of a llama pair, of another shape, of another architecture, and of several that are broken."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer(root / "tokenizer")
    for name, seed, architecture in (("base", 0, "llama"), ("tuned", 1, "llama"), ("other", 0, "gpt2"), ("same", 0, "llama")):
        make(architecture, seed).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    for name in ("nan", "cut", "pickle"):
        make("llama", 1).save_pretrained(root / name)
    weights = load_file(root / "nan" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, root / "nan" / "model.safetensors", metadata={"format": "pt"})
    whole = (root / "cut" / "model.safetensors").read_bytes()
    (root / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "pickle" / "model.safetensors").rename(root / "pickle" / "pytorch_model.bin")
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="session")
def prompts(folders: Path, suite: Suite) -> Path:
    path = folders / "prompts.jsonl"
    rows = [{"id": r.id, "prompt": r.prompt, "answer": r.answer, "contrast": r.contrast, "domain": r.domain} for r in suite.rows]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def models(folders: Path, prompts: Path) -> list[str]:
    return ["--base", str(folders / "base"), "--tuned", str(folders / "tuned"), "--suite", str(prompts)]


def test_stdout_is_the_run_folder_and_nothing_else(run: Run, models: list[str], tmp_path: Path) -> None:
    code, out, err = run("patch", "--component", "attn,mlp", "--layer", "0-1", *models)
    assert code == 0
    folder = Path(out.strip())
    assert folder.parent == Path("runs")
    assert sorted(p.name for p in folder.iterdir()) == ["figure.html", "meta.json", "result.nc"]
    assert "in distribution" in err and "out of distribution" in err and "L1.mlp" in err and "noise floor" in err
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_meta_says_how_to_do_it_again(run: Run, models: list[str], suite: Suite) -> None:
    command = ["patch", "--component", "mlp", "--layer", "1", *models, "--seed", "3", "--out", "here"]
    assert run(*command)[0] == 0
    meta = json.loads(Path("here/meta.json").read_text())
    assert meta["command"].split() == ["taia-lens", *command]
    assert meta["seed"] == 3
    assert meta["suite"]["sha256"] == suite.sha256
    assert meta["pair"]["fingerprint"]["base"] != meta["pair"]["fingerprint"]["tuned"]
    assert {"torch", "transformer-lens", "transformers"} <= set(meta["versions"])


def test_json_is_the_result_on_stdout(run: Run, models: list[str]) -> None:
    code, out, _ = run("patch", "--component", "mlp", "--layer", "1", *models, "--json", "--metric", "logprob, kl_donor,")
    found = json.loads(out)
    assert code == 0
    assert {(r["domain"], r["metric"], r["layer"]) for r in found["results"]} == {
        (d, m, 1) for d in ("id", "ood") for m in ("logprob", "kl_donor")
    }
    summary = results.summary(results.load(found["run"]))
    for record in found["results"]:
        cell = summary.sel(domain=record["domain"], metric=record["metric"], component="mlp", layer=1)
        assert record["patched"] == float(cell.patched) and record["effect_low"] == float(cell.effect_low)


def test_the_same_command_gives_the_same_numbers(run: Run, models: list[str]) -> None:
    command = ["patch", "--component", "head", "--layer", "1", "--head", "0-1", "--pos", "last", *models, "--limit", "3", "--json"]
    first, second = (json.loads(run(*command)[1])["results"] for _ in range(2))
    assert first == second


def test_patching_from_base_swaps_host_and_donor(run: Run, models: list[str]) -> None:
    rows = {
        s: json.loads(run("patch", "--component", "mlp", "--layer", "1", *models, "--source", s, "--json")[1]) for s in ("base", "tuned")
    }
    assert rows["base"]["attrs"]["host"] == "tuned"
    for a, b in zip(rows["base"]["results"], rows["tuned"]["results"], strict=True):
        assert a["host"] == b["donor"] and a["donor"] == b["host"]


def test_check_prints_the_laws_and_what_differs(run: Run, folders: Path) -> None:
    code, out, _ = run("check", "--base", str(folders / "base"), "--tuned", str(folders / "tuned"))
    assert code == 0
    assert "resid_pre + attn + mlp == resid_post" in out and "zero-ablating" in out and "tensors differ" in out
    assert "FAILS" not in out


def test_check_as_json(run: Run, folders: Path) -> None:
    _, out, _ = run("check", "--base", str(folders / "base"), "--tuned", str(folders / "tuned"), "--json")
    found = json.loads(out)
    assert all(law["holds"] for law in found["report"]["laws"])
    assert {d["component"] for d in found["differences"]} >= {"attn", "mlp", "embed"}


def test_check_measures_how_much_to_run_at_a_time_and_patch_takes_it(run: Run, models: list[str]) -> None:
    pair = models[:4]
    _, out, _ = run("check", *pair, "--measure", "--json")
    found = json.loads(out)["pace"]
    assert str(found["advised_call_tokens"]) in found["seconds_a_token"]
    code, out, _ = run("check", *pair, "--measure")
    assert code == 0 and "a token of rows of 32 in one block, by tokens of a call: 400 " in out and "suits this model" in out
    asked = ("patch", "--component", "mlp", *models, "--out", "here")
    assert run(*asked, "--call-tokens", "77")[0] == 0
    assert json.loads(Path("here/meta.json").read_text())["call_tokens"] == 77
    code, _, err = run(*asked, "--call-tokens", "0")
    assert code == 2 and "call-tokens" in err


@pytest.mark.parametrize("command", ["patch", "layers", "compare", "heads", "transfer", "steer", "attribute", "lofit apply", "lofit paper"])
def test_what_runs_many_recipes_takes_how_much_to_run_at_a_time(run: Run, command: str) -> None:
    assert "--call-tokens" in run(*command.split(), "--help")[1]


def test_check_says_where_there_is_nothing_to_measure(run: Run, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taia_lens.loading.plain_because", lambda subject, batch: "it is odd")
    code, out, _ = run("check", *models[:4], "--measure")
    assert code == 0 and "note: recipes are run one by one on this pair: it is odd" in out and "nothing to measure" in out
    _, out, _ = run("check", *models[:4], "--measure", "--json")
    assert json.loads(out)["pace"] is None


@pytest.mark.parametrize("args", [(), ("patch",), ("check",), ("demo",), ("demo", "train")])
def test_every_command_has_help_with_an_example(run: Run, args: tuple[str, ...]) -> None:
    code, out, _ = run(*args, "--help")
    assert code == 0
    assert "Usage: taia-lens" in out
    if args:
        assert "Example: taia-lens" in out


WRONG = {
    "no such layer": (["--component", "mlp", "--layer", "99"], "no layer 99: this model has 3 layers, 0-2"),
    "a layer that is no number": (["--component", "mlp", "--layer", "twelve"], "write a number, a range or a list"),
    "a range that runs backwards": (["--component", "mlp", "--layer", "2-1"], "write 1-2"),
    "no such component": (["--component", "ffn", "--layer", "1"], "no component 'ffn' to patch; there are attn, mlp, head, resid"),
    "no such head": (["--component", "head", "--layer", "1", "--head", "9"], "no head 9: this model has 4 heads, 0-3"),
    "a head of a component that has none": (["--component", "mlp", "--head", "1"], "heads go with the component head"),
    "no such position": (["--component", "mlp", "--pos", "70"], "no position 70"),
    "a position that is no number": (["--component", "mlp", "--pos", "first"], "write all, last, each, each-from-end, or numbers"),
    "no metric at all": (["--component", "mlp", "--metric", " ,"], "--metric ' ,' names nothing; write names with commas"),
    "no such metric": (["--component", "mlp", "--metric", "f1"], "no metric 'f1'; there are accuracy"),
    "a metric that the rows cannot have": (["--component", "mlp", "--metric", "choice_accuracy"], "needs choices and a label"),
    "no such source": (["--component", "mlp", "--source", "donor"], "activations come from base or tuned"),
    "no such dtype": (["--component", "mlp", "--dtype", "int3"], "no dtype 'int3'; there are auto, float32"),
    "no such device": (["--component", "mlp", "--device", "tpu9"], "no device 'tpu9' here"),
    "a limit of none": (["--component", "mlp", "--limit", "0"], "a limit of 0 leaves no prompt"),
    "a batch of none": (["--component", "mlp", "--batch-size", "0"], "a batch size of 0 holds no prompt"),
    "no component at all": ([], "--component"),
    "an option that there is not": (["--component", "mlp", "--layr", "1"], "No such option: --layr"),
    "a negative seed": (["--component", "mlp", "--seed", "-1"], "Invalid value for '--seed'"),
    "a range without end": (["--component", "mlp", "--layer", "0-99999999999"], "is larger than any model"),
    "a device without numbers": (["--component", "mlp", "--device", "meta"], "no device 'meta' here"),
    "a name too long": (["--component", "mlp", "--out", "x" * 300], "File name too long"),
    "a number that is none": (["--component", "mlp", "--limit", "many"], "Invalid value for '--limit'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(run: Run, models: list[str], tmp_path: Path, case: str) -> None:
    args, message = WRONG[case]
    _refused(run("patch", *args, *models), message, tmp_path)


def _refused(found: tuple[int, str, str], message: str, folder: Path) -> None:
    code, out, err = found
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("taia-lens: "), err
    assert message in err
    assert "Traceback" not in err
    assert not list(folder.iterdir())


PAIRS = {
    "a folder that is no model": ("base", "empty", "no model folder: no config.json"),
    "a folder that is not there": ("base", "./nowhere", "no folder ./nowhere"),
    "two architectures": ("base", "other", "LlamaForCausalLM"),
    "identical": ("base", "same", "base and tuned are identical"),
    "NaN in a weight": ("base", "nan", "tuned has NaN or inf in model.layers.1.mlp.up_proj.weight"),
    "a file cut short": ("base", "cut", "cannot load"),
    "a pickle": ("base", "pickle", "--allow-pickle"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_what_is_no_pair_is_one_line(run: Run, folders: Path, prompts: Path, tmp_path: Path, case: str) -> None:
    base, tuned, message = PAIRS[case]
    tuned = tuned if tuned.startswith(".") else str(folders / tuned)
    for command in (["patch", "--component", "mlp", "--suite", str(prompts)], ["check"]):
        _refused(run(*command, "--base", str(folders / base), "--tuned", tuned), message, tmp_path)


def test_one_side_alone_is_refused(run: Run, folders: Path, tmp_path: Path) -> None:
    _refused(run("check", "--base", str(folders / "base")), "--base was given without --tuned", tmp_path)


def test_ones_own_pair_needs_prompts(run: Run, folders: Path, tmp_path: Path) -> None:
    found = run("patch", "--component", "mlp", "--base", str(folders / "base"), "--tuned", str(folders / "tuned"))
    _refused(found, "give --suite FILE.jsonl", tmp_path)


SUITES = {
    "empty": ("", "is empty"),
    "no JSON": ('{"prompt": "w1 w2", "answer": " w3", "domain": "id"}\n{"prompt": ', "line 2: not JSON"),
    "no answer": ('{"prompt": "w1", "domain": "id"}', "line 1: give either an answer, or choices"),
    "an answer of two tokens": ('{"prompt": "w1", "answer": " w2 w3", "domain": "id"}', "is 2 tokens (w2 | w3), and one token is needed"),
    "an answer glued to the prompt": ('{"prompt": "w1", "answer": "w2", "domain": "id"}', "write ' w2' with a leading space"),
    "half a character": ('{"prompt": "w1 \\ud800", "answer": " w2", "domain": "id"}', "half a character"),
    "a prompt longer than the model": (
        json.dumps({"prompt": "w1 " * 200, "answer": "w2", "domain": "id"}),
        "200 tokens and the model has 64",
    ),
    "no domain": ('{"prompt": "w1", "answer": " w2"}', "write 'id' (in distribution) or 'ood'"),
}


@pytest.mark.parametrize("case", SUITES)
def test_a_broken_suite_is_one_line(run: Run, folders: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, case: str) -> None:
    text, message = SUITES[case]
    path = tmp_path_factory.mktemp("suite") / "broken.jsonl"
    path.write_text(text)
    pair = ["--base", str(folders / "base"), "--tuned", str(folders / "tuned")]
    _refused(run("patch", "--component", "mlp", *pair, "--suite", str(path)), message, tmp_path)


def test_a_run_never_overwrites_another(run: Run, models: list[str], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    code, _, err = run("patch", "--component", "mlp", "--layer", "1", *models, "--out", "here")
    assert code == 2
    assert "here exists" in err


def test_no_permission_is_said_before_anything_is_computed(
    run: Run, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # a superuser, as in CI, may write everywhere
    _refused(run("patch", "--component", "mlp", "--layer", "1", *models, "--out", "here"), "no permission", tmp_path)


def test_a_full_disk_is_one_line_and_leaves_nothing(run: Run, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "save", full)
    code, out, err = run("patch", "--component", "mlp", "--layer", "1", *models, "--out", "here")
    assert (code, out) == (2, "")
    assert "No space left on device; nothing was left behind" in err
    assert not list(tmp_path.iterdir())


def test_a_bug_keeps_its_traceback(run: Run, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "patch_summary", lambda _: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["taia-lens", "patch", "--component", "mlp", "--layer", "1", *models])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def _listen_to_ctrl_c() -> None:
    """A shell makes its background jobs deaf to it, and their children inherit that; a terminal's are not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_that_looks_whole(models: list[str], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from taia_lens.cli import main; main()",
        "patch",
        "--component",
        "attn,mlp",
        "--batch-size",
        "1",
        *models,
    ]
    interrupted = 0
    for pause in (2.0, 6.0):  # while libraries load; while the pair is loaded or patched
        process = subprocess.Popen(
            command, cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_listen_to_ctrl_c
        )
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        if process.returncode == 0:  # it was done before the signal came: then it is whole
            assert (tmp_path / out.strip() / "result.nc").exists()
            continue
        interrupted += 1
        assert process.returncode == 130, err
        assert "interrupted; no half-written result is left" in err
        assert not list(tmp_path.rglob("result.nc"))
    assert interrupted


AT_THE_END = """
import atexit, os, signal, sys, time
atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.2)))  # runs after what `main` registers
sys.argv = ["taia-lens", "--version"]
from taia_lens.cli import main
main()
"""


def test_ctrl_c_after_all_is_written_changes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, preexec_fn=_listen_to_ctrl_c)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


LOADED = """
heavy = {"torch", "transformers", "transformer_lens", "plotly", "xarray", "scipy"} & set(sys.modules)
sys.exit(str(heavy) if heavy else 0)
"""
HELP = """
import sys
sys.argv = ["taia-lens", "--help"]
from taia_lens.cli import main
try:
    main()
except SystemExit:
    pass
"""


def test_help_does_not_load_torch() -> None:
    done = subprocess.run([sys.executable, "-c", HELP + LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    broken = subprocess.run([sys.executable, "-c", "import torch" + HELP + LOADED], capture_output=True, text=True)
    assert broken.returncode == 1 and "torch" in broken.stderr  # the check can fail


def test_no_argument_at_all_is_the_help(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "Usage: taia-lens" in out and "patch" in out
