"""Players: the parts of an update that a layers study credits, and the recipes of their coalitions.

A coalition is base with some players' weights from tuned. Weights that differ and belong to no player are the player `rest`:
base with some players and the rest is tuned with the other players from base.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from taia_lens.errors import SiteError
from taia_lens.grafting import takes
from taia_lens.pair import Pair
from taia_lens.recipe import Graft, Recipe, Side
from taia_lens.weights import Weight, live_weights

UNITS = ("component", "projection", "head")
COMPONENTS = ("attn", "mlp")


@dataclass(frozen=True)
class Player:
    """Some weights of one layer; `differs` is False where base and tuned agree on them, and it never changes anything."""

    layer: int
    unit: str
    differs: bool

    def graft(self, source: Side) -> Graft:
        if self.unit.startswith("h") and self.unit[1:].isdigit():
            return Graft("head", source, (self.layer,), heads=(int(self.unit[1:]),))
        component, _, part = self.unit.partition(".")
        return Graft(component, source, (self.layer,), part or None)

    def __str__(self) -> str:
        return f"L{self.layer}.{self.unit}"


@dataclass(frozen=True)
class Players:
    """All players of a pair, laid out by layer and unit, and whether any weight is left to the rest."""

    layers: tuple[int, ...]
    units: tuple[str, ...]
    all: tuple[Player, ...]
    rest: bool

    @property
    def active(self) -> tuple[Player, ...]:
        return tuple(player for player in self.all if player.differs)

    def coalition(self, members: Iterable[Player], *, rest: bool) -> Recipe:
        """Base with the members' weights from tuned, and with the rest too where `rest` is True."""
        inside = set(members)
        if rest:
            return Recipe("tuned", tuple(p.graft("base") for p in self.active if p not in inside))
        return Recipe("base", tuple(p.graft("tuned") for p in self.active if p in inside))

    def coords(self, player: Player) -> tuple[int, int]:
        return self.layers.index(player.layer), self.units.index(player.unit)


def players(pair: Pair, unit: str, layers: Sequence[int]) -> Players:
    """The players of a pair: attn and mlp, every projection, or every head, in the chosen layers.

    Raises:
        SiteError: There is no such unit.
    """
    if unit not in UNITS:
        raise SiteError(f"no unit {unit!r}; the update is credited by {', '.join(UNITS)}")
    base = live_weights(pair.base)
    left = {w.name: w.parameter.numel() for w in base if w.name in pair.changed}
    size = {w.name: w.parameter for w in base}
    differing, found, units = set(left), [], _units(pair, unit, base)
    for layer in layers:
        for name in units:
            exists = _exists(base, layer, name)  # layers may differ: one has experts, another has no attention
            edits = takes(Recipe("base", (Player(layer, name, True).graft("tuned"),)), base, pair.shape) if exists else {}
            found.append(Player(layer, name, not differing.isdisjoint(edits)))
            for weight, slices in edits.items():
                tensor = size[weight]
                taken = sum(tensor.numel() if s.start is None else tensor.numel() // tensor.shape[s.dim] * s.length for s in slices)
                left[weight] = left.get(weight, 0) - taken
    return Players(tuple(layers), units, tuple(found), any(left[weight] > 0 for weight in differing))


def _exists(found: Sequence[Weight], layer: int, name: str) -> bool:
    component, _, part = name.partition(".")
    component = component if component in COMPONENTS else "attn"
    return any(w.layer == layer and w.component == component and part in ("", w.part) for w in found)


def _units(pair: Pair, unit: str, found: Sequence[Weight]) -> tuple[str, ...]:
    if unit == "component":
        return COMPONENTS
    if unit == "head":
        return tuple(f"h{head}" for head in range(pair.shape.n_heads))
    return tuple(dict.fromkeys(f"{c}.{w.part}" for c in COMPONENTS for w in found if w.component == c))
