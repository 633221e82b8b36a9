"""What can be named in a model: component -> hook, module, dims. THE one table. Knows no model and imports no torch.

A site is a component at a layer (and, for heads, a head): `L12.mlp`, `L3.attn`, `L3.h5`, `L7.resid`, `embed`. Layers and
heads count from 0. The *output* of attn and mlp is what is added to the residual stream (after a post-norm where there is
one), and a head is a slice of `z`, the input of the output projection, of which there are `n_heads` under GQA too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from taia_lens.errors import SiteError


@dataclass(frozen=True)
class Component:
    """One row of the table.

    Attributes:
        name: The word used in recipes, on the command line and in results.
        hook: TransformerLens's hook name, `{layer}` to be filled in; None where there is no activation to patch.
        modules: Attributes of a block (or of the model) under which the component's weights live; empty: no weights.
        words: What it is called in a sentence.
        dims: Names of the activation's dims.
    """

    name: str
    hook: str | None
    modules: tuple[str, ...]
    words: str
    dims: tuple[str, ...] = ("batch", "pos", "d_model")

    @property
    def per_layer(self) -> bool:
        return self.hook is not None and "{layer}" in self.hook


_ROWS = (
    # The residual entering block 0 is the embedding on every architecture: token plus position, scaled (Gemma) or not.
    Component("embed", "blocks.0.hook_resid_pre", ("embed", "pos_embed"), "the embedding"),
    Component("attn", "blocks.{layer}.hook_attn_out", ("attn",), "attention"),
    Component("mlp", "blocks.{layer}.hook_mlp_out", ("mlp",), "the FFN"),
    Component("head", "blocks.{layer}.attn.hook_z", (), "a head", ("batch", "pos", "head", "d_head")),
    Component("resid", "blocks.{layer}.hook_resid_post", (), "the residual stream"),
    Component("norms", None, ("ln1", "ln1_post", "ln2", "ln2_post", "ln_final"), "the norms"),
    Component("unembed", None, ("unembed",), "the unembedding"),
)
COMPONENTS: dict[str, Component] = {row.name: row for row in _ROWS}
PATCHABLE: tuple[str, ...] = ("attn", "mlp", "head", "resid")
GRAFTABLE: tuple[str, ...] = tuple(row.name for row in _ROWS if row.modules)

RESID_PRE = "blocks.{layer}.hook_resid_pre"
PATTERN = "blocks.{layer}.attn.hook_pattern"


@dataclass(frozen=True, order=True)
class Site:
    """One place in a model.

    >>> str(Site("mlp", 12)), str(Site("head", 3, 5)), str(Site("embed"))
    ('L12.mlp', 'L3.h5', 'embed')
    """

    component: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        row = component(self.component)
        if row.per_layer != (self.layer is not None):
            raise SiteError(
                f"site {self.component!r}: " + ("name a layer, e.g. L0." if row.per_layer else "has no layer: ") + self.component
            )
        if min(self.layer or 0, self.head or 0) < 0:
            raise SiteError(f"layer {self.layer}, head {self.head}: layers and heads count from 0")
        if (self.component == "head") != (self.head is not None):
            raise SiteError(f"L{self.layer}.{self.component}: a head is written L{self.layer}.h0, and only heads have a number")

    @property
    def hook(self) -> str:
        """The name of the hook at this site.

        >>> Site("attn", 3).hook
        'blocks.3.hook_attn_out'
        """
        hook = component(self.component).hook
        if hook is None:
            raise SiteError(f"{self} has weights but no activation to patch; patch one of {', '.join(PATCHABLE)}")
        return hook.format(layer=self.layer)

    @property
    def words(self) -> str:
        """What the activation here is called in a sentence.

        >>> Site("head", 3, 5).words
        'the output (z) of head 5 in layer 3'
        """
        what = component(self.component).words
        if self.layer is None:
            return what
        if self.component == "resid":
            return f"{what} after layer {self.layer}"
        return f"the output {f'(z) of head {self.head}' if self.head is not None else f'of {what}'} in layer {self.layer}"

    def __str__(self) -> str:
        if self.layer is None:
            return self.component
        return f"L{self.layer}.h{self.head}" if self.component == "head" else f"L{self.layer}.{self.component}"


def component(name: str) -> Component:
    """The table's row of that name.

    Raises:
        SiteError: There is none; the message lists those that exist.
    """
    if name not in COMPONENTS:
        raise SiteError(f"no component {name!r}; there are {', '.join(COMPONENTS)}")
    return COMPONENTS[name]


MOST = 100_000
_SITE = re.compile(r"L(?P<layers>\d+(?:-\d+)?)\.(?:h(?P<heads>\d+(?:-\d+)?)|(?P<component>[a-z]+))")


def parse_sites(text: str) -> tuple[Site, ...]:
    """Read one site, or a range of them.

    >>> [str(s) for s in parse_sites("L2-3.attn")], [str(s) for s in parse_sites("L1.h0-1")]
    (['L2.attn', 'L3.attn'], ['L1.h0', 'L1.h1'])

    Raises:
        SiteError: The text names no site.
    """
    text = text.strip()
    match = _SITE.fullmatch(text)
    if match is None:
        if text in COMPONENTS and not COMPONENTS[text].per_layer:
            return (Site(text),)
        raise SiteError(f"cannot read the site {text!r}; write L12.mlp, L3.attn, L3.h5, L8-15.attn, L7.resid or embed")
    layers = parse_span(match["layers"], "layer")
    if match["heads"] is not None:
        return tuple(Site("head", layer, head) for layer in layers for head in parse_span(match["heads"], "head"))
    return tuple(Site(match["component"], layer) for layer in layers)


def parse_span(text: str, what: str) -> tuple[int, ...]:
    """Read `12`, `8-15` or `0,3,8-9` as increasing numbers.

    >>> parse_span("0,3,8-9", "layer")
    (0, 3, 8, 9)

    Raises:
        SiteError: Not a list of numbers and ranges, or a range that runs backwards.
    """
    out: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise SiteError(f"cannot read the {what} {text!r}; write a number, a range or a list: 12, 8-15, 0,3,8-9, or all")
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low:
            raise SiteError(f"the {what} range {part.strip()} runs backwards; write {high}-{low}")
        if high - low > MOST:
            raise SiteError(f"the {what} range {part.strip()} is larger than any model; write one that the model has")
        out |= set(range(low, high + 1))
    return tuple(sorted(out))


def select(asked: str | int | Sequence[int] | None, n: int, what: str) -> tuple[int, ...]:
    """Turn `all`, a number, a list or a span's text into indices below `n`, each of which exists.

    >>> select("all", 3, "layer"), select("1-2", 3, "layer"), select([2], 3, "layer")
    ((0, 1, 2), (1, 2), (2,))

    Raises:
        SiteError: One of them does not exist; the message says which do.
    """
    if asked is None or asked == "all":
        return tuple(range(n))
    if isinstance(asked, str):
        chosen = parse_span(asked, what)
    else:
        chosen = tuple(sorted({int(i) for i in ([asked] if isinstance(asked, int) else asked)}))
    if not chosen:
        raise SiteError(f"no {what} was named; write a number, a range or all")
    missing = [i for i in chosen if not 0 <= i < n]
    if missing:
        found = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise SiteError(f"no {what} {found}: this model has {n} {what}s, 0-{n - 1}; write one of those, a range, or all")
    return chosen


def patchable(asked: str | Sequence[str], *, with_heads: bool) -> tuple[str, ...]:
    """The components to patch, each once: `attn,mlp` or a list; head by itself, since it has a dim of its own.

    >>> patchable("attn,mlp", with_heads=False)
    ('attn', 'mlp')

    Raises:
        SiteError: One that does not exist, head among others, or heads named for a component that has none.
    """
    components = tuple(dict.fromkeys(asked.split(",") if isinstance(asked, str) else asked))
    for name in components:
        if name not in PATCHABLE:
            raise SiteError(f"no component {name!r} to patch; there are {', '.join(PATCHABLE)}")
    if "head" in components and len(components) > 1:
        raise SiteError("heads have a dim of their own; patch head by itself, and the other components in a second run")
    if with_heads and components != ("head",):
        raise SiteError(f"heads go with the component head, not with {','.join(components)}; write component head")
    return components


Positions = str | tuple[int, ...]
EACH: tuple[str, ...] = ("each", "each-from-end")
"""Every position by itself: counted from the prompt's start, or from its end, where -1 predicts the answer."""


def parse_positions(asked: str | int | Sequence[int], *, each: bool = False) -> Positions:
    """Read positions: `all`, `last` (the position that predicts the answer), or numbers; negative ones count from the end.

    Args:
        asked: What to read.
        each: Whether `each` and `each-from-end` are meant here; they are many edits and so have no place in a recipe.

    >>> parse_positions("all"), parse_positions("0,-1"), parse_positions(3)
    ('all', (0, -1), (3,))

    Raises:
        SiteError: Not positions.
    """
    if isinstance(asked, int):
        return (asked,)
    if not isinstance(asked, str):
        numbers = tuple(int(p) for p in asked)
    elif asked in ("all", "last") or (each and asked in EACH):
        return asked
    elif asked in EACH:
        raise SiteError(f"positions {asked!r} are one edit each and no place of one edit; patch(positions={asked!r}) makes them all")
    elif re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*)*", asked):
        numbers = tuple(int(p) for p in asked.split(","))
    else:
        more = ", each, each-from-end" if each else ""
        raise SiteError(f"cannot read the positions {asked!r}; write all, last{more}, or numbers from 0 (or from the end: -1, -2): 0,3,-1")
    if not numbers:
        raise SiteError("no position was named; write all, last, or numbers")
    return numbers


def parse_each(asked: str) -> str:
    """Read positions that are credited at once: `all` together, or every one by itself (`each`, `each-from-end`).

    Raises:
        SiteError: None of these.
    """
    if asked not in ("all", *EACH):
        raise SiteError(f"cannot credit the positions {asked!r}; write all, {' or '.join(EACH)}")
    return asked
