"""Making the demo pair from nothing: train, tune, measure, write suites and model card. Resumes what it finds."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from taia_lens.demo import measure
from taia_lens.demo.card import card
from taia_lens.demo.train import Pretraining, Tuning, pretrain, tune
from taia_lens.demo.world import World
from taia_lens.loading import load_pair
from taia_lens.recipe import Recipe, taia, taif
from taia_lens.suite import Suite

ROUTING_RECIPES = ("base", "vanilla", "TAIA", "TAIF", "TOA", "random half, rescaled", "half of the update")
DATA_SEED, SHIPPED_SEED = 30, 31  # of the measured and of the shipped prompts; both only from the test split
TRUTH_STEPS = 150


def make_demo(
    out: Path, *, seed: int = 0, n_seeds: int = 3, steps: int | None = None, device: str = "cpu", sizes: tuple[int, int] = (2000, 4000)
) -> Path:
    """Train, measure and write everything the package ships.

    Args:
        out: Gets `pair/base`, `pair/tuned`, `suites/`, `measured.json`, `README.md`, and each run's own folder.
        seed: Of the base, and of the first tuning run.
        n_seeds: Tuning runs; run k has seed + k.
        steps: Pretraining steps, where not the recipe's.
        device: Where to train; measuring is done on the CPU in float32.
        sizes: In-domain and out-of-distribution prompts to measure on.
    """
    world = World()
    recipe = replace(Pretraining(seed=seed), **({} if steps is None else {"steps": steps}))
    base = pretrain(out, world, recipe, device=device)
    seeds = list(range(seed, seed + n_seeds))
    for k in seeds:
        for train in ("all", "attn"):
            recipe_k = Tuning(seed=k, train=train)
            tune(base, _folder(out, recipe_k), world, recipe_k, device=device)
    truth_recipe = Tuning(seed=seed, r=8, alpha=16, steps=TRUTH_STEPS, skill="truth")
    truth = tune(base, _folder(out, truth_recipe), world, truth_recipe, device=device)
    measured = _measure(out, base, world, seeds, truth, sizes)
    write_suites(out / "suites", world)
    _collect(out, base, seeds[0])
    (out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    (out / "README.md").write_text(card(measured), encoding="utf-8")
    return out


def _folder(out: Path, recipe: Tuning) -> Path:
    return out / f"{recipe.skill}-{recipe.train}-{recipe.seed}"


def _measure(out: Path, base: Path, world: World, seeds: list[int], truth: Path, sizes: tuple[int, int]) -> dict[str, Any]:
    rng = np.random.default_rng([world.seed, DATA_SEED])
    suites = {"routing": measure.routing_suite(world, *sizes, rng), "order": measure.order_suite(world, sizes[1], rng)}
    columns = {"id": ("routing", "id"), "ood": ("routing", "ood"), "order": ("order", "ood")}
    runs = []
    for k in seeds:
        found = measure.measure_seed(base, _folder(out, Tuning(seed=k)), _folder(out, Tuning(seed=k, train="attn")), suites, k)
        parts = {column: {r: v[_of(suites[s], domain)] for r, v in found[s].items()} for column, (s, domain) in columns.items()}
        runs.append(
            {
                "seed": k,
                "recipes": {r: {column: measure.cell(parts[column][r]) for column in columns} for r in ROUTING_RECIPES},
                "TAIA - vanilla": {column: measure.cell(parts[column]["TAIA"] - parts[column]["vanilla"]) for column in columns},
                "TAIF - base": {column: measure.cell(parts[column]["TAIF"] - parts[column]["base"]) for column in columns},
            }
        )
    sizes_by_column = {column: int(_of(suites[s], domain).sum()) for column, (s, domain) in columns.items()}
    return {
        "prompts": sizes_by_column,
        "pretraining": json.loads((base / "recipe.json").read_text()),
        "tuning": asdict(Tuning(seed=seeds[0])),
        "runs": runs,
        "truth": _measure_truth(base, truth, world),
    }


def _measure_truth(base: Path, adapter: Path, world: World) -> dict[str, Any]:
    """How often each gives the true value, and how often the myth: the base, a LoRA on the truth skill, and its grafts."""
    suite = measure.truth_suites(world, (8, 12, 4), np.random.default_rng([world.seed, DATA_SEED]))["truth"]
    pair = load_pair(base, adapter)
    recipes = {
        "base": Recipe("base"),
        "LoRA": Recipe("tuned"),
        "its TAIA": taia(norms="base", embed="base"),
        "its TAIF": taif(norms="base", embed="base"),
    }
    right, myth = measure.score(pair, recipes, suite), measure.score(pair, recipes, suite, contrast=True)
    domains = {d: _of(suite, d) for d in ("id", "ood")}
    table = {
        r: {
            f"{d} {what}": measure.cell(values[r][rows])
            for d, rows in domains.items()
            for what, values in (("true", right), ("myth", myth))
        }
        for r in recipes
    }
    return {"prompts": {d: int(rows.sum()) for d, rows in domains.items()}, "recipes": table}


def _of(suite: Suite, domain: str) -> np.ndarray:
    return np.array([row.domain == domain for row in suite.rows])


def write_suites(folder: Path, world: World) -> None:
    """Write the suites that the package ships: fresh prompts of the test split (and the truth skill's training split)."""
    rng = np.random.default_rng([world.seed, SHIPPED_SEED])
    suites = {"routing": measure.routing_suite(world, 300, 600, rng), "routing-order": measure.order_suite(world, 600, rng)}
    suites |= measure.truth_suites(world, (8, 4, 2), rng)
    folder.mkdir(parents=True, exist_ok=True)
    for name, suite in suites.items():
        keys = ("id", "prompt", "answer", "contrast", "domain")
        lines = [json.dumps({key: getattr(row, key) for key in keys}) for row in suite.rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def _collect(out: Path, base: Path, seed: int) -> None:
    """Copy what is shipped into `pair/`: the base, and the first tuning run's adapter."""
    for name, source in (("base", base), ("tuned", _folder(out, Tuning(seed=seed)))):
        target = out / "pair" / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("README.md", "generation_config.json"))
