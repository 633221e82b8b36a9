"""The models and prompts that every contender is given: a pair in memory, once for transformers and once for taia-lens.

Weights are shared between all of them; what each contender wires into its modules is its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from taia_lens import demo
from taia_lens.batch import Batch, make_batches
from taia_lens.loading import load_pair
from taia_lens.pair import Pair
from taia_lens.recipe import Side
from taia_lens.suite import Suite

DEMO = "demo"


@dataclass(frozen=True)
class Parts:
    """Module names of transformers: embedding, blocks; in a block, what adds to the residual stream, and the output projection."""

    embed: str
    blocks: str
    attn: str
    mlp: str
    o: str


PARTS = {
    "llama": Parts("model.embed_tokens", "model.layers", "self_attn", "mlp", "self_attn.o_proj"),
    "gpt2": Parts("transformer.wte", "transformer.h", "attn", "mlp", "attn.c_proj"),
}


@dataclass(frozen=True)
class Shape:
    """A model to measure on, and how much it is given to read.

    Attributes:
        title: In words.
        config: Makes its configuration; None for the demo pair, which is on disk.
        rows: Prompts of mixed lengths.
        lengths: The shortest and the longest.
        square: Rows and length of the batch in which every prompt has every position.
        spread: Standard deviation of the random weights.
        device: Where it is run unless --device says otherwise; those for `cuda` are left out elsewhere.
    """

    title: str
    config: Callable[[], PreTrainedConfig] | None
    rows: int
    lengths: tuple[int, int]
    square: tuple[int, int]
    spread: float = 0.05
    device: str = "cpu"


def _llama(vocab: int, d: int, mlp: int, layers: int, heads: int, groups: int) -> Callable[[], PreTrainedConfig]:
    return lambda: LlamaConfig(
        vocab_size=vocab,
        hidden_size=d,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
    )


def _gpt2(vocab: int, d: int, layers: int, heads: int) -> Callable[[], PreTrainedConfig]:
    return lambda: GPT2Config(vocab_size=vocab, n_embd=d, n_layer=layers, n_head=heads)


SHAPES: dict[str, Shape] = {
    DEMO: Shape("the demo pair (16 layers, d 128, vocabulary 359)", None, 32, (4, 13), (16, 9)),
    "gqa": Shape("GQA Llama (16 layers, d 512, vocabulary 32k)", _llama(32_000, 512, 1408, 16, 8, 2), 4, (12, 32), (2, 12)),
    "gpt2": Shape("GPT-2 small's shape (12 layers, d 768, vocabulary 50,257)", GPT2Config, 4, (12, 32), (2, 12)),
    "vocab": Shape("GQA Llama with a vocabulary of 128k", _llama(128_256, 512, 1408, 16, 8, 2), 4, (12, 32), (2, 12)),
    "tiny": Shape("tiny GQA Llama (3 layers, d 64)", _llama(300, 64, 96, 3, 4, 2), 5, (4, 9), (3, 5), 0.2),
    "tiny-gpt2": Shape("tiny GPT-2 (2 layers, d 32)", _gpt2(200, 32, 2, 4), 4, (3, 7), (2, 4), 0.2),
    "1b": Shape("Llama 3.2 1B's shape", _llama(128_256, 2048, 8192, 16, 32, 8), 32, (32, 96), (16, 48), 0.02, device="cuda"),
    "8b": Shape("Llama 3.1 8B's shape", _llama(128_256, 4096, 14336, 32, 32, 8), 32, (32, 96), (8, 48), 0.02, device="cuda"),
}  # fmt: skip
USUAL = (DEMO, "gqa", "gpt2", "vocab")
QUICK = ("tiny", "tiny-gpt2")


@dataclass(frozen=True, eq=False)
class Setting:
    """One pair and its prompts.

    Attributes:
        name: Key of `SHAPES`.
        base: As transformers makes it (attention: sdpa).
        tuned: The same.
        tokenizer: Only nnsight and the pair want one; prompts are ids.
        pair: The same two models, for taia-lens and TransformerLens: bridges around the same weights.
        mixed: Prompts of mixed lengths, padded on the right.
        square: Prompts of one length.
    """

    name: str
    base: PreTrainedModel
    tuned: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    pair: Pair
    mixed: Batch
    square: Batch

    @property
    def parts(self) -> Parts:
        return PARTS[self.base.config.model_type]

    @property
    def n_layers(self) -> int:
        return self.pair.shape.n_layers

    def own(self, side: Side, attention: str = "sdpa") -> PreTrainedModel:
        """One side with modules of the caller's own (libraries rewire what they are given) around the same weights."""
        model = self.base if side == "base" else self.tuned
        shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
        made = copy.deepcopy(model, shared)
        made.set_attn_implementation(attention)
        return made


def score(logits: Tensor, batch: Batch) -> Tensor:
    """The number that every contender gives: logit of each row's answer minus that of its contrast."""
    picked = logits.float().gather(-1, torch.stack([batch.answer, batch.contrast], -1))
    return picked[:, 0] - picked[:, 1]


def make_setting(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Setting:
    """Build a pair and its prompts; the same bits on every call."""
    shape = SHAPES[name]
    if shape.config is None:
        base, tuned, tokenizer = _demo_models(device, dtype)
        suite = demo.demo_suite().limit(shape.rows // 2)
        (mixed,) = make_batches(suite, tokenizer, shape.rows)
        square = _of_one_length(suite, tokenizer, shape.square)
    else:
        base, tuned = _random_models(shape.config(), shape.spread, device, dtype)
        tokenizer = _tokenizer()
        vocab = int(base.config.vocab_size)
        mixed = random_batch(shape.rows, shape.lengths, vocab)
        square = random_batch(shape.square[0], (shape.square[1],) * 2, vocab)
    pair = load_pair(base, tuned, tokenizer=tokenizer)
    return Setting(name, base, tuned, tokenizer, pair, mixed.to(device), square.to(device))


def random_batch(rows: int, lengths: tuple[int, int], vocab: int) -> Batch:
    """Rows of random ids whose lengths are spread evenly; answers and contrasts are random and distinct."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.linspace(*lengths, rows).round().long()
    width = int(sizes.max())
    tokens = torch.randint(1, vocab, (rows, width), generator=generator)
    answer = torch.randint(1, vocab // 2, (rows,), generator=generator)
    none = torch.empty(rows, 0, dtype=torch.long)
    return Batch(tuple(range(rows)), tokens, torch.arange(width) < sizes[:, None], answer, none, answer + vocab // 2)


def _of_one_length(suite: Suite, tokenizer: PreTrainedTokenizerFast, size: tuple[int, int]) -> Batch:
    rows, length = size
    (every,) = make_batches(suite, tokenizer, len(suite))
    at = (every.mask.sum(1) == length).nonzero().squeeze(1)[:rows]
    if not len(at):
        raise ValueError(f"no prompt of the suite {suite.name} has {length} tokens")
    kept = (t[at] for t in (every.tokens[:, :length], every.mask[:, :length], every.answer, every.choices, every.contrast))
    return Batch(tuple(every.rows[i] for i in at), *kept)


def _random_models(config: PreTrainedConfig, spread: float, device: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A random base, and itself with noise on every tensor: a full fine-tune."""
    config.initializer_range = spread
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    with torch.random.fork_rng(devices=[device] if device != "cpu" else []), torch.device(device):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
        tuned = copy.deepcopy(base)
        for parameter in tuned.parameters():
            parameter += 0.3 * spread * torch.randn_like(parameter)
    return base, tuned


def _demo_models(device: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerFast]:
    from peft import PeftModel
    from transformers import AutoTokenizer

    base, under = (AutoModelForCausalLM.from_pretrained(demo.BASE, dtype=dtype).to(device) for _ in range(2))
    tuned = PeftModel.from_pretrained(under, demo.TUNED).merge_and_unload(safe_merge=True)
    made = [model.eval().requires_grad_(False) for model in (base, tuned)]
    return made[0], made[1], AutoTokenizer.from_pretrained(demo.BASE)


def _tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="a", pad_token="a")
