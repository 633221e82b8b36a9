"""Recipes as words over the layers: at each layer, which weights are not the home's, and what is written into its activations.

Two recipes whose words begin alike have one residual stream up to where they part: that is what the plan shares. Words are of
values only: they hold no tensor, and a weight that is equal in base and tuned is in none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taia_lens.grafting import Take, takes
from taia_lens.pair import Pair
from taia_lens.recipe import Ablate, Graft, Patch, Recipe, Scale, Side, other
from taia_lens.scales import Scales
from taia_lens.sites import Site
from taia_lens.weights import Weight


@dataclass(frozen=True)
class Taken:
    """One weight that is not the home's: that of `origin`, with `edits` made to it from the other side."""

    name: str
    origin: Side
    edits: tuple[Take, ...] = ()


@dataclass(frozen=True)
class Gain:
    """What a set of scales does at one layer: its number among those given, and where."""

    number: int
    site: Site
    positions: str = "all"


Write = Patch | Ablate | Scale | Gain


@dataclass(frozen=True)
class Level:
    """What happens at one layer: weights taken, by component, and writes in the order of the recipe."""

    attn: tuple[Taken, ...] = ()
    mlp: tuple[Taken, ...] = ()
    norms: tuple[Taken, ...] = ()
    writes: tuple[Write, ...] = ()

    @property
    def taken(self) -> tuple[Taken, ...]:
        return (*self.attn, *self.mlp, *self.norms)

    def writing(self, *components: str) -> tuple[Write, ...]:
        """The writes at these components' outputs."""
        return tuple(write for write in self.writes if write.site.component in components)

    def writing_beside(self, *components: str) -> tuple[Write, ...]:
        """The writes at all others."""
        return tuple(write for write in self.writes if write.site.component not in components)


PLAIN = Level()


@dataclass(frozen=True)
class Word:
    """A recipe, layer by layer.

    Attributes:
        home: The model whose blocks run it, its weights pointed elsewhere where some are taken.
        root: Weights taken before the first block (embeddings).
        levels: One a layer.
        tail: Weights taken after the last block (final norm, unembedding, and the embedding, to which it may be tied).
    """

    home: Side
    root: tuple[Taken, ...]
    levels: tuple[Level, ...]
    tail: tuple[Taken, ...]

    @property
    def writes(self) -> tuple[Write, ...]:
        return tuple(write for level in self.levels for write in level.writes)

    @property
    def unwritten(self) -> Word:
        """The same weights, with nothing written."""
        return Word(self.home, self.root, tuple(Level(v.attn, v.mlp, v.norms) for v in self.levels), self.tail)


@dataclass(frozen=True, eq=False)
class Speller:
    """What words of one pair are spelled with.

    Attributes:
        n_layers: Layers.
        hosts: Each side's weights.
        places: Where each weight that differs lies: component and layer.
        shared_home: Whether both sides run equal weights alike, so that every recipe may be run in base's blocks.
    """

    pair: Pair
    n_layers: int
    hosts: dict[Side, tuple[Weight, ...]]
    places: dict[str, tuple[str, int | None]]
    shared_home: bool

    @classmethod
    def of(cls, pair: Pair) -> Speller:
        """For a pair; weights that are equal in both have no place."""
        hosts = pair.weights
        places = {w.name: (w.component, w.layer) for w in hosts["base"] if w.name in pair.changed}
        return cls(pair, pair.shape.n_layers, hosts, places, pair.alike)

    def word(self, recipe: Recipe) -> Word:
        """Spell a recipe.

        Raises:
            RecipeError: A graft matches nothing, or two overlap.
        """
        taken = self._taken(recipe)
        root, tail = [], []
        levels: list[dict[str, list[Taken]]] = [{} for _ in range(self.n_layers)]
        for one in taken:
            component, layer = self.places[one.name]
            if layer is None:
                tail.append(one)
                if component == "embed":
                    root.append(one)
            else:
                levels[layer].setdefault(component, []).append(one)
        writes = _writes_by_layer([e for e in recipe.edits if not isinstance(e, Graft)])
        home = "base" if self.shared_home else recipe.host
        return Word(home, tuple(root), tuple(_level(levels[i], writes.get(i, ())) for i in range(self.n_layers)), tuple(tail))

    def _taken(self, recipe: Recipe) -> list[Taken]:
        host, donor = recipe.host, other(recipe.host)
        edits = takes(recipe, self.hosts[host], self.pair.shape) if recipe.grafts else {}
        out = []
        for name in self.places:
            found = edits.get(name, ())
            whole = len(found) == 1 and found[0].whole
            one = Taken(name, donor) if whole else Taken(name, host, found)
            if one != Taken(name, "base" if self.shared_home else host):
                out.append(one)
        return out


def _level(taken: dict[str, list[Taken]], writes: Sequence[Write]) -> Level:
    if not taken and not writes:
        return PLAIN
    return Level(tuple(taken.get("attn", ())), tuple(taken.get("mlp", ())), tuple(taken.get("norms", ())), tuple(writes))


def _writes_by_layer(writes: Sequence[Write]) -> dict[int, list[Write]]:
    found: dict[int, list[Write]] = {}
    for write in writes:
        found.setdefault(write.site.layer or 0, []).append(write)  # the embedding's output is what layer 0 reads
    return found


def scales_word(number: int, scales: Scales | None, n_layers: int) -> Word:
    """What a set of scales does to one model, which is the home."""
    sites = {} if scales is None else {site.layer or 0: site for site in reversed(scales.sites)}
    levels = tuple(Level(writes=(Gain(number, sites[layer]),)) if layer in sites else PLAIN for layer in range(n_layers))
    return Word("base", (), levels, ())
