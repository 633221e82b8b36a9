"""Two HookedTransformer objects of TransformerLens 3.9 as a pair: the same laws, the same numbers.

`make lens39` runs these, and every test marked lens39, in an environment of its own; TransformerLens 4 has no such class.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from taia_lens import lofit
from taia_lens.batch import Batch
from taia_lens.engine import applied, evaluate, scaled
from taia_lens.errors import PairError
from taia_lens.evaluation import prepare, score
from taia_lens.loading import load_pair
from taia_lens.pair import Pair
from taia_lens.recipe import Ablate, Graft, Patch, Recipe
from taia_lens.recipe_text import parse_recipe
from taia_lens.scales import Scales
from taia_lens.sites import GRAFTABLE, Site
from taia_lens.studies.patching import patch
from taia_lens.suite import Suite, Task, make_suite
from taia_lens.weights import weights

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


def test_every_task_is_scored(pair: Pair, suite: Suite) -> None:
    rows: list[dict[str, Any]] = [{"prompt": row.prompt, "domain": row.domain} for row in suite.rows]
    more: dict[str, dict[str, Any]] = {
        "next": {"answer": " w3"},
        "choice": {"choices": [" w3", " w4 w5"], "label": 1},
        "generate": {"answer": "w3"},
        "refuse": {},
        "text": {},
    }
    metrics = {"next": "logprob", "choice": "choice_logprob", "text": "cross_entropy", "generate": "exact_match", "refuse": "refusal"}
    for kind, metric in metrics.items():
        asked = make_suite(kind, [row | more[kind] for row in rows], task=Task(kind, max_new_tokens=8))
        for piece in prepare(asked, pair, [metric], 4):
            scored = score(pair.base, piece)
            for i, row in enumerate(piece.rows):
                found = _by_hand(pair, kind, rows[row]["prompt"])
                if isinstance(found, str):
                    assert scored.transcripts[i] == found
                else:
                    assert scored.values[metric][i] == pytest.approx(found, abs=1e-5)


def _by_hand(pair: Pair, kind: str, prompt: str) -> float | str:
    ids = pair.tokenizer(prompt)["input_ids"]
    if kind in ("generate", "refuse"):
        new: list[int] = []
        while len(new) < 8 and new[-1:] != [2]:
            new.append(int(pair.base(torch.tensor([[*ids, *new]]))[0, -1].argmax()))
        return pair.tokenizer.decode(new, skip_special_tokens=True)

    def logprobs(whole: list[int], n: int) -> torch.Tensor:
        found = pair.base(torch.tensor([whole]))[0, :-1].log_softmax(-1)
        return found.gather(-1, torch.tensor(whole[1:])[:, None])[-n:].sum()

    if kind == "text":
        return -logprobs(ids, len(ids) - 1).item() / (len(ids) - 1)
    if kind == "next":
        return logprobs([*ids, 7], 1).item()
    sums = torch.stack([logprobs([*ids, 7], 1), logprobs([*ids, 8, 9], 2)])
    return sums.log_softmax(0)[1].item()


def test_folded_norms_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(PairError, match="norms folded into its weights"):
        load_pair(hooked(0, normalization_type="RMSPre"), hooked(1, normalization_type="RMSPre"), tokenizer=tokenizer)


def test_a_head_and_a_projection_are_grafted(pair: Pair) -> None:
    """One parameter a projection, its heads along the first dim."""
    base, tuned = ({w.name: w.parameter.data.clone() for w in weights(model)} for model in (pair.base, pair.tuned))
    with applied(pair, parse_recipe("base; graft L1.h2 <- tuned; graft L2.mlp.down <- tuned")) as model:
        for w in weights(model):
            _, layer, module, name = w.name.split(".") if w.layer is not None else ("", "", "", w.name)
            if layer == "1" and name in ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O"):
                assert torch.equal(w.parameter[2], tuned[w.name][2])
                assert torch.equal(w.parameter[[0, 1, 3]], base[w.name][[0, 1, 3]])
            else:
                whole = tuned if (layer, module) == ("2", "mlp") and name in ("W_out", "b_out") else base
                assert torch.equal(w.parameter, whole[w.name]), w.name


def test_lofit_learns_on_it_and_its_scales_do_what_they_say(pair: Pair, batch: Batch, suite: Suite) -> None:
    model = pair.loaded("base")
    settings = lofit.Settings(lr=1e-2, epochs=2, batch_size=4)
    found = lofit.select(model, suite, settings=settings, every=True)
    assert found.loss[-1] < found.loss[0] and float(found.norm.min()) > 0
    heads = lofit.top_heads(found.norm, 2)
    scales = lofit.tune(model, suite, heads, settings=settings, every=True)
    assert scales.offset.abs().max() > 1e-3 and not any(p.requires_grad and p.grad is not None for p in model.model.parameters())
    plain = pair.base(batch.tokens)
    gone = Scales(heads, -torch.ones(2, 8), torch.zeros(2, 8))
    with scaled(pair.base, Scales(heads, torch.zeros(2, 8), torch.zeros(2, 8))) as live:
        assert torch.equal(live(batch.tokens), plain)
    with scaled(pair.base, gone) as live, torch.no_grad():
        ours = live(batch.tokens)
    with applied(pair, Recipe("base", tuple(Ablate(site) for site in heads)), batch=batch) as live:
        theirs = live(batch.tokens)
    torch.testing.assert_close(ours[batch.mask], theirs[batch.mask])  # an ablation writes at prompt tokens only
    assert (ours - plain).abs().max() > 1e-4
