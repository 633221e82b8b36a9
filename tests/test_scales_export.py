"""Folded == hooked: an adapter of scales as a checkpoint, on every architecture that has a place for it; the others say so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, D_HEAD, N_HEADS, PARTS, make
from safetensors.torch import load_file, save_file
from test_scales import HEADS, IDS, SITES, scales_at
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from taia_lens.errors import CheckError, PairError, ResultError, TaiaLensError
from taia_lens.export import export_graft, fold, scales
from taia_lens.export.append import Vector, append_zeros
from taia_lens.export.scales import export_scales
from taia_lens.loading import load_one
from taia_lens.scales import Scales, save_scales

SLOT = {
    "llama": "attention_bias",
    "qwen3": "attention_bias",
    "gemma2": "attention_bias",
    "gemma3": "attention_bias",
    "gpt2": "",
    "neox": "",
}
"""Architectures with a bias behind their heads, and the key of config.json that turns it on."""
NO_SLOT = tuple(name for name in ARCHITECTURES if name not in SLOT)
Bases = Callable[..., Path]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Bases:
    """The random base of an architecture on disk. Read-only."""

    @cache
    def build(name: str, heads: int | None = None, shards: str = "1GB", half: bool = False) -> Path:
        folder = tmp_path_factory.mktemp(name) / "base"
        changes = {} if heads is None else {"num_key_value_heads": heads}
        model = make(name, 0, **changes)
        (model.bfloat16() if half else model).save_pretrained(folder, max_shard_size=shards)
        tokenizer.save_pretrained(folder)
        return folder

    return build


def plain(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def by_hand(folder: Path, name: str, made: Scales) -> Tensor:
    """Logits of plain transformers with scales of heads put in front of the output projections; knows nothing of taia_lens."""
    model = plain(folder)
    gain, offset = (torch.zeros(3, N_HEADS, D_HEAD) for _ in range(2))
    for i, site in enumerate(made.sites):
        gain[site.layer, site.head], offset[site.layer, site.head] = made.gain[i], made.offset[i]
    for layer, block in enumerate(model.get_submodule(PARTS[name].blocks)):
        change = (1 + gain[layer]).flatten(), offset[layer].flatten()
        block.get_submodule(PARTS[name].o).register_forward_pre_hook(lambda module, args, change=change: (args[0] * change[0] + change[1],))
    return model(IDS).logits


def stored(folder: Path) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        out |= load_file(file)
    return out


def listed(folder: Path) -> Mapping[str, dict]:
    return {line["name"]: line for line in json.loads((folder / "tensors.json").read_text())}


# Folded == hooked


@pytest.mark.parametrize("name", list(SLOT))
def test_what_is_written_is_the_hooked_base(name: str, base_of: Bases, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    made = scales_at(*HEADS)
    made.gain[0, 0] = -1.0
    done = export_scales(base_of(name), save_scales(tmp_path / "adapter", made), tmp_path / "out", device="cpu")
    wanted, found = by_hand(base_of(name), name, made), plain(done.folder)(IDS).logits
    assert (found - wanted).abs().max() <= 1e-5 < 1e-1 < (found - plain(base_of(name))(IDS).logits).abs().max()
    assert done.proof is not None and done.proof.drift <= 1e-5 == done.proof.bound < done.proof.effect
    lens = load_one(done.folder, tokenizer=tokenizer, device="cpu").model  # and TransformerLens reads it
    assert (lens(IDS, return_type="logits") - wanted).abs().max() <= 1e-5
    switch, config = SLOT[name], json.loads((done.folder / "config.json").read_text())
    assert (switch in done.slot and config[switch] is True) if switch else done.slot == "the output projection's bias"
    before, after = stored(base_of(name)), stored(done.folder)
    new = after.keys() - before.keys()
    assert len(new) == (12 if switch else 0) and after.keys() <= listed(done.folder).keys()
    assert {n for n in before if not torch.equal(before[n], after[n])} | new == {
        n for n, line in listed(done.folder).items() if line.get("differs from base")
    }
    assert all(not after[n].any() for n in new if listed(done.folder)[n]["from"] == "new")


def test_gains_alone_fold_into_any_architecture(name: str, base_of: Bases, tmp_path: Path) -> None:
    made = scales_at(*HEADS)
    made.offset.zero_()
    done = export_scales(base_of(name), save_scales(tmp_path / "adapter", made), tmp_path / "out", device="cpu")
    assert (plain(done.folder)(IDS).logits - by_hand(base_of(name), name, made)).abs().max() <= 1e-5
    assert done.slot == "no bias: v is zero" and stored(done.folder).keys() == stored(base_of(name)).keys()
    assert (done.folder / "config.json").read_bytes() == (base_of(name) / "config.json").read_bytes()
    changed = [line for line in listed(done.folder).values() if line.get("differs from base")]
    assert [line["why"] for line in changed] == ["columns times 1 + A (h1)", "columns times 1 + A (h2, h3)"]


@pytest.mark.parametrize("name", NO_SLOT)
def test_an_architecture_without_a_place_for_v_says_so(name: str, base_of: Bases, tmp_path: Path) -> None:
    adapter = save_scales(tmp_path / "adapter", scales_at(*HEADS))
    reason = "its value bias is shared by 2 heads" if name == "qwen2" else "its values have no bias of their own"
    with pytest.raises(PairError, match=rf"has no bias that the offset v at L0.h1 .* {reason}.*keep the adapter: load_pair"):
        export_scales(base_of(name), adapter, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists() and [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_without_grouped_queries_v_is_a_bias_of_the_values(base_of: Bases, tmp_path: Path) -> None:
    base, made = base_of("qwen2", N_HEADS), scales_at(*HEADS)
    made.gain[1] = -1.0  # a head whose z is v alone: a bias divided by 1 + A would have no answer
    done = export_scales(base, save_scales(tmp_path / "adapter", made), tmp_path / "out", device="cpu")
    assert (plain(done.folder)(IDS).logits - by_hand(base, "qwen2", made)).abs().max() <= 1e-5
    assert done.slot == "the value bias" and (done.folder / "config.json").read_bytes() == (base / "config.json").read_bytes()
    changed = {name.split("self_attn.")[1] for name, line in listed(done.folder).items() if line.get("differs from base")}
    assert changed == {"v_proj.weight", "v_proj.bias"}


@pytest.mark.parametrize(
    ("name", "component"), [("gpt2", "mlp"), ("neox", "mlp"), ("neox", "attn"), ("llama", "mlp"), ("qwen3", "attn"), ("gpt2", "resid")]
)
def test_scales_of_outputs_fold_into_rows_and_bias(name: str, component: str, base_of: Bases, tmp_path: Path) -> None:
    made = scales_at(*SITES[component])
    if component == "resid":
        made.gain.zero_()
    done = export_scales(base_of(name), save_scales(tmp_path / "adapter", made), tmp_path / "out", device="cpu")
    assert done.proof is not None and done.proof.drift <= 1e-5 < 1e-1 < done.proof.effect


@pytest.mark.parametrize(
    ("name", "component", "said"),
    [
        ("gemma2", "mlp", "scales of L0.mlp cannot be folded .* comes out of a norm"),
        ("mixtral", "mlp", "mlp of layer 0 of MixtralForCausalLM has no single output projection"),
        ("qwen2", "mlp", "no bias that the offset v at L0.mlp could be folded into: its output projection has none, and its config"),
        ("gpt2", "resid", "L1.resid multiplies the whole residual stream, which no weight does"),
    ],
)
def test_scales_that_no_weight_can_hold_are_refused(name: str, component: str, said: str, base_of: Bases, tmp_path: Path) -> None:
    with pytest.raises(PairError, match=said):
        export_scales(base_of(name), save_scales(tmp_path / "adapter", scales_at(*SITES[component])), tmp_path / "out", device="cpu")


def test_a_fold_that_is_wrong_is_noticed_and_nothing_is_left(base_of: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = save_scales(tmp_path / "adapter", scales_at(*HEADS))
    right = fold.folded

    def forgetful(*args: object) -> object:
        return (change for change in right(*args) if not change.name.endswith("bias"))  # type: ignore[arg-type]

    monkeypatch.setattr(scales, "folded", forgetful)
    with pytest.raises(CheckError, match="the verification fails: logits of what was written are off by"):
        export_scales(base_of("gpt2"), adapter, tmp_path / "out", device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    done = export_scales(base_of("gpt2"), adapter, tmp_path / "unverified", verified=False, device="cpu")
    assert done.proof is None and "no (--no-verify)" in (done.folder / "README.md").read_text()


def test_half_precision_keeps_its_dtype_and_says_what_rounding_costs(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama", half=True)
    large = export_scales(base, save_scales(tmp_path / "large", scales_at(*HEADS)), tmp_path / "out", device="cpu")
    assert {t.dtype for t in stored(large.folder).values()} == {torch.bfloat16}
    assert large.proof is not None and large.proof.dtype == "bfloat16"
    assert large.proof.drift <= large.proof.bound < large.proof.effect and not any("rounding" in note for note in large.notes)
    small = export_scales(base, save_scales(tmp_path / "small", scales_at(*HEADS, size=2e-3)), tmp_path / "small-out", device="cpu")
    assert any("rounding to bfloat16 takes" in note for note in small.notes)


# Files


def test_shards_stay_and_new_biases_are_in_the_last_one(base_of: Bases, tmp_path: Path) -> None:
    base, made = base_of("llama", shards="30KB"), scales_at(*HEADS)
    done = export_scales(base, save_scales(tmp_path / "adapter", made), tmp_path / "out", device="cpu")
    files = sorted(p.name for p in base.glob("*.safetensors"))
    assert sorted(p.name for p in done.folder.glob("*.safetensors")) == files and len(files) > 2
    index = json.loads((done.folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == stored(done.folder).keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in stored(done.folder).values())
    assert (plain(done.folder)(IDS).logits - by_hand(base, "llama", made)).abs().max() <= 1e-5


def test_the_card_says_what_was_done_and_nothing_of_this_machine(base_of: Bases, tmp_path: Path) -> None:
    adapter = save_scales(tmp_path / "adapter", scales_at(*HEADS))
    done = export_scales(base_of("llama"), adapter, tmp_path / "out", device="cpu")
    card = (done.folder / "README.md").read_text()
    assert str(tmp_path) not in card and str(base_of("llama")) not in card
    for line in (
        "| adapter | adapter (lofit): 48 numbers at L0.h1, L1.h2, L1.h3 |",
        "| made by | `taia-lens lofit export adapter --base base --out out` |",
        "| attn | 10 | 4 | 10 |",
        "Note: config.json now says attention_bias: true, which gives the model 12 biases",
        "- adapter/scales.safetensors: sha256 `",
        "in plain transformers its logits are those of base with the adapter on hooks to ",
    ):
        assert line in card, line
    assert {"tokenizer.json", "config.json", "tensors.json"} <= {p.name for p in done.folder.iterdir()}


def test_zeros_are_appended_behind_the_tensors_that_are_there(tmp_path: Path) -> None:
    file, old = tmp_path / "model.safetensors", {"b": torch.arange(5.0), "a": torch.ones(3, dtype=torch.bfloat16)}
    save_file(old, file, metadata={"format": "pt"})
    append_zeros(file, {"x": Vector("F32", 3), "y": Vector("BF16", 2)})
    found = load_file(file)
    assert {n: (t.dtype, t.shape) for n, t in found.items() if n in "xy"} == {
        "x": (torch.float32, (3,)),
        "y": (torch.bfloat16, (2,)),
    }
    assert all(torch.equal(found[n], t) for n, t in old.items()) and not found["x"].any() and not found["y"].any()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


# Wrong input


def test_each_wrong_input_is_one_line(base_of: Bases, tmp_path: Path) -> None:
    base, made_for = base_of("llama"), {"fingerprint": "of another", "dtype": "float32"}
    other = save_scales(tmp_path / "other", scales_at(*HEADS, **made_for))
    own, far = save_scales(tmp_path / "own", scales_at(*HEADS)), save_scales(tmp_path / "far", scales_at(*[s for s in HEADS]))
    (far / "scales.safetensors").write_bytes(b"no")
    (tmp_path / "there").mkdir()
    cases: list[tuple[type[TaiaLensError], str, tuple]] = [
        (PairError, "whose weights are not those of base", (base, other, tmp_path / "out")),
        (ResultError, "the files are damaged", (base, far, tmp_path / "out")),
        (ResultError, "no scales in", (base, base, tmp_path / "out")),
        (PairError, "base .*own holds scales of activations", (own, own, tmp_path / "out")),
        (ResultError, "exists; give another --out", (base, own, tmp_path / "there")),
        (PairError, "no folder", (tmp_path / "nowhere", own, tmp_path / "out")),
    ]
    for kind, said, args in cases:
        with pytest.raises(kind, match=said) as found:
            export_scales(*args, device="cpu")
        assert "\n" not in str(found.value)
    assert export_scales(base, other, tmp_path / "out", other_model=True, device="cpu").proof


def test_a_graft_of_a_pair_with_an_adapter_points_to_this_export(base_of: Bases, tmp_path: Path) -> None:
    adapter = save_scales(tmp_path / "adapter", scales_at(*HEADS))
    with pytest.raises(PairError, match=r"holds scales of activations, .* taia-lens lofit export"):
        export_graft(base_of("llama"), adapter, "taia", tmp_path / "out")


def test_numbers_that_break_the_model_are_refused(base_of: Bases, tmp_path: Path) -> None:
    adapter = save_scales(tmp_path / "adapter", Scales(HEADS, *(torch.full((3, D_HEAD), 3e38) for _ in range(2))))
    with pytest.raises(PairError, match="base under the adapter gives NaN or inf"):
        export_scales(base_of("gpt2"), adapter, tmp_path / "out", device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
