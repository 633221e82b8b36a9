"""Reading recipes: the text form, and the names of the four ends (base, vanilla, taia, taif). A refusal points at the word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from taia_lens.errors import RecipeError, TaiaLensError
from taia_lens.recipe import SIDES, Ablate, Edit, Graft, Patch, Recipe, Scale, Side, side_of, taia, taif
from taia_lens.sites import COMPONENTS, parse_positions, parse_sites, parse_span

NAMED = ("base", "vanilla", "taia", "taif")
VERBS = ("patch", "graft", "ablate", "scale")
_WORD = re.compile(r"<-|[^\s<]+|<")
_GRAFTED = re.compile(r"(?:(?P<layers>[^.]*)\.)??(?:h(?P<heads>\d[\d,-]*)|(?P<component>[a-z]+)(?:\.(?P<part>\w+))?)")
_EXAMPLES = "'patch L12.mlp <- tuned', 'graft L8-15.attn <- tuned', 'ablate L3.h5' or 'scale L3.h5 a=0.5 v=0.0'"


@dataclass(frozen=True)
class Word:
    """One word of a recipe's text, and where it stands."""

    text: str
    start: int
    end: int


def named_recipe(text: str, *, norms: Side | None = None, embed: Side | None = None) -> Recipe:
    """The recipe of that name (base, vanilla, taia, taif), or the one that the text spells out.

    Args:
        text: A name, or a recipe's text.
        norms: Whose norms taia and taif take: must be said for them.
        embed: Whose embeddings and unembedding.

    >>> str(named_recipe("taia", norms="base", embed="base"))
    'base; graft attn <- tuned'

    Raises:
        RecipeError: The text is neither, or taia or taif is named without norms or embed.
    """
    name = text.strip().lower()
    if name not in NAMED:
        return parse_recipe(text)
    if name in ("base", "vanilla"):
        return Recipe("base" if name == "base" else "tuned")
    if norms is None or embed is None:
        missing = "norms" if norms is None else "embed"
        raise RecipeError(f"{name} does not say whose {missing} it takes; say {missing}=base or {missing}=tuned (--{missing})")
    return (taia if name == "taia" else taif)(norms=norms, embed=embed)


def parse_recipe(text: str) -> Recipe:
    """Read a recipe's text; `str` of the result is its normal form.

    >>> str(parse_recipe("base; patch L1-2.mlp <- tuned @last"))
    'base; patch L1.mlp <- tuned @last; patch L2.mlp <- tuned @last'

    Raises:
        RecipeError: The text is no recipe; the message names the part that cannot be read, `shown` points at it.
    """
    parts = list(_parts(text))
    (_, host), edits = parts[0], parts[1:]
    if len(host) > 1:
        raise _pointing(text, host[1], RecipeError(f"after the host comes '; ' and an edit, found {host[1].text!r}"))
    first = host[0] if host else Word("", 0, 0)
    with _at(text, first):
        if not edits and first.text not in SIDES:
            near = difflib.get_close_matches(first.text.lower(), NAMED, 1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise RecipeError(
                f"no recipe {text.strip()!r}{meant}; write {', '.join(NAMED)}, or a host and edits: 'base; graft attn <- tuned'"
            )
        side = side_of(first.text, "host")
    return Recipe(side, tuple(edit for whole, words in edits for edit in _edits(text, whole, words)))


def _parts(text: str) -> Iterator[tuple[Word, list[Word]]]:
    """The parts between semicolons, each with its words."""
    start = 0
    for part in text.split(";"):
        inner = part.strip()
        at = start + (len(part) - len(part.lstrip()) if inner else 0)
        yield Word(inner, at, at + len(inner)), [Word(m[0], start + m.start(), start + m.end()) for m in _WORD.finditer(part)]
        start += len(part) + 1


def _edits(text: str, whole: Word, words: list[Word]) -> list[Edit]:
    verb = words[0] if words else whole
    if verb.text not in VERBS or len(words) < 2:
        near = difflib.get_close_matches(verb.text, VERBS, 1)
        meant = f" (did you mean {near[0]!r}?)" if near and near[0] != verb.text else ""
        raise _pointing(text, verb if near else whole, RecipeError(f"cannot read {whole.text!r}{meant}; write {_EXAMPLES}"))
    what, source, at, rest = _split_edit(words)
    if verb.text == "scale":
        return _scales(text, whole, what, at, source, rest)
    arrow = next((word for word in words if word.text in ("<", "-", "->", "=")), None)
    if source is None and arrow is not None:
        raise _pointing(text, arrow, RecipeError(f"cannot read {arrow.text!r} in {whole.text!r}; the source follows '<-'"))
    if rest and verb.text != "graft":
        raise _pointing(text, rest[0], RecipeError(f"cannot read {rest[0].text!r} in {whole.text!r}; write {_EXAMPLES}"))
    if verb.text == "ablate":
        if source is not None:
            raise _pointing(
                text, source, RecipeError(f"{whole.text!r}: an ablation takes nothing from {source.text}; write 'ablate {what.text}'")
            )
    with _at(text, source or what):
        side = "base" if verb.text == "ablate" else side_of(None if source is None else source.text, "source")
    if verb.text == "graft":
        if at is not None:
            raise _pointing(text, at, RecipeError(f"{whole.text!r}: weights have no position; leave out {at.text}"))
        return [_graft(text, whole, what, side, rest)]
    with _at(text, at or what):
        positions = parse_positions("all" if at is None else at.text[1:])
    with _at(text, what):
        sites = parse_sites(what.text)
    return [Ablate(site, positions) if verb.text == "ablate" else Patch(site, side, positions) for site in sites]


def _scales(text: str, whole: Word, what: Word, at: Word | None, source: Word | None, rest: list[Word]) -> list[Edit]:
    if source is not None:
        raise _pointing(text, source, RecipeError(f"{whole.text!r}: a scale takes nothing from {source.text}; write 'scale L3.h5 a=0.5'"))
    numbers: dict[str, float] = {}
    for word in rest:
        letter, sign, number = word.text.partition("=")
        with _at(text, word):
            if letter not in ("a", "v") or not sign or letter in numbers:
                raise RecipeError(f"cannot read {word.text!r} in {whole.text!r}; after the site stand a=0.5 and v=0.1, each once at most")
            numbers[letter] = _number(number)
    with _at(text, at or what):
        positions = parse_positions("all" if at is None else at.text[1:])
    with _at(text, what):
        return [Scale(site, numbers.get("a", 0.0), numbers.get("v", 0.0), positions) for site in parse_sites(what.text)]


def _split_edit(words: list[Word]) -> tuple[Word, Word | None, Word | None, list[Word]]:
    """What is edited, the source, the positions, and what is left."""
    # '@last' may stand right behind the word before it
    spread: list[Word] = []
    for word in words[1:]:
        head, sep, _ = word.text.partition("@")
        cut = word.start + len(head)
        spread += ([Word(head, word.start, cut)] if head else []) + ([Word(word.text[len(head) :], cut, word.end)] if sep else [])
    at = next((word for word in spread[1:] if word.text.startswith("@")), None)
    what, *rest = [word for word in spread if word is not at]
    source = rest[1] if len(rest) > 1 and rest[0].text == "<-" else None
    return what, source, at, rest if source is None else rest[2:]


def _graft(text: str, whole: Word, what: Word, side: Side, rest: list[Word]) -> Graft:
    times, keep, seed = 1.0, 1.0, 0
    words = list(rest)
    while words:
        word = words.pop(0)
        number = words.pop(0) if word.text in ("keep", "seed") and words else Word(word.text[1:], word.start, word.end)
        with _at(text, number):
            if word.text == "keep":
                keep = _number(number.text)
            elif word.text == "seed" and number.text.isascii() and number.text.isdigit():
                seed = int(number.text)
            elif word.text.startswith("x"):
                times = _number(number.text)
            else:
                raise RecipeError(f"cannot read {word.text!r} in {whole.text!r}; after the source may stand x0.5, or keep 0.5 seed 1")
    with _at(text, what):
        match = _GRAFTED.fullmatch(what.text)
        if match is None:
            raise RecipeError(f"cannot read {what.text!r}; write attn, L8-15.attn, L3.attn.o, L3.mlp.down or L3.h5")
        layers, name = match["layers"], match["component"] or f"h{match['heads']}"
        if layers in COMPONENTS and match["part"] is None:  # 'attn.o': the projection in every layer
            return Graft(layers, side, None, name, None, times, keep, seed)
        if layers is not None and not layers.startswith("L"):
            raise RecipeError(f"cannot read the layers of {whole.text!r}; write 'graft L8-15.{name} <- {side}'")
        span = None if layers is None else parse_span(layers[1:], "layer")
        heads = None if match["heads"] is None else parse_span(match["heads"], "head")
        return Graft(match["component"] or "head", side, span, match["part"], heads, times, keep, seed)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RecipeError(f"cannot read the number {text!r}; write 0.5") from error


@contextmanager
def _at(text: str, word: Word) -> Iterator[None]:
    """An error raised inside points at the word."""
    try:
        yield
    except TaiaLensError as error:
        raise _pointing(text, word, error) from error


def _pointing(text: str, word: Word, error: TaiaLensError) -> RecipeError:
    if isinstance(error, RecipeError) and error.shown:
        return error
    line = "".join(" " if c.isspace() else c for c in text)
    return RecipeError(str(error), shown=f"  {line}\n  {' ' * word.start}{'^' * max(1, word.end - word.start)}")


__all__ = ["NAMED", "SIDES", "named_recipe", "parse_recipe"]
