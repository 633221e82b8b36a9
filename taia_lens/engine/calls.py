"""What a model gives its blocks, recorded; and other functions in the place of its modules, or hooks on them, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import Cache

from taia_lens.engine.reads import check_fired
from taia_lens.weights import Model

Keys = tuple[Tensor, Tensor]
"""Keys and values of one layer: (batch, kv head, pos, d_head)."""


@dataclass(eq=False)
class Prefix:
    """What stands for the model's cache while one block is run: keys and values of the positions before those that are run."""

    before: Keys | None = None
    own: Keys | None = None

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: object, **kwargs: object) -> Keys:
        self.own = keys, values
        if self.before is None:
            return keys, values
        return torch.cat([self.before[0], keys], dim=-2), torch.cat([self.before[1], values], dim=-2)

    def get_seq_length(self, layer: int = 0) -> int:
        return 0 if self.before is None else self.before[0].shape[-2]


@dataclass(frozen=True, eq=False)
class Calls:
    """What a model gave its blocks for some copies of a batch, and for one row of it: what differs between them is by row."""

    many: list[tuple[tuple, dict[str, Any]]]
    one: list[tuple[tuple, dict[str, Any]]]

    @property
    def bytes(self) -> int:
        """What it holds; layers are mostly given the same tensors."""
        found = {t.data_ptr(): t.numel() * t.element_size() for t in tree_leaves(self.many) if isinstance(t, Tensor)}
        return sum(found.values())

    def of(self, layer: int, rows: slice, prefix: Prefix) -> tuple[tuple, dict[str, Any]]:
        """A block's arguments after the residual stream, for these rows."""
        (args, named), (args_one, named_one) = self.many[layer], self.one[layer]
        return _cut(args, args_one, rows, prefix), _cut(named, named_one, rows, prefix)


def _cut(many: Any, one: Any, rows: slice, prefix: Prefix) -> Any:
    if isinstance(many, Tensor):
        return many if isinstance(one, Tensor) and many.shape == one.shape else many[rows]
    if isinstance(many, Cache):
        return prefix
    if isinstance(many, dict):
        return {key: _cut(value, one[key], rows, prefix) for key, value in many.items()}
    if isinstance(many, (tuple, list)):
        return type(many)(_cut(a, b, rows, prefix) for a, b in zip(many, one, strict=True))
    return many


@contextmanager
def standing_in(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Other functions in the place of modules' forwards, for as long as the block runs."""
    before: dict[nn.Module, Any] = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward  # TransformerLens's bridge overrides setattr
        yield
    finally:
        for module, own in before.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


@contextmanager
def hooked(functions: Sequence[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """Functions at hook points, for as long as the block runs; each must be called."""
    called: set[int] = set()
    with ExitStack() as stack:
        for number, (point, function) in enumerate(functions):

            def see(act: Tensor, hook: Any, number: int = number, function: Callable[..., Any] = function) -> Any:
                called.add(number)
                return function(act, hook)

            point.add_hook(see)
            stack.callback(_unhook, point, point.fwd_hooks[-1])
        yield
    check_fired(point.name for number, (point, _) in enumerate(functions) if number not in called)


def _unhook(point: Any, handle: Any) -> None:
    handle.hook.remove()
    point.fwd_hooks.remove(handle)


@contextmanager
def narrowed(model: Model, columns: Int[Tensor, " column"] | None) -> Iterator[bool]:
    """The unembedding with the rows of these tokens only, for as long as the block runs; False where it cannot be so cut."""
    d_vocab = int(model.cfg.d_vocab)
    tensors = (*model.unembed.parameters(), *model.unembed.buffers())
    found = [(tensor, tensor.data, list(tensor.shape)) for tensor in tensors]
    # Where d_model is d_vocab, a shape does not say which dim is which.
    if columns is None or not found or d_vocab == model.cfg.d_model or any(d_vocab not in shape for _, _, shape in found):
        yield False
        return
    try:
        for parameter, whole, shape in found:
            parameter.data = whole.index_select(shape.index(d_vocab), columns.to(whole.device))
        yield True
    finally:
        for parameter, whole, _ in found:
            parameter.data = whole


@contextmanager
def kept(modules: Mapping[str, nn.Module], outputs: dict[str, Any]) -> Iterator[None]:
    """What modules give out, under their names, for as long as the block runs."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def keep(_: nn.Module, args: object, out: Any, name: str = name) -> None:
                outputs[name] = out

            handle = module.register_forward_hook(keep)
            stack.callback(handle.remove)
        yield


def first(out: Any) -> Tensor:
    """The tensor that a module gives out: itself, or the first of a tuple."""
    return out[0] if isinstance(out, tuple) else out
