"""One model by itself: its shape, its fingerprint, and the tokenizer it is read with. Knows no loader; runs no forward."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from taia_lens.budget import BUDGET, Budget
from taia_lens.weights import Model, Weight, is_idle, stored_buffers, weights


@dataclass(frozen=True)
class Shape:
    """What two models must share to be a pair."""

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_model: int
    d_head: int
    d_vocab: int

    @classmethod
    def of(cls, model: Model) -> Shape:
        cfg = model.cfg
        kv = cfg.n_key_value_heads or cfg.n_heads
        return cls(cfg.n_layers, cfg.n_heads, kv, cfg.d_model, cfg.d_head, cfg.d_vocab)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A live model and its tokenizer; made by `load_one`, or a side of a pair (`pair.loaded("base")`).

    Attributes:
        model: A TransformerBridge, or an unprocessed HookedTransformer of TransformerLens 3.9.
        tokenizer: What its prompts are read with.
        name: Where it came from.
        plain_because: Why recipes are run one by one on it and share no work; empty where they do.
        budget: How much is run, and held, at a time.
    """

    model: Model
    tokenizer: PreTrainedTokenizerBase
    name: str
    plain_because: str = "the model was not checked"
    budget: Budget = BUDGET

    @property
    def models(self) -> tuple[Model, ...]:
        return (self.model,)

    @property
    def shape(self) -> Shape:
        return Shape.of(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> str:
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Its parameters, with the component that each belongs to."""
        return tuple(weights(self.model))

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """A content hash of its weights and hyper-parameters."""
        return fingerprint(self.model)

    @cached_property
    def rounded(self) -> str:
        """The same of the weights rounded to bfloat16: it does not depend on whether they were loaded in that or in float32."""
        return fingerprint(self.model, rounded=True)

    def __repr__(self) -> str:
        s = self.shape
        return f"Loaded({self.name}: {s.n_layers} layers, {s.n_heads} heads, d_model {s.d_model}, {self.dtype})"


# Keys of a config that change no forward pass in evaluation, or are seen elsewhere (dtype, tokenizer).
HARMLESS = {
    "_name_or_path", "architectures", "attn_implementation", "auto_map", "bos_token_id", "device", "dtype", "eos_token_id", "id2label",
    "init_weights", "initializer_range", "label2id", "max_position_embeddings", "model_name", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "return_dict", "router_aux_loss_coef", "seed", "tokenizer_name",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


def fingerprint(model: Model, *, rounded: bool = False) -> str:
    """A content hash of a model's weights and hyper-parameters."""
    known = {key: value for key, value in config(model).items() if key not in HARMLESS}
    digest = hashlib.blake2b(json.dumps(known, sort_keys=True, default=str).encode(), digest_size=16)
    for weight in sorted((w for w in weights(model) if not w.copy and not is_idle(w)), key=lambda w: w.name):
        tensor = weight.parameter.detach().contiguous().cpu()
        tensor = tensor.to(torch.bfloat16) if rounded else tensor
        digest.update(f"{weight.name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else repr(tensor.item()).encode())
    for name, buffer in sorted(stored_buffers(model).items()):
        kept = buffer.to(torch.bfloat16) if rounded and buffer.is_floating_point() else buffer
        digest.update(f"{name} {kept.dtype} {tuple(kept.shape)} {kept.tolist()}".encode())
    return digest.hexdigest()


def config(model: Model) -> dict[str, Any]:
    """The model's hyper-parameters, under the names of the library that made it."""
    if type(model).__name__ == "HookedTransformer":
        return model.cfg.to_dict()
    return model.original_model.config.to_dict()


def architecture(model: Model) -> str:
    """The name of the model's architecture; the bridge and HookedTransformer keep it under different names."""
    fields = vars(model.cfg)
    return str(fields.get("architecture") or fields.get("original_architecture") or fields["model_name"])
