"""Law: where base and tuned lie changes no number. The second device is a stand-in (two_devices.py) that refuses to be mixed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from accelerate import dispatch_model
from architectures import make, tuned_from
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from two_devices import ELSEWHERE, HERE, elsewhere, two_devices

import taia_lens as tl
from taia_lens.engine import Reads, run_recipes
from taia_lens.errors import PairError
from taia_lens.loading import inspect_pair, load_pair
from taia_lens.pair import Pair
from taia_lens.suite import Suite, Task

LAID = {"apart": (HERE, ELSEWHERE), "the other way": (ELSEWHERE, HERE)}
RECIPES = (
    "base",
    "tuned",
    "base; graft attn <- tuned",
    "base; graft L1.mlp <- tuned x0.5",
    "tuned; graft L2.attn <- base; patch L1.mlp <- base",
    "base; patch L0.attn <- tuned @-2; ablate L2.mlp",
    "base; patch L1.h2 <- tuned",
    "tuned; patch L1.resid <- base @last",
)


@pytest.fixture(autouse=True)
def two() -> Iterator[None]:
    with two_devices():
        yield


def laid(tokenizer: PreTrainedTokenizerBase, where: str, name: str = "llama", **changes: Any) -> Pair:
    """A pair of which everything differs but the embeddings; `changes` go into tuned's config."""
    base = make(name, 0)
    tuned = tuned_from(base, 1, but="embed|wte|wpe")
    for key, value in changes.items():
        setattr(tuned.config, key, value)
    sides = [elsewhere(model) if device == ELSEWHERE else model for model, device in zip((base, tuned), LAID[where], strict=True)]
    return inspect_pair(*sides, tokenizer=tokenizer)


@pytest.fixture(scope="module", params=LAID)
def apart(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> Pair:
    with two_devices(), torch.no_grad():
        return laid(tokenizer, request.param)


@pytest.fixture(scope="module")
def together(tokenizer: PreTrainedTokenizerBase) -> Pair:
    with torch.no_grad():
        base = make("llama", 0)
        return load_pair(base, tuned_from(base, 1, but="embed|wte|wpe"), tokenizer=tokenizer)


def test_the_stand_in_refuses_to_be_mixed() -> None:
    here, there = torch.ones(3), torch.ones(3, device=ELSEWHERE)
    assert there.device == (there + 1).device == ELSEWHERE != here.device
    at = torch.tensor([0], device=ELSEWHERE)
    for mixed in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here[at], lambda: here.where(there > 0, here)):
        with pytest.raises(RuntimeError, match="tensors on cpu and cpu:1"):
            mixed()
    assert (here + there.to(HERE)).sum() == 6


def test_each_side_stays_where_it_is_and_numbers_come_to_base(apart: Pair, together: Pair) -> None:
    places = [{p.device for p in model.parameters()} for model in apart.models]
    assert places in ([{HERE}, {ELSEWHERE}], [{ELSEWHERE}, {HERE}]) and {apart.device} == places[0]
    assert apart.differences == together.differences and apart.changed == together.changed
    assert not any("embed" in name for name in apart.changed) and apart.fingerprint == together.fingerprint
    assert [law.name for law in apart.report.laws] == [law.name for law in together.report.laws]
    assert all(law.holds for law in apart.report.laws)
    assert apart.report.plain_because == ""


def read(pair: Pair, suite: Suite, plan: Any) -> list[torch.Tensor]:
    (batch,) = tl.make_batches(suite, pair.tokenizer, len(suite))
    reads = Reads.last(batch.to(pair.device))
    found = dict(run_recipes(pair, [tl.parse_recipe(text) for text in RECIPES], reads, plan=plan))
    assert {logits.device for logits in found.values()} == {pair.device}
    return [found[i].to(HERE) for i in range(len(RECIPES))]


@pytest.mark.parametrize("plan", ["shared", "plain"])
def test_recipes_give_the_same_logits(apart: Pair, together: Pair, suite: Suite, plan: str) -> None:
    before = [p.data_ptr() for p in together.base.parameters()]
    for text, found, wanted in zip(RECIPES, read(apart, suite, plan), read(together, suite, plan), strict=True):
        assert torch.equal(found, wanted), text
    assert [p.data_ptr() for p in together.base.parameters()] == before
    assert {p.device for p in apart.base.parameters()} == {apart.device}  # what was brought is gone again


@pytest.mark.parametrize(
    ("name", "changes", "where"),
    [
        ("llama", {"rms_norm_eps": 0.1}, "apart"),
        ("llama", {"rms_norm_eps": 0.1}, "the other way"),
        ("gpt2", {}, "apart"),
        ("gemma2", {}, "the other way"),
        ("mixtral", {}, "apart"),
    ],
)
def test_on_other_architectures_too_and_where_each_side_has_its_own_blocks(
    tokenizer: PreTrainedTokenizerBase, suite: Suite, name: str, changes: dict[str, Any], where: str
) -> None:
    pair = laid(tokenizer, where, name, **changes)
    assert pair.alike == (not changes) and pair.report.plain_because == ""
    for text, shared, plain in zip(RECIPES, read(pair, suite, "shared"), read(pair, suite, "plain"), strict=True):
        assert (shared - plain).abs().max() < 1e-4, text  # as on one device: rows of one call or another


def split(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose upper layers lie on the other device, as `device_map` lays a model out."""
    own = {"model.embed_tokens": HERE, "model.rotary_emb": HERE, "model.layers.0": HERE, "model.layers.1": ELSEWHERE}
    places = {name: str(device) for name, device in own.items()}
    places |= dict.fromkeys(("model.layers.2", "model.norm", "lm_head"), str(ELSEWHERE))
    return dispatch_model(copy.deepcopy(model), places, main_device=str(HERE), force_hooks=True)


@pytest.mark.parametrize("plan", ["shared", "plain"])
def test_a_pair_whose_models_are_split_by_accelerate(together: Pair, tokenizer: PreTrainedTokenizerBase, suite: Suite, plan: str) -> None:
    base = make("llama", 0)
    pair = load_pair(split(base), split(tuned_from(base, 1, but="embed")), tokenizer=tokenizer)
    assert next(pair.tuned.blocks[2].parameters()).device == ELSEWHERE and pair.report.plain_because == ""
    assert pair.device == HERE and pair.devices == (HERE, ELSEWHERE)
    for text, found, wanted in zip(RECIPES, read(pair, suite, plan), read(together, suite, plan), strict=True):
        assert torch.equal(found, wanted), text


def asked(suite: Suite, task: Task) -> Suite:
    """Three prompts as another task."""
    rows = [{"prompt": row.prompt, "domain": row.domain} for row in suite.rows[:3]]
    own = {"choices": [" w1 w2", " w3"], "label": 0} if task.kind == "choice" else {"answer": "w1"}
    return tl.make_suite(task.kind, [row | own for row in rows], task=task)


STUDIES: dict[str, Callable[[Pair, Suite], xr.Dataset]] = {
    "patch": lambda pair, suite: tl.patch(pair, suite, component=("attn", "mlp"), batch_size=4),
    "heads": lambda pair, suite: tl.patch(pair, suite, component="head", heads="all", source="base"),
    "positions": lambda pair, suite: tl.patch(pair, suite.limit(1), component="mlp", layers=1, positions="each-from-end"),
    "layers": lambda pair, suite: tl.layers(pair, suite),
    "compare": lambda pair, suite: tl.compare(pair, suite, norms="base", embed="base"),
    "attribution": lambda pair, suite: tl.attribution(pair, suite, component="mlp", check=2, source="base"),
    "paths": lambda pair, suite: tl.attribution(pair, suite, component="attn", steps=2),
    "drift": lambda pair, suite: tl.drift(pair, suite, norms="base", embed="base"),
    "anatomy": lambda pair, suite: tl.anatomy(pair),
    "lens": lambda pair, suite: tl.lens(pair, suite.rows[0], norms="base", embed="base"),
    "attention": lambda pair, suite: tl.attention(pair, suite.rows[0], 1, 2),
    "choices": lambda pair, suite: tl.compare(pair, asked(suite, Task("choice")), norms="base", embed="base"),
    "texts": lambda pair, suite: tl.layers(pair, asked(suite, Task("generate", max_new_tokens=2)), views="alone", which=1),
    "divergence": lambda pair, suite: tl.patch(pair, suite, component="mlp", layers=1, metrics=("kl_host", "kl_donor")),
    "update": lambda pair, suite: tl.rank("update", pair, suite),
    "graft": lambda pair, suite: tl.rank("graft", pair, suite.limit(1)),
    "atp": lambda pair, suite: tl.rank("atp", pair, suite.limit(1)),
}


@pytest.mark.parametrize(
    ("apart", "study"),
    [("apart", name) for name in STUDIES] + [("the other way", name) for name in ("patch", "attribution")],
    indirect=["apart"],
)
def test_studies_give_the_same_results(apart: Pair, together: Pair, suite: Suite, study: str) -> None:
    found, wanted = (STUDIES[study](pair, suite) for pair in (apart, together))
    assert found.data_vars.keys() == wanted.data_vars.keys() and any(v.dtype.kind == "f" for v in found.data_vars.values())
    for name, values in found.data_vars.items():
        np.testing.assert_array_equal(values, wanted[name], err_msg=str(name))


@pytest.mark.parametrize("apart", ["apart"], indirect=True)  # what is elsewhere is no tensor that safetensors could write
def test_an_activation_store_answers_too(apart: Pair, suite: Suite, tmp_path: Path) -> None:
    first, again = (tl.patch(apart, suite, component="mlp", layers=1, cache=tmp_path / "acts") for _ in range(2))
    assert list((tmp_path / "acts").iterdir())
    xr.testing.assert_equal(first, again)


def test_folders_and_adapters_go_where_they_are_told_to(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    make("llama", 0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    made = get_peft_model(make("llama", 0), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"))
    made.save_pretrained(tmp_path / "adapter")
    one, two = (load_pair(tmp_path / "base", tmp_path / "adapter", device=where) for where in ("cpu", f"cpu,{ELSEWHERE}"))
    assert one.devices == (HERE,) and two.devices == (HERE, ELSEWHERE)
    assert one.changed == two.changed and one.fingerprint == two.fingerprint
    assert "on cpu and cpu:1" in two._repr_html_() and tl.anatomy(two).attrs["device"] == "cpu,cpu:1"


def test_scales_have_their_bases_device(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    gain = torch.full((1, 8), 0.5)
    folder = tl.save_scales(tmp_path / "scales", tl.Scales((tl.Site("head", 1, 2),), gain, gain.clone()))
    base = make("llama", 0)
    assert load_pair(base, folder, tokenizer=tokenizer, device="cpu").devices == (HERE,)
    with pytest.raises(PairError, match="scales share their base's weights, and so its device; write device cpu"):
        load_pair(base, folder, tokenizer=tokenizer, device=f"cpu,{ELSEWHERE}")


def test_devices_of_two_kinds_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """A CPU and a GPU round differently, and a law could not tell that from a mistake. Meta tensors stand in for the GPU."""
    base = make("llama", 0)
    with pytest.raises(PairError, match="is on device cpu in base and meta in tuned; put both on devices of one kind"):
        load_pair(base, tuned_from(base, 1).to("meta"), tokenizer=tokenizer)


def test_devices_are_named_in_one_option(tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    with pytest.raises(PairError, match="3 devices in 'cpu,cpu,cpu'; write one for both sides, or base's and tuned's: cuda:0,cuda:1"):
        load_pair(base, tuned_from(base, 1), tokenizer=tokenizer, device="cpu,cpu,cpu")
    with pytest.raises(PairError, match="no device 'xpu:7' here"):
        load_pair(base, tuned_from(base, 1), tokenizer=tokenizer, device="cpu,xpu:7")
    assert load_pair(base, tuned_from(base, 1), tokenizer=tokenizer, device="cpu, cpu").device == HERE
