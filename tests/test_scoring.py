"""Many recipes scored together: as each by itself, each cell once, kept as soon as it is finished."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

from taia_lens.budget import Budget
from taia_lens.engine import Part, Reads, parts_of_recipes
from taia_lens.errors import RecipeError
from taia_lens.evaluation import off_device, pieces
from taia_lens.loaded import Loaded
from taia_lens.pair import Pair
from taia_lens.recipe import Recipe
from taia_lens.recipe_text import parse_recipe
from taia_lens.scales import Scales
from taia_lens.scoring import Prepared, Scores, Work, many, prepare_suite, score_many_scales, score_recipes
from taia_lens.sites import Site
from taia_lens.store import CellStore, open_store
from taia_lens.suite import Suite, Task, make_suite

CLOSE = 1e-5  # float32 sums of up to ten log-probabilities, in matrices of another shape
TEXTS = ("base", "tuned", "base; graft attn <- tuned", "base; graft L1.h2 <- tuned", "base; graft all <- tuned x0.5")
RECIPES = [parse_recipe(text) for text in TEXTS]


@pytest.fixture(scope="module")
def prepared(llama: Pair, suite: Suite) -> list[Prepared]:
    """Three pieces of next tokens, and two of choices, of which each row takes two forwards."""
    rows = [{"prompt": "w1 w2 w3"[: 5 + 3 * i], "choices": [" w5 w6", " w7", " w8 w9 w9"], "label": i, "domain": "id"} for i in range(2)]
    choices = make_suite("choices", rows, task=Task("choice"))
    return [prepare_suite(llama, suite, ("logprob",), 4), prepare_suite(llama, choices, ("choice_logprob",), 2)]


def values(found: list[list[Scores]]) -> np.ndarray:
    return np.stack([np.concatenate([scores.values[0] for scores in row]) for row in found])


def score(pair: Pair, recipes: list[Recipe], suites: list[Prepared], **more: Any) -> tuple[np.ndarray, int]:
    """Values (recipe, example), and how far the bar has come."""
    with tqdm(disable=False, file=StringIO()) as bar:
        found = score_recipes(pair, recipes, suites, **({"store": None} | more), bar=bar)
        return values(found), bar.n


def test_together_they_score_what_each_scores_by_itself(llama: Pair, prepared: list[Prepared]) -> None:
    together, ticks = score(llama, RECIPES, prepared)
    assert [len(p.pieces) for p in prepared] == [3, 2] and ticks == 5 * len(RECIPES)
    np.testing.assert_allclose(together, np.concatenate([score(llama, [recipe], prepared)[0] for recipe in RECIPES]), atol=CLOSE)
    shuffled, _ = score(llama, RECIPES[::-1], prepared)
    np.testing.assert_allclose(together, shuffled[::-1], atol=CLOSE)
    assert min(abs(a - b).max() for i, a in enumerate(together) for b in together[:i]) > 100 * CLOSE  # no two recipes are alike


def test_sets_of_scales_score_what_each_scores_by_itself(llama: Pair, suite: Suite) -> None:
    model: Loaded = llama.loaded("base")
    ready = [prepare_suite(model, suite, ("logprob",), 4)]
    zero = torch.zeros(1, model.shape.d_head)
    asked = [Scales((Site("head", layer, 1),), zero - 1, zero) for layer in (2, 0)]
    with tqdm(disable=True) as bar:
        together = values(score_many_scales(model, [asked[0], None, asked[1]], ready, store=None, bar=bar))
        alone = [values(score_many_scales(model, [one], ready, store=None, bar=bar))[0] for one in (asked[0], None, asked[1])]
    np.testing.assert_allclose(together, np.stack(alone), atol=CLOSE)
    assert abs(together[0] - together[1]).max() > 100 * CLOSE and abs(together[2] - together[1]).max() > 100 * CLOSE


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Recipes that are carried out by themselves from now on."""
    seen, applied = list[str](), many.applied

    @contextmanager
    def spy(pair: Pair, recipe: Recipe) -> Iterator[Any]:
        seen.append(str(recipe))
        with applied(pair, recipe) as model:
            yield model

    monkeypatch.setattr(many, "applied", spy)
    return seen


def test_a_blend_is_made_once_and_text_is_written_by_one_recipe_at_a_time(
    llama: Pair, prepared: list[Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch)
    score(llama, RECIPES, prepared)
    assert seen == [TEXTS[-1]]
    seen.clear()
    rows = [{"prompt": f"w{i}", "answer": "w3", "domain": "id"} for i in range(3)]
    written = prepare_suite(llama, make_suite("said", rows, task=Task("generate", max_new_tokens=2)), ("exact_match",), 1)
    with tqdm(disable=True) as bar:
        found = score_recipes(llama, RECIPES, [*prepared, written], store=None, bar=bar)
    assert sorted(seen) == sorted(TEXTS)  # each once, for three pieces
    assert all(len(row[2].transcripts) == 3 for row in found)


def test_what_is_asked_for_twice_is_computed_once(
    llama: Pair, prepared: list[Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "cells.sqlite") as store:
        twice = [prepared[0], replace(prepared[0], suite=replace(prepared[0].suite, name="again"))]
        found, ticks = score(llama, [RECIPES[0], RECIPES[2], RECIPES[0]], twice, store=store)
        assert len(store) == 2 * 3 and ticks == 3 * 2 * 3
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[:, :11], found[:, 11:])
    assert not np.array_equal(found[0], found[1])


def test_each_cell_is_kept_as_soon_as_it_is_finished(
    llama: Pair, prepared: list[Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, seen = CellStore.put, list[str]()

    def dying(self: CellStore, what: Any, cell: Any) -> None:
        if len(seen) == 7:
            raise KeyboardInterrupt
        seen.append(what["recipe"])
        put(self, what, cell)

    with open_store(tmp_path / "cells.sqlite") as store, monkeypatch.context() as patched:
        patched.setattr(CellStore, "put", dying)
        with pytest.raises(KeyboardInterrupt):
            score(llama, RECIPES, prepared, store=store)
        assert len(store) == 7 and len(set(seen)) == 4  # the second piece was begun: of the first, all that are read together are in
    with open_store(tmp_path / "cells.sqlite") as store:
        work = Work()
        found, ticks = score(llama, RECIPES, prepared, store=store, work=work)
        assert len(store) == ticks == 25
        again, idle = score(llama, RECIPES, prepared, store=store, work=(nothing := Work()))[0], nothing.forwards
    assert idle == 0 < work.forwards
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(found, score(llama, RECIPES, prepared)[0], atol=CLOSE)


def test_work_is_in_forwards_over_all_prompts(llama: Pair, prepared: list[Prepared]) -> None:
    plain = replace(llama, report=replace(llama.report, plain_because="a test"))
    score(plain, RECIPES, prepared, work=(work := Work()))
    assert work.forwards == pytest.approx(len(RECIPES))
    score(llama, RECIPES, prepared, work=(shared := Work()))
    assert 1 < shared.forwards < len(RECIPES) - 0.2


def test_forwards_that_there_is_no_room_for_are_cut_and_put_together(
    llama: Pair, prepared: list[Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = score(llama, RECIPES, prepared, work=(once := Work()))
    cuts: list[int] = []

    def little(pair: Pair, recipes: list[Recipe], reads: Reads) -> list[Part]:
        found = parts_of_recipes(pair, recipes, reads, budget=Budget(bytes=6_000))
        cuts.append(len(found))
        return found

    monkeypatch.setattr(many, "parts_of_recipes", little)
    cut, _ = score(llama, RECIPES, prepared, work=(parts := Work()))
    np.testing.assert_allclose(cut, whole, atol=CLOSE)
    assert max(cuts) > 1 and parts.forwards == pytest.approx(once.forwards, rel=0.2)


def test_positions_are_refused_before_anything_runs_where_no_batch_says_where_they_are(llama: Pair, prepared: list[Prepared]) -> None:
    fine = parse_recipe("base; graft attn <- tuned; ablate L0.mlp @last")
    assert score(llama, [fine], prepared)[1] == 5
    with pytest.raises(RecipeError, match=r"'ablate L0.mlp @last' writes at positions, and a graft of this recipe is not whole"):
        score(llama, [fine, parse_recipe("base; graft attn <- tuned x0.5; ablate L0.mlp @last")], prepared)


def test_small_results_leave_the_device_many_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the CPU; the meta device stands for a GPU, and hands out what it never computed."""
    seen: list[list[int]] = []

    def moved(waiting: list) -> list:
        seen.append([i for i, _ in waiting])
        return [(i, np.zeros(2)) for i, _ in waiting]

    monkeypatch.setattr(pieces, "_moved", moved)
    monkeypatch.setattr(pieces, "AT_ONCE", 3)
    assert [i for i, _ in off_device((i, torch.zeros(2, device="meta")) for i in range(7))] == list(range(7))
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]
    seen.clear()
    list(off_device((i, torch.zeros(2)) for i in range(2)))
    assert seen == [[0], [1]]
