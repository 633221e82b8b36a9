"""Tuning: what is learnt from a row, which weights move, and what a run leaves behind. All on models that train in a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import PARTS, component_of, make, make_tokenizer
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from taia_lens.batch import Encoder
from taia_lens.engine import scaled
from taia_lens.errors import PairError, SuiteError, TaiaLensError
from taia_lens.examples import NO_LABEL, Example, collate, encode_chat, encode_row
from taia_lens.loading import load_one, load_pair
from taia_lens.scales import Scales, load_scales
from taia_lens.suite import Task, make_suite
from taia_lens.tuning import run as tuning_run
from taia_lens.tuning.data import Data, read_data
from taia_lens.tuning.parts import components, matrices
from taia_lens.tuning.run import answer_loss, tune
from taia_lens.tuning.settings import Settings

Run = Callable[..., tuple[int, str, str]]
QUICK = Settings(dropout=0.0, lr=1e-2, batch_size=8, epochs=2.0)
CHAT = (
    "{% for m in messages %}{{ 'w51 ' if m['role'] == 'user' else 'w52 ' }}{{ m['content'] }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}w52 {% endif %}"
)
TURNS = [
    {"role": "user", "content": "w1 w2"},
    {"role": "assistant", "content": "w3 w4"},
    {"role": "user", "content": "w5"},
    {"role": "assistant", "content": "w6"},
]


def jsonl(path: Path, rows: Sequence[Any], task: dict[str, Any] | None = None) -> Path:
    head = [] if task is None else [{"suite": {"task": task}}]
    path.write_text("\n".join(map(json.dumps, [*head, *rows])))
    return path


def words(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[str, str]:
    """What the model reads, and what it must say."""
    said = [label for label in example.labels if label != NO_LABEL]
    assert all(label in (NO_LABEL, token) for token, label in zip(example.tokens, example.labels, strict=True))
    return tokenizer.decode(list(example.tokens)), tokenizer.decode(said)


def answered(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> Example:
    """A generated answer's example."""
    suite = make_suite("one", [{"prompt": prompt, "answer": answer, "domain": "id"}], task=Task("generate"))
    (example,) = encode_row(Encoder(tokenizer, suite), 64, suite.rows[0])
    return example


@pytest.fixture
def chatty(tmp_path: Path) -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template."""
    made = make_tokenizer(tmp_path / "chatty")
    made.chat_template = CHAT
    return made


# What is learnt from a row


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("next", {"answer": " w3"}, "w3"),
        ("next", {"choices": [" w7", " w8"], "label": 1}, "w8"),
        ("choice", {"choices": [" w7 w9", " w8"], "label": 0}, "w7 w9"),
        ("generate", {"answer": " w3 w4"}, "w3 w4 </s>"),
    ],
)
def test_only_the_answer_is_learnt_and_its_end_where_it_is_generated(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, task: str, row: dict, said: str
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"prompt": "w1 w2"} | row], {"kind": task})
    (example,) = read_data(path, tokenizer, max_length=64).examples
    assert words(tokenizer, example) == (f"w1 w2 {said}", said)


def test_plain_text_is_learnt_whole_in_pieces(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    text = [f"w{i}" for i in range(11)]
    path = jsonl(tmp_path / "rows.jsonl", [{"prompt": " ".join(text)}, {"prompt": "w1"}], {"kind": "text"})
    found = read_data(path, tokenizer, max_length=4)
    # A piece's first token has nothing before it to be predicted from.
    assert [words(tokenizer, e)[0].split() for e in found.examples] == [text[:4], text[4:8], text[8:]]
    assert [words(tokenizer, e)[1].split() for e in found.examples] == [text[1:4], text[5:8], text[9:]]
    assert found.left_out == {"of a single token": 1} and found.n_labels == 8


def test_every_turn_of_the_assistant_is_learnt_with_its_end(chatty: PreTrainedTokenizerBase) -> None:
    (example,) = encode_chat(chatty, TURNS)
    assert words(chatty, example) == ("w51 w1 w2 </s> w52 w3 w4 </s> w51 w5 </s> w52 w6 </s>", "w3 w4 </s> w6 </s>")


def test_a_template_without_an_end_gets_one(chatty: PreTrainedTokenizerBase) -> None:
    chatty.chat_template = CHAT.replace("{{ eos_token }} ", "")
    (example,) = encode_chat(chatty, TURNS)
    assert words(chatty, example)[1] == "w3 w4 w6 </s>"


def test_a_template_that_rewrites_earlier_turns_is_noticed(chatty: PreTrainedTokenizerBase) -> None:
    chatty.chat_template = CHAT.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] == 'user' else 'w59' }}")
    assert encode_chat(chatty, TURNS) == "whose earlier turns the chat template rewrites"
    assert not isinstance(encode_chat(chatty, TURNS[:2]), str)


def test_a_template_that_refuses_a_chat_is_quoted(chatty: PreTrainedTokenizerBase) -> None:
    chatty.chat_template = "{{ raise_exception('no system here') }}"
    assert "no system here" in encode_chat(chatty, TURNS)


def test_a_suite_in_the_chat_template_is_asked_as_it_is_evaluated(chatty: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    task = {"kind": "generate", "chat": True, "system": "w50"}
    found = read_data(jsonl(tmp_path / "rows.jsonl", [{"prompt": "w1", "answer": " w2"}], task), chatty, max_length=64)
    assert words(chatty, found.examples[0]) == ("w52 w50 </s> w51 w1 </s> w52 w2 </s>", "w2 </s>")
    assert "chat template" in found.form


def test_an_end_that_is_also_the_padding_is_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    short, long = answered(tokenizer, "w1", " w2"), answered(tokenizer, "w1 w2", " w3 w4")
    batch = collate([short, long])
    end = tokenizer.eos_token_id
    for row, example in enumerate((short, long)):
        n = len(example.tokens)
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (5 - n)
        assert batch["labels"][row, n - 1] == batch["input_ids"][row, n - 1] == end
        assert (batch["labels"][row, n:] == NO_LABEL).all()
    # The published collator counts what is not padding: where padding is the end, that loses the end of every row.
    assert (batch["input_ids"] != end).sum(1).tolist() == [2, 4]


def test_rows_that_cannot_be_used_are_counted_with_their_reason(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows = [
        {"prompt": "w1", "answer": " w2", "domain": "id"},
        {"prompt": "w1", "answer": "2", "domain": "id"},
        {"prompt": "w1 w2 w3 w4", "answer": " w5", "domain": "id"},
        {"prompt": "w1", "answer": " w3", "domain": "ood"},
    ]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    found = read_data(path, tokenizer, max_length=4)
    assert found.read == 4 and len(found.examples) == 1
    reasons = [("joins", 1), ("longer than 4 tokens", 1), ("out of distribution", 1)]
    assert sorted(found.left_out.values()) == [1, 1, 1]
    assert all(any(word in reason and n == found.left_out[reason] for reason in found.left_out) for word, n in reasons)
    assert len(read_data(path, tokenizer, max_length=4, every=True).examples) == 2


def test_a_limit_draws_rows_by_seed(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"prompt": f"w{i}", "answer": " w1"} for i in range(30)])
    drawn = [read_data(path, tokenizer, max_length=8, limit=5, seed=seed).examples for seed in (0, 0, 1)]
    assert len(drawn[0]) == 5 and drawn[0] == drawn[1] != drawn[2]


def test_real_instructions_are_read_and_their_answers_learnt(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/stories260K")
    found = read_data(shared / "data/alpaca/data.jsonl", tokenizer, max_length=4096)
    rows = [json.loads(line) for line in (shared / "data/alpaca/data.jsonl").read_text().splitlines()]
    assert found.read == len(rows) == 2000 and found.form.endswith("Alpaca's template")
    assert len(found.examples) + sum(found.left_out.values()) == 2000 and len(found.examples) > 1990
    for row, example in zip(rows[:50], found.examples[:50], strict=True):
        said = [label for label in example.labels if label != NO_LABEL]
        assert said[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(said[:-1]).strip() == row["output"].strip()
        assert "no input" not in tokenizer.decode(list(example.tokens))


def test_instructions_go_through_a_chat_template_where_there_is_one(chatty: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"instruction": "w1", "input": "w2", "output": "w3"}])
    found = read_data(path, chatty, max_length=64)
    assert words(chatty, found.examples[0]) == ("w51 w1 w2 </s> w52 w3 </s>", "w3 </s>") and "chat template" in found.form


BROKEN = {
    "no file": (None, "no data file"),
    "empty": ("", "is empty"),
    "no JSON": ('{"prompt": "w1"\n', "line 1: not JSON"),
    "a list": ('[{"prompt": "w1", "answer": " w2"}]', "one row a line"),
    "refusals": ('{"suite": {"task": {"kind": "refuse"}}}\n{"prompt": "w1"}', "no answers to train on"),
    "chats, no template": (json.dumps({"messages": TURNS}), "no chat template"),
    "a chat that is none": ('{"messages": [{"role": "user"}]}', "line 1: a chat is"),
    "nobody answers": ('{"messages": [{"role": "user", "content": "w1"}]}', "a turn of the assistant"),
    "no output": ('{"instruction": "w1", "output": " "}', "instruction, input"),
    "a row of a suite": ('{"prompt": "w1"}', "found neither"),
    "nothing usable": ('{"prompt": "w1", "answer": "2"}', "no row to train on: of 1 rows, 1 whose answer joins"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_data_that_cannot_be_used_are_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, case: str) -> None:
    text, message = BROKEN[case]
    path = tmp_path / "data.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SuiteError, match=message):
        read_data(path, tokenizer, max_length=64)


def test_a_tokenizer_without_an_end_is_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    endless = make_tokenizer(tmp_path)
    endless.eos_token = None
    with pytest.raises(SuiteError, match="no end-of-text token"):
        answered(endless, "w1", " w2")


# Which weights


def test_parts_are_those_that_a_pair_tells_apart(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make(name, 0)
    assert components(model, tokenizer) == {parameter: component_of(parameter) for parameter, _ in model.named_parameters()}
    assert not any("_original_component" in parameter for parameter, _ in model.named_parameters())  # the model itself is untouched


def test_lora_reaches_every_matrix_of_a_part_and_nothing_else(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make(name, 0)
    of = components(model, tokenizer)
    for part in ("attn", "mlp"):
        modules, bare = matrices(model, {parameter for parameter, component in of.items() if component == part})
        assert {f"{module}.weight" for module in modules} | set(bare) == {
            parameter for parameter, tensor in model.named_parameters() if component_of(parameter) == part and tensor.ndim > 1
        }
        assert all(isinstance(model.get_submodule(module), (nn.Linear, Conv1D)) for module in modules)
        assert bool(bare) == (name == "mixtral" and part == "mlp")


# Runs


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Model folders, by architecture."""
    root = tmp_path_factory.mktemp("bases")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            make(name, 0).save_pretrained(root / name)
            make_tokenizer(root / name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of one to three words: a mean over rows is not a mean over tokens."""
    rows = [
        {"prompt": f"w{i} w{(i + 1) % 50}", "answer": " " + " ".join(f"w{(7 * i + j) % 50}" for j in range(1 + i % 3))} for i in range(32)
    ]
    return jsonl(tmp_path_factory.mktemp("lesson") / "lesson.jsonl", rows, {"kind": "generate"})


def mean_loss(model: Any, tokenizer: PreTrainedTokenizerBase, lesson: Path) -> float:
    """Mean cross-entropy over the answers' tokens, row by row, by hand; `model` gives logits."""
    losses = []
    for example in read_data(lesson, tokenizer, max_length=64).examples:
        logprobs = model(torch.tensor([example.tokens]))[0].log_softmax(-1)
        losses += [-logprobs[i - 1, label].item() for i, label in enumerate(example.labels) if label != NO_LABEL]
    return sum(losses) / len(losses)


MOVED = {"attn": {"attn"}, "mlp": {"mlp"}, "all": {"attn", "mlp"}}
# A training is seconds: all of llama; of the others what their own layout could break (fused, Conv1D, experts), each way once.
TRAININGS = [("llama", full, train) for full in (False, True) for train in MOVED]
TRAININGS += [
    (name, full, train) for name in ("gpt2", "phi3", "mixtral") for full, train in ((False, "attn"), (False, "mlp"), (True, "all"))
]


@pytest.mark.parametrize(("architecture", "full", "train"), TRAININGS)
def test_what_is_trained_is_what_differs(
    bases: Callable[[str], Path], lesson: Path, tmp_path: Path, architecture: str, full: bool, train: str
) -> None:
    base, out = bases(architecture), tmp_path / "out"
    record = tune(base, lesson, out, Settings(train, full, dropout=0.0, lr=2e-2, batch_size=8))
    pair = load_pair(base, out)
    everything = {component_of(n) for n, _ in make(architecture, 0).named_parameters()}
    assert {d.component for d in pair.differences} == (everything if full and train == "all" else MOVED[train])
    counts = record["trained"]["tensors"]
    assert counts == {c: sum(d.component == c for d in pair.differences) for c in counts}
    losses = [mean_loss(model, pair.tokenizer, lesson) for model in (pair.base, pair.tuned)]
    assert losses[1] < losses[0] - 0.2
    if not full:
        assert pair.report.merge_drift is not None and pair.report.merge_drift < 1e-5


def test_the_loss_is_the_mean_over_the_answers_tokens(bases: Callable[[str], Path], lesson: Path, tmp_path: Path) -> None:
    base = bases("llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    by_hand = mean_loss(lambda ids: model(ids).logits, tokenizer, lesson)
    for rows_at_once in (32, 4):  # in one piece, and gathered over eight: only memory may tell
        settings = Settings(dropout=0.0, batch_size=32, micro_batch=rows_at_once)
        record = tune(base, lesson, tmp_path / f"out-{rows_at_once}", settings)
        assert record["loss"]["steps"] == [pytest.approx(by_hand, rel=1e-5)]
        assert settings.at_once == rows_at_once
    updates = [load_file(tmp_path / f"out-{n}" / "adapter_model.safetensors") for n in (32, 4)]
    for key, tensor in updates[0].items():
        assert torch.allclose(tensor, updates[1][key], atol=1e-6), key


def test_a_label_elsewhere_would_change_the_loss(tokenizer: PreTrainedTokenizerBase) -> None:
    model = make("llama", 0)
    example = answered(tokenizer, "w1 w2", " w3 w4")
    moved = Example(example.tokens, (NO_LABEL, example.tokens[1], *example.labels[2:-1], NO_LABEL))
    losses = []
    for row in (example, moved):
        batch = collate([row])
        labels = batch.pop("labels")
        losses.append(answer_loss(model(**batch), labels, 3).item())
    assert abs(losses[0] - losses[1]) > 1e-3


def test_the_same_seed_gives_the_same_bits(bases: Callable[[str], Path], lesson: Path, tmp_path: Path) -> None:
    files = []
    for i, seed in enumerate((3, 3, 4)):
        settings = Settings(lr=1e-2, batch_size=8, epochs=1.0, seed=seed)  # with dropout
        tune(bases("llama"), lesson, tmp_path / str(i), settings)
        files.append((tmp_path / str(i) / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_half_precision_checkpoint_stays_one(lesson: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    make("llama", 0).to(torch.bfloat16).save_pretrained(base)
    make_tokenizer(base)
    for full in (False, True):
        record = tune(base, lesson, tmp_path / f"out-{full}", Settings(full=full, dropout=0.0, lr=1e-2, batch_size=8, epochs=2.0))
        pair = load_pair(base, tmp_path / f"out-{full}")
        assert record["dtype"] == pair.origin.dtype == "bfloat16"
        assert record["loss"]["last"] < record["loss"]["first"] and pair.differences
    config = [json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "out-True")]
    assert config[0]["use_cache"] is config[1]["use_cache"] is True  # the trainer turns it off


def test_what_a_run_leaves_behind(run: Run, bases: Callable[[str], Path], lesson: Path, tmp_path: Path) -> None:
    options = ["--base", str(bases("llama")), "--data", str(lesson), "--out", "made/tuned", "--batch-size", "8"]
    code, out, err = run("tune", *options, "--limit", "20")
    assert (code, out) == (0, "made/tuned\n"), err
    assert "20 rows read, 20 texts used" in err and "by LoRA (r 16, alpha 32): tensors 12 of attn, 9 of mlp" in err and "lr 0.0002" in err
    folder = tmp_path / "made" / "tuned"
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "tuning.json"]
    assert [p.name for p in folder.parent.iterdir()] == ["tuned"]
    record = json.loads((folder / "tuning.json").read_text())
    published = {"r": 16, "alpha": 32, "dropout": 0.05, "lr": 2e-4, "warmup": 0.03, "epochs": 1.0, "train": "all", "full": False}
    assert published.items() <= record["settings"].items()
    assert record["base"] == "llama" and record["data"]["name"] == "lesson.jsonl" and len(record["data"]["sha256"]) == 64
    assert record["trained"]["parameters"] == sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values())
    assert len(record["loss"]["steps"]) == 3 and {"torch", "peft", "transformers", "accelerate"} <= set(record["versions"])
    for file in ("tuning.json", "adapter_config.json"):
        assert str(bases("llama").parent) not in (folder / file).read_text()
    assert load_pair(bases("llama"), folder).report.notes == ()  # the adapter names its base


def test_a_whole_checkpoint_brings_its_tokenizer(run: Run, bases: Callable[[str], Path], lesson: Path, tmp_path: Path) -> None:
    options = ["--base", str(bases("llama")), "--data", str(lesson), "--out", "tuned", "--full", "--limit", "8"]
    code, _, err = run("tune", *options)
    assert code == 0 and "in full: tensors 1 of embed" in err and "lr 2e-05" in err
    model, tokenizer = AutoModelForCausalLM.from_pretrained("tuned"), AutoTokenizer.from_pretrained("tuned")
    assert tokenizer("w1 w2")["input_ids"] == AutoTokenizer.from_pretrained(bases("llama"))("w1 w2")["input_ids"]
    assert model.config.use_cache


@pytest.mark.parametrize("where", ["answer_loss", "_save"])
def test_ctrl_c_leaves_nothing(
    run: Run, bases: Callable[[str], Path], lesson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning_run, where, stop)
    code, out, err = run("tune", "--base", str(bases("llama")), "--data", str(lesson), "--out", "tuned")
    assert (code, out) == (130, "") and "interrupted" in err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(
    run: Run, bases: Callable[[str], Path], lesson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuning_run, "_save", full)
    code, out, err = run("tune", "--base", str(bases("llama")), "--data", str(lesson), "--out", "tuned")
    assert (code, out) == (2, "") and "No space left on device; nothing was left behind" in err
    assert not list(tmp_path.iterdir())


REFUSED = {
    "no such part": (["--train", "ffn"], "cannot train 'ffn'; there are all, attn, mlp"),
    "no data": (["--data", "nowhere.jsonl"], "no data file nowhere.jsonl"),
    "no base": (["--base", "./nowhere"], "no folder ./nowhere"),
    "no network": (["--base", "nobody/nothing"], "could not be had from the Hub"),
    "an adapter": (["--base", "{adapter}"], "is an adapter; give the model that it was trained on"),
    "no tokenizer": (["--base", "{bare}"], "brings no tokenizer"),
    "an out that exists": (["--out", "{adapter}"], "exists; give another --out"),
    "a rate of nothing": (["--lr", "0"], "lr is 0; write a number above 0"),
    "a rank of nothing": (["--r", "0"], "r is 0; write 1 or more"),
    "all dropped": (["--dropout", "1"], "dropout is 1; write a fraction"),
    "no epoch": (["--epochs", "0"], "epochs is 0"),
    "no such dtype": (["--dtype", "int8"], "no dtype 'int8'"),
    "no row": (["--limit", "0"], "a limit of 0 leaves no row"),
    "no such device": (["--device", "abacus"], "no device 'abacus'"),
    "no such method": (["--method", "dora"], "no method 'dora'; there are lora, full, red"),
    "two methods": (["--full", "--red"], "one method at a time, and full and red were asked for"),
    "red on attention": (["--red", "--train", "attn"], "red is at the FFN's outputs, and attn was asked for"),
    "red on half a pass": (["--red", "--epochs", "1.5"], "red makes whole passes; write 2"),
    "diverged": (["--full", "--lr", "1e30", "--batch-size", "8"], "lower --lr (1e+30)"),
}


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> dict[str, str]:
    root = tmp_path_factory.mktemp("odd")
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text("{}")
    make("llama", 0).save_pretrained(root / "bare")
    return {"adapter": str(root / "adapter"), "bare": str(root / "bare")}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_line(
    run: Run, bases: Callable[[str], Path], lesson: Path, odd: dict[str, str], tmp_path: Path, case: str
) -> None:
    options, message = REFUSED[case]
    given = {"--base": str(bases("llama")), "--data": str(lesson), "--out": "tuned"}
    flags = [option.format(**odd) for option in options]
    rest = [part for name, value in given.items() if name not in flags for part in (name, value)]
    code, out, err = run("tune", *flags, *rest)
    assert (code, out) == (2, "") and message in err, err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


# RED


def by_hand(name: str, scales: Scales) -> Any:
    """The transformers model with s * FFN + b as RED's own code has it: hooks on the module that adds to the residual stream."""
    model, parts = make(name, 0), PARTS[name]

    def edit(layer: int) -> Callable[..., Any]:
        def red(module: nn.Module, given: Any, out: Any) -> Any:
            first = out[0] if isinstance(out, tuple) else out
            made = (1 + scales.gain[layer]) * first + scales.offset[layer]
            return (made, *out[1:]) if isinstance(out, tuple) else made

        return red

    for layer, block in enumerate(model.get_submodule(parts.blocks)):
        block.get_submodule(parts.mlp).register_forward_hook(edit(layer))
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mixtral"])
def test_red_trains_a_gain_and_a_bias_of_every_ffn_output(
    bases: Callable[[str], Path], lesson: Path, tmp_path: Path, architecture: str
) -> None:
    base, red = bases(architecture), Settings(red=True, lr=2e-2, batch_size=8, epochs=2.0)
    record = tune(base, lesson, tmp_path / "red", red)
    scales, config = load_scales(tmp_path / "red"), make(architecture, 0).config
    assert sorted(p.name for p in (tmp_path / "red").iterdir()) == ["scales.json", "scales.safetensors", "tuning.json"]
    assert [str(site) for site in scales.sites] == ["L0.mlp", "L1.mlp", "L2.mlp"] and scales.made["method"] == "red"
    assert record["trained"]["parameters"] == scales.numbers == 2 * config.hidden_size * 3
    assert bool(scales.gain.all()) and bool(scales.offset.all())
    assert record["loss"]["steps"][1] < record["loss"]["steps"][0]
    tokenizer, model = AutoTokenizer.from_pretrained(base), by_hand(architecture, scales)
    losses = [mean_loss(lambda ids, m=m: m(ids).logits, tokenizer, lesson) for m in (make(architecture, 0), model)]
    assert losses[1] < losses[0] - 0.1
    # What was trained is what the hooks by hand do, and what a pair of base and adapter has as its tuned side.
    loaded, ids = load_one(base), torch.tensor([[5, 9, 14, 7]])
    with scaled(loaded.model, scales) as live:
        assert torch.allclose(live(ids), model(ids).logits, atol=1e-4)
    assert torch.allclose(load_pair(base, tmp_path / "red").tuned(ids), model(ids).logits, atol=1e-4)
    assert not torch.allclose(loaded.model(ids), model(ids).logits, atol=1e-2)


def test_red_begins_at_the_model_itself_and_takes_the_mean_over_tokens(bases: Callable[[str], Path], lesson: Path, tmp_path: Path) -> None:
    base = bases("llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    first = mean_loss(lambda ids: model(ids).logits, tokenizer, lesson)
    record = tune(base, lesson, tmp_path / "red", Settings(red=True, batch_size=32))  # one step: its loss is the start's
    assert record["loss"]["steps"] == [pytest.approx(first, rel=1e-5)]
    files = []
    for i, seed in enumerate((3, 3, 4)):
        tune(base, lesson, tmp_path / str(i), Settings(red=True, batch_size=8, seed=seed))
        files.append((tmp_path / str(i) / "scales.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_red_on_the_command_line_says_how_many_numbers_it_trained(
    run: Run, bases: Callable[[str], Path], lesson: Path, tmp_path: Path
) -> None:
    options = ["--base", str(bases("llama")), "--data", str(lesson), "--batch-size", "8"]
    for flags, out in ((["--method", "red"], "one"), (["--red"], "two")):
        code, printed, err = run("tune", *options, *flags, "--out", out)
        assert (
            (code, printed) == (0, f"{out}\n")
            and "192 parameters by RED" in err
            and "1 passes (mean over each, as it went), lr 0.008" in err
        ), err
    record = json.loads((tmp_path / "one" / "tuning.json").read_text())
    assert record["settings"]["method"] == "red" and record["settings"]["lr"] == 8e-3
    assert (tmp_path / "one/scales.safetensors").read_bytes() == (tmp_path / "two/scales.safetensors").read_bytes()
    assert run("tune", *options, "--method", "lora", "--limit", "8", "--out", "three")[0] == 0
    assert "adapter_model.safetensors" in {p.name for p in (tmp_path / "three").iterdir()}


def test_experts_that_are_bare_tensors_know_no_dropout(bases: Callable[[str], Path], lesson: Path, tmp_path: Path) -> None:
    with pytest.raises(TaiaLensError, match="write --dropout 0"):
        tune(bases("mixtral"), lesson, tmp_path / "out", Settings())
    assert not (tmp_path / "out").exists()


def test_a_second_device_is_refused(bases: Callable[[str], Path], lesson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_run, "resolve_device", lambda asked: asked)
    with pytest.raises(PairError, match="CUDA_VISIBLE_DEVICES"):
        tune(bases("llama"), lesson, tmp_path / "out", QUICK, device="cuda:1")


def test_a_checkpoint_of_two_dtypes_is_refused() -> None:
    model = make("llama", 0)
    model.model.norm.to(torch.float16)
    with pytest.raises(PairError, match=r"mixes .*float16"):
        tuning_run._dtype(model, "mixed")


def test_a_real_checkpoint_learns_another_domain(shared: Path, tmp_path: Path) -> None:
    """stories260K tuned on an encyclopedia: better on pages that it was not tuned on."""
    base = shared / "models/stories260K"
    lines = [line.strip() for line in (shared / "data/wikitext2/valid.txt").read_text().splitlines() if len(line) > 400]
    train = jsonl(tmp_path / "train.jsonl", [{"prompt": line} for line in lines[:12]], {"kind": "text"})
    held = jsonl(tmp_path / "held.jsonl", [{"prompt": line} for line in lines[-4:]], {"kind": "text"})
    record = tune(base, train, tmp_path / "tuned", Settings(lr=1e-2, batch_size=2))
    assert record["settings"]["max_length"] == 512  # never more than the model was made for
    pair = load_pair(base, tmp_path / "tuned")
    assert {d.component for d in pair.differences} == {"attn", "mlp"}
    tokenizer = AutoTokenizer.from_pretrained(base)
    unseen: Data = read_data(held, tokenizer, max_length=512)
    assert {example.tokens[0] for example in unseen.examples} == {tokenizer.bos_token_id}
    assert all(example.tokens[0] == tokenizer.bos_token_id for example in read_data(held, tokenizer, max_length=64).examples)
    losses = []
    for model in (pair.base, pair.tuned):
        batch = collate(list(unseen.examples))
        logprobs = model(batch["input_ids"], attention_mask=batch["attention_mask"])[:, :-1].log_softmax(-1)
        labels = batch["labels"][:, 1:]
        losses.append(-logprobs.gather(2, labels.clamp_min(0)[..., None])[..., 0][labels != NO_LABEL].mean().item())
    assert losses[1] < losses[0] - 0.3, losses
