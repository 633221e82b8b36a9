"""What a selection step of LoFiT costs: beside a plain forward and the backward to the first hooked layer, on the same batch.

Run: python benchmarks/lofit_step.py [--repeats N]. Prints a table: medians of interleaved repeats, their ratio, and the bytes
that autograd keeps for the backward, without the model's own weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from taia_lens import lofit
from taia_lens.engine import frozen, label_logprobs, scaled
from taia_lens.loaded import Loaded
from taia_lens.loading import load_one
from taia_lens.scales import Scales
from taia_lens.sites import Site

SHAPES: dict[str, tuple[PreTrainedConfig, int, int]] = {
    "demo's shape (16 layers, d 128)": (
        LlamaConfig(vocab_size=400, hidden_size=128, intermediate_size=320, num_hidden_layers=16, num_attention_heads=8), 64, 10,
    ),
    "GQA Llama (16 layers, d 512)": (
        LlamaConfig(
            vocab_size=32000, hidden_size=512, intermediate_size=1408, num_hidden_layers=16, num_attention_heads=8, num_key_value_heads=2
        ), 8, 64,
    ),
    "GPT-2 small's shape": (GPT2Config(), 4, 64),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Bench:
    """One model and one batch whose last token is the answer."""

    model: Loaded
    tokens: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor

    def loss(self) -> torch.Tensor:
        return -label_logprobs(self.model.model, self.tokens, self.mask, self.labels).mean()


def make(config: PreTrainedConfig, rows: int, length: int) -> Bench:
    torch.manual_seed(0)
    raw = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), eos_token="a")
    model = load_one(AutoModelForCausalLM.from_config(config), tokenizer=raw)
    tokens = torch.randint(config.vocab_size, (rows, length))
    labels = torch.full_like(tokens, -100)
    labels[:, -1] = tokens[:, -1]
    return Bench(model, tokens, torch.ones_like(tokens, dtype=torch.bool), labels)


def plain_step(bench: Bench) -> Callable[[], None]:
    """A forward, and the backward down to layer 0's z: a zero is added to it, so that the graph begins there and nowhere above."""
    shape = bench.model.shape
    first = tuple(Site("head", 0, head) for head in range(shape.n_heads))
    zero = torch.zeros(shape.n_heads, shape.d_head, requires_grad=True)

    def step() -> None:
        zero.grad = None
        with scaled(bench.model.model, Scales(first, torch.zeros(shape.n_heads, shape.d_head), zero)):
            bench.loss().backward()

    return step


def select_step(bench: Bench) -> Callable[[], None]:
    """A whole step of the selection: gains at every head, the penalty, AdamW."""
    sites = lofit.heads_of(bench.model)
    gain = (1e-3 * torch.randn(len(sites), bench.model.shape.d_head)).requires_grad_()
    optimizer = torch.optim.AdamW([gain], lr=5e-3)

    def step() -> None:
        optimizer.zero_grad()
        with scaled(bench.model.model, Scales(sites, gain, torch.zeros_like(gain))):
            bench.loss().backward()
        (5e-4 * gain.abs().sum()).backward()
        optimizer.step()

    return step


def kept_bytes(bench: Bench, step: Callable[[], None]) -> int:
    """Bytes of distinct storages that autograd keeps for the backward, the model's weights left out."""
    own = {p.untyped_storage().data_ptr() for p in bench.model.model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(seen.values())


def compare(bench: Bench, repeats: int) -> tuple[float, float, int, int]:
    """Median seconds of the plain step and of the selection step, taken in turn; bytes kept by each."""
    with frozen(bench.model.model):
        steps = plain_step(bench), select_step(bench)
        for step in steps:
            step()
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            for step, found in zip(steps, times, strict=True):
                start = time.perf_counter()
                step()
                found.append(time.perf_counter() - start)
        kept = [kept_bytes(bench, step) for step in steps]
        assert all(p.grad is None for p in bench.model.model.parameters())
    return statistics.median(times[0]), statistics.median(times[1]), kept[0], kept[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} threads, medians of {repeats}\n")
    print("| model | batch | forward + backward, ms | selection step, ms | ratio | A, MB | kept for the backward, MB | in selection, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (config, rows, length) in SHAPES.items():
        bench = make(config, rows, length)
        plain, select, before, after = compare(bench, repeats)
        size = 4 * len(lofit.heads_of(bench.model)) * bench.model.shape.d_head
        numbers = (
            f"{1e3 * plain:.1f} | {1e3 * select:.1f} | {select / plain:.2f} | {size / 1e6:.2f} | {before / 1e6:.1f} | {after / 1e6:.1f}"
        )
        print(f"| {name} | {rows} x {length} | {numbers} |")


if __name__ == "__main__":
    main()
