"""Recipes: what to do to a host model, as a value. Holds no model and no tensor; prints, hashes and compares.

The text form is the host, then the edits: `base; patch L12.mlp <- tuned @last; graft L8-15.attn <- tuned; ablate L3.h5; scale L3.h6 a=0.5`
(read by `recipe_text.parse_recipe`). A patch puts the activation that the donor computed (from the donor's own residual
stream); a graft runs the donor's weights on the host's residual stream. They differ wherever the two streams do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from taia_lens.errors import RecipeError
from taia_lens.html import Html, card, code, listed, paragraph
from taia_lens.sites import GRAFTABLE, Positions, Site, component, parse_positions

Side = Literal["base", "tuned"]
SIDES: tuple[Side, ...] = ("base", "tuned")


def other(side: Side) -> Side:
    """The other model of the pair.

    >>> other("base")
    'tuned'
    """
    return "tuned" if side == "base" else "base"


def side_of(text: str | None, what: str) -> Side:
    """The side of that name.

    Raises:
        RecipeError: There is none.
    """
    for side in SIDES:
        if text == side:
            return side
    raise RecipeError(f"no {what} {text!r}; write base or tuned")


SAID = 20  # edits that are put into words: a recipe may have one for every head


def _at(positions: Positions) -> str:
    return "" if positions == "all" else f" @{positions if isinstance(positions, str) else ','.join(map(str, positions))}"


def _where(positions: Positions) -> str:
    """Token positions in words."""
    if isinstance(positions, str):
        return {"all": "at every position", "last": "at the last position of the prompt"}.get(positions, f"at {positions} position")
    return f"at position{'s' * (len(positions) > 1)} {', '.join(map(str, positions))}"


@dataclass(frozen=True)
class Patch:
    """Put at `site` the activation that `source` computed on the same tokens, at `positions`."""

    site: Site
    source: Side
    positions: Positions = "all"

    def __post_init__(self) -> None:
        side_of(self.source, "source")
        object.__setattr__(self, "positions", parse_positions(self.positions))

    def __str__(self) -> str:
        return f"patch {self.site} <- {self.source}{_at(self.positions)}"

    @property
    def words(self) -> str:
        """What the edit does, in a sentence."""
        return f"{self.site.words} becomes what {self.source} computed there, {_where(self.positions)}"


@dataclass(frozen=True)
class Ablate:
    """Put zero at `site`, at `positions`."""

    site: Site
    positions: Positions = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", parse_positions(self.positions))

    def __str__(self) -> str:
        return f"ablate {self.site}{_at(self.positions)}"

    @property
    def words(self) -> str:
        """What the edit does, in a sentence."""
        return f"{self.site.words} becomes zero, {_where(self.positions)}"


@dataclass(frozen=True)
class Scale:
    """Put (1 + gain) * activation + offset at `site`, at `positions`: Scale(site, 0, 0) is the identity, Scale(site, -1, 0) ablates.

    One number each for the whole activation; vectors, such as LoFiT learns, are `Scales` (taia_lens.scales).
    """

    site: Site
    gain: float
    offset: float
    positions: Positions = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", parse_positions(self.positions))
        if not (math.isfinite(self.gain) and math.isfinite(self.offset)):
            raise RecipeError(f"scale {self.site} a={self.gain} v={self.offset}: both must be finite numbers")

    def __str__(self) -> str:
        return f"scale {self.site} a={float(self.gain)!r} v={float(self.offset)!r}{_at(self.positions)}"

    @property
    def words(self) -> str:
        """What the edit does, in a sentence."""
        return f"{self.site.words} is multiplied by {1 + self.gain:g}, and {self.offset:g} is added, {_where(self.positions)}"


@dataclass(frozen=True)
class Graft:
    """Take weights from `source`: a component's, one projection's, or some heads'; in every layer, or in `layers` only.

    A head is its columns of the output projection and its rows of q; its k and v only where no other head shares them
    (under grouped queries they stay the host's, and so do the output projection's bias and norms inside attention).

    Attributes:
        component: `attn`, `mlp`, `norms`, `embed`, `unembed`, `head`, or `all` of the weights.
        source: The side they come from.
        layers: Where; None for everywhere.
        part: One projection of the component (`q`, `k`, `v`, `o`; `gate`, `up`, `down`); None for all of it.
        heads: Which heads, for the component `head`.
        times: The update (source - host) is multiplied by this.
        keep: The fraction of the update's entries that is kept, drawn with `seed`; those kept are divided by it (DARE,
            arXiv 2311.03099).
        seed: Of that draw.
    """

    component: str
    source: Side
    layers: tuple[int, ...] | None = None
    part: str | None = None
    heads: tuple[int, ...] | None = None
    times: float = 1.0
    keep: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        side_of(self.source, "source")
        if self.component not in (*GRAFTABLE, "head", "all"):
            raise RecipeError(
                f"{component(self.component).name!r} has no weights of its own to graft; graft one of {', '.join(GRAFTABLE)}, all"
            )
        if (self.component == "head") != (self.heads is not None) or (self.heads is not None and self.layers is None):
            raise RecipeError(f"a head is grafted by layer and number: graft L3.h5 <- {self.source}")
        if self.part is not None and self.component not in ("attn", "mlp"):
            raise RecipeError(
                f"{self.component} has no projection {self.part!r}; write attn.q, attn.k, attn.v, attn.o or mlp.gate, mlp.up, mlp.down"
            )
        if not 0 < self.keep <= 1:
            raise RecipeError(f"keep {self.keep:g} is no fraction of an update; write a number above 0 and up to 1")
        if not math.isfinite(self.times) or self.seed < 0:
            raise RecipeError(f"x{self.times} seed {self.seed}: an update is multiplied by a finite number, and a seed is 0 or more")
        if self.keep == 1 and self.seed:
            raise RecipeError(
                f"seed {self.seed} draws nothing where the whole update is kept; leave it out, or write keep 0.5 seed {self.seed}"
            )

    @property
    def whole(self) -> bool:
        """Whether the weights are taken as they are."""
        return self.times == 1 and self.keep == 1

    def __str__(self) -> str:
        where = "" if self.layers is None else f"L{_numbers(self.layers)}."
        what = self.component if self.heads is None else f"h{_numbers(self.heads)}"
        part = "" if self.part is None else f".{self.part}"
        times = "" if self.times == 1 else f" x{self.times!r}"
        keep = "" if self.keep == 1 else f" keep {self.keep!r} seed {self.seed}"
        return f"graft {where}{what}{part} <- {self.source}{times}{keep}"

    @property
    def words(self) -> str:
        """What the edit does, in a sentence."""
        what = "all weights" if self.component == "all" else f"the weights of {component(self.component).words}"
        what = what if self.heads is None else f"the weights of {_spans('head', self.heads)}"
        what = what if self.part is None else f"the projection {self.part} of {component(self.component).words}"
        where = "" if self.layers is None else f" in {_spans('layer', self.layers)}"
        if self.whole:
            return f"{what}{where} {'is' if self.part else 'are'} {self.source}'s"
        kept = f"a random {self.keep:.3g} of the update's entries (seed {self.seed}), divided by {self.keep:.3g}"
        update = f"{self.times:g} times the update" if self.keep == 1 else kept + f", times {self.times:g}" * (self.times != 1)
        return f"to {what}{where} is added {update}, which is {self.source} - host"


def _numbers(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))


def _spans(what: str, values: tuple[int, ...]) -> str:
    """Numbers in words, runs of them as one.

    >>> _spans("layer", (0, 3, 4, 5)), _spans("head", (2,))
    ('layers 0, 3-5', 'head 2')
    """
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    spans = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"{what}{'s' * (len(values) > 1)} {spans}"


Edit = Patch | Ablate | Scale | Graft


@dataclass(frozen=True)
class Recipe:
    """A host model and the edits made to it.

    >>> str(Recipe("base", (Patch(Site("mlp", 12), "tuned"),)))
    'base; patch L12.mlp <- tuned'
    """

    host: Side
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        side_of(self.host, "host")

    @property
    def patches(self) -> tuple[Patch, ...]:
        return tuple(e for e in self.edits if isinstance(e, Patch))

    @property
    def grafts(self) -> tuple[Graft, ...]:
        return tuple(e for e in self.edits if isinstance(e, Graft))

    def __str__(self) -> str:
        return "; ".join([self.host, *map(str, self.edits)])

    def _repr_html_(self) -> Html:
        said = [edit.words for edit in self.edits[:SAID]]
        said += [f"and {len(self.edits) - SAID} edits more"] if len(self.edits) > SAID else []
        but = f"The host is {self.host}, with its weights and its residual stream" + (", but for this:" if said else ", as they are.")
        meant = ["Grafted weights run on the host's residual stream."] if self.grafts else []
        meant += ["What is patched in was computed from the source's own residual stream."] if self.patches else []
        return card("Recipe", paragraph(code(self)), paragraph(but), listed(said), *map(paragraph, meant))


def taia(*, norms: Side, embed: Side) -> Recipe:
    """Train all parameters, infer with attention's only (arXiv 2405.20192): base with tuned's attention weights.

    The paper's LoRA runs keep the base's norms and embeddings, its full fine-tunes take tuned's, so both must be said.

    >>> str(taia(norms="base", embed="base"))
    'base; graft attn <- tuned'
    """
    return _partial("attn", norms, embed)


def taif(*, norms: Side, embed: Side) -> Recipe:
    """The mirror of `taia`: base with tuned's FFN weights.

    >>> str(taif(norms="tuned", embed="base"))
    'base; graft mlp <- tuned; graft norms <- tuned'
    """
    return _partial("mlp", norms, embed)


def _partial(kept: str, norms: Side, embed: Side) -> Recipe:
    take = [kept] + ["norms"] * (norms == "tuned") + ["embed", "unembed"] * (embed == "tuned")
    return Recipe("base", tuple(Graft(name, "tuned") for name in take))
