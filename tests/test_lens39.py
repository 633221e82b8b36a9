"""Two HookedTransformer objects of TransformerLens 3.9 as a pair: the same laws, the same numbers.

`make lens39` runs these, and every test marked lens39, in an environment of its own; TransformerLens 4 has no such class.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from taia_lens.batch import Batch
from taia_lens.engine import applied, evaluate
from taia_lens.errors import PairError
from taia_lens.loading import load_pair
from taia_lens.pair import Pair, weights
from taia_lens.recipe import Graft, Patch, Recipe
from taia_lens.sites import GRAFTABLE, Site
from taia_lens.studies.patching import patch
from taia_lens.suite import Suite

IS_39 = metadata.version("transformer-lens").startswith("3.9")
pytestmark = [
    pytest.mark.lens39,
    pytest.mark.skipif(not IS_39, reason="HookedTransformer is gone in TransformerLens 4; make lens39 runs this"),
]


def hooked(seed: int, **changes: Any) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig  # gone in TransformerLens 4

    settings = {"n_layers": 3, "d_model": 32, "n_ctx": 64, "d_head": 8, "n_heads": 4, "d_mlp": 48, "d_vocab": 64, "act_fn": "silu"}
    rotary = {"normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 8, "gated_mlp": True, "final_rms": True}
    config = HookedTransformerConfig(**(settings | rotary | changes), device="cpu", seed=seed)
    torch.manual_seed(seed)
    return HookedTransformer(config).eval()


@pytest.fixture(scope="module")
def pair(tokenizer: PreTrainedTokenizerBase) -> Pair:
    return load_pair(hooked(0), hooked(1), tokenizer=tokenizer)


def test_the_laws_hold(pair: Pair) -> None:
    assert len(pair.report.laws) == 8
    assert all(law.holds for law in pair.report.laws)


def test_components_partition_the_parameters(pair: Pair) -> None:
    assert sum(w.parameter.numel() for w in weights(pair.base)) == sum(p.numel() for p in pair.base.parameters())


@pytest.mark.parametrize("site", [Site("attn", 1), Site("mlp", 2), Site("head", 1, 3), Site("resid", 0)], ids=str)
def test_patching_agrees_with_run_with_hooks(pair: Pair, batch: Batch, site: Site) -> None:
    ids, mask, rows = batch.tokens, batch.mask.long(), torch.arange(len(batch.rows))
    _, cache = pair.tuned.run_with_cache(ids, attention_mask=mask)

    def put(act: torch.Tensor, hook: Any) -> torch.Tensor:
        act = act.clone()
        if site.head is None:
            act[:] = cache[site.hook]
        else:
            act[:, :, site.head] = cache[site.hook][:, :, site.head]
        return act

    by_hand = pair.base.run_with_hooks(ids, attention_mask=mask, fwd_hooks=[(site.hook, put)])[rows, batch.last]
    found: dict[str, torch.Tensor] = {}

    def keep(logits: torch.Tensor) -> dict[str, torch.Tensor]:
        found["logits"] = logits
        return {"max": logits.amax(-1)}

    evaluate(pair, [Recipe("base", (Patch(site, "tuned"),))], batch, keep)
    torch.testing.assert_close(found["logits"], by_hand, atol=1e-5, rtol=0)
    plain = pair.base(ids, attention_mask=mask)[rows, batch.last]
    assert (found["logits"] - plain).abs().max() > 1e-4  # the patch does something


def test_grafting_everything_is_tuned(pair: Pair, batch: Batch) -> None:
    everything = Recipe("base", tuple(Graft(component, "tuned") for component in GRAFTABLE))
    with applied(pair, everything) as model:
        assert torch.equal(model(batch.tokens), pair.tuned(batch.tokens))
    assert not torch.equal(pair.base(batch.tokens), pair.tuned(batch.tokens))


def test_the_study_runs(pair: Pair, suite: Suite) -> None:
    result = patch(pair, suite, component=["attn", "mlp"], metrics=["logprob"])
    assert result.patched.notnull().all()


def test_folded_norms_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(PairError, match="norms folded into its weights"):
        load_pair(hooked(0, normalization_type="RMSPre"), hooked(1, normalization_type="RMSPre"), tokenizer=tokenizer)
