"""Attribution patching: what patching each site would do, to first order, for all sites from two forwards and one backward.

The gradient of the metric with respect to what the host computes at a site, times what the donor computed there less that (Nanda
2023; Kramar et al., arXiv 2403.00745). The result has the form of a patching study's, so that the two are held against each
other; it is an approximation, and `check` patches some sites really to say how good a one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.engine import Reads, Run, run_plain, run_recipes
from taia_lens.errors import TaiaLensError
from taia_lens.evaluation import off_device
from taia_lens.pair import Pair
from taia_lens.positions import by_length, tokens_at
from taia_lens.rankers.asked import Asked
from taia_lens.rankers.attribution import asked_with_gradients, attribute, over_positions
from taia_lens.rankers.options import Options
from taia_lens.recipe import Patch, Recipe, Side, other, side_of
from taia_lens.scoring import depends_on, pair_attrs
from taia_lens.sites import Site, parse_each, patchable, select
from taia_lens.store import Cell, CellStore, key_of
from taia_lens.suite import Suite

Indices = str | int | Sequence[int] | None


@dataclass(frozen=True)
class Sites:
    """Which sites are credited, laid out along the result's dims."""

    components: tuple[str, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    positions: str
    source: Side

    @property
    def coords(self) -> dict[str, tuple]:
        out: dict[str, tuple] = {"component": self.components, "layer": self.layers}
        return out | ({"head": self.heads} if self.heads else {})

    @property
    def hooks(self) -> list[str]:
        """Component by component, layer by layer; the heads of a layer share one."""
        return [Site(c, layer, 0 if self.heads else None).hook for c in self.components for layer in self.layers]


def attribution(
    pair: Pair,
    suite: Suite,
    *,
    component: str | Sequence[str],
    layers: Indices = "all",
    positions: str = "all",
    source: Side = "tuned",
    metric: str | None = None,
    steps: int = 0,
    check: int = 0,
    batch_size: int = 64,
    seed: int = 0,
    store: CellStore | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Credit every site with what patching it by itself would do to every prompt, to first order.

    Args:
        pair: The two models.
        suite: Prompts of the task next, or of choice.
        component: `attn`, `mlp`, `head` or `resid`, or a list of them (head by itself).
        layers: `all`, a number, a list, or a text like `8-15`.
        positions: `all` (together), `each` (one by one, from the prompt's start), or `each-from-end` (-1 is the prompt's last
            token; the tokens of choices follow from 0).
        source: The donor; the host is the other side.
        metric: One that has a gradient: `logprob`, `prob`, `logit_diff`, `choice_logprob`. Default: the task's log-probability.
        steps: Integrated gradients (arXiv 1703.01365) instead of one gradient: so many forwards and backwards a component and
            layer; then the credit over all positions and heads of one sums to what patching the whole of it does.
        check: Patch so many of the strongest sites really, and as many others drawn at random.
        batch_size: Sequences at a time; it changes speed, results by rounding only.
        seed: Of the sites drawn, and of the bootstrap.
        store: Where the check's finished cells are kept and found; gradients are cheap and are not kept.
        progress: Show a bar, in a notebook or on stderr.

    Returns:
        What `studies.patching.patch` returns, of one metric: `patched` is host + attribution; NaN where a prompt has no such
        position; `noise` is 0, since a host patched with itself is credited with exactly nothing. With check: `check_attributed`
        and `check_patched` (check, example), the change that was said and the one that was found.

    Raises:
        SiteError, SuiteError, TaiaLensError: Something asked for does not exist, or a metric has no gradient.
    """
    plan = _plan(pair, component, layers, positions, source)
    options = Options(metric=metric, batch_size=batch_size, seed=seed, steps=steps)
    if check < 0:
        raise TaiaLensError(f"check is {check}; write 0 or more sites to patch really")
    pieces = [_placed(some, plan.positions) for some in asked_with_gradients(pair, suite, options)]
    labels = _labels(pieces)
    with tqdm(total=_passes(plan, pieces, options, check), desc="attribution", unit="pass", leave=False, disable=not progress) as bar:
        ends, effect = _credited(pair, plan, pieces, labels, len(suite), steps, bar)
        spots = _chosen(plan, labels, effect, check, seed)
        real = np.full((len(spots), len(suite)), np.nan)
        for piece in pieces if spots else []:
            real[:, list(piece.some.rows)] = _patched(pair, plan, spots, piece, store, bar)
    coords = plan.coords | ({} if plan.positions == "all" else {"pos": tuple(labels)})
    out = results.patch_dataset(
        ends[:1],
        ends[1:],
        (ends[0] + effect)[None],
        np.zeros(1),
        metrics=(pieces[0].some.metric,),
        coords=coords,
        suite=suite,
        attrs=_attrs(pair, plan, suite, options, pieces[0].some.metric) | {"check": len(spots)},
        tokens=_tokens(pair, pieces, labels) if "pos" in coords and suite.task.kind == "next" else (),
    )
    return _with_check(out, spots, effect, real - ends[0])


def _plan(pair: Pair, component: str | Sequence[str], layers: Indices, positions: str, source: str) -> Sites:
    """Check what is asked against the pair's shape."""
    components = patchable(component, with_heads=False)
    heads = tuple(range(pair.shape.n_heads)) if components == ("head",) else ()
    return Sites(components, select(layers, pair.shape.n_layers, "layer"), heads, parse_each(positions), side_of(source, "source"))


def _passes(plan: Sites, pieces: Sequence[Placed], options: Options, check: int) -> int:
    return len(pieces) * (max(1, options.steps * len(plan.hooks)) + 2 * check)


@dataclass(frozen=True, eq=False)
class Placed:
    """Some rows, and what the position of each of their tokens is called: NOWHERE at padding."""

    some: Asked
    where: Int[Tensor, "batch pos"]


NOWHERE = -(2**31)


def _placed(some: Asked, positions: str) -> Placed:
    batch = some.batch
    index = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    if positions == "each-from-end":  # the first read predicts the answer: choices of any length have their prompt's end there
        width = torch.full_like(batch.last, batch.tokens.shape[1])
        index = index - 1 - width.scatter_reduce(0, some.sequences, some.positions, "amin")[:, None]
    return Placed(some, torch.where(batch.mask, index, NOWHERE))


def _labels(pieces: Sequence[Placed]) -> range:
    """The positions that some prompt has."""
    found = torch.cat([piece.where[piece.some.batch.mask].cpu() for piece in pieces])
    return range(int(found.min()), int(found.max()) + 1)


def _credited(
    pair: Pair, plan: Sites, pieces: Sequence[Placed], labels: range, n: int, steps: int, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Values of host and donor, and the credit (component, layer[, head][, pos], example)."""
    places = () if plan.positions == "all" else (len(labels),)
    ends, effect = np.full((2, n), np.nan), np.full((*(len(v) for v in plan.coords.values()), *places, n), np.nan)
    by_hook = effect.reshape(len(plan.hooks), *effect.shape[2:])
    for piece in pieces:
        some, rows = piece.some, list(piece.some.rows)
        found = attribute(pair, some, plan.hooks, source=plan.source, steps=steps, done=bar.update)
        ends[:, rows] = torch.stack([found.host, found.donor]).double().cpu().numpy()
        for cells, hook in zip(by_hook, plan.hooks, strict=True):
            product = found.products[hook]
            cells[..., rows] = _by_position(piece, product, labels) if places else over_positions(some, product).T
    return ends, effect


def _by_position(piece: Placed, product: Tensor, labels: range) -> np.ndarray:
    """A product (batch, pos[, head]) as ([head,] position, row), summed over each row's sequences; NaN where a row has no such position."""
    some, mask = piece.some, piece.some.batch.mask
    at = (piece.where[mask] - labels.start, some.owner[mask.nonzero()[:, 0]])
    out = product.new_zeros((len(labels), len(some.rows), *product.shape[2:]), dtype=torch.float64)
    out.index_put_(at, product[mask].double(), accumulate=True)
    has = torch.zeros(out.shape[:2], dtype=torch.bool, device=out.device).index_put_(at, mask.new_ones(()))
    out[~has] = torch.nan
    return rearrange(out.cpu().numpy(), "position row ... -> ... position row")


def _tokens(pair: Pair, pieces: Sequence[Placed], labels: range) -> list[str]:
    return tokens_at(by_length([piece.some.batch for piece in pieces]), labels, pair.tokenizer)


@dataclass(frozen=True)
class Spot:
    """A site that is patched really: which it is, its place in the credit's array, and why it was chosen."""

    site: Site
    pos: int | None
    at: tuple[int, ...]
    why: str

    def __str__(self) -> str:
        return str(self.site) if self.pos is None else f"{self.site} @{self.pos}"


def _chosen(plan: Sites, labels: range, effect: np.ndarray, check: int, seed: int) -> list[Spot]:
    """The sites of the largest credit over all prompts, and as many others drawn at random."""
    known = np.flatnonzero(~np.isnan(effect).all(-1))
    order = known[np.argsort(-np.abs(np.nansum(effect, -1)).ravel()[known], kind="stable")]
    strong, others = order[:check], order[check:]
    drawn = np.random.default_rng(seed).choice(others, min(check, len(others)), replace=False)
    return [_spot(plan, labels, effect.shape[:-1], int(i), why) for some, why in ((strong, "strong"), (drawn, "random")) for i in some]


def _spot(plan: Sites, labels: range, shape: tuple[int, ...], flat: int, why: str) -> Spot:
    at = tuple(int(i) for i in np.unravel_index(flat, shape))
    head = plan.heads[at[2]] if plan.heads else None
    pos = None if plan.positions == "all" else labels[at[-1]]
    return Spot(Site(plan.components[at[0]], plan.layers[at[1]], head), pos, at, why)


def _patched(pair: Pair, plan: Sites, spots: Sequence[Spot], piece: Placed, store: CellStore | None, bar: tqdm) -> np.ndarray:
    """The metric with each spot patched really, (spot, row)."""
    some, side = piece.some, other(plan.source)
    recipes = [Recipe(side, (Patch(spot.site, plan.source),)) for spot in spots]
    content = [some.key if s.pos is None else key_of({"at": [some.key, plan.positions, s.pos]}) for s in spots]
    keys = [depends_on(pair, recipe, key) for recipe, key in zip(recipes, content, strict=True)]
    cells = [None if store is None else store.get(key) for key in keys]
    missing = [i for i, cell in enumerate(cells) if cell is None]
    bar.update(len(spots) - len(missing))
    runs: dict[Side, Run] = {}
    if missing:
        hooks = [spots[i].site.hook for i in missing]
        runs = {which: run_plain(pair.side(which), some.batch, hooks) for which in (side, plan.source)}
    reads = Reads(some.batch, some.sequences, some.positions)
    for pos in dict.fromkeys(spots[i].pos for i in missing):
        these = [i for i in missing if spots[i].pos == pos]
        donor = runs[plan.source] if pos is None else _only_at(piece.where == pos, runs[plan.source], runs[side])
        found = run_recipes(pair, [recipes[i] for i in these], reads, donors={plan.source: donor})
        for k, values in off_device((k, some.value(logits)) for k, logits in found):
            cells[these[k]] = cell = Cell({some.metric: values})
            if store is not None:
                store.put(keys[these[k]], cell)
            bar.update()
    return np.stack([cell.values[some.metric] for cell in cells if cell is not None])


def _only_at(at: Bool[Tensor, "batch pos"], donor: Run, host: Run) -> Run:
    """The donor's activations there, and the host's own elsewhere: patching all of it patches that place."""

    def mixed(name: str) -> Tensor:
        theirs, mine = donor.acts[name], host.acts[name]
        return torch.where(at.reshape(*at.shape, *[1] * (mine.ndim - 2)), theirs.to(mine), mine)

    return Run(donor.logits, {name: mixed(name) for name in donor.acts})


def _with_check(out: xr.Dataset, spots: Sequence[Spot], effect: np.ndarray, changed: np.ndarray) -> xr.Dataset:
    """With the change that was said at each spot, and the one that was found."""
    if not spots:
        return out
    said = np.stack([effect[spot.at] for spot in spots])
    found = np.where(np.isnan(said), np.nan, changed)
    dims = ("check", "example")
    out = out.assign(check_attributed=(dims, said), check_patched=(dims, found))
    return out.assign_coords(check=[str(spot) for spot in spots], chosen=("check", [spot.why for spot in spots]))


def _attrs(pair: Pair, plan: Sites, suite: Suite, options: Options, metric: str) -> dict[str, Any]:
    return pair_attrs(pair) | {
        "study": "attribution",
        "metric": metric,
        "host": other(plan.source),
        "donor": plan.source,
        "positions": plan.positions,
        "steps": options.steps,
        "suite": suite.name,
        "suite_sha256": suite.sha256,
        "batch_size": options.batch_size,
        "seed": options.seed,
    }
