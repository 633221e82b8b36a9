"""Recipes: what to do to a host model, as a value. Holds no model and no tensor; prints, hashes and compares.

The text form is the host, then the edits: `base; patch L12.mlp <- tuned @last; graft L8-15.attn <- tuned; ablate L3.h5`.
A patch puts the activation that the donor computed (from the donor's own residual stream); a graft runs the donor's weights
on the host's residual stream. They differ wherever the two residual streams do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from taia_lens.errors import RecipeError
from taia_lens.sites import GRAFTABLE, Positions, Site, component, parse_positions, parse_sites, parse_span

Side = Literal["base", "tuned"]
SIDES: tuple[Side, ...] = ("base", "tuned")


def other(side: Side) -> Side:
    """The other model of the pair.

    >>> other("base")
    'tuned'
    """
    return "tuned" if side == "base" else "base"


def _side(text: str | None, what: str) -> Side:
    for side in SIDES:
        if text == side:
            return side
    raise RecipeError(f"no {what} {text!r}; write base or tuned")


def _at(positions: Positions) -> str:
    return "" if positions == "all" else f" @{positions if isinstance(positions, str) else ','.join(map(str, positions))}"


@dataclass(frozen=True)
class Patch:
    """Put at `site` the activation that `source` computed on the same tokens, at `positions`."""

    site: Site
    source: Side
    positions: Positions = "all"

    def __post_init__(self) -> None:
        _side(self.source, "source")
        object.__setattr__(self, "positions", parse_positions(self.positions))

    def __str__(self) -> str:
        return f"patch {self.site} <- {self.source}{_at(self.positions)}"


@dataclass(frozen=True)
class Ablate:
    """Put zero at `site`, at `positions`."""

    site: Site
    positions: Positions = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", parse_positions(self.positions))

    def __str__(self) -> str:
        return f"ablate {self.site}{_at(self.positions)}"


@dataclass(frozen=True)
class Graft:
    """Take the weights of a component from `source`: in every layer, or in `layers` only."""

    component: str
    source: Side
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _side(self.source, "source")
        if self.component not in GRAFTABLE:
            raise RecipeError(f"{component(self.component).name!r} has no weights of its own to graft; graft one of {', '.join(GRAFTABLE)}")

    def __str__(self) -> str:
        where = "" if self.layers is None else f"L{','.join(map(str, self.layers))}."
        return f"graft {where}{self.component} <- {self.source}"


Edit = Patch | Ablate | Graft


@dataclass(frozen=True)
class Recipe:
    """A host model and the edits made to it.

    >>> str(Recipe("base", (Patch(Site("mlp", 12), "tuned"),)))
    'base; patch L12.mlp <- tuned'
    """

    host: Side
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        _side(self.host, "host")

    @property
    def patches(self) -> tuple[Patch, ...]:
        return tuple(e for e in self.edits if isinstance(e, Patch))

    @property
    def grafts(self) -> tuple[Graft, ...]:
        return tuple(e for e in self.edits if isinstance(e, Graft))

    def __str__(self) -> str:
        return "; ".join([self.host, *map(str, self.edits)])


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


_EDIT = re.compile(r"(?P<verb>patch|graft|ablate)\s+(?P<what>[^\s<@]+)\s*(?:<-\s*(?P<source>\w+))?\s*(?:@(?P<at>\S+))?")


def parse_recipe(text: str) -> Recipe:
    """Read a recipe's text; `str` of the result is its normal form.

    >>> str(parse_recipe("base; patch L1-2.mlp <- tuned @last"))
    'base; patch L1.mlp <- tuned @last; patch L2.mlp <- tuned @last'

    Raises:
        RecipeError: The text is no recipe; the message names the part that cannot be read.
    """
    host, *parts = [part.strip() for part in text.split(";")]
    edits: list[Edit] = []
    for part in parts:
        match = _EDIT.fullmatch(part)
        if match is None:
            raise RecipeError(f"cannot read {part!r}; write 'patch L12.mlp <- tuned', 'graft L8-15.attn <- tuned' or 'ablate L3.h5'")
        edits += _read_edit(part, match)
    return Recipe(_side(host, "host"), tuple(edits))


def _read_edit(part: str, match: re.Match[str]) -> list[Edit]:
    verb, what, source = match["verb"], match["what"], match["source"]
    if verb == "ablate" and source is not None:
        raise RecipeError(f"{part!r}: an ablation takes nothing from {source}; write 'ablate {what}'")
    if verb == "graft":
        if match["at"]:
            raise RecipeError(f"{part!r}: weights have no position; leave out @{match['at']}")
        layers, _, name = what.rpartition(".")
        if not layers:
            return [Graft(name, _side(source, "source"))]
        if not layers.startswith("L"):
            raise RecipeError(f"cannot read the layers of {part!r}; write 'graft L8-15.{name} <- tuned'")
        return [Graft(name, _side(source, "source"), parse_span(layers[1:], "layer"))]
    positions = parse_positions(match["at"] or "all")
    sites = parse_sites(what)
    if verb == "ablate":
        return [Ablate(site, positions) for site in sites]
    return [Patch(site, _side(source, "source"), positions) for site in sites]
