"""Half precision, mixed precision, and adapters on them: what is loaded is what the checkpoint says, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import make
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from taia_lens import demo, results
from taia_lens.errors import PairError
from taia_lens.loading import load_pair
from taia_lens.metrics import Context, logit_diff
from taia_lens.pair import Pair
from taia_lens.studies.patching import patch
from taia_lens.suite import Suite, make_suite


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A folder with a bfloat16 base and, in `adapter`, a LoRA of it."""
    root = tmp_path_factory.mktemp("half")
    make("llama", 0).bfloat16().save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    model = get_peft_model(make("llama", 0), LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    model.save_pretrained(root / "adapter")
    return root


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_laws_hold_on_a_deep_model_in_half_precision(dtype: str) -> None:
    pair = load_pair(demo.BASE, demo.TUNED, device="cpu", dtype=dtype)
    assert pair.origin.dtype == dtype
    assert all(law.holds for law in pair.report.laws)


def test_merging_in_float32_leaves_dtypes_and_rotary_frequencies_as_the_base_has_them(adapter: Path) -> None:
    pair = load_pair(adapter / "base", adapter / "adapter", device="cpu")
    assert {p.dtype for p in pair.tuned.parameters()} == {torch.bfloat16}
    ours, theirs = (dict(model.original_model.named_buffers()) for model in (pair.base, pair.tuned))
    assert ours.keys() == theirs.keys() and ours
    for name, buffer in ours.items():
        assert buffer.dtype == theirs[name].dtype and torch.equal(buffer, theirs[name])


def test_two_dtypes_are_no_pair_until_one_is_asked_for(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    make("llama", 0).save_pretrained(tmp_path / "base")
    make("llama", 1).bfloat16().save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(PairError, match=r"torch.float32 in base and torch.bfloat16 in tuned; load both with one dtype"):
        load_pair(tmp_path / "base", tmp_path / "tuned", device="cpu")
    assert load_pair(tmp_path / "base", tmp_path / "tuned", device="cpu", dtype="float32").origin.dtype == "float32"


def test_a_dtype_for_models_in_memory_is_refused_not_ignored(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(PairError, match="base is in memory as float32, and dtype bfloat16 was asked for"):
        load_pair(make("llama", 0), make("llama", 1), tokenizer=tokenizer, dtype="bfloat16")


def test_nan_in_an_adapter_is_named(adapter: Path, tmp_path: Path) -> None:
    for path in (adapter / "adapter").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = sorted(weights)[0]
    weights[name][0, 0] = torch.nan
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(PairError, match="has NaN or inf in base_model"):
        load_pair(adapter / "base", tmp_path, device="cpu")


def test_an_adapter_that_is_no_lora_is_refused(adapter: Path, tmp_path: Path) -> None:
    from peft import IA3Config

    model = get_peft_model(make("llama", 0), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    model.save_pretrained(tmp_path)
    with pytest.raises(PairError, match=r"of type .*IA3; only LORA adapters"):
        load_pair(adapter / "base", tmp_path, device="cpu")


def test_other_hyper_parameters_are_another_model_to_the_store(tokenizer: PreTrainedTokenizerBase, llama: Pair) -> None:
    from taia_lens.loading import inspect_pair

    other = inspect_pair(make("llama", 0, rms_norm_eps=0.1), make("llama", 1), tokenizer=tokenizer)
    assert other.fingerprint["base"] != llama.fingerprint["base"]
    assert other.fingerprint["tuned"] == llama.fingerprint["tuned"]


def test_the_noise_floor_sees_a_model_that_depends_on_its_batch(llama: Pair, suite: Suite) -> None:
    quiet = patch(llama, suite, component="mlp", layers=1, metrics=["logprob"])
    llama.base.add_hook("ln_final.hook_out", lambda act, hook: act * (1 + 1e-3 * act.shape[0]))
    try:
        loud = patch(llama, suite, component="mlp", layers=1, metrics=["logprob"])
    finally:
        llama.base.reset_hooks()
    assert float(quiet.noise[0]) < 1e-5 < 1e-4 < float(loud.noise[0])


def test_logit_diff_takes_rows_with_a_contrast_beside_rows_with_choices(llama: Pair) -> None:
    rows = [
        {"prompt": "w1 w2", "answer": " w3", "contrast": " w4", "domain": "id"},
        {"prompt": "w2 w3", "choices": [" w5", " w6", " w7"], "label": 1, "domain": "id"},
    ]
    from taia_lens.batch import make_batches

    (batch,) = make_batches(make_suite("both", rows), llama.tokenizer, 2)
    logits = torch.randn(2, llama.shape.d_vocab, generator=torch.Generator().manual_seed(0))
    ids = {w: llama.tokenizer.convert_tokens_to_ids(w) for w in ("w3", "w4", "w5", "w6", "w7")}
    want = [
        logits[0, ids["w3"]] - logits[0, ids["w4"]],
        logits[1, ids["w6"]] - (logits[1, ids["w5"]] + logits[1, ids["w7"]]) / 2,
    ]
    torch.testing.assert_close(logit_diff(logits, Context(batch, logits, logits)), torch.stack(want))


def test_a_fraction_without_an_interval_is_not_defined() -> None:
    example, one = [str(i) for i in range(4)], {"component": ("mlp",), "layer": (0,)}
    host = np.zeros((1, 4))
    donor = np.array([[1.0, 1.0, 1.0, 0.0]])
    suite = make_suite("four", [{"id": i, "prompt": "w1", "answer": " w2", "domain": "id"} for i in example])
    result = results.patch_dataset(
        host, donor, np.zeros((1, 1, 1, 4)), np.zeros(1), metrics=("accuracy",), coords=one, suite=suite, attrs={"seed": 0}
    )
    cell = results.summary(result).squeeze()
    assert bool(cell.defined) == bool(np.isfinite(cell.recovered_low) and np.isfinite(cell.recovered_high))
