"""One block at a time, on whatever rows, for any architecture: what a model gives its blocks is recorded once and given again.

Masks, rotary embeddings and whatever else a block is called with are the model's own: a forward whose blocks are stood in for by
the identity makes them, and the block is called with them later, on other residual streams of the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from taia_lens.engine.calls import Calls, Keys, Prefix, first, hooked, kept, narrowed, standing_in
from taia_lens.engine.reads import READ_HOOKS
from taia_lens.sites import COMPONENTS, Site
from taia_lens.weights import Model

RECORDED = 2**26
"""Bytes of recorded calls that are held at a time."""


@dataclass(frozen=True, eq=False)
class Detour:
    """What is done besides running a block.

    Attributes:
        hooks: Functions of activations, at hook points.
        acts: Names of hook points whose activations are wanted.
        known: What attention or the FFN gives out, where that is known and not run again.
        keep: Of `attn`, `mlp` and `keys`: what is wanted beside the block's output.
        only: Rows and positions at which the FFN is run; its output elsewhere is zero. None for everywhere.
    """

    hooks: tuple[tuple[str, Callable[..., Any]], ...] = ()
    acts: tuple[str, ...] = ()
    known: Mapping[str, Tensor] = field(default_factory=dict)
    keep: frozenset[str] = frozenset()
    only: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Out:
    """What a block gave out, and what was kept on the way."""

    stream: Float[Tensor, "stacked pos d_model"]
    kept: dict[str, Tensor]
    keys: Keys | None
    acts: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of one model, called on stacked copies of one batch's rows.

    Attributes:
        model: Live, with whatever weights are in force.
        tokens: Ids, padded on the right.
        mask: True at tokens.
        copies: By first position: the most copies of the batch that a call is given.
        points: The model's hook points.
        calls: By first position: what the model gives its blocks.
        tuples: By layer and module: into how long a tuple it puts its output; None for a bare tensor.
    """

    model: Model
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    copies: Mapping[int, int]
    points: Mapping[str, nn.Module]
    calls: dict[int, Calls] = field(default_factory=dict)
    tuples: dict[tuple[int, str], int | None] = field(default_factory=dict)

    def embeddings(self) -> Float[Tensor, "batch pos d_model"]:
        """What the first block is given."""
        streams: list[Tensor] = []

        def see(h: Tensor, *args: object, **named: object) -> Tensor:
            streams.append(h)
            return h

        self._skeleton(self.tokens, self.mask, [see])
        return streams[0]

    def run(
        self, layer: int, stream: Float[Tensor, "stacked pos d_model"], rows: slice, start: int, before: Keys | None, detour: Detour
    ) -> Out:
        """One block on copies of the batch's rows, from position `start` on.

        Args:
            layer: Which block.
            stream: What it is given.
            rows: Of the recorded copies: which rows these are.
            start: The first position of `stream`.
            before: Keys and values of the positions before.
            detour: What else is done.
        """
        prefix = Prefix(before)
        args, named = self.recorded(start).of(layer, rows, prefix)
        block = self.model.blocks[layer]
        outputs: dict[str, Any] = {}
        acts: dict[str, Tensor] = {}
        hooks = (*detour.hooks, *((name, _keeping(acts, name)) for name in detour.acts))
        with ExitStack() as stack:
            stack.enter_context(hooked([(self.points[name], function) for name, function in hooks]))
            stack.enter_context(standing_in({_part(block, n): self._known(layer, n, t) for n, t in detour.known.items()}))
            if detour.only is not None and "mlp" not in detour.known:
                ffn = _part(block, "mlp")
                stack.enter_context(standing_in({ffn: _only_at(ffn.forward, *detour.only)}))
            stack.enter_context(kept({n: _part(block, n) for n in detour.keep if n != "keys"}, outputs))
            out = block(stream, *args, **named)
        for name, found in outputs.items():
            self.tuples[layer, name] = len(found) if isinstance(found, tuple) else None
        return Out(first(out), {name: first(found) for name, found in outputs.items()}, prefix.own, acts)

    def _known(self, layer: int, name: str, known: Tensor) -> Callable[..., Any]:
        """A module's forward that gives out what is known, through the hook point that the module has at its end."""
        point = self.points.get(Site(name, layer).hook)
        inside = point is not None and any(module is point for module in _part(self.model.blocks[layer], name).modules())
        size = self.tuples[layer, name]

        def give(*args: object, **named: object) -> Any:
            out = known
            if inside and point is not None:
                # Only its hooks: what the point itself does (a side of scales has a gain there) is in the known output already.
                with standing_in({point: _same}):
                    out = point(known)
            return out if size is None else (out, *[None] * (size - 1))

        return give

    def recorded(self, start: int) -> Calls:
        if start not in self.calls:
            n = self.copies.get(start, 1)
            tokens, mask = (repeat(t, "batch pos -> (copy batch) pos", copy=n) for t in (self.tokens, self.mask))
            self.calls[start] = Calls(self._record(tokens, mask, start), self._record(tokens[:1], mask[:1], start))
            # A map by position has as many starts as positions, and a mask for each: what was recorded first is recorded again.
            while len(self.calls) > 1 and sum(calls.bytes for calls in self.calls.values()) > RECORDED:
                del self.calls[next(iter(self.calls))]
        return self.calls[start]

    def read(self, streams: Float[Tensor, "read d_model"], columns: Int[Tensor, " column"] | None = None) -> Float[Tensor, "read logit"]:
        """What the model makes of these after its last block: all logits, or those of some tokens."""

        def put(h: Tensor, *args: object, **named: object) -> Tensor:
            return rearrange(streams, "read d_model -> read 1 d_model")

        one = torch.zeros_like(self.tokens[:1, :1])  # whatever it embeds, the last block gives out something else
        same = [_same] * (len(self.model.blocks) - 1)
        with narrowed(self.model, columns) as narrow:
            logits = self._skeleton(one, torch.ones_like(one, dtype=torch.bool), [*same, put], every=True)
        logits = rearrange(logits, "read 1 d_vocab -> read d_vocab")
        return logits if columns is None or narrow else logits[:, columns]

    def _record(self, tokens: Tensor, mask: Tensor, start: int) -> list[tuple[tuple, dict[str, Any]]]:
        """What the model gives each block for the tokens from `start` on, with those before in its cache."""
        calls: list[tuple[tuple, dict[str, Any]]] = []

        def record(h: Tensor, *args: object, **named: object) -> Tensor:
            calls.append((args, named))
            return h

        n = len(self.model.blocks)
        cache = None
        if start:
            cache, nothing = DynamicCache(), torch.zeros(len(tokens), 1, start, 1, device=tokens.device)
            for layer in range(n):
                cache.update(nothing, nothing, layer)
        self._skeleton(tokens[:, start:], mask, [record] * n, cache)
        return calls

    def _skeleton(
        self,
        tokens: Tensor,
        mask: Tensor,
        forwards: Sequence[Callable[..., Tensor]],
        cache: DynamicCache | None = None,
        *,
        every: bool = False,
    ) -> Tensor:
        """A forward whose first blocks are stood in for by these, and the others by the identity; `every` position is unembedded."""
        blocks = self.model.blocks
        named = {} if cache is None else {"past_key_values": cache, "use_cache": True}
        point = next(self.points[name] for name in READ_HOOKS if name in self.points)
        with standing_in(dict(zip(blocks, [*forwards, *[_same] * (len(blocks) - len(forwards))], strict=True))):
            with hooked([] if every else [(point, _only)]):
                return self.model(tokens, attention_mask=mask.long(), return_type="logits", **named)


def _keeping(acts: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(act: Tensor, hook: object) -> None:
        acts[name] = act

    return keep


def _part(block: nn.Module, component: str) -> nn.Module:
    (attribute,) = COMPONENTS[component].modules
    return block.get_submodule(attribute)


def _only_at(forward: Callable[..., Any], rows: Tensor, positions: Tensor) -> Callable[..., Any]:
    """An FFN's forward at some positions only; it reads no position from another."""

    def run(stream: Tensor, *args: object, **named: object) -> Any:
        out = forward(rearrange(stream[rows, positions], "read d_model -> 1 read d_model"), *args, **named)
        whole = torch.zeros_like(stream)
        whole[rows, positions] = first(out)[0]
        return (whole, *[None] * (len(out) - 1)) if isinstance(out, tuple) else whole

    return run


def _only(act: Tensor, hook: object) -> Tensor:
    return act[:1, :1]


def _same(h: Tensor, *args: object, **named: object) -> Tensor:
    return h
