"""Gradients at hooks, times what another model would change there; activations at last tokens. The weights get no gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from taia_lens.engine.reads import Reads, check_fired, device_of, run_body, run_reads
from taia_lens.engine.scaled import frozen
from taia_lens.errors import SiteError
from taia_lens.weights import Model

Value = Callable[[Float[Tensor, "read d_vocab"]], Float[Tensor, " row"]]


@dataclass(frozen=True, eq=False)
class Attributed:
    """What patching would do to first order, everywhere at once.

    Attributes:
        host: The value of each row, unedited.
        donor: The donor's.
        products: By hook name, (batch, pos[, head]): the gradient of the host's value with respect to the activation there, times
            the donor's activation less the host's, summed over the last dim. No row reads another, so each is of its own row's
            value; 0 at padding.
    """

    host: Float[Tensor, " row"]
    donor: Float[Tensor, " row"]
    products: dict[str, Tensor]


def run_attributed(
    host: Model,
    donor: Model,
    reads: Reads,
    value: Value,
    hooks: Iterable[str],
    *,
    steps: int = 0,
    done: Callable[[], object] = lambda: None,
) -> Attributed:
    """Gradient times change at all hooks, from one forward of each model and one backward.

    Besides the backward's own graph, only the donor's activations at the hooks are held: as a gradient comes by, its product is
    taken and the change dropped.

    Args:
        host: Live, with whatever weights and hooks are in force.
        donor: The same.
        reads: The rows, and at which of their tokens logits are read.
        value: Differentiable: those logits -> one value per row.
        hooks: Where.
        steps: Take the mean gradient at the middles of so many equal steps from the host's activation to the donor's, one hook at
            a time (integrated gradients, arXiv 1703.01365): a forward and a backward a hook and step. 0: one gradient, at the host's.
        done: Called after each backward.

    Raises:
        SiteError: The model has no such hook, or does not use it.
    """
    with torch.no_grad(), _kept(donor, hooks, lambda act: act) as acts:
        other = value(_logits(donor, reads))
    if not steps:
        mine, products = _products(host, reads, value, acts)
        done()
        return Attributed(mine, other, products)
    products = {}
    for name in list(acts):
        act = acts.pop(name)
        each = []
        for step in range(steps):
            each.append(_products(host, reads, value, {name: act}, share=(step + 0.5) / steps)[1][name])
            done()
        products[name] = torch.stack(each).mean(0)
    with torch.no_grad():
        return Attributed(value(_logits(host, reads)), other, products)


def _products(
    model: Model, reads: Reads, value: Value, theirs: dict[str, Tensor], *, share: float = 0.0
) -> tuple[Float[Tensor, " row"], dict[str, Tensor]]:
    """One forward and one backward, which empties `theirs`. With a share, the activations are moved that far to the donor's first."""
    names = _checked(model, theirs)
    begins: list[Tensor] = []
    changes: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}

    def at(name: str) -> Callable[..., Tensor]:
        def take(grad: Tensor) -> None:
            products[name] = _product(grad, changes.pop(name), reads.batch.mask)

        def meet(act: Tensor, hook: object) -> Tensor:
            # In half precision this difference is exact wherever the two are within a factor of two.
            changes[name] = theirs.pop(name).to(act) - act.detach()
            if share:
                act = act + share * changes[name]
            if not act.requires_grad:  # the graph begins here, and where nothing before it is asked for
                act = act.detach().requires_grad_()
                begins.append(act)
            act.register_hook(take)
            return act

        return meet

    with frozen(model), model.hooks(fwd_hooks=[(name, at(name)) for name in names]):
        values = value(_logits(model, reads))
        check_fired(name for name in names if name not in changes)
        torch.autograd.grad(values.sum(), begins)
    check_fired(name for name in names if name not in products)
    return values.detach(), products


def _product(grad: Tensor, change: Tensor, mask: Bool[Tensor, "batch pos"]) -> Tensor:
    """Summed over the last dim in float32 at least, whatever the model's dtype."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    found = torch.linalg.vecdot(grad.to(wide), change.to(wide))
    found = found.to(mask.device)
    return torch.where(mask if found.ndim == 2 else mask[..., None], found, 0)


def _logits(model: Model, reads: Reads) -> Float[Tensor, "read d_vocab"]:
    """What is read, of every column, with gradients where they are on."""
    here = reads.to(device_of(model))
    return run_reads(model, here.batch.tokens, here.batch.mask, here.rows, here.positions, grad=True).to(reads.rows.device)


def run_last(model: Model, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"], hooks: Iterable[str]) -> dict[str, Tensor]:
    """The activations at the hooks at each row's last token, by hook name; no other position is kept.

    Raises:
        SiteError: The model has no such hook, or does not use it.
    """
    rows, last = torch.arange(len(tokens), device=tokens.device), mask.sum(1) - 1
    with _kept(model, hooks, lambda act: act[rows, last]) as acts:
        run_body(model, tokens, mask)
    return acts


@contextmanager
def _kept(model: Model, hooks: Iterable[str], pick: Callable[[Tensor], Tensor]) -> Iterator[dict[str, Tensor]]:
    """What is picked of the activations at the hooks in the forward that the block runs."""
    names = _checked(model, hooks)
    acts: dict[str, Tensor] = {}

    def keep_as(name: str) -> Callable[..., None]:
        def keep(act: Tensor, hook: object) -> None:
            acts[name] = pick(act).detach()

        return keep

    with model.hooks(fwd_hooks=[(name, keep_as(name)) for name in names]):
        yield acts
    check_fired(name for name in names if name not in acts)


def _checked(model: Model, hooks: Iterable[str]) -> list[str]:
    """The hooks, each once."""
    names, known = list(dict.fromkeys(hooks)), model.hook_dict  # a table that is made anew each time it is asked for
    missing = [name for name in names if name not in known]
    if missing:
        raise SiteError(f"this model has no {missing[0]}, so there is nothing to read there; its attention is of another kind")
    return names
