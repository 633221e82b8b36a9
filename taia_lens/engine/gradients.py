"""What rankers read of a live model: activations at each row's last token, and gradients at hooks. The model's weights get none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from taia_lens.engine.reads import READ_HOOKS, run_body
from taia_lens.engine.scaled import frozen
from taia_lens.errors import SiteError
from taia_lens.weights import Model

Value = Callable[[Float[Tensor, "read d_vocab"]], Float[Tensor, " row"]]


@dataclass(frozen=True, eq=False)
class Gradients:
    """What one forward and one backward gave.

    Attributes:
        values: One per row.
        acts: The activations at the hooks, by hook name.
        grads: Of the values' sum with respect to them: since no row reads another, each row's own gradient.
    """

    values: Float[Tensor, " row"]
    acts: dict[str, Tensor]
    grads: dict[str, Tensor]


def run_gradients(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    rows: Int[Tensor, " read"],
    positions: Int[Tensor, " read"],
    value: Value,
    hooks: Iterable[str],
    *,
    put: Mapping[str, Tensor] | None = None,
) -> Gradients:
    """Gradients of a value at all hooks, from one forward and one backward.

    Args:
        model: Live, with whatever weights and hooks are in force.
        tokens: Ids, padded.
        mask: True at tokens, False at padding.
        rows: Row of each read.
        positions: Position of each read; only those logits are computed.
        value: Differentiable: the logits read -> one value per row.
        hooks: Where.
        put: Activations that stand at some hooks instead of the model's own; the gradient is taken there.

    Raises:
        SiteError: The model has no such hook, or does not use it.
    """
    names, given = list(dict.fromkeys(hooks)), dict(put or {})
    _check(model, names)
    acts: dict[str, Tensor] = {}
    moved: dict[str, Tensor] = {}

    def at(name: str) -> Callable[..., Tensor]:
        def move(act: Tensor, hook: object) -> Tensor:
            act = given[name].to(act) if name in given else act
            # Moved by a zero that has a gradient: that is the activation's own, and the graph begins here.
            acts[name], moved[name] = act.detach(), torch.zeros_like(act, requires_grad=True)
            return act + moved[name]

        return move

    def only(act: Tensor, hook: object) -> Tensor:
        return rearrange(act[rows, positions], "read d_model -> read 1 d_model")

    read = next(name for name in READ_HOOKS if name in model.hook_dict)
    with frozen(model), model.hooks(fwd_hooks=[*((name, at(name)) for name in names), (read, only)]):
        logits = model(tokens, attention_mask=mask.long(), return_type="logits")
        _fired(names, acts)
        values = value(rearrange(logits, "read 1 d_vocab -> read d_vocab"))
        grads = torch.autograd.grad(values.sum(), [moved[name] for name in names])
    return Gradients(values.detach(), acts, dict(zip(names, grads, strict=True)))


def run_last(model: Model, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"], hooks: Iterable[str]) -> dict[str, Tensor]:
    """The activations at the hooks at each row's last token, by hook name; no other position is kept.

    Raises:
        SiteError: The model has no such hook, or does not use it.
    """
    names = list(dict.fromkeys(hooks))
    _check(model, names)
    acts: dict[str, Tensor] = {}
    rows, last = torch.arange(len(tokens), device=tokens.device), mask.sum(1) - 1

    def keep_as(name: str) -> Callable[..., None]:
        def keep(act: Tensor, hook: object) -> None:
            acts[name] = act[rows, last].detach()

        return keep

    with model.hooks(fwd_hooks=[(name, keep_as(name)) for name in names]):
        run_body(model, tokens, mask)
    _fired(names, acts)
    return acts


def _check(model: Model, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in model.hook_dict]
    if missing:
        raise SiteError(f"this model has no {missing[0]}, so there is nothing to read there; its attention is of another kind")


def _fired(names: Sequence[str], acts: Mapping[str, Tensor]) -> None:
    silent = [name for name in names if name not in acts]
    if silent:
        raise SiteError(f"the hook {silent[0]} did not fire, so nothing was read there; this architecture does not use it")
