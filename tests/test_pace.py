"""How much is run at a time: a pair carries its budget, everything that runs recipes keeps to it, and what suits a machine is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from taia_lens.batch import Batch
from taia_lens.budget import Budget
from taia_lens.engine import Pace, Reads, measure_pace, pace, plan_recipes, run_recipes, run_scales
from taia_lens.engine.blocks import Blocks
from taia_lens.errors import TaiaLensError
from taia_lens.pair import Pair
from taia_lens.recipe import Patch, Recipe
from taia_lens.scales import Scales
from taia_lens.sites import Site


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each call of a block."""
    seen: list[int] = []
    run = Blocks.run

    def counting(self: Blocks, layer: int, stream: Tensor, *rest: object) -> object:
        seen.append(stream.shape[0] * stream.shape[1])
        return run(self, layer, stream, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Blocks, "run", counting)
    return seen


def patches(pair: Pair) -> list[Recipe]:
    return [Recipe("base", (Patch(Site(c, layer), "tuned"),)) for layer in range(pair.shape.n_layers) for c in ("attn", "mlp")]


def test_recipes_keep_to_the_pairs_own_budget(llama: Pair, batch: Batch, calls: list[int]) -> None:
    reads, recipes = Reads.last(batch), patches(llama)
    width = batch.tokens.shape[1]
    small = replace(llama, budget=Budget(tokens=4 * width))
    found, large = dict(run_recipes(small, recipes, reads)), max(calls)
    assert large == 4 * width
    calls.clear()
    for i, logits in run_recipes(llama, recipes, reads):
        torch.testing.assert_close(found[i], logits)
    assert max(calls) > 4 * width
    calls.clear()
    dict(run_recipes(small, recipes, reads, budget=Budget(tokens=width)))  # what is said at a call goes before
    assert max(calls) == width
    assert len(plan_recipes(small, recipes, reads).steps) > len(plan_recipes(llama, recipes, reads).steps)


def test_scales_keep_to_the_budget_of_the_side_that_they_are_read_on(llama: Pair, batch: Batch, calls: list[int]) -> None:
    width = batch.tokens.shape[1]
    side = replace(llama, budget=Budget(tokens=2 * width)).loaded("base")
    shape = llama.shape
    gains = [Scales((Site("head", 1, head),), torch.ones(1, shape.d_head), torch.zeros(1, shape.d_head)) for head in (0, 1)]
    dict(run_scales(side, [None, *gains], Reads.last(batch)))
    assert max(calls) == 2 * width


@pytest.mark.parametrize(
    ("seconds", "tokens"),
    [
        ({400: 2.0, 1500: 1.0, 3000: 0.97}, 1500),  # the default, where it is as good as any
        ({400: 0.98, 1500: 1.0, 3000: 1.3}, 1500),
        ({1500: 1.0, 3000: 0.8, 6000: 0.79}, 3000),  # the fewest of those that are as good as the fastest
        ({400: 1.0, 800: 0.99, 1500: 2.0}, 400),
        ({100: 1.0, 200: 0.5}, 200),
    ],
)
def test_what_is_advised_is_near_the_fastest_and_the_default_where_that_is(seconds: dict[int, float], tokens: int) -> None:
    assert Pace(seconds).tokens == tokens


def costing(cost: Callable[[int], float], asked: list[int]) -> Callable[[object, int, int], float]:
    def seconds(model: object, size: int, width: int) -> float:
        asked.append(size)
        return cost(size)

    return seconds


def test_larger_calls_are_not_tried_once_they_only_get_slower(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(pace, "_seconds", costing(lambda size: 1.0 if size <= 1500 else 1.3, asked))
    assert list(measure_pace(llama.loaded("base"), rounds=1).seconds) == asked == [400, 800, 1500, 3000, 6000]


def test_calls_that_memory_has_no_room_for_are_left_out(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(size: int) -> float:
        if size > 1500:
            raise torch.OutOfMemoryError
        return 1 / size

    monkeypatch.setattr(pace, "_seconds", costing(cost, []))
    found = measure_pace(llama.loaded("base"))
    assert list(found.seconds) == [400, 800, 1500]
    assert found.tokens == 1500
    monkeypatch.setattr(pace, "_seconds", costing(lambda size: cost(10_000), []))
    with pytest.raises(torch.OutOfMemoryError):
        measure_pace(llama.loaded("base"))


def test_what_cannot_be_measured_is_refused(llama: Pair) -> None:
    with pytest.raises(TaiaLensError, match=r"recipes share no work on this model, .*: it is odd"):
        measure_pace(replace(llama.loaded("base"), plain_because="it is odd"))
    for asked in ({"sizes": ()}, {"sizes": (16, 400)}, {"width": 500}, {"rounds": 0}):
        with pytest.raises(TaiaLensError, match="write sizes of a row at least, and 1 round or more"):
            measure_pace(llama.loaded("base"), **asked)


def test_a_token_costs_more_alone_than_among_many(llama: Pair, calls: list[int]) -> None:
    found = measure_pace(llama.loaded("base"), sizes=(32, 1504), rounds=3)
    assert set(calls) == {32, 1504}
    assert found.seconds[32] > 1.5 * found.seconds[1504]
