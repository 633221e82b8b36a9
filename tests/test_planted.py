"""Ground truth by construction: the update is put in one known place, and patching must find it; or it does nothing, and must find that."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from architectures import D_HEAD, N_HEADS, N_LAYERS, make
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from taia_lens import results
from taia_lens.loading import load_pair
from taia_lens.pair import Pair
from taia_lens.studies.patching import patch
from taia_lens.suite import Suite, make_suite

MODULES = {
    "llama": {"attn": "model.layers.{}.self_attn.", "mlp": "model.layers.{}.mlp."},
    "gpt2": {"attn": "transformer.h.{}.attn.", "mlp": "transformer.h.{}.mlp."},
    "mixtral": {"attn": "model.layers.{}.self_attn.", "mlp": "model.layers.{}.mlp."},
}
# Rounding of float32 log-probabilities after three layers; a planted effect is a thousand times that.
CLOSE = 1e-5


def planted(base: PreTrainedModel, where: Callable[[str, torch.Tensor], torch.Tensor | None], seed: int) -> PreTrainedModel:
    """A copy of base with noise added to what `where` returns, a view of each parameter or None."""
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    touched = 0
    for name, parameter in tuned.named_parameters():
        view = where(name, parameter.data)
        if view is not None:
            view += 0.3 * torch.randn(view.shape, generator=generator)
            touched += 1
    assert touched
    return tuned


def pair_of(base: PreTrainedModel, tuned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Pair:
    return load_pair(base, tuned, tokenizer=tokenizer)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("architecture", MODULES)
def test_the_planted_layer_and_component_come_first(architecture: str, seed: int, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    component, layer = ("attn", "mlp")[seed % 2], seed % N_LAYERS
    prefix = MODULES[architecture][component].format(layer)
    base = make(architecture, seed)
    tuned = planted(base, lambda name, data: data if name.startswith(prefix) else None, seed)
    result = patch(pair_of(base, tuned, tokenizer), suite, component=["attn", "mlp"], metrics=["logprob"]).sel(metric="logprob")
    gap = abs(result.donor - result.host)
    assert gap.max() > 100 * CLOSE
    left = abs(result.patched - result.donor).mean("example")
    site = left.stack(site=("component", "layer")).idxmin().item()
    assert site == (component, layer)
    assert abs(result.patched - result.donor).sel(component=component, layer=layer).max() <= CLOSE
    # Nothing that runs before the update knows of it.
    effect = abs(result.patched - result.host).max("example")
    assert effect.sel(layer=slice(0, layer - 1)).max() <= CLOSE if layer else True
    if component == "mlp":
        assert effect.sel(component="attn", layer=layer) <= CLOSE


@pytest.mark.parametrize("seed", range(5))
def test_the_planted_head_is_the_only_one_of_its_layer(seed: int, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> None:
    head, layer = seed % N_HEADS, seed % N_LAYERS
    rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
    base = make("llama", seed)  # grouped queries: the head's own weights are its rows of q
    name = f"model.layers.{layer}.self_attn.q_proj.weight"
    tuned = planted(base, lambda n, data: data[rows] if n == name else None, seed)
    result = patch(pair_of(base, tuned, tokenizer), suite, component="head", layers=layer, metrics=["logprob"]).squeeze()
    effect = abs(result.patched - result.host).max("example")
    assert effect.sel(head=head) > 10 * CLOSE
    assert effect.where(effect["head"] != head, drop=True).max() <= CLOSE
    assert abs(result.patched - result.donor).sel(head=head).max() <= CLOSE


def test_an_update_that_does_nothing_has_no_effect_and_no_recovered_fraction(tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    unused = tokenizer.convert_tokens_to_ids("w59")
    tuned = planted(base, lambda name, data: data[unused] if name == "model.embed_tokens.weight" else None, 0)
    rows = [{"prompt": f"w{i} w{i + 1} w{2 * i}", "answer": f" w{i + 7}", "domain": ("id", "ood")[i % 2]} for i in range(24)]
    summary = results.summary(patch(pair_of(base, tuned, tokenizer), make_suite("null", rows), component=["attn", "mlp"]))
    assert not summary.defined.any()
    assert np.isnan(summary.recovered).all()
    assert ((summary.effect_low <= 0) & (summary.effect_high >= 0)).all()
    # Positive control: with the same prompts, an update that does something has both.
    moved = planted(base, lambda name, data: data if name == "model.layers.1.mlp.down_proj.weight" else None, 0)
    summary = results.summary(
        patch(pair_of(base, moved, tokenizer), make_suite("null", rows), component="mlp", layers=1, metrics=["kl_donor"])
    )
    assert summary.defined.all()
    assert np.allclose(summary.recovered, 1, atol=1e-3)
