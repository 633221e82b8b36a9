"""Scales folded into weights: (1 + A) into the columns of the output projection, v into a bias. Exact, in float64; no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from taia_lens.engine.scaled import laid_out
from taia_lens.export.sides import Full
from taia_lens.export.slots import PROJECTION, Projection, Slot, output_projection, projection
from taia_lens.scales import Scales

Read = Callable[[str], Tensor]
"""A parameter of the base, by transformers' name; zeros for one that the slot adds."""

Matrix = Float[Tensor, "out read"]
Vector = Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Folded:
    """A parameter's new value, in float64, and in words what was done to it."""

    name: str
    component: str
    layer: int
    what: str
    value: Tensor


def folded(base: Full, scales: Scales, slot: Slot, read: Read) -> Iterator[Folded]:
    """Every parameter that folding changes, one at a time."""
    skeleton = base.skeleton
    owner = PROJECTION[scales.component][0]
    for layer in scales.layers:
        _, gain, offset = laid_out(skeleton.lens, scales, layer)
        a, v = (t.detach().double().flatten() for t in (gain, offset))
        out = output_projection(skeleton, scales.component, layer)
        if scales.component != "head":
            found = _outputs(out, a, v, read)
        elif slot.kind == "value" and bool(v.any()):
            values = projection(skeleton, layer, "attn", "v")
            assert values is not None and values.bias is not None  # find_slot looked
            found = _values(values, a, v, read)
        else:
            found = _heads(out, a, v, read)
        where = ", ".join(f"h{site.head}" for site in scales.sites if site.layer == layer) if scales.component == "head" else owner
        for name, what, value in found:
            yield Folded(name, owner, layer, f"{what} ({where})", value)


Found = Iterator[tuple[str, str, Tensor]]


def _heads(out: Projection, gain: Vector, offset: Vector, read: Read) -> Found:
    """W ((1 + A) z + v) + b = (W (1 + A)) z + (b + W v)."""
    matrix = _matrix(out, read)
    if bool(gain.any()):
        yield out.weight, "columns times 1 + A", _stored(out, matrix * (1 + gain))
    if bool(offset.any()):
        name = _bias_name(out)
        yield name, "plus W v", read(name).double() + matrix @ offset


def _values(values: Projection, gain: Vector, offset: Vector, read: Read) -> Found:
    """A head's z is a mean of its values, so that (1 + A) z + v is z of the values (1 + A) x + v."""
    assert values.bias is not None
    if bool(gain.any()):
        rows = _matrix(values, read) * rearrange(1 + gain, "out -> out 1")
        yield values.weight, "rows times 1 + A", _stored(values, rows)
    yield values.bias, "times 1 + A, plus v", read(values.bias).double() * (1 + gain) + offset


def _outputs(out: Projection, gain: Vector, offset: Vector, read: Read) -> Found:
    """(1 + A) (W x + b) + v = ((1 + A) W) x + ((1 + A) b + v)."""
    if bool(gain.any()):
        rows = _matrix(out, read) * rearrange(1 + gain, "out -> out 1")
        yield out.weight, "rows times 1 + A", _stored(out, rows)
    if bool(offset.any()) or (bool(gain.any()) and out.bias is not None):
        name = _bias_name(out)
        yield name, "times 1 + A, plus v", read(name).double() * (1 + gain) + offset


def _bias_name(out: Projection) -> str:
    return out.bias or out.weight.removesuffix(".weight") + ".bias"


def _matrix(found: Projection, read: Read) -> Matrix:
    weight = read(found.weight).double()
    return rearrange(weight, "read out -> out read") if found.inputs_first else weight


def _stored(found: Projection, matrix: Matrix) -> Tensor:
    return rearrange(matrix, "out read -> read out") if found.inputs_first else matrix
