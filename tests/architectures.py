"""Tiny random transformers models of ten architectures, a tokenizer, and where their parts are. Offline; no taia_lens code.

Every parameter is random, norms and biases too: with their usual ones and zeros, a law about them would hold of itself.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

N_LAYERS, N_HEADS, D_HEAD, D_VOCAB = 3, 4, 8, 64
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [f"w{i}" for i in range(D_VOCAB - len(SPECIAL))]

_COMMON = dict(
    vocab_size=D_VOCAB,
    hidden_size=N_HEADS * D_HEAD,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=N_HEADS,
    intermediate_size=48,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_GROUPED = _COMMON | dict(num_key_value_heads=2)
_GEMMA = _GROUPED | dict(head_dim=D_HEAD, query_pre_attn_scalar=D_HEAD)

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_GROUPED),
    "mistral": MistralConfig(**_GROUPED, head_dim=D_HEAD),
    "qwen2": Qwen2Config(**_GROUPED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=D_HEAD),
    "gemma2": Gemma2Config(**_GEMMA),
    "gemma3": Gemma3TextConfig(**_GEMMA),
    "gpt2": GPT2Config(
        vocab_size=D_VOCAB, n_embd=N_HEADS * D_HEAD, n_layer=N_LAYERS, n_head=N_HEADS, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "neox": GPTNeoXConfig(**_COMMON),
    "phi3": Phi3Config(**_GROUPED),
    "mixtral": MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
}
ARCHITECTURES = tuple(CONFIGS)
TIED = ("qwen2", "gemma2", "gemma3", "gpt2")


class Parts(NamedTuple):
    """Module names of transformers: the blocks; in a block, what adds to the residual stream, and the output projection."""

    blocks: str
    attn: str
    mlp: str
    o: str


_LLAMA_LIKE = Parts("model.layers", "self_attn", "mlp", "self_attn.o_proj")
# Gemma adds the output of a norm that follows the module, not the module's own.
_GEMMA_LIKE = Parts("model.layers", "post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj")
PARTS: dict[str, Parts] = {name: _LLAMA_LIKE for name in CONFIGS} | {
    "gemma2": _GEMMA_LIKE,
    "gemma3": _GEMMA_LIKE,
    "gpt2": Parts("transformer.h", "attn", "mlp", "attn.c_proj"),
    "neox": Parts("gpt_neox.layers", "attention", "mlp", "attention.dense"),
}

_OUT_PROJECTION = r"\.(o_proj|attn\.c_proj|attention\.dense)\."
_NORM = r"(^|\.)\w*(norm|ln_\w+)\.(weight|bias)$"


def component_of(name: str) -> str:
    """The component that a parameter of transformers belongs to, read off its name."""
    if re.search(r"(lm_head|embed_out)\.", name):
        return "unembed"
    if re.search(r"(embed_tokens|embed_in|wte|wpe)\.", name):
        return "embed"
    if re.search(r"\.(self_attn|attn|attention)\.", name):
        return "attn"  # the q and k norms of Qwen 3 and Gemma 3 lie under attention
    if re.search(r"\.mlp\.", name):
        return "mlp"
    assert re.search(_NORM, name), name
    return "norms"


def make(name: str, seed: int, **changes: object) -> PreTrainedModel:
    """A random model; `changes` go into its config."""
    config = copy.deepcopy(CONFIGS[name])
    for key, value in changes.items():
        setattr(config, key, value)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # Eager: the bridge uses it too, so what is left between the two is rounding.
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    return _stirred(model, "", generator)


def tuned_from(model: PreTrainedModel, seed: int, where: str = "", *, but: str | None = None) -> PreTrainedModel:
    """A copy with noise on the parameters whose name matches `where` and not `but`."""
    return _stirred(copy.deepcopy(model), where, torch.Generator().manual_seed(seed), but)


def _stirred(model: PreTrainedModel, where: str, generator: torch.Generator, but: str | None = None) -> PreTrainedModel:
    touched = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(where, name) and not (but and re.search(but, name)):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
                touched += 1
    assert touched, f"no parameter matches {where!r}"
    return model


def tuned_in_attention_only(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    names = "|".join(f"^{re.escape(n)}$" for n, _ in model.named_parameters() if component_of(n) == "attn")
    return tuned_from(model, seed, names)


def tuned_but_for_output_projections(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Everything differs but the output projections and the norms, one of which follows the projection in Gemma."""
    return tuned_from(model, seed, but=f"{_OUT_PROJECTION}|{_NORM}")


def make_tokenizer(folder: Path, words: list[str] | None = None) -> PreTrainedTokenizerBase:
    """Words w0..w59 split at white space, saved and read back as a user's would be."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *(words or WORDS)])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
