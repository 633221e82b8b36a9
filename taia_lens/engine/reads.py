"""Reading a live model: logits where they are asked for, log-probabilities, greedy text. Its hooks are gone when a call returns.

What is read is never edited. Only the positions asked for reach the unembedding: at 128k entries of vocabulary the logits of
every position are larger than the model's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from taia_lens.batch import Batch, sent
from taia_lens.errors import SiteError
from taia_lens.weights import Model

# What enters the unembedding: the bridge has a hook there, HookedTransformer (3.9) has one on the last norm.
READ_HOOKS = ("unembed.hook_in", "ln_final.hook_normalized")
READ_FLOATS = 2**25  # logits held at once while log-probabilities are read: 128 MiB in float32


@dataclass(frozen=True, eq=False)
class Reads:
    """What is read of forwards on one batch: logits at some (row, position) pairs, or the log-probability of a token at each.

    Attributes:
        batch: The rows, on the device that what is read is wanted on; the model may be on another.
        rows: Row of each read.
        positions: Position of each read.
        targets: The token whose log-probability, in nats, is read; None for logits.
        columns: Of logits: the tokens whose are read, in this order; None for all.
    """

    batch: Batch
    rows: Int[Tensor, " read"]
    positions: Int[Tensor, " read"]
    targets: Int[Tensor, " read"] | None = None
    columns: Int[Tensor, " column"] | None = None

    @classmethod
    def last(cls, batch: Batch) -> Reads:
        """The logits that predict each row's answer."""
        return cls(batch, torch.arange(len(batch.rows), device=batch.tokens.device), batch.last)

    def to(self, device: torch.device | str) -> Reads:
        targets = None if self.targets is None else sent(self.targets, device)
        columns = None if self.columns is None else sent(self.columns, device)
        return Reads(self.batch.to(device), sent(self.rows, device), sent(self.positions, device), targets, columns)

    def halves(self) -> tuple[Reads, Reads]:
        """The first half of the rows and the others, each no wider than its longest; reads are in the order of rows."""
        middle = len(self.batch.rows) // 2
        ends = 0, middle, len(self.batch.rows)
        return self._some(slice(*ends[:2])), self._some(slice(*ends[1:]))

    def _some(self, rows: slice) -> Reads:
        inside = (self.rows >= rows.start) & (self.rows < rows.stop)
        targets = None if self.targets is None else self.targets[inside]
        return Reads(self.batch.take(rows), self.rows[inside] - rows.start, self.positions[inside], targets, self.columns)

    def run(self, model: Model) -> Float[Tensor, "read d_vocab"] | Float[Tensor, " read"]:
        """Read a live model, with whatever weights and hooks are in force."""
        return self.to(device_of(model))._run(model).to(self.batch.tokens.device)

    def _run(self, model: Model) -> Tensor:
        tokens, mask = self.batch.tokens, self.batch.mask
        if self.targets is None:
            logits = run_reads(model, tokens, mask, self.rows, self.positions)
            return logits if self.columns is None else logits[:, self.columns]
        return run_logprobs(model, tokens, mask, self.rows, self.positions, self.targets)


def run_reads(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    rows: Int[Tensor, " read"],
    positions: Int[Tensor, " read"],
    *,
    grad: bool = False,
) -> Float[Tensor, "read d_vocab"]:
    """Logits at the (row, position) pairs; only those reach the unembedding.

    Args:
        model: Live, with whatever weights and hooks are in force.
        tokens: Ids, padded.
        mask: True at tokens, False at padding.
        rows: Row of each read.
        positions: Position of each read.
        grad: With gradients, where they are on.
    """

    def only(act: Tensor, hook: object) -> Tensor:
        return rearrange(act[rows, positions], "read d_model -> read 1 d_model")

    logits = _forward(model, tokens, mask, only, grad=grad)
    return rearrange(logits, "read 1 d_vocab -> read d_vocab")


def run_logprobs(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    rows: Int[Tensor, " read"],
    positions: Int[Tensor, " read"],
    targets: Int[Tensor, " read"],
    *,
    floats: int = READ_FLOATS,
) -> Float[Tensor, " read"]:
    """Log-probability, in nats, of a token at each (row, position) pair; never more than `floats` logits at a time.

    Where the reads' logits are more than that, the body runs once and the head alone for each chunk of reads.
    """
    size = max(1, floats // int(model.cfg.d_vocab))
    if len(rows) <= size:
        return picked(run_reads(model, tokens, mask, rows, positions), targets)
    kept: list[Tensor] = []

    def keep(act: Tensor, hook: object) -> Tensor:
        kept.append(act[rows, positions])
        return act[:1, :1]

    _forward(model, tokens, mask, keep)
    chunks = zip(kept[0].split(size), targets.split(size), strict=True)
    return torch.cat([picked(_head(model, chunk, tokens), wanted) for chunk, wanted in chunks])


def label_logprobs(
    model: Model, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"], labels: Int[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """Log-probability of each row's labelled tokens, summed, in nats; with gradients where they are on.

    Args:
        model: Live, with whatever weights and hooks are in force.
        tokens: Ids, padded.
        mask: True at tokens, False at padding.
        labels: The token that stands at a position, where it is to be predicted from those before it; negative elsewhere.
    """
    rows, positions = (labels[:, 1:] >= 0).nonzero(as_tuple=True)
    found = picked(run_reads(model, tokens, mask, rows, positions, grad=True), labels[rows, positions + 1])
    return torch.zeros(len(tokens), dtype=found.dtype, device=found.device).index_add(0, rows, found)


def run_body(model: Model, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> None:
    """Run the model for its hooks; one position reaches the unembedding."""

    def only(act: Tensor, hook: object) -> Tensor:
        return act[:1, :1]

    _forward(model, tokens, mask, only)


def _head(model: Model, residual: Float[Tensor, "read d_model"], tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "read d_vocab"]:
    """What the model makes of these at the unembedding and after it (scales, caps): a forward of one token that they replace."""
    one = tokens[:1, :1]

    def put(act: Tensor, hook: object) -> Tensor:
        return rearrange(residual, "read d_model -> read 1 d_model")

    return rearrange(_forward(model, one, torch.ones_like(one, dtype=torch.bool), put), "read 1 d_vocab -> read d_vocab")


def picked(logits: Float[Tensor, "read d_vocab"], targets: Int[Tensor, " read"]) -> Float[Tensor, " read"]:
    """Log-probability of each read's target, in nats."""
    logits = logits.float()
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _forward(model: Model, tokens: Tensor, mask: Tensor, at_unembedding: Callable[..., Tensor], *, grad: bool = False) -> Tensor:
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()), model.hooks(fwd_hooks=[(read_hook(model), at_unembedding)]):
        return model(tokens, attention_mask=mask.long(), return_type="logits")


def read_hook(model: Model) -> str:
    """Where what enters the unembedding is seen."""
    known = model.hook_dict
    return next(name for name in READ_HOOKS if name in known)


def check_fired(silent: Iterable[str]) -> None:
    """Raise where a hook was not called: what was to be read or written there was not.

    Raises:
        SiteError: The message names the first.
    """
    for name in silent:
        raise SiteError(f"the hook {name} did not fire, so nothing was read or written there; this architecture does not use it")


def run_greedy(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    done: Callable[[list[int]], bool],
    *,
    cached: bool | None = None,
) -> list[list[int]]:
    """The most likely next token, again and again, after each prompt.

    What is written does not depend on the other prompts, but for rounding: in half precision, padding can tip a near tie.

    Args:
        model: Live, with whatever weights and hooks are in force.
        prompts: Ids of each prompt, of any lengths.
        max_new_tokens: The most tokens after a prompt.
        done: Whether a prompt's new tokens are complete; asked after each token.
        cached: Keep the keys and values of what was read; None does so where the model can.

    Returns:
        The new ids of each prompt, with the one that completed them.
    """
    loop = _greedy_cached if (_caches(model) if cached is None else cached) else _greedy_whole
    return loop(model, prompts, max_new_tokens, done)


def _caches(model: Model) -> bool:
    """HookedTransformer (3.9) keeps another kind of cache, and a few architectures (RWKV, Raven) none."""
    return type(model).__name__ != "HookedTransformer" and model.adapter.supports_kv_cache and not model.cfg.is_stateful


def _greedy_cached(
    model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int, done: Callable[[list[int]], bool]
) -> list[list[int]]:
    """Prompts end at one column, so padding stands on the left; the mask says where, and the bridge counts positions by it."""
    device = device_of(model)
    tokens, mask = (t.flip(1) for t in padded([p[::-1] for p in prompts], device))
    new: list[list[int]] = [[] for _ in prompts]
    live = set(range(len(prompts)))
    cache = None
    with torch.no_grad(), model.hooks(fwd_hooks=[(read_hook(model), lambda act, hook: act[:, -1:])]):
        for _ in range(max_new_tokens):
            logits, cache = model(tokens, attention_mask=mask.long(), past_key_values=cache, use_cache=True, return_type="logits_and_cache")
            chosen = logits[:, -1].argmax(-1)
            for i in sorted(live):
                new[i].append(int(chosen[i]))
            live -= {i for i in live if done(new[i])}
            if not live:
                break
            tokens, mask = chosen[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return new


def _greedy_whole(
    model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int, done: Callable[[list[int]], bool]
) -> list[list[int]]:
    """Everything is read again for each token, padded on the right: slow, and right wherever a forward is."""
    new: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        tokens, mask = padded([[*prompts[i], *new[i]] for i in live], device_of(model))
        rows = torch.arange(len(live), device=tokens.device)
        for i, token in zip(live, run_reads(model, tokens, mask, rows, mask.sum(1) - 1).argmax(-1).tolist(), strict=True):
            new[i].append(token)
        live = [i for i in live if not done(new[i])]
        if not live:
            break
    return new


def device_of(model: Model) -> torch.device:
    """Where a model takes its tokens."""
    return next(model.parameters()).device


def padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """The sequences padded on the right with a token of their own, and where they are."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    width = int(lengths.max())
    tokens = torch.tensor([[*ids, *[ids[-1]] * (width - len(ids))] for ids in sequences])
    return tokens.to(device), (torch.arange(width) < lengths[:, None]).to(device)
