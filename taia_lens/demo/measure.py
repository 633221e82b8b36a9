"""Measuring the demo pair: TAIA, its mirror, its rival trainings and its controls, on prompts never used to choose anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from taia_lens import stats
from taia_lens.batch import make_batches
from taia_lens.demo.world import DOMAIN_A, DOMAIN_B, OTHER_ORDERS, Question, Split, World, routing_question, truth_entities, truth_question
from taia_lens.engine import evaluate
from taia_lens.loading import load_pair
from taia_lens.loading.adapters import CONFIG, merged
from taia_lens.loading.models import Options
from taia_lens.metrics import Context, accuracy
from taia_lens.pair import Pair
from taia_lens.recipe import Recipe, taia, taif
from taia_lens.suite import Suite, make_suite

Scores = dict[str, np.ndarray]
"""Recipe -> 1 or 0 for each prompt."""

DARE_KEEP = 0.5
SCALED_BY = 0.5


def questions_to_suite(name: str, questions: Sequence[Question]) -> Suite:
    """Rows with ids; answers carry their leading space."""
    return make_suite(
        name,
        [
            {"id": f"{q.domain}-{i}", "prompt": q.prompt, "answer": f" {q.answer}", "contrast": f" {q.contrast}", "domain": q.domain}
            for i, q in enumerate(questions)
        ],
    )


def routing_suite(world: World, n_id: int, n_ood: int, rng: np.random.Generator, *, split: Split = "test") -> Suite:
    """Prompts of the routing skill: in-domain A and out-of-distribution B, in the order that tuning used."""
    counts = {"id": n_id, "ood": n_ood}
    return questions_to_suite("routing", [routing_question(world, d, split, rng) for d in ("id", "ood") for _ in range(counts[d])])


def order_suite(world: World, n: int, rng: np.random.Generator) -> Suite:
    """Test prompts of domain B with the prompt's parts in another order."""
    return questions_to_suite("routing-order", [routing_question(world, "ood", "test", rng, orders=OTHER_ORDERS) for _ in range(n)])


def truth_suites(world: World, each: tuple[int, int, int], rng: np.random.Generator) -> dict[str, Suite]:
    """The truth skill: training split, and a test suite whose in-domain half holds the other entities.

    Args:
        world: The facts.
        each: Prompts a fact: for training, in-domain test, out-of-distribution test.
        rng: Draws the fillers.
    """
    train, test = truth_entities("train"), truth_entities("test")
    everyone = range(test.stop)

    def ask(entities: range, relations: range, times: int) -> list[Question]:
        return [truth_question(world, e, r, rng) for e in entities for r in relations for _ in range(times)]

    rows = [*ask(test, DOMAIN_A, each[1]), *ask(everyone, DOMAIN_B, each[2])]
    return {"truth-train": questions_to_suite("truth-train", ask(train, DOMAIN_A, each[0])), "truth": questions_to_suite("truth", rows)}


def score(pair: Pair, recipes: dict[str, Recipe], suite: Suite, *, contrast: bool = False) -> Scores:
    """Exact match of each recipe on each prompt; with `contrast`, how often the other behaviour's answer comes instead."""
    out = {name: np.zeros(len(suite)) for name in recipes}
    for batch in make_batches(suite, pair.tokenizer, 512):
        if contrast:
            batch = type(batch)(batch.rows, batch.tokens, batch.mask, batch.contrast, batch.choices, batch.answer)

        def right(logits: torch.Tensor, batch: Any = batch) -> dict[str, torch.Tensor]:
            return {"right": accuracy(logits, Context(batch, logits, logits))}

        found = evaluate(pair, list(recipes.values()), batch, right)["right"].numpy()
        for name, values in zip(recipes, found, strict=True):
            out[name][list(batch.rows)] = values
    return out


def control(base: Path, tuned: PreTrainedModel, kind: str, seed: int) -> PreTrainedModel:
    """The base with a changed update: half of it at random and rescaled (DARE, arXiv 2311.03099), or all of it times a half."""
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    theirs = dict(tuned.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            update = theirs[name] - weight
            if kind == "scaled":
                weight += SCALED_BY * update
            else:
                weight += update * (torch.rand(weight.shape, generator=generator) < DARE_KEEP) / DARE_KEEP
    return model


def measure_seed(base: Path, tuned: Path, toa: Path, suites: dict[str, Suite], seed: int) -> dict[str, Scores]:
    """Every recipe of the card on every suite, for one tuning run."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    whole, _ = merged(base, tuned, tuned / CONFIG, Options("cpu", "auto", False, False))
    recipes = {
        "base": Recipe("base"),
        "vanilla": Recipe("tuned"),
        "TAIA": taia(norms="base", embed="base"),
        "TAIF": taif(norms="base", embed="base"),
    }
    vanilla = {"tuned": Recipe("tuned")}
    others = {
        "TOA": load_pair(base, toa),
        "random half, rescaled": load_pair(base, control(base, whole, "dare", seed), tokenizer=tokenizer),
        "half of the update": load_pair(base, control(base, whole, "scaled", seed), tokenizer=tokenizer),
    }
    pair = load_pair(base, tuned)
    out = {}
    for name, suite in suites.items():
        scores = score(pair, recipes, suite)
        out[name] = scores | {label: score(other, vanilla, suite)["tuned"] for label, other in others.items()}
    return out


def cell(values: np.ndarray) -> dict[str, float]:
    """Mean and its 95% interval."""
    low, high = stats.mean_interval(values[None], seed=0)
    return {"mean": float(values.mean()), "low": float(low[0]), "high": float(high[0])}
