"""The grid: base, vanilla, TAIA, TAIF, their rivals and their controls, on the same prompts.

TAIA (arXiv 2405.20192): train all parameters, infer with attention's only. Whether that beats the tuned model out of
distribution is a claim only where it also beats changes of the same size that know nothing of attention: a random fraction
of the update, rescaled (DARE, arXiv 2311.03099); the whole update, scaled down; whole layers, drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.errors import PairError, RecipeError, TaiaLensError
from taia_lens.grafting import notes, resolve_sides, takes
from taia_lens.pair import Pair
from taia_lens.recipe import Graft, Recipe, Side, taia, taif
from taia_lens.scoring import (
    Prepared,
    Scores,
    check_grafts,
    check_suites,
    metrics_of,
    pair_attrs,
    prepare_suite,
    score_recipes,
    suites_attr,
)
from taia_lens.store import CellStore
from taia_lens.suite import Suite
from taia_lens.weights import weights

REST = ("norms", "embed", "unembed")


@dataclass(frozen=True)
class Controls:
    """What TAIA is held against.

    Attributes:
        seeds: Draws of each random control.
        scales: Numbers that the whole update is multiplied by.
        keep: Fraction of the update that DARE keeps; None for attention's share of the update's entries.
    """

    seeds: int = 3
    scales: tuple[float, ...] = (0.5,)
    keep: float | None = None

    def __post_init__(self) -> None:
        if self.seeds < 0 or (self.keep is not None and not 0 < self.keep < 1):
            raise TaiaLensError(f"controls: {self.seeds} seeds, keep {self.keep}; write 0 or more seeds, and keep between 0 and 1")


@dataclass(frozen=True)
class Entry:
    """One row of the grid: its recipe, and what it is there for (`end`, `named`, `rival`, `player`, `control`)."""

    name: str
    recipe: Recipe
    role: str


def entries(pair: Pair, norms: Side, embed: Side, controls: Controls) -> list[Entry]:
    """The grid's recipes on this pair; each once.

    Where norms, embeddings or head differ they are a third player, `rest`, and the six coalitions of the three are there.
    """
    found = [
        Entry("base", Recipe("base"), "end"),
        Entry("vanilla", Recipe("tuned"), "end"),
        Entry("TAIA", taia(norms=norms, embed=embed), "named"),
        Entry("TAIF", taif(norms=norms, embed=embed), "named"),
    ]
    for name, recipe in coalitions(pair).items():
        if not any(_same(pair, recipe, entry.recipe) for entry in found):
            found.append(Entry(name, recipe, "player"))
    return found + _controls(pair, controls)


def coalitions(pair: Pair) -> dict[str, Recipe]:
    """Base with each set of the players attn, mlp (and rest) from tuned, by name; without the empty and the whole one."""
    rest = tuple(c for c in REST if any(d.component == c for d in pair.differences))
    players: dict[str, tuple[str, ...]] = {"attn": ("attn",), "mlp": ("mlp",)} | ({"rest": rest} if rest else {})
    names = list(players)
    out = {}
    for mask in range(1, 2 ** len(names) - 1):
        chosen = [name for i, name in enumerate(names) if mask >> i & 1]
        out["+".join(chosen)] = Recipe("base", tuple(Graft(c, "tuned") for name in chosen for c in players[name]))
    return out


def attention_share(pair: Pair) -> float:
    """The fraction of the update's entries that lie in attention."""
    differing = {d.name for d in pair.differences}
    sizes = [(w.component, w.parameter.numel()) for w in weights(pair.base) if w.name in differing]
    return sum(n for component, n in sizes if component == "attn") / sum(n for _, n in sizes)


def _named_coalitions(pair: Pair, grid: list[Entry]) -> dict[str, str]:
    """Set of players -> the name of the grid's recipe that is it."""
    found = {c: next(e.name for e in grid if _same(pair, e.recipe, recipe)) for c, recipe in coalitions(pair).items()}
    players = [c for c in coalitions(pair) if "+" not in c]
    return {"": "base", **found, "+".join(players): "vanilla"}


def _same(pair: Pair, a: Recipe, b: Recipe) -> bool:
    """Whether two recipes are one model: a tied unembedding goes with the embedding, said or not."""
    host = weights(pair.base)
    return a.host == b.host == "base" and takes(a, host, pair.shape) == takes(b, host, pair.shape)


def _controls(pair: Pair, controls: Controls) -> list[Entry]:
    keep = controls.keep or round(attention_share(pair), 4)
    n_layers, n = pair.shape.n_layers, _layers_of_attention_s_size(pair)
    out = [Entry(f"update x{a:g}", Recipe("base", (Graft("all", "tuned", times=a),)), "control") for a in controls.scales]
    if 0 < keep < 1:
        for seed in range(controls.seeds):
            out.append(Entry(f"DARE {keep:.2g} #{seed}", Recipe("base", (Graft("all", "tuned", keep=keep, seed=seed),)), "control"))
    words = f"{n} random layers" if n > 1 else "random layer"
    # All layers would be vanilla, but for what lies outside them.
    for i, layers in enumerate(_random_layers(n_layers, n, controls.seeds) if n < n_layers else []):
        out.append(Entry(f"{words} #{i}", Recipe("base", (Graft("all", "tuned", layers),)), "control"))
    return out


def _layers_of_attention_s_size(pair: Pair) -> int:
    """How many layers hold about as many entries of the update as attention does in all of them."""
    differing = {d.name for d in pair.differences}
    inside = [(w.component, w.parameter.numel()) for w in weights(pair.base) if w.name in differing and w.layer is not None]
    total = sum(n for _, n in inside)
    share = sum(n for component, n in inside if component == "attn") / total if total else 0.0
    return max(1, round(share * pair.shape.n_layers))


def _random_layers(n_layers: int, n: int, draws: int) -> list[tuple[int, ...]]:
    """Sets of n layers at random, no two the same; fewer than asked for where there are no more."""
    rng = np.random.default_rng(n_layers)
    out: dict[tuple[int, ...], None] = {}
    while len(out) < min(draws, comb(n_layers, n)):
        out[tuple(int(layer) for layer in sorted(rng.choice(n_layers, n, replace=False)))] = None
    return list(out)


def compare(
    pair: Pair,
    suites: Suite | Sequence[Suite],
    *,
    norms: Side | None = None,
    embed: Side | None = None,
    rivals: Mapping[str, Pair] | None = None,
    controls: Controls = Controls(),
    recipes: Mapping[str, Recipe] | None = None,
    metrics: Sequence[str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    store: CellStore | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Score the grid on every prompt.

    Args:
        pair: The two models.
        suites: Prompts of one or several suites.
        norms: Whose norms TAIA and TAIF take; must be said where they differ.
        embed: Whose embeddings and unembedding.
        rivals: Pairs of the same base with another tuned side: `{"TOA": pair}` for a run that trained attention only.
        controls: Seeds and scales of the controls.
        recipes: Further recipes, by name.
        metrics: Names from `metric_names.METRICS`; where None, the main one of each suite's task.
        batch_size: Rows at a time; it changes speed, not results.
        seed: Of the bootstrap.
        store: Where finished cells are kept and found (`store.open_store`).
        progress: Show a bar.

    Returns:
        `value` (metric, recipe, example), NaN where a metric does not fit an example's task; `summaries.grid_summary` gives
        values, differences, effects, and the sentence.

    Raises:
        RecipeError, SuiteError, PairError, TaiaLensError: Something asked for does not fit.
    """
    chosen = check_suites([suites] if isinstance(suites, Suite) else list(suites))
    sides = resolve_sides(pair, norms, embed)
    grid = entries(pair, *sides, controls) + [Entry(name, recipe, "asked") for name, recipe in (recipes or {}).items()]
    for name, rival in (rivals or {}).items():
        if rival.fingerprint["base"] != pair.fingerprint["base"]:
            raise PairError(f"{name}'s base is another model ({rival.origin.base}); a rival is tuned from the same base")
    names = [entry.name for entry in grid] + list(rivals or {})
    if len(set(names)) != len(names):
        raise RecipeError(f"two recipes are called {max(names, key=names.count)!r}; names must differ")
    for entry in grid:
        check_grafts(pair, entry.recipe)
    prepared = [prepare_suite(pair, suite, metrics_of(suite, metrics), batch_size) for suite in chosen]
    total = len(names) * sum(len(p.pieces) for p in prepared)
    with tqdm(total=total, desc="recipes", unit="piece", leave=False, disable=not progress) as bar:
        found = score_recipes(pair, [entry.recipe for entry in grid], prepared, store=store, bar=bar)
        for name, rival in (rivals or {}).items():
            grid.append(Entry(name, Recipe("tuned"), "rival"))
            found += score_recipes(rival, [grid[-1].recipe], prepared, store=store, bar=bar)
    attrs = pair_attrs(pair) | {"study": "compare", "norms": sides[0], "embed": sides[1], "batch_size": batch_size, "seed": seed}
    attrs |= {"attention_share": attention_share(pair), "coalitions": _named_coalitions(pair, grid)}
    attrs |= {"notes": list(dict.fromkeys(note for entry in grid for note in notes(entry.recipe, pair.shape)))}
    return _dataset(prepared, grid, found, attrs)


def _dataset(prepared: list[Prepared], grid: list[Entry], found: list[list[Scores]], attrs: dict[str, object]) -> xr.Dataset:
    names, examples = results.suite_coords([p.suite for p in prepared], [p.metrics for p in prepared])
    value = np.stack([results.spread(names, [p.metrics for p in prepared], [s.values for s in scores]) for scores in found], axis=1)
    coords = examples | {
        **results.metric_coords(names),
        "recipe": [entry.name for entry in grid],
        "role": ("recipe", [entry.role for entry in grid]),
        "text": ("recipe", [str(entry.recipe) for entry in grid]),
    }
    data: dict[str, tuple] = {"value": (("metric", "recipe", "example"), value)}
    if any(scores.transcripts for row in found for scores in row):
        texts = [[t for p, s in zip(prepared, row, strict=True) for t in (s.transcripts or ("",) * len(p.suite))] for row in found]
        data["transcript"] = (("recipe", "example"), np.array(texts, dtype=object))
    used = suites_attr(prepared)
    return xr.Dataset(data, coords, attrs | {"suites": used, "versions": results.versions()})
