"""Loading: folders, models in memory, adapters; what is shared, what is left alone, and what is refused and how."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from architectures import SPECIAL, WORDS, component_of, make, make_tokenizer, tuned_in_attention_only
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from taia_lens import results
from taia_lens.batch import make_batches
from taia_lens.engine import run_plain
from taia_lens.errors import PairError, TaiaLensError
from taia_lens.loading import inspect_pair, load_pair
from taia_lens.pair import Pair, Shape, join
from taia_lens.studies.patching import patch
from taia_lens.suite import make_suite
from taia_lens.weights import Weight, weights

IDS = torch.tensor([[4, 9, 30, 7, 12], [8, 8, 61, 5, 33]])


def save(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A base and a tuned llama on disk; only the base brings a tokenizer. Read-only: tests copy."""
    root = tmp_path_factory.mktemp("checkpoints")
    save(make("llama", 0), root / "base", tokenizer)
    save(make("llama", 1), root / "tuned")
    return root


@pytest.fixture
def work(folders: Path, tmp_path: Path) -> Path:
    """A private copy of the folders."""
    shutil.copytree(folders, tmp_path / "work")
    return tmp_path / "work"


def refusal(base: object, tuned: object, **options: object) -> str:
    """The message with which the pair is refused: always one line."""
    with pytest.raises(TaiaLensError) as caught:
        load_pair(base, tuned, **options)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# What loads


def test_folders_load_offline_and_give_the_numbers_of_transformers(folders: Path) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    pair = load_pair(folders / "base", str(folders / "tuned"))
    for side, seed in (("base", 0), ("tuned", 1)):
        # The same model, loaded without us; the bridge rounds in another order.
        torch.testing.assert_close(pair.side(side)(IDS), make("llama", seed)(IDS).logits, atol=1e-5, rtol=0)
    assert pair.shape == Shape(n_layers=3, n_heads=4, n_key_value_heads=2, d_model=32, d_head=8, d_vocab=64)
    assert pair.origin.dtype == "float32" and pair.origin.base.endswith("base")
    assert pair.report.merge_drift is None and pair.report.added_tokens == ()


def test_models_in_memory_are_the_pair_that_their_folders_are(folders: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from_disk = load_pair(folders / "base", folders / "tuned")
    in_memory = load_pair(make("llama", 0), make("llama", 1), tokenizer=tokenizer)
    assert in_memory.fingerprint == from_disk.fingerprint
    assert from_disk.fingerprint["base"] != from_disk.fingerprint["tuned"]


def picture(model: PreTrainedModel) -> tuple[list[tuple[str, type]], dict[str, Tensor], dict[str, tuple[int, bool]], str | None, bool]:
    modules = [(name, type(module)) for name, module in model.named_modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = {name: (p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()}
    return modules, state, parameters, model.config._attn_implementation, model.training


def test_a_transformers_model_is_left_as_it_was(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    base = make(name, 0)
    tuned = tuned_in_attention_only(base, 1)  # most tensors are equal in both, and so are shared inside the pair
    tuned.train()
    before, logits = [picture(m) for m in (base, tuned)], base(IDS).logits
    pair = load_pair(base, tuned, tokenizer=tokenizer)
    for model, (modules, state, parameters, kernel, training) in zip((base, tuned), before, strict=True):
        now = picture(model)
        assert now[0] == modules and now[2:] == (parameters, kernel, training)
        assert now[1].keys() == state.keys() and all(torch.equal(now[1][k], state[k]) for k in state)
    assert torch.equal(base(IDS).logits, logits)
    # The control: the bridge inside the pair is no transformers tree.
    assert [(n, type(m)) for n, m in pair.base.named_modules()] != before[0][0]


def test_transformer_bridges_are_taken_as_they_are(tokenizer: PreTrainedTokenizerBase) -> None:
    bridges = [
        TransformerBridge.boot_transformers("./tiny", hf_model=make("llama", seed), tokenizer=copy.deepcopy(tokenizer)) for seed in (0, 1)
    ]
    pair = load_pair(*bridges)
    assert pair.base is bridges[0] and pair.tuned is bridges[1]
    assert pair.fingerprint == load_pair(make("llama", 0), make("llama", 1), tokenizer=tokenizer).fingerprint


def test_a_bridge_whose_weights_are_processed_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    bridges = [
        TransformerBridge.boot_transformers("./tiny", hf_model=make("llama", seed), tokenizer=copy.deepcopy(tokenizer)) for seed in (0, 1)
    ]
    bridges[1].enable_compatibility_mode()
    assert "tuned is in compatibility mode, which folds and centres its weights" in refusal(*bridges, tokenizer=tokenizer)


def storages(some: Iterable[Weight]) -> dict[int, int]:
    """Bytes of each storage; a fused tensor and what the bridge split off it are one."""
    found = (w.parameter.untyped_storage() for w in some)
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def test_equal_tensors_share_storage_and_others_do_not(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    base = make(name, 0)
    pair = load_pair(base, tuned_in_attention_only(base, 1), tokenizer=tokenizer)
    theirs = {w.name: w for w in weights(pair.tuned)}
    for mine in weights(pair.base):
        shared = mine.parameter.data_ptr() == theirs[mine.name].parameter.data_ptr()
        assert shared == (component_of(mine.name) != "attn"), mine.name
    assert {d.component for d in pair.differences} == {"attn"}
    # Memory: base, and what changed, once each.
    own = storages([w for w in weights(pair.tuned) if w.name in pair.changed])
    both = storages([w for model in pair.models for w in weights(model)])
    assert both == storages(weights(pair.base)) | own and not storages(weights(pair.base)).keys() & own.keys()


def test_differences_are_the_norms_of_base_and_update(llama: Pair) -> None:
    base, tuned = (dict(make("llama", seed).named_parameters()) for seed in (0, 1))
    assert sorted(d.name for d in llama.differences) == sorted(base)
    for difference in llama.differences:
        a, b = base[difference.name].double(), tuned[difference.name].double()
        assert difference.base_norm == pytest.approx(a.norm().item()) and difference.update_norm == pytest.approx((b - a).norm().item())


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_dtype_that_is_asked_for_is_the_dtype_of_both(folders: Path, dtype: str) -> None:
    pair = load_pair(folders / "base", folders / "tuned", dtype=dtype)
    assert {str(w.parameter.dtype) for side in ("base", "tuned") for w in weights(pair.side(side))} == {f"torch.{dtype}"}
    assert all(law.holds for law in pair.report.laws)


def test_a_checkpoint_keeps_its_own_dtype(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    save(make("llama", 0).bfloat16(), tmp_path / "base", tokenizer)
    save(make("llama", 1).bfloat16(), tmp_path / "tuned")
    assert load_pair(tmp_path / "base", tmp_path / "tuned").origin.dtype == "bfloat16"


def test_a_folder_named_like_a_hub_model_is_the_folder(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # TransformerLens takes the bare name "mixtral" for mistralai/Mixtral-8x7B-v0.1.
    (work / "base").rename(work / "mixtral")
    monkeypatch.chdir(work)
    pair = load_pair("mixtral", "tuned")
    torch.testing.assert_close(pair.base(IDS), make("llama", 0)(IDS).logits, atol=1e-5, rtol=0)


def test_stdout_stays_empty_while_loading(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_pair(folders / "base", folders / "tuned")
    assert capsys.readouterr().out == ""


def test_inspecting_reports_a_law_that_fails_where_loading_refuses(folders: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    base.model.layers[1].mlp.down_proj.weight.zero_()
    pair = inspect_pair(base, folders / "tuned", tokenizer=tokenizer)
    assert [law.name for law in pair.report.laws if not law.holds] == ["zero-ablating L1.mlp changes the logits"]
    assert "zero-ablating L1.mlp" in refusal(base, folders / "tuned", tokenizer=tokenizer)


# Adapters


def make_adapter(base: PreTrainedModel, folder: Path, *, scale: float = 0.1) -> PreTrainedModel:
    """A LoRA adapter whose B is not zero, saved; returns the base with it, unmerged."""
    model = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(3)
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def adapter(work: Path) -> Path:
    make_adapter(AutoModelForCausalLM.from_pretrained(work / "base"), work / "adapter")
    return work / "adapter"


def test_an_adapter_is_merged_into_its_base(work: Path, adapter: Path) -> None:
    pair = load_pair(work / "base", adapter)
    unmerged = make_adapter(AutoModelForCausalLM.from_pretrained(work / "base"), work / "again")
    torch.testing.assert_close(pair.tuned(IDS), unmerged(IDS).logits, atol=1e-5, rtol=0)
    assert (pair.base(IDS) - pair.tuned(IDS)).abs().max() > 1e-3
    assert len(pair.differences) == 6 and {d.component for d in pair.differences} == {"attn", "mlp"}
    # Merging W + BA in float32 moves a logit by rounding only.
    assert pair.report.merge_drift is not None and pair.report.merge_drift < 1e-5


def test_an_adapter_goes_on_a_model_in_memory_and_leaves_it_alone(work: Path, adapter: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    before = picture(base)
    pair = load_pair(base, adapter, tokenizer=tokenizer)
    assert pair.fingerprint == load_pair(work / "base", adapter).fingerprint
    now = picture(base)
    assert now[0] == before[0] and now[2:] == before[2:] and all(torch.equal(now[1][k], before[1][k]) for k in before[1])


def test_an_adapter_on_a_bfloat16_base_is_merged_in_float32(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0).bfloat16()
    save(base, tmp_path / "base", tokenizer)
    make_adapter(base.float(), tmp_path / "adapter", scale=0.05)
    pair = load_pair(tmp_path / "base", tmp_path / "adapter")
    assert pair.origin.dtype == "bfloat16" and pair.report.merge_drift is not None
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (next(t for k, t in tensors.items() if "layers.0" in k and "q_proj" in k and f"lora_{x}" in k) for x in "AB")
    # Rounded once, at the end: exactly the nearest bfloat16 of W + 2 BA. Merging in bfloat16 rounds BA first.
    want = (base.model.layers[0].self_attn.q_proj.weight.float() + 2.0 * (b.float() @ a.float())).bfloat16()
    got = next(w.parameter for w in weights(pair.tuned) if w.name.endswith("layers.0.self_attn.q_proj.weight"))
    assert torch.equal(got, want)


@pytest.mark.parametrize("other", [{"hidden_size": 64, "head_dim": 16}, {"num_hidden_layers": 4}], ids=["wider", "deeper"])
def test_an_adapter_of_another_base_is_refused(work: Path, other: dict[str, int]) -> None:
    make_adapter(make("llama", 0, **other), work / "foreign")
    message = refusal(work / "base", work / "foreign")
    assert "does not fit this base" in message and "give the base that it was trained on" in message


def test_an_adapter_of_a_shallower_base_is_refused(work: Path) -> None:
    make_adapter(make("llama", 0, num_hidden_layers=2), work / "foreign")
    assert "does not fit this base" in refusal(work / "base", work / "foreign")


def test_an_adapter_that_names_another_base_is_noted(work: Path, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "someone/else"}))
    (note,) = load_pair(work / "base", adapter).report.notes
    assert "someone/else" in note


def test_an_untrained_adapter_is_refused_as_identical(work: Path) -> None:
    make_adapter(AutoModelForCausalLM.from_pretrained(work / "base"), work / "zero", scale=0.0)
    assert "identical: no tensor differs; was the adapter trained" in refusal(work / "base", work / "zero")


def test_an_adapter_given_as_base_is_refused(work: Path, adapter: Path) -> None:
    assert "is an adapter; give its base model as base, and the adapter as tuned" in refusal(adapter, work / "base")


def test_a_damaged_adapter_is_refused(work: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    assert "the file is damaged or cut short" in refusal(work / "base", adapter)
    file.rename(adapter / "adapter_model.bin")
    assert "only adapter_model.bin, a pickle" in refusal(work / "base", adapter)
    (adapter / "adapter_model.bin").unlink()
    assert "no adapter_model.safetensors" in refusal(work / "base", adapter)


def test_an_adapter_config_that_is_no_config_is_refused(work: Path, adapter: Path) -> None:
    for text in ("{", "{}", '{"peft_type": "NO_SUCH"}'):
        (adapter / "adapter_config.json").write_text(text)
        assert "adapter" in refusal(work / "base", adapter)


# What is no model


@pytest.mark.parametrize("other", ["base", "tuned"])
def test_what_is_no_model_folder_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    # Only base brings a tokenizer: what is wrong with the folder is said before what it therefore lacks.
    (work / "empty").mkdir()
    (work / "notes").mkdir()
    (work / "notes" / "README.md").write_text("hello")
    tuned = work / other
    assert "is no model folder: no config.json (it holds nothing)" in refusal(work / "empty", tuned)
    assert "(it holds README.md)" in refusal(work / "notes", tuned)
    assert "is a file; give the folder" in refusal(work / "notes" / "README.md", tuned)
    assert "no folder" in refusal(work / "absent", tuned)
    assert "no folder" in refusal("absent", tuned)
    monkeypatch.chdir(work)
    assert "no folder ./absent" in refusal("./absent", tuned)


def test_a_hub_id_that_cannot_be_reached_is_refused_in_one_line(work: Path) -> None:
    assert "nobody/nothing" in refusal("nobody/nothing", work / "tuned")


@pytest.mark.parametrize("text", ["{", '{"hidden_size": 3}', '{"model_type": "no_such_model"}', "[]"])
def test_a_config_that_is_no_config_is_refused(work: Path, text: str) -> None:
    (work / "tuned" / "config.json").write_text(text)
    assert "tuned" in refusal(work / "base", work / "tuned")


def test_pickles_are_refused_unless_allowed(work: Path) -> None:
    file = work / "tuned" / "model.safetensors"
    torch.save(load_file(file), work / "tuned" / "pytorch_model.bin")
    file.unlink()
    message = refusal(work / "base", work / "tuned")
    assert "only pytorch_model.bin, a pickle" in message and "--allow-pickle" in message
    assert load_pair(work / "base", work / "tuned", allow_pickle=True).differences
    (work / "tuned" / "pytorch_model.bin").unlink()
    assert "no weights at all" in refusal(work / "base", work / "tuned")


def test_a_damaged_checkpoint_is_refused(work: Path) -> None:
    file = work / "tuned" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "tuned" in refusal(work / "base", work / "tuned")


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
def test_a_checkpoint_that_does_not_fit_its_config_is_refused(work: Path, change: str) -> None:
    file, key = work / "tuned" / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(file)
    if change == "missing":
        del tensors[key]
    elif change == "unexpected":
        tensors["model.layers.1.mlp.extra.weight"] = torch.ones(3)
    else:
        tensors[key] = torch.ones(3, 3)
    save_file(tensors, file, {"format": "pt"})
    message = refusal(work / "base", work / "tuned")
    assert re.search(r"model\.layers\.1\.mlp\.(up_proj|extra)\.weight|mismatch|size", message), message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad: float, side: str, tokenizer: PreTrainedTokenizerBase) -> None:
    models = {"base": make("llama", 0), "tuned": make("llama", 1)}
    models[side].model.layers[2].mlp.up_proj.weight[3, 4] = bad
    message = refusal(models["base"], models["tuned"], tokenizer=tokenizer)
    assert f"{side} has NaN or inf in model.layers.2.mlp.up_proj.weight" in message


# What is no pair


def test_identical_models_are_refused(work: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    assert "identical: no tensor differs" in refusal(work / "base", work / "base")
    bridge = TransformerBridge.boot_transformers("./tiny", hf_model=make("llama", 0), tokenizer=copy.deepcopy(tokenizer))
    assert "the same object" in refusal(bridge, bridge, tokenizer=tokenizer)


def test_two_architectures_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    message = refusal(make("llama", 0), make("mistral", 1), tokenizer=tokenizer)
    assert "base is LlamaForCausalLM and tuned is MistralForCausalLM" in message


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_hidden_layers": 2}, "n_layers is 3 in base and 2 in tuned"),
        ({"num_key_value_heads": 4}, "n_key_value_heads is 2 in base and 4 in tuned"),
        ({"hidden_size": 64, "head_dim": 16}, "d_model is 32 in base and 64 in tuned"),
        ({"vocab_size": 70}, "d_vocab is 64 in base and 70 in tuned; a tuned model with added tokens must be resized back"),
        ({"intermediate_size": 40}, "mlp"),
        ({"tie_word_embeddings": True}, "lm_head.weight"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, "rope"),
        ({"rms_norm_eps": 0.1}, "rms_norm_eps|eps"),
    ],
    ids=str,
)
def test_two_shapes_are_refused(change: dict, field: str, tokenizer: PreTrainedTokenizerBase) -> None:
    assert re.search(field, refusal(make("llama", 0), make("llama", 1, **change), tokenizer=tokenizer))


def test_a_model_and_a_bridge_of_it_in_compatible_form_are_a_pair(tokenizer: PreTrainedTokenizerBase) -> None:
    bridge = TransformerBridge.boot_transformers("./tiny", hf_model=make("llama", 1), tokenizer=copy.deepcopy(tokenizer))
    assert load_pair(make("llama", 0), bridge, tokenizer=tokenizer).differences


def test_a_transformers_model_that_a_bridge_has_rewired_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    model = make("llama", 0)
    TransformerBridge.boot_transformers("./tiny", hf_model=model, tokenizer=copy.deepcopy(tokenizer))
    assert "inside a TransformerBridge already; give the bridge itself" in refusal(model, make("llama", 1), tokenizer=tokenizer)


def test_what_is_no_model_at_all_is_refused(folders: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    assert "base is a Linear; give a folder" in refusal(torch.nn.Linear(2, 2), folders / "tuned", tokenizer=tokenizer)
    peft_model = get_peft_model(make("llama", 0), LoraConfig(target_modules=["q_proj"]))
    assert "give the adapter's folder" in refusal(folders / "base", peft_model, tokenizer=tokenizer)


def test_a_dtype_that_does_not_exist_is_refused(folders: Path) -> None:
    assert "no dtype 'float8'; there are auto, float32" in refusal(folders / "base", folders / "tuned", dtype="float8")


def test_joining_is_done_once_with_checked_models_only(llama: Pair) -> None:
    with pytest.raises(PairError, match="the same object"):
        join(llama.base, llama.base, llama.tokenizer, llama.origin)


# Tokenizers


def test_no_tokenizer_at_all_is_refused(work: Path) -> None:
    assert "neither side brings a tokenizer" in refusal(make("llama", 0), work / "tuned")


def test_a_token_with_another_id_is_refused(work: Path) -> None:
    moved = ["w1", "w0", *WORDS[2:]]
    make_tokenizer(work / "tuned", moved)
    message = refusal(work / "base", work / "tuned")
    assert f"'w0' is id {len(SPECIAL)} in base and {len(SPECIAL) + 1} in tuned" in message


def test_a_token_that_only_base_has_is_refused(work: Path) -> None:
    make_tokenizer(work / "tuned", WORDS[:-1])
    assert "tuned lacks 1 of base's tokens, for example 'w59'" in refusal(work / "base", work / "tuned")


def test_tokens_that_only_tuned_has_are_listed(work: Path) -> None:
    make_tokenizer(work / "tuned", [*WORDS, "<tool>", "<think>"])
    pair = load_pair(work / "base", work / "tuned")
    assert pair.report.added_tokens == ("<think>", "<tool>")
    assert len(pair.tokenizer) == 64  # prompts are read with base's


def test_a_tokenizer_that_splits_text_otherwise_is_refused(work: Path) -> None:
    make_tokenizer(work / "tuned")
    file = work / "tuned" / "tokenizer.json"
    text = json.loads(file.read_text())
    text["pre_tokenizer"] = {"type": "Whitespace"}  # also splits at punctuation
    file.write_text(json.dumps(text))
    assert "tokenizers differ on a probe text" in refusal(work / "base", work / "tuned")


# A real checkpoint


@pytest.fixture(scope="module")
def stories(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pretrained model of 260 thousand parameters, and a short fine-tune of it on encyclopedia text."""
    root = tmp_path_factory.mktemp("stories")
    source = shared / "models" / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    text = (shared / "data" / "wikitext2" / "valid.txt").read_text(encoding="utf-8")[:20_000]
    ids = torch.tensor(tokenizer(text)["input_ids"])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    with torch.enable_grad():
        for _ in range(20):
            starts = torch.randint(len(ids) - 64, (8,), generator=generator)
            rows = torch.stack([ids[s : s + 64] for s in starts.tolist()])
            loss = model(rows, labels=rows).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])  # it did learn
    model.eval().save_pretrained(root / "tuned")
    return root


def test_a_real_checkpoint_and_its_fine_tune_load_obey_the_laws_and_are_patched(shared: Path, stories: Path) -> None:
    pair = load_pair(shared / "models" / "stories260K", stories / "tuned")
    assert all(law.holds for law in pair.report.laws) and {d.component for d in pair.differences} >= {"attn", "mlp", "norms", "embed"}

    rows = []
    for domain, file in (("id", "tinystories/data.txt"), ("ood", "wikitext2/test.txt")):
        text = (shared / "data" / file).read_text(encoding="utf-8")[5_000:15_000]
        ids = pair.tokenizer(text, add_special_tokens=False)["input_ids"]
        rows += natural_rows(pair.tokenizer, ids, domain, n=6)
    suite = make_suite("natural text", rows)

    found = patch(pair, suite, component="attn,mlp,resid", metrics=["logprob", "kl_donor"], batch_size=5)
    table = results.summary(found)
    assert table.domain.values.tolist() == ["id", "ood"] and table.sizes["layer"] == pair.shape.n_layers
    for batch in make_batches(suite, pair.tokenizer, len(suite)):
        donor = run_plain(pair.tuned, batch).logits.log_softmax(-1).gather(1, batch.answer[:, None])[:, 0]
        torch.testing.assert_close(
            torch.tensor(found.donor.sel(metric="logprob").values[list(batch.rows)]).float(), donor, atol=1e-4, rtol=0
        )
    # Patching the last residual leaves only the final norm and the unembedding of base: nearly tuned, and nearer than any mlp.
    kl = found.patched.sel(metric="kl_donor").mean("example")
    assert float(kl.sel(component="resid", layer=pair.shape.n_layers - 1)) < float(kl.sel(component="mlp").min())
    assert float(found.noise.max()) < 1e-4


def natural_rows(tokenizer: PreTrainedTokenizerBase, ids: list[int], domain: str, *, n: int) -> list[dict[str, str]]:
    """Cuts of real text whose next token is a word of its own: the prompt ends where that word starts."""
    rows: list[dict[str, str]] = []
    for start in range(0, len(ids) - 40, 37):
        length = 10 + start % 17
        prompt, answer = tokenizer.decode(ids[start : start + length]), ids[start + length]
        whole = tokenizer.decode(ids[start : start + length + 1])
        ending = whole[len(prompt) :]
        own = tokenizer(prompt)["input_ids"]
        if (
            whole.startswith(prompt)
            and ending.startswith(" ")
            and ending.strip().isalpha()
            and tokenizer(whole)["input_ids"] == [*own, answer]
        ):
            rows.append({"id": f"{domain}-{start}", "prompt": prompt, "answer": ending, "domain": domain})
        if len(rows) == n:
            return rows
    raise AssertionError(f"only {len(rows)} rows of {domain}")


def test_what_a_checkpoint_keeps_beside_its_weights_counts_too(tokenizer: PreTrainedTokenizerBase) -> None:
    """A stored buffer, as DeepSeek's correction of expert scores: no recipe moves it, and it is part of what a model is."""

    def with_buffer(seed: int, value: float) -> PreTrainedModel:
        model = make("llama", seed)
        model.model.layers[1].mlp.register_buffer("correction", torch.full((3,), value))
        return model

    one, other = (load_pair(with_buffer(0, v), with_buffer(1, v), tokenizer=tokenizer).fingerprint for v in (0.0, 0.5))
    assert one["base"] != other["base"] and one["tuned"] != other["tuned"]
    with pytest.raises(
        PairError, match=r"base and tuned differ in blocks.1.mlp.correction, which the checkpoint has and which is no weight"
    ):
        load_pair(with_buffer(0, 0.0), with_buffer(1, 0.5), tokenizer=tokenizer)
