"""Patching: put what the donor computed at a site into the host, site by site, and see what it does to the answers.

The cross-model patch of Prakash et al. (arXiv 2402.14811, "CMAP"): host and donor read the same tokens; at one site at a
time the host gets the activation that the donor computed from its own residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.batch import Batch, make_batches
from taia_lens.engine import ActivationStore, Reads, Run, parts_of_recipes, run_recipes
from taia_lens.errors import SiteError, SuiteError, TaiaLensError
from taia_lens.evaluation import off_device
from taia_lens.metric_names import check_metrics
from taia_lens.metrics import Context, measure, reads_of
from taia_lens.pair import Pair
from taia_lens.positions import by_length, every, has, tokens_at
from taia_lens.recipe import SIDES, Patch, Recipe, Side, other
from taia_lens.scoring import Cost, cost, depends_on
from taia_lens.sites import EACH, Positions, Site, parse_positions, patchable, select
from taia_lens.store import Cell, CellStore, key_of
from taia_lens.suite import Suite

Indices = str | int | Sequence[int] | None
NOISE_ROWS = 8


@dataclass(frozen=True)
class PatchPlan:
    """Which sites to patch, one at a time, laid out along the result's dims; with `each`, at one of these positions at a time."""

    components: tuple[str, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    positions: Positions
    source: Side
    each: tuple[int, ...] = ()

    @property
    def coords(self) -> dict[str, tuple]:
        out: dict[str, tuple] = {"component": self.components, "layer": self.layers}
        return out | ({"head": self.heads} if self.heads else {}) | ({"pos": self.each} if self.each else {})

    @property
    def sites(self) -> list[Site]:
        return [Site(c, layer, head) for c in self.components for layer in self.layers for head in self.heads or (None,)]

    @property
    def recipes(self) -> list[Recipe]:
        """One recipe a site and place, the last dim running fastest."""
        places: list[Positions] = [(position,) for position in self.each] or [self.positions]
        return [Recipe(other(self.source), (Patch(site, self.source, at),)) for site in self.sites for at in places]

    def on(self, batch: Batch) -> list[int]:
        """Which of the recipes a batch's rows can have: those of positions that are there."""
        there = [has(batch, position) for position in self.each] or [True]
        return [i for i in range(len(self.sites) * len(there)) if there[i % len(there)]]


def plan_patch(
    pair: Pair,
    *,
    component: str | Sequence[str],
    layers: Indices = "all",
    heads: Indices = None,
    positions: str | int | Sequence[int] = "all",
    source: Side = "tuned",
) -> PatchPlan:
    """Check what is asked against the pair's shape.

    Raises:
        SiteError: A component, layer, head or position that does not exist.
    """
    components = patchable(component, with_heads=heads is not None)
    if source not in ("base", "tuned"):
        raise SiteError(f"no source {source!r}; activations come from base or tuned")
    chosen = select(heads, pair.shape.n_heads, "head") if components == ("head",) else ()
    return PatchPlan(components, select(layers, pair.shape.n_layers, "layer"), chosen, parse_positions(positions, each=True), source)


def patch(
    pair: Pair,
    suite: Suite,
    *,
    component: str | Sequence[str],
    layers: Indices = "all",
    heads: Indices = None,
    positions: str | int | Sequence[int] = "all",
    source: Side = "tuned",
    metrics: Sequence[str] = ("accuracy", "logprob"),
    batch_size: int = 128,
    seed: int = 0,
    cache: str | Path | None = None,
    store: CellStore | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Patch each site by itself and measure every prompt.

    Args:
        pair: The two models.
        suite: The prompts.
        component: `attn`, `mlp`, `head` or `resid`, or a list of them (head by itself).
        layers: `all`, a number, a list, or a text like `8-15`.
        heads: For the component head: which; all where None.
        positions: `all`, `last`, or token positions (negative ones from the prompt's end), patched together; or `each`, every
            position by itself, counted from the start, or `each-from-end`, where -1 is the position that predicts the answer.
        source: The donor; the host is the other side.
        metrics: Names from `metric_names.METRICS`.
        batch_size: Rows at a time; it changes speed, not results.
        seed: Of the bootstrap.
        cache: A folder in which the donor's activations are kept and found again.
        store: Where finished cells are kept and found (`store.open_store`): one a batch and site.
        progress: Show a bar, in a notebook or on stderr.

    Returns:
        `host` and `donor` (metric, example), `patched` (metric, component, layer[, head][, pos], example), `noise` (metric): the mean
        change that patching the host with itself, one row at a time, makes. `summaries.patch_summary` gives means and intervals.
        With `pos`, which goes to the end of the longest prompt, `patched` is NaN where a prompt has no such position, and
        `token` (pos) is what stands there in all prompts, empty where they differ or one is too short.

    Raises:
        SiteError, SuiteError, TaiaLensError: Something asked for does not exist.
    """
    plan = plan_patch(pair, component=component, layers=layers, heads=heads, positions=positions, source=source)
    names = check_metrics(metrics)
    if seed < 0:
        raise TaiaLensError(f"the seed is {seed}; write 0 or more")
    plan, batches = _laid_out(pair, plan, suite, batch_size)
    kept = Kept(None if cache is None else ActivationStore(Path(cache)), store)
    values = np.full((2 + len(plan.recipes), len(names), len(suite)), np.nan)
    total = sum(2 + len(plan.on(batch)) for batch in batches)
    with tqdm(total=total, desc="patching", unit="forward", leave=False, disable=not progress) as bar:
        for batch in batches:
            run = [0, 1, *(2 + i for i in plan.on(batch))]
            values[np.ix_(run, range(len(names)), batch.rows)] = _batch_values(pair, plan, batch, names, kept, bar)
    host, donor, patched = values[0], values[1], np.moveaxis(values[2:], 0, 1)
    shaped = patched.reshape(len(names), *(len(v) for v in plan.coords.values()), len(suite))
    noise = _noise(pair, plan, suite, names, host)
    tokens = tokens_at(batches, plan.each, pair.tokenizer)
    attrs = _attrs(pair, plan, suite, batch_size, seed)
    return results.patch_dataset(host, donor, shaped, noise, metrics=names, coords=plan.coords, suite=suite, attrs=attrs, tokens=tokens)


def patch_cost(
    pair: Pair,
    suite: Suite,
    *,
    component: str | Sequence[str],
    layers: Indices = "all",
    heads: Indices = None,
    positions: str | int | Sequence[int] = "all",
    source: Side = "tuned",
    batch_size: int = 128,
) -> Cost:
    """What `patch` would take with nothing kept from before; all but one forward is planned only.

    Raises:
        SiteError, SuiteError: Something asked for does not exist.
    """
    plan = plan_patch(pair, component=component, layers=layers, heads=heads, positions=positions, source=source)
    plan, batches = _laid_out(pair, plan, suite, batch_size)
    return cost(pair, [([plan.recipes[i] for i in plan.on(b)] + [Recipe(side) for side in SIDES], Reads.last(b)) for b in batches])


def _laid_out(pair: Pair, plan: PatchPlan, suite: Suite, batch_size: int) -> tuple[PatchPlan, list[Batch]]:
    """The batches, and the plan with the positions that they have; every row has those asked for and fits, or nothing is run."""
    batches = [batch.to(pair.device) for batch in make_batches(suite, pair.tokenizer, batch_size)]
    longest = max(batch.tokens.shape[1] for batch in batches)
    if longest > pair.base.cfg.n_ctx:
        raise SuiteError(f"a prompt has {longest} tokens and the model has {pair.base.cfg.n_ctx} positions; shorten it")
    if plan.positions in EACH:
        batches = by_length(batches)
        plan = replace(plan, each=every(batches, from_end=plan.positions == "each-from-end"))
    else:
        for batch in batches:
            batch.at(plan.positions)
    return plan, _that_fit(pair, plan, batches)


def _that_fit(pair: Pair, plan: PatchPlan, batches: Sequence[Batch]) -> list[Batch]:
    """The batches, cut where the largest of them is more than there is room for: every layer's activations of donor and host are kept."""
    largest = max(batches, key=lambda batch: batch.tokens.numel())
    recipes = [*(Recipe(side) for side in SIDES), *(plan.recipes[i] for i in plan.on(largest))]
    rows = max(len(part.reads.batch.rows) for part in parts_of_recipes(pair, recipes, Reads.last(largest)))
    return [batch.take(slice(i, i + rows)) for batch in batches for i in range(0, len(batch.rows), rows)]


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept on disk between runs: the donor's activations, and finished cells."""

    activations: ActivationStore | None
    cells: CellStore | None


def _batch_values(pair: Pair, plan: PatchPlan, batch: Batch, names: Sequence[str], kept: Kept, bar: tqdm) -> np.ndarray:
    """Host, donor and every recipe on one batch, (recipe, metric, row); nothing is run where the store has it all."""
    host = other(plan.source)
    patches = plan.recipes
    recipes = [Recipe(host), Recipe(plan.source), *(patches[i] for i in plan.on(batch))]
    content = _content(plan, batch, names)
    # Both models, since some metrics hold the logits against the unedited sides'.
    keys = [depends_on(pair, recipe, content, sides=("base", "tuned")) for recipe in recipes]
    cells = [None if kept.cells is None else kept.cells.get(key) for key in keys]
    bar.update(sum(cell is not None for cell in cells))
    missing = [i for i, cell in enumerate(cells) if cell is None]
    found = _measured(pair, recipes, missing, batch, names, _donor(pair, plan, batch, kept.activations)) if missing else ()
    for i, values in off_device(found):
        cells[i] = cell = Cell(dict(zip(names, values, strict=True)))
        if kept.cells is not None:
            kept.cells.put(keys[i], cell)
        bar.update()
    return np.stack([[cell.values[name] for name in names] for cell in cells if cell is not None])


def _donor(pair: Pair, plan: PatchPlan, batch: Batch, store: ActivationStore | None) -> dict[Side, Run]:
    """The donor with its activations at the sites asked for, from the store; without one the engine runs it beside the others."""
    hooks = list(dict.fromkeys(site.hook for site in plan.sites))
    return {} if store is None else {plan.source: store.run(pair, plan.source, batch, hooks)}


def _measured(
    pair: Pair, recipes: Sequence[Recipe], wanted: Sequence[int], batch: Batch, names: Sequence[str], donors: Mapping[Side, Run]
) -> Iterator[tuple[int, Float[Tensor, "metric row"]]]:
    """Numbers of the wanted recipes, all run together. The first two are host and donor, which every other is held against."""
    reads = reads_of(names, batch)
    ends = {side: run.logits if reads.columns is None else run.logits[:, reads.columns] for side, run in donors.items()}
    asked = [i for i in sorted({0, 1, *wanted}) if recipes[i].edits or recipes[i].host not in ends]
    for k, logits in run_recipes(pair, [recipes[i] for i in asked], reads, donors=donors):
        recipe, ready = recipes[asked[k]], [asked[k]]
        if not recipe.edits:  # these come first, and none of them is measured before the other
            ends[recipe.host] = logits
            ready = [i for i in (0, 1) if i in wanted and len(ends) == 2]
        for i in ready:
            context = Context.of(reads, host=ends[recipes[0].host], donor=ends[recipes[1].host])
            found = measure(tuple(names), context, logits if recipes[i].edits else ends[recipes[i].host])
            yield i, torch.stack([found[name] for name in names])


def _content(plan: PatchPlan, batch: Batch, names: Sequence[str]) -> str:
    """The key of what a cell's numbers depend on besides models and recipe."""
    return key_of({"patch": [batch.key, plan.source, *names, *(t.tolist() for t in (batch.answer, batch.choices, batch.contrast))]})


def _noise(pair: Pair, plan: PatchPlan, suite: Suite, names: Sequence[str], host: np.ndarray) -> np.ndarray:
    """The noise floor: some rows again, one at a time, with the host patched with itself at every site asked for.

    Neither changes anything but rounding, so the mean change of a row is what rounding explains of a mean.
    """
    side, changes = other(plan.source), []
    recipe = Recipe(side, tuple(Patch(site, side, "all" if plan.each else plan.positions) for site in plan.sites))
    rows = np.arange(0, len(suite), -(-len(suite) // NOISE_ROWS))
    some = replace(suite, rows=tuple(suite.rows[i] for i in rows))
    for batch in make_batches(some, pair.tokenizer, 1):
        batch = batch.to(pair.device)
        ((_, found),) = off_device(_measured(pair, [Recipe(side), Recipe(plan.source), recipe], [2], batch, names, {}))
        changes.append(np.abs(found - host[:, rows[list(batch.rows)]]))
    return np.concatenate(changes, axis=1).mean(axis=1)


def _attrs(pair: Pair, plan: PatchPlan, suite: Suite, batch_size: int, seed: int) -> dict[str, Any]:
    return {
        "study": "patch",
        "host": other(plan.source),
        "donor": plan.source,
        "positions": plan.positions if isinstance(plan.positions, str) else list(plan.positions),
        "base": pair.origin.base,
        "tuned": pair.origin.tuned,
        "dtype": pair.origin.dtype,
        "device": ",".join(map(str, pair.devices)),
        "fingerprint": pair.fingerprint,
        "suite": suite.name,
        "suite_sha256": suite.sha256,
        "batch_size": batch_size,
        "seed": seed,
    }
