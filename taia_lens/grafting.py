"""What a recipe's grafts do to each weight: which slice, from where, how much of the update. Swaps nothing itself.

The engine points parameters at what this computes; export writes the same to disk. One meaning, two users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taia_lens.errors import RecipeError
from taia_lens.pair import Pair, Shape
from taia_lens.recipe import Graft, Recipe, Side
from taia_lens.weights import Weight, fused_name


@dataclass(frozen=True)
class Take:
    """One thing that is done to one weight.

    Attributes:
        start: First index along `dim`; None for the whole tensor.
        length: How many.
        dim: Along which dim.
        times: The update is multiplied by this.
        keep: The fraction of the update's entries kept at random and divided by it.
        seed: Of that draw.
    """

    start: int | None = None
    length: int = 0
    dim: int = 0
    times: float = 1.0
    keep: float = 1.0
    seed: int = 0

    @property
    def whole(self) -> bool:
        """Whether the donor's tensor is taken as it is."""
        return self.start is None and self.times == 1 and self.keep == 1


def takes(recipe: Recipe, weights: Sequence[Weight], shape: Shape) -> dict[str, tuple[Take, ...]]:
    """What the recipe's grafts do, by name of the weight; weights that it leaves alone are missing.

    Args:
        recipe: Its patches and ablations are ignored.
        weights: The host's (`pair.weights`).
        shape: The pair's.

    Raises:
        RecipeError: A graft that matches nothing, takes from the host itself, or overlaps with another.
    """
    out: dict[str, list[tuple[Graft, Take]]] = {}
    for graft in recipe.grafts:
        if graft.source == recipe.host:
            raise RecipeError(f"'{recipe}': the host is {recipe.host} already; graft from the other side")
        found = [(w, slices) for w in _of(graft, weights) if (slices := _slices(graft, w, shape))]
        if not found and not _tied(graft, recipe, weights):
            raise RecipeError(f"'{graft}' matches no weight of this model; {_exists(graft, weights)}")
        if graft.heads is not None and {"q", "o"} - {w.part for w, _ in found}:
            raise RecipeError(f"'{graft}': the heads of this model's attention cannot be taken apart; {_exists(graft, weights)}")
        for weight, slices in found:
            for take in slices:
                for other, known in out.get(weight.name, []):
                    if _overlap(known, take):
                        raise RecipeError(f"'{other}' and '{graft}' overlap: both take {weight.name}; let each weight be named once")
                out.setdefault(weight.name, []).append((graft, take))
    return {name: tuple(take for _, take in found) for name, found in out.items()}


def _of(graft: Graft, weights: Sequence[Weight]) -> list[Weight]:
    """The weights of the graft's component, layers and projection."""
    component = "attn" if graft.component == "head" else graft.component
    found = [w for w in weights if component in (w.component, "all")]
    if graft.layers is not None and found and all(w.layer is None for w in found):
        raise RecipeError(f"'{graft}': {component} has no layer; write 'graft {component} <- {graft.source}'")
    found = [w for w in found if graft.layers is None or w.layer in graft.layers]
    return found if graft.part is None else [w for w in _projections(found) if w.part == graft.part]


def _projections(found: Sequence[Weight]) -> list[Weight]:
    """Without the fused tensors that the bridge has split: no forward pass reads them, so taking one alone would do nothing."""
    fused = {fused_name(w.name) for w in found if w.copy}
    return [w for w in found if w.name not in fused]


def _slices(graft: Graft, weight: Weight, shape: Shape) -> tuple[Take, ...]:
    if graft.heads is None:
        return (Take(times=graft.times, keep=graft.keep, seed=graft.seed),)
    shared = shape.n_key_value_heads != shape.n_heads
    if weight.head_dim is None or weight.part not in ("q", "o", *(() if shared else ("k", "v"))):
        return ()
    size = weight.parameter.shape[weight.head_dim] // shape.n_heads
    return tuple(Take(head * size, size, weight.head_dim, graft.times, graft.keep, graft.seed) for head in graft.heads)


def _tied(graft: Graft, recipe: Recipe, weights: Sequence[Weight]) -> bool:
    """A tied unembedding is the embedding's tensor and goes with it, never alone."""
    if graft.component != "unembed" or any(w.component == "unembed" for w in weights):
        return False
    if any(g.component == "embed" and g.source == graft.source for g in recipe.grafts):
        return True
    raise RecipeError(f"'{graft}': this model ties unembed to embed; graft embed as well, or neither")


def _exists(graft: Graft, weights: Sequence[Weight]) -> str:
    if graft.part is not None or graft.heads is not None:
        component = "attn" if graft.heads is not None else graft.component
        at = [w for w in weights if w.component == component and (graft.layers is None or w.layer in graft.layers)]
        where = "" if graft.layers is None else f" in layer {', '.join(map(str, graft.layers))}"
        return f"its {component}{where} has {', '.join(dict.fromkeys(w.part for w in _projections(at))) or 'nothing'}"
    return f"it has {', '.join(sorted({w.component for w in weights}))}"


def _overlap(a: Take, b: Take) -> bool:
    if a.start is None or b.start is None:
        return True
    return a.start < b.start + b.length and b.start < a.start + a.length


def blend(name: str, host: Tensor, donor: Tensor, edits: Sequence[Take]) -> Tensor:
    """The host's tensor with the edits made; the donor's own tensor where it is taken whole.

    Arithmetic on updates is done in float32 (or the tensors' own dtype, where that is wider) and cast back.

    Args:
        name: Of the weight; with a take's seed it fixes which entries are kept.
        host: Any shape.
        donor: The same shape; it may lie on another device.
        edits: What `takes` gave for this name.
    """
    donor = donor.to(host.device)
    if len(edits) == 1 and edits[0].whole:
        return donor
    out = host.clone()
    for edit in edits:
        here, there = (t if edit.start is None else t.narrow(edit.dim, edit.start, edit.length) for t in (out, donor))
        here.copy_(_changed(name, here, there, edit))
    return out


def _changed(name: str, host: Tensor, donor: Tensor, edit: Take) -> Tensor:
    if edit.times == 1 and edit.keep == 1:
        return donor
    wide = torch.promote_types(host.dtype, torch.float32)
    update = (donor.to(wide) - host.to(wide)) * edit.times
    if edit.keep < 1:
        # One generator a weight, so that a draw does not depend on which other weights are grafted.
        digest = hashlib.blake2b(f"{edit.seed} {edit.start} {name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        kept = torch.rand(update.shape, generator=generator) < edit.keep
        update = update * kept.to(update.device) / edit.keep
    return (host.to(wide) + update).to(host.dtype)


def notes(recipe: Recipe, shape: Shape) -> tuple[str, ...]:
    """What a recipe leaves behind that a reader may not expect, in words."""
    groups = shape.n_heads // shape.n_key_value_heads
    if groups == 1 or not any(graft.heads for graft in recipe.grafts):
        return ()
    return (f"each k and v is shared by {groups} heads (grouped queries) and stays the host's; only q rows and o columns were taken",)


def resolve_sides(pair: Pair, norms: Side | None, embed: Side | None) -> tuple[Side, Side]:
    """Whose norms and embeddings TAIA and TAIF take: as said, or base's where they do not differ.

    Raises:
        RecipeError: They differ and were not said: the paper's LoRA runs keep base's, its full fine-tunes take tuned's.
    """
    out: list[Side] = []
    for what, asked, components in (("norms", norms, ("norms",)), ("embed", embed, ("embed", "unembed"))):
        n = sum(d.component in components for d in pair.differences)
        if asked is None and n:
            raise RecipeError(
                f"{n} tensors of {' and '.join(components)} differ in this pair, so TAIA must say whose it takes: say --{what} base "
                f"(as the paper's LoRA runs) or --{what} tuned (as its full fine-tunes)"
            )
        out.append(asked or "base")
    return out[0], out[1]
