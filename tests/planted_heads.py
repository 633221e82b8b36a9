"""Models in which the heads that a task needs are known by construction, on any architecture of `architectures`.

The residual stream is split: words are coded in dims I; q, k and v of a planted head read I and nothing else; what a planted
head writes goes to dims that the unembedding reads; what every other head and every FFN writes goes to dims J, which nothing
reads. So only planted heads can change an answer, but for the norms, which see J too. A prompt is a filler and a word; of the
word's two possible answers, the true one and the myth, the model prefers the myth.

    scale   some planted heads write the true answer, one writes the myth, stronger: rescaling them solves the task
    shift   the codes of both answers are in the embedding; planted heads write the sign of one dim that prefers all myths
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from architectures import D_HEAD, N_HEADS, N_LAYERS, SPECIAL, make
from transformers import PreTrainedTokenizerBase

from taia_lens.loaded import Loaded
from taia_lens.loading import load_one
from taia_lens.sites import Site
from taia_lens.suite import Suite, make_suite
from taia_lens.weights import Weight, live_weights

CODE, CONSTANT, TRUE, MYTH, MODE, JUNK = slice(0, 8), 8, slice(9, 17), slice(17, 25), 25, slice(26, 32)
WORDS, FILLERS = 16, range(48, 60)
FIRST = len(SPECIAL)
KINDS = ("scale", "shift")


@dataclass(frozen=True)
class Planted:
    model: Loaded
    heads: tuple[Site, ...]


def task(n: int = 64) -> Suite:
    """Filler and word -> the true answer; the contrast is the myth. Every fourth row is out of distribution."""
    rows = []
    for i in range(n):
        word, filler = i % WORDS, FILLERS[(i // WORDS) % len(FILLERS)]
        rows.append(
            {
                "id": f"r{i}",
                "prompt": f"w{filler} w{word}",
                "answer": f" w{WORDS + word}",
                "contrast": f" w{2 * WORDS + word}",
                "domain": "ood" if i // WORDS == n // WORDS - 1 else "id",
            }
        )
    return make_suite("planted", rows)


def plant(architecture: str, kind: str, seed: int, tokenizer: PreTrainedTokenizerBase, *, removed: bool = False) -> Planted:
    """The model and its planted heads; `removed`: what they write goes to J as well, so that none of them matters."""
    changes = {"tie_word_embeddings": False} | ({"num_local_experts": 2} if architecture == "mixtral" else {})
    model = load_one(make(architecture, seed, **changes), tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(100 + seed)
    places = torch.randperm(N_LAYERS * N_HEADS, generator=generator)[:3].tolist()
    heads = tuple(Site("head", place // N_HEADS, place % N_HEADS) for place in places)
    codes = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    codes = torch.cat([codes, -codes])  # 16 words: as far apart as eight dims allow
    with torch.no_grad():
        for weight in live_weights(model.model):
            _write(weight, heads, kind, codes, generator, removed)
    return Planted(model, heads)


def _write(weight: Weight, heads: Sequence[Site], kind: str, codes: torch.Tensor, generator: torch.Generator, removed: bool) -> None:
    data = weight.parameter.data
    if weight.component == "norms" or (weight.component == "attn" and weight.part not in "qkvo"):
        data.fill_(0.0 if weight.name.endswith("bias") else 1.0)
    elif weight.component == "embed":
        data.zero_()
        if "wpe" not in weight.name:  # the positions have none
            data[:, CONSTANT] = 1.0
            data[:, JUNK] = 20.0 * torch.tensor([1.0, -1.0] * 3)  # so large that no head can move the norms by much
            data[FIRST : FIRST + WORDS, CODE] = codes
            if kind == "shift":
                data[FIRST : FIRST + WORDS, TRUE] = codes
                data[FIRST : FIRST + WORDS, MYTH] = codes
    elif weight.component == "unembed":
        data.zero_()
        if data.ndim == 2:
            for start, dims, mode in ((FIRST + WORDS, TRUE, 1.0), (FIRST + 2 * WORDS, MYTH, -1.0)):
                data[start : start + WORDS, dims] = 40 * codes
                data[start : start + WORDS, MODE] = 15 * mode
    elif weight.component == "mlp":
        # Rows of the last dim of d_model: whatever is written goes to J. Up and gate stay as they are.
        if weight.part == "down" or data.shape[-1] == 32 or data.shape[0] == 32:
            _into_junk(data, weight)
    elif weight.part in "qkv":
        _read(weight, heads, data, kind)
    else:
        _out(weight, heads, kind, data, generator, removed)


def _into_junk(data: torch.Tensor, weight: Weight) -> None:
    writes = weight.part == "down" or weight.name.endswith(("down_proj", "down_proj.weight"))
    if not writes:
        return
    dims = [i for i, size in enumerate(data.shape) if size == 32]
    kept = torch.zeros(32)
    kept[JUNK] = 1.0
    shape = [32 if i == dims[0] else 1 for i in range(data.ndim)]
    data.mul_(kept.reshape(shape))


def _read(weight: Weight, heads: Sequence[Site], data: torch.Tensor, kind: str) -> None:
    """Planted heads attend to all positions alike (q is zero); their v reads the code, or the constant, of every position."""
    assert weight.head_dim is not None
    planted = [site.head for site in heads if site.layer == weight.layer]
    if not planted:
        return
    by_head = data if weight.head_dim == 0 else data.T
    n = by_head.shape[0] // D_HEAD  # fewer for k and v under grouped queries
    for head in planted:
        group = head * n // N_HEADS
        rows = slice(group * D_HEAD, (group + 1) * D_HEAD)
        by_head[rows] = 0.0
        if weight.part == "v" and data.ndim == 2:
            if kind == "scale":
                by_head[rows, CODE] = 6 * torch.eye(8)
            else:
                by_head[rows, CONSTANT] = 2.0


def _out(weight: Weight, heads: Sequence[Site], kind: str, data: torch.Tensor, generator: torch.Generator, removed: bool) -> None:
    if data.ndim == 1:
        data.zero_()
        return
    by_head = data if weight.head_dim == 1 else data.T  # (d_model, heads)
    kept = torch.zeros(32, 1)
    kept[JUNK] = 1.0
    by_head.mul_(kept)
    for i, site in enumerate(heads):
        if site.layer != weight.layer or removed:
            continue
        columns = slice(site.head * D_HEAD, (site.head + 1) * D_HEAD)
        by_head[:, columns] = 0.0
        if kind == "scale":
            by_head[MYTH if i == 0 else TRUE, columns] = (1.5 if i == 0 else 0.5) * torch.eye(8)
        else:
            by_head[MODE, columns] = -0.2
