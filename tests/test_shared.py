"""Law 5: work shared gives the plain plan's numbers, for random recipes, on every architecture; and nothing of it stays behind."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, D_VOCAB, N_HEADS, N_LAYERS, make
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_laws import hooks_left, parameters, same
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from taia_lens.batch import NO_TOKEN, Batch
from taia_lens.budget import Budget
from taia_lens.check import probe
from taia_lens.engine import Reads, evaluate, parts_of_recipes, plan_recipes, run_recipes, run_scales
from taia_lens.engine import blocks as engine_blocks
from taia_lens.engine.plan import Step
from taia_lens.errors import RecipeError, SiteError, TaiaLensError, out_of_memory
from taia_lens.loaded import Loaded
from taia_lens.loading import load_one, load_pair
from taia_lens.metrics import LOCAL, Context, measure, reads_of
from taia_lens.pair import Pair
from taia_lens.recipe import Ablate, Edit, Graft, Patch, Recipe, Scale, Side, other
from taia_lens.recipe_text import parse_recipe
from taia_lens.scales import Scales, save_scales
from taia_lens.sites import Site

# Float32 rounds at 1.2e-7 of logits up to about 2; stacking rows may change the order of a sum, and three layers add it up.
ROUNDING = 4e-6


@pytest.fixture(scope="module")
def reads() -> Reads:
    """Four prompts of different lengths, whose last position is read."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([5, 5, 7, 9])
    tokens = torch.randint(4, D_VOCAB, (4, 9), generator=generator)
    return Reads.last(Batch.of(tokens, torch.arange(9) < lengths[:, None]))


def read(pair: Pair, recipes: list[Recipe], reads: Reads, **options: Any) -> list[Tensor]:
    found = dict(run_recipes(pair, recipes, reads, **options))
    assert sorted(found) == list(range(len(recipes)))
    return [found[i] for i in range(len(recipes))]


def hold(pair: Pair, recipes: list[Recipe], reads: Reads, **options: Any) -> None:
    """Shared and plain agree."""
    plain = read(pair, recipes, reads, plan="plain")
    for recipe, ours, theirs in zip(recipes, read(pair, recipes, reads, **options), plain, strict=True):
        assert (ours - theirs).abs().max() <= ROUNDING, str(recipe)


# Random recipes

LAYERS = st.integers(0, N_LAYERS - 1)
SIDES = st.sampled_from(("base", "tuned"))
POSITIONS = st.sampled_from(("all", "all", "last", (0,), (2,), (3, 4), (-2,), (-1, 1)))
SITES = st.one_of(
    st.builds(Site, st.sampled_from(("attn", "mlp", "resid")), LAYERS),
    st.builds(Site, st.just("head"), LAYERS, st.integers(0, N_HEADS - 1)),
    st.just(Site("embed")),
)
WRITES = st.one_of(
    st.builds(Patch, SITES, SIDES, POSITIONS),
    st.builds(Ablate, SITES, POSITIONS),
    st.builds(Scale, SITES, st.sampled_from((-1.0, 0.5)), st.sampled_from((0.0, 0.25)), POSITIONS),
)


@st.composite
def edits(draw: Callable[..., Any], host: Side) -> tuple[Edit, ...]:
    source = other(host)
    cells = draw(st.sets(st.tuples(st.sampled_from(("attn", "mlp", "norms", "attn.q", "mlp.down", "h1")), LAYERS), max_size=3))
    found: list[Edit] = []
    for name, layer in sorted(cells):
        component, _, part = name.partition(".")
        times = draw(st.sampled_from((1.0, 1.0, 0.5)))
        heads = (1,) if component == "h1" else None
        found.append(Graft("head" if heads else component, source, (layer,), part or None, heads, times))
    if draw(st.integers(0, 3)) == 0:
        found += [Graft("embed", source), Graft("unembed", source)]
    return (*found, *draw(st.lists(WRITES, max_size=2)))


RECIPES = st.lists(SIDES.flatmap(lambda host: st.builds(Recipe, st.just(host), edits(host))), min_size=3, max_size=12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(recipes=RECIPES, tokens=st.sampled_from((1500, 90, 7)), size=st.sampled_from((2**29, 1)))
@settings(max_examples=8, deadline=None)
def test_sharing_work_changes_no_number(
    architecture: str, pair_of: Callable[[str], Pair], reads: Reads, recipes: list[Recipe], tokens: int, size: int
) -> None:
    pair = pair_of(architecture)
    fitting = [Recipe("base"), Recipe("tuned")]
    for recipe in recipes:
        try:
            plan_recipes(pair, [recipe], reads)
        except RecipeError:  # two of its grafts overlap, or the architecture has no such projection
            continue
        fitting.append(recipe)
    hold(pair, fitting, reads, budget=Budget(tokens, size))


SWEEPS: dict[str, list[str]] = {
    "outputs": [f"base; patch L{i}.{c} <- tuned" for i in range(N_LAYERS) for c in ("attn", "mlp", "resid")],
    "heads": [f"base; patch L{i}.h{h} <- tuned" for i in range(N_LAYERS) for h in range(N_HEADS)],
    "positions": [f"base; patch L{i}.{c} <- tuned @{p}" for i in range(N_LAYERS) for c in ("attn", "mlp") for p in (0, 2, 4, -1)],
    "prefixes": [f"base; graft L0-{i}.{c} <- tuned" for i in range(N_LAYERS) for c in ("attn", "mlp")],
    "without": [f"tuned; graft L{i}.{c} <- base" for i in range(N_LAYERS) for c in ("attn", "mlp")],
    "tuned as host": [f"tuned; patch L{i}.mlp <- base @last" for i in range(N_LAYERS)],
    "drawn": [f"base; graft all <- tuned keep 0.5 seed {i}" for i in range(3)],
}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_sweeps_of_the_studies_give_the_plain_plans_numbers(pair: Pair, reads: Reads, sweep: str) -> None:
    recipes = [parse_recipe(text) for text in SWEEPS[sweep]]
    hold(pair, recipes, reads)
    found = read(pair, recipes, reads)
    assert (found[0] - found[-1]).abs().max() > 1e-4  # and they are not all one


def test_every_architecture_shares(pair: Pair) -> None:
    assert pair.report.plain_because == "" and pair.loaded("base").plain_because == ""


@pytest.mark.parametrize("budget", [Budget(), Budget(tokens=5, bytes=1)], ids=["whole", "a row at a time"])
def test_spans_are_read_at_many_positions(llama: Pair, reads: Reads, budget: Budget) -> None:
    batch = reads.batch
    rows, positions = batch.mask.nonzero(as_tuple=True)
    many = Reads(batch, rows, positions, batch.tokens[rows, positions])
    recipes = [parse_recipe(text) for texts in SWEEPS.values() for text in texts]
    hold(llama, recipes, many, budget=budget)
    some = Reads(batch, rows[::3], positions[::3])
    hold(llama, recipes, some, budget=budget)


def test_only_the_columns_that_are_wanted_are_unembedded(pair: Pair, reads: Reads) -> None:
    columns = torch.tensor([40, 3, 17])
    some = dataclasses.replace(reads, columns=columns)
    recipes = [parse_recipe(text) for text in ("base", "base; graft all <- tuned x0.5", *SWEEPS["outputs"])]
    hold(pair, recipes, some)
    whole = read(pair, recipes, reads)
    for ours, all_logits in zip(read(pair, recipes, some), whole, strict=True):
        assert ours.shape == (4, 3) and (ours - all_logits[:, columns]).abs().max() <= ROUNDING
        assert (ours - all_logits[:, :3]).abs().max() > 1e-3


# What recipes that part late share: each of these begins like another, and goes on differently in the same layer.
HEADS = [f"{verb} L1.h{h}{rest}" for h in (0, 1) for verb, rest in (("ablate", ""), ("scale", " a=0.5 v=0.25"))]
OUTPUTS = [
    "ablate L1.attn",
    "patch L1.mlp <- {donor}",
    "patch L1.resid <- {donor} @last",
    "patch L1.attn <- {donor} @2",
    "scale L1.mlp a=0.5 v=0.0",
]
AFTER = ["", "ablate L2.attn", "graft L2.mlp <- {donor}"]
BEFORE = ["", "graft L0.mlp <- {donor}", "graft L1.mlp <- {donor}", "graft L1.attn <- {donor}"]


def colliding() -> list[Recipe]:
    middles = ["", *HEADS, *OUTPUTS, *(f"{head}; {output}" for head in HEADS[:2] for output in OUTPUTS)]
    lines = [[before, middle, after] for before in BEFORE for middle in middles for after in AFTER]
    donors = {"base": "tuned", "tuned": "base"}
    return [parse_recipe("; ".join([host, *filter(None, line)]).format(donor=donors[host])) for host in donors for line in lines]


@pytest.mark.parametrize("budget", [Budget(), Budget(60, 1)], ids=["whole", "tight"])
def test_recipes_that_share_a_layer_and_differ_in_it(pair: Pair, reads: Reads, budget: Budget) -> None:
    recipes = colliding()
    assert len(recipes) > 300
    hold(pair, recipes[:: 3 if budget == Budget() else 11], reads, budget=budget)


@pytest.mark.parametrize("component", ["head", "attn", "mlp"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_a_pair_whose_tuned_side_is_scales_is_shared_too(
    architecture: str, component: str, reads: Reads, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    base = load_one(make(architecture, 0), tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(0)
    sites = tuple(Site(component, layer, head) for layer in (0, 1) for head in ((0, 2) if component == "head" else (None,)))
    width = 8 if component == "head" else 32
    made = {"fingerprint": base.fingerprint, "model": base.name, "dtype": base.dtype}
    scales = Scales(sites, *(0.5 * torch.randn(len(sites), width, generator=generator) for _ in range(2)), made)
    pair = load_pair(make(architecture, 0), save_scales(tmp_path / "scales", scales), tokenizer=tokenizer)
    assert pair.report.plain_because == ""
    hold(pair, [*colliding()[::5], *(parse_recipe(text) for texts in SWEEPS.values() for text in texts if "mlp.down" not in text)], reads)


@pytest.mark.parametrize("component", ["head", "attn", "mlp", "resid"])
def test_scales_of_one_model_are_shared_too(pair: Pair, reads: Reads, component: str) -> None:
    model = pair.loaded("base")
    generator = torch.Generator().manual_seed(0)
    width = 8 if component == "head" else 32
    sets: list[Scales | None] = [None]
    for layers in ((0,), (1,), (1, 2), (0, 1, 2)):
        sites = tuple(Site(component, layer, head) for layer in layers for head in ((0, 2) if component == "head" else (None,)))
        sets.append(Scales(sites, *(0.5 * torch.randn(len(sites), width, generator=generator) for _ in range(2))))
    plain, shared = (dict(run_scales(model, sets, reads, plan=way)) for way in ("plain", "shared"))
    for i in range(len(sets)):
        assert (plain[i] - shared[i]).abs().max() <= ROUNDING
        assert i == 0 or (plain[i] - plain[0]).abs().max() > 1e-3


def test_activations_that_the_caller_brings_are_patched(llama: Pair, reads: Reads) -> None:
    site = Site("mlp", 1)
    from taia_lens.engine import Run, run_plain

    run = run_plain(llama.tuned, reads.batch, [site.hook])
    recipes = [Recipe("base", (Patch(site, "tuned"),))]
    zero = {"tuned": Run(run.logits, {site.hook: torch.zeros_like(run.acts[site.hook])})}
    assert torch.equal(*(read(llama, recipes, reads, donors=d)[0] for d in ({"tuned": run}, None)))
    assert torch.equal(read(llama, recipes, reads, donors=zero)[0], read(llama, [Recipe("base", (Ablate(site),))], reads)[0])


def test_recipes_without_edits_come_first(llama: Pair, reads: Reads) -> None:
    recipes = [parse_recipe(text) for text in ("base; ablate L0.mlp", "tuned", "base; graft L2.attn <- tuned", "base")]
    everything = "; ".join(f"graft {c} <- base" for c in ("attn", "mlp", "norms", "embed", "unembed"))
    recipes.append(parse_recipe(f"tuned; {everything}"))  # the same as base, and not said so
    assert {i for i, _ in list(run_recipes(llama, recipes, reads))[:2]} == {1, 3}


def test_nothing_is_in_force_while_the_caller_has_its_turn(llama: Pair, reads: Reads) -> None:
    before = {side: parameters(llama.side(side)) for side in ("base", "tuned")}
    recipes = [parse_recipe(text) for text in ("base", "tuned", *SWEEPS["prefixes"], *SWEEPS["outputs"])]
    with torch.enable_grad():
        for _ in run_recipes(llama, recipes, reads, budget=Budget(tokens=40, bytes=1)):
            assert torch.is_grad_enabled()
            assert all(same(before[side], parameters(llama.side(side))) and hooks_left(llama.side(side)) == [] for side in before)


def test_leaves_that_are_read_with_other_weights_share_their_stream(llama: Pair, reads: Reads) -> None:
    hold(
        llama,
        [parse_recipe(f"base; graft L1.mlp <- tuned{tail}") for tail in ("", "; graft unembed <- tuned", "; graft norms <- tuned")],
        reads,
    )
    hold(llama, [parse_recipe("base; graft unembed <- tuned"), Recipe("base")], reads)


# The plan: what is computed, and how much


def blocks_of(pair: Pair, texts: list[str], reads: Reads) -> list[Step]:
    plan = plan_recipes(pair, [parse_recipe(text) for text in texts], reads)
    return [step for step in plan.steps if isinstance(step, Step)]


def test_an_mlp_patch_runs_no_module_of_its_own_layer(llama: Pair, reads: Reads) -> None:
    steps = blocks_of(llama, ["base", "base; patch L1.mlp <- tuned"], reads)
    assert [step.layer for step in steps] == [1, 2]
    (own,), (after,) = (step.rows for step in steps)
    assert (own.attn_of, own.mlp_of) == ("base", "base") and (after.attn_of, after.mlp_of) == (None, None)


def test_a_patch_at_late_positions_runs_no_position_before(llama: Pair, reads: Reads) -> None:
    steps = blocks_of(llama, ["base", "base; patch L0.mlp <- tuned @4", "base; patch L0.attn <- tuned @3,4"], reads)
    assert {step.start for step in steps} == {3, 4} and {step.prefix for step in steps} == {"base"}


def test_a_position_that_is_read_before_the_patch_is_run(llama: Pair, reads: Reads) -> None:
    early = Reads(reads.batch, reads.rows, torch.full_like(reads.positions, 2))
    assert {step.start for step in blocks_of(llama, ["base", "base; patch L0.mlp <- tuned @4"], early)} == {2}
    hold(llama, [Recipe("base"), parse_recipe("base; patch L0.mlp <- tuned @4")], early)


def test_recipes_that_agree_on_their_first_layers_share_them(llama: Pair, reads: Reads) -> None:
    texts = ["base; graft L0.mlp <- tuned; graft L2.mlp <- tuned", "base; graft L0.mlp <- tuned; graft L2.attn <- tuned"]
    assert [(step.layer, len(step.rows)) for step in blocks_of(llama, texts, reads)] == [(0, 1), (1, 1), (2, 1), (2, 1)]


def test_the_same_model_said_in_two_ways_is_run_once(llama: Pair, reads: Reads) -> None:
    everything = "; ".join(f"graft {c} <- tuned" for c in ("attn", "mlp", "norms", "embed", "unembed"))
    assert blocks_of(llama, ["tuned", f"base; {everything}"], reads) == []
    rest = "tuned; graft mlp <- base; graft norms <- base; graft embed <- base; graft unembed <- base"
    assert len(blocks_of(llama, ["base; graft attn <- tuned", rest], reads)) == N_LAYERS


def test_an_end_that_only_the_first_layer_leaves_is_not_run(llama: Pair, reads: Reads) -> None:
    recipes = [parse_recipe("base; graft attn <- tuned")]
    plan = plan_recipes(llama, recipes, reads)
    assert not any(needs.whole for needs in plan.ends.values()) and plan.work <= 1


def operations(run: Callable[[], object]) -> int:
    """Multiplications and additions of all matrix products inside."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("component", ["attn", "mlp"])
def test_the_plan_says_the_work_that_is_done(llama: Pair, reads: Reads, component: str) -> None:
    recipes = [Recipe("base"), Recipe("tuned"), *(parse_recipe(f"base; patch L{i}.{component} <- tuned") for i in range(N_LAYERS))]
    recipes += [parse_recipe("base; graft attn <- tuned"), parse_recipe("base; graft L0.mlp <- tuned")]
    forward = operations(lambda: reads.run(llama.base))
    shared = operations(lambda: dict(run_recipes(llama, recipes, reads))) / forward
    plain = operations(lambda: dict(run_recipes(llama, recipes, reads, plan="plain"))) / forward
    assert plain == pytest.approx(len(recipes) + 1, rel=0.01)  # and one for the donor's activations
    assert shared < 0.7 * plain
    # The models are called on next to nothing a few times more, to record what they give their blocks; and the plan counts no scores
    # of attention, which are a small part of a forward.
    assert plan_recipes(llama, recipes, reads).work == pytest.approx(shared, rel=0.06)


def test_a_budget_that_holds_nothing_is_refused() -> None:
    with pytest.raises(TaiaLensError, match="a budget of 0 tokens and 5 bytes; write 1 or more of both"):
        Budget(0, 5)


# Memory


class Alive(TorchDispatchMode):
    """The most bytes, of all storages made inside, that were alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.refs: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.refs = {key: (ref, size) for key, (ref, size) in self.refs.items() if not ref.expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.refs[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, sum(size for _, size in self.refs.values()))
        return out


@pytest.mark.parametrize("size", [2**29, 12 * 64 * 40 * 32 * 4], ids=["roomy", "tight"])
def test_memory_stays_within_what_the_plan_says(llama: Pair, size: int) -> None:
    tokens = torch.randint(4, D_VOCAB, (64, 40), generator=torch.Generator().manual_seed(0))
    reads = Reads.last(Batch.of(tokens, torch.ones_like(tokens, dtype=torch.bool)))
    texts = [f"base; patch L{i}.h{h} <- tuned" for i in range(N_LAYERS) for h in range(N_HEADS)]
    recipes = [Recipe("base"), Recipe("tuned"), *(parse_recipe(text) for text in [*texts, *SWEEPS["prefixes"], *SWEEPS["without"]])]
    budget = Budget(400, size)
    plan = plan_recipes(llama, recipes, reads, budget=budget)
    node = 64 * 40 * 32 * 4
    assert plan.peak * node <= size
    assert size > 2**28 or plan.peak < 12 < plan_recipes(llama, recipes, reads).peak  # the tight one binds
    gc.collect()
    with Alive() as alive:
        found = dict(run_recipes(llama, recipes, reads, budget=budget))
    answers = sum(t.numel() * 4 for t in found.values())
    calls = 6 * 64 * 40 * 40 * 4  # masks and what one call of a block holds on 400 tokens: scores of every head, the FFN's hidden layer
    assert alive.most <= plan.bytes + 4 * node + answers + calls
    assert alive.most > plan.bytes // 4  # and what the plan says is not far more than what there is


def test_what_is_held_besides_the_models_is_the_budget_and_one_call(llama: Pair) -> None:
    tokens = torch.randint(4, D_VOCAB, (16, 40), generator=torch.Generator().manual_seed(0))
    reads = Reads.last(Batch.of(tokens, torch.ones_like(tokens, dtype=torch.bool)))
    recipes = [
        Recipe("base"),
        Recipe("tuned"),
        *(parse_recipe(text) for text in [*SWEEPS["heads"], *SWEEPS["prefixes"]]),
    ]
    call = 6 * 10 * 4 * 40 * 40 * 4  # what one call of a block holds on 400 tokens: masks, scores of every head, the hidden layer

    def most(budget: Budget) -> int:
        """The most that is alive in any part, whose answers a caller drops as they come."""
        found = []
        for part in parts_of_recipes(llama, recipes, reads, budget=budget):
            gc.collect()
            with Alive() as alive:
                for _ in part.run():
                    pass
            node, logits = part.reads.batch.tokens.numel() * 32 * 4, len(recipes) * len(part.reads.rows) * D_VOCAB * 4
            found.append(alive.most - 4 * node - logits)
        return max(found)

    room = 2**19
    assert most(Budget(400, room)) <= room + call
    assert most(Budget(400)) > room + call  # the control: without it, more is held


@pytest.mark.parametrize("nodes", [12, 24])
def test_a_deep_trie_keeps_within_its_budget(llama: Pair, reads: Reads, nodes: int) -> None:
    drawn = torch.rand(80, N_LAYERS, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    recipes = [
        Recipe("base", tuple(Graft(("attn", "mlp")[i], "tuned", (layer,)) for layer in range(N_LAYERS) for i in (0, 1) if mask[layer][i]))
        for mask in drawn.tolist()
    ]
    node = 4 * 9 * 32 * 4
    plan = plan_recipes(llama, recipes, reads, budget=Budget(bytes=nodes * node))
    assert plan.bytes <= (nodes + 3 * N_LAYERS) * node < plan_recipes(llama, recipes, reads).bytes


@pytest.mark.parametrize("nodes", [10, 200])
def test_rows_are_cut_into_parts_that_the_budget_holds(llama: Pair, reads: Reads, nodes: int) -> None:
    recipes = [Recipe("base"), Recipe("tuned"), *(parse_recipe(f"base; patch L{i}.attn <- tuned") for i in range(N_LAYERS))]
    budget = Budget(bytes=nodes * 9 * 32 * 4)  # so many of one row
    parts = parts_of_recipes(llama, recipes, reads, budget=budget)
    assert len(parts) == {10: 4, 200: 1}[nodes]
    for part in parts:
        plan = plan_recipes(llama, recipes, part.reads, budget=budget)
        assert plan.work == part.work and (plan.bytes <= budget.bytes or len(part.reads.batch.rows) == 1)
    found = [dict(part.run()) for part in parts]
    whole = dict(run_recipes(llama, recipes, reads))
    for i, logits in whole.items():
        assert (torch.cat([one[i] for one in found]) - logits).abs().max() <= ROUNDING
    spans = Reads(reads.batch, torch.tensor([0, 0, 1, 2, 3]), torch.tensor([1, 2, 3, 0, 8]), torch.tensor([5, 6, 7, 8, 9]))
    cut = [dict(part.run()) for part in parts_of_recipes(llama, recipes, spans, budget=budget)]
    assert (torch.cat([one[3] for one in cut]) - dict(run_recipes(llama, recipes, spans))[3]).abs().max() <= ROUNDING


# Nothing stays behind


@pytest.mark.parametrize("raised", [None, RuntimeError, KeyboardInterrupt])
def test_everything_is_as_before(pair: Pair, reads: Reads, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException] | None) -> None:
    before = {side: parameters(pair.side(side)) for side in ("base", "tuned")}
    modules = {side: [dict(vars(m)) for m in pair.side(side).modules()] for side in ("base", "tuned")}
    recipes = [parse_recipe(text) for text in ("base; graft L0.attn <- tuned; patch L1.mlp <- tuned", "base; patch L2.h1 <- tuned @last")]
    if raised is not None:
        run, calls = engine_blocks.Blocks.run, iter(range(100))

        def failing(self: Any, layer: int, *args: Any) -> Any:
            if next(calls) == 8:
                raise raised
            return run(self, layer, *args)

        monkeypatch.setattr(engine_blocks.Blocks, "run", failing)
        with pytest.raises(raised):
            read(pair, recipes, reads)
    else:
        read(pair, recipes, reads)
    for side in ("base", "tuned"):
        assert same(before[side], parameters(pair.side(side)))
        assert hooks_left(pair.side(side)) == []
        now = [vars(m) for m in pair.side(side).modules()]
        assert [("forward" in m) for m in now] == [("forward" in m) for m in modules[side]]


def test_where_memory_runs_out_half_as_much_is_run_at_a_time(llama: Pair, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [parse_recipe(text) for text in SWEEPS["heads"]]
    want = read(llama, recipes, reads)
    run, sizes = engine_blocks.Blocks.run, list[int]()

    def small(self: Any, layer: int, stream: Tensor, *args: Any) -> Any:
        if stream.shape[0] > 3:
            raise torch.OutOfMemoryError("no room")
        sizes.append(stream.shape[0])
        return run(self, layer, stream, *args)

    def late(self: Any, layer: int, stream: Tensor, *args: Any) -> Any:
        out = run(self, layer, stream, *args)  # its hooks have fired when memory runs out
        if stream.shape[0] > 3:
            raise torch.OutOfMemoryError("no room")
        return out

    monkeypatch.setattr(engine_blocks.Blocks, "run", late)
    assert all((a - b).abs().max() <= ROUNDING for a, b in zip(want, read(llama, recipes, reads), strict=True))
    monkeypatch.setattr(engine_blocks.Blocks, "run", small)
    got = read(llama, recipes, reads)
    assert max(sizes) <= 3 and all((a - b).abs().max() <= ROUNDING for a, b in zip(want, got, strict=True))

    def none(*args: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(engine_blocks.Blocks, "run", none)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        read(llama, recipes, reads)


def test_where_memory_runs_out_for_logits_half_as_many_leaves_are_read(llama: Pair, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [parse_recipe(text) for text in SWEEPS["heads"]]
    want = read(llama, recipes, reads)
    whole, sizes = engine_blocks.Blocks.read, list[int]()

    def small(self: Any, streams: Tensor, *args: Any) -> Any:
        if len(streams) > 2 * len(reads.rows):
            torch.empty(2**50)  # what the CPU itself says
        sizes.append(len(streams))
        return whole(self, streams, *args)

    monkeypatch.setattr(engine_blocks.Blocks, "read", small)
    assert all((a - b).abs().max() <= ROUNDING for a, b in zip(want, read(llama, recipes, reads), strict=True))
    assert max(sizes) == 2 * len(reads.rows)
    monkeypatch.setattr(engine_blocks.Blocks, "read", lambda *args: torch.empty(2**50))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        read(llama, recipes, reads)


@pytest.mark.parametrize("words", ["MPS backend out of memory (MPS allocated: 1 GB)", "DefaultCPUAllocator: not enough memory"])
def test_out_of_memory_is_known_by_torchs_words(words: str) -> None:
    assert out_of_memory(RuntimeError(words)) and out_of_memory(torch.OutOfMemoryError())
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# Where sharing would be wrong, it is not done, and the reason is said


class Mixing(torch.nn.Module):
    """An FFN that looks at the other rows of its batch, as no language model's should."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, stream: Tensor) -> Tensor:
        out: Tensor = self.inner(stream)
        return out + 0.5 * out.mean(0, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_rows_read_each_other_is_run_one_by_one(tokenizer: PreTrainedTokenizerBase, reads: Reads, dtype: torch.dtype) -> None:
    models = [make("llama", seed).to(dtype) for seed in (0, 1)]
    for model in models:
        for layer in model.model.layers:
            layer.mlp.down_proj = Mixing(layer.mlp.down_proj)
    from taia_lens.loading import inspect_pair

    pair = inspect_pair(*models, tokenizer=tokenizer)
    assert "with work shared, logits differ by" in pair.report.plain_because
    assert any(pair.report.plain_because in note for note in pair.report.notes)
    recipes = [Recipe("base"), parse_recipe("base; patch L1.mlp <- tuned")]
    for ours, theirs in zip(read(pair, recipes, reads), read(pair, recipes, reads, plan="plain"), strict=True):
        assert torch.equal(ours, theirs)


def test_nan_is_no_agreement(llama: Pair, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    read_streams = engine_blocks.Blocks.read

    def spoiled(self: Any, streams: Tensor, columns: Tensor | None = None) -> Tensor:
        out = read_streams(self, streams, columns)
        out[-1] = torch.nan
        return out

    monkeypatch.setattr(engine_blocks.Blocks, "read", spoiled)
    assert "differ by nan" in load_pair(make("llama", 0), make("llama", 1), tokenizer=tokenizer).report.plain_because


def test_a_model_whose_blocks_cannot_be_called_alone_is_run_one_by_one(
    llama: Pair, reads: Reads, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    def refuse(*args: Any) -> Any:
        raise TypeError("forward() missing 1 required argument: 'per_layer_input'")

    monkeypatch.setattr(engine_blocks.Blocks, "run", refuse)
    pair = load_pair(make("llama", 0), make("llama", 1), tokenizer=tokenizer)
    assert pair.report.plain_because.startswith("its blocks cannot be run by themselves (forward() missing 1 required argument")
    assert len(read(pair, [Recipe("base"), Recipe("tuned")], reads)) == 2


def test_a_modules_own_hook_of_the_users_sees_each_row_once(llama: Pair, reads: Reads) -> None:
    base, tuned = copy.deepcopy(llama.base), copy.deepcopy(llama.tuned)
    pair = Pair(base, tuned, llama.tokenizer, llama.origin, llama.differences, llama.changed, llama.report)
    recipes = [parse_recipe(f"base; patch L{i}.mlp <- tuned") for i in range(N_LAYERS)]
    before = read(pair, recipes, reads)
    base.blocks[-1].register_forward_hook(lambda module, args, out: (out[0] + 1, *out[1:]) if isinstance(out, tuple) else out + 1)
    plain = read(pair, recipes, reads, plan="plain")
    for ours, theirs, unhooked in zip(read(pair, recipes, reads), plain, before, strict=True):
        assert torch.equal(ours, theirs) and not torch.allclose(ours, unhooked)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_sharing_changes_no_number_in_bfloat16(architecture: str, tokenizer: PreTrainedTokenizerBase, reads: Reads) -> None:
    pair = load_pair(*(make(architecture, seed).to(torch.bfloat16) for seed in (0, 1)), tokenizer=tokenizer)
    assert pair.report.plain_because == ""
    recipes = [Recipe("base"), *(parse_recipe(f"base; patch L{i}.{c} <- tuned") for i in range(N_LAYERS) for c in ("attn", "mlp"))]
    shared, plain = (torch.stack(list(read(pair, recipes, reads, plan=plan))).double() for plan in ("shared", "plain"))
    effects = (plain[1:] - plain[0]).abs().amax((1, 2))
    # bfloat16 has 8 bits: rounding is a few percent of what a patch does here, and a patch left out is all of it.
    assert ((shared - plain)[1:].abs().amax((1, 2)) < 0.25 * effects).all()


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3"])
def test_a_window_that_slides_is_seen_by_shared_work(architecture: str, tokenizer: PreTrainedTokenizerBase, reads: Reads) -> None:
    narrow, wide = (
        load_pair(*(make(architecture, seed, sliding_window=size) for seed in (0, 1)), tokenizer=tokenizer) for size in (3, 4096)
    )
    texts = [f"base; patch L{i}.{c} <- tuned{at}" for i in range(N_LAYERS) for c, at in (("attn", ""), ("mlp", " @4"), ("h1", " @-1"))]
    recipes = [Recipe("base"), Recipe("tuned"), *(parse_recipe(text) for text in texts)]
    hold(narrow, recipes, reads)
    a, b = (read(pair, recipes[:1], reads, plan="plain")[0] for pair in (narrow, wide))
    assert (a - b).abs().max() > 100 * ROUNDING  # the window binds


def test_a_model_that_the_user_hung_hooks_in_is_run_one_by_one(llama: Pair, reads: Reads) -> None:
    base, tuned = copy.deepcopy(llama.base), copy.deepcopy(llama.tuned)
    pair = Pair(base, tuned, llama.tokenizer, llama.origin, llama.differences, llama.changed, llama.report)
    rows: list[int] = []
    base.add_hook("blocks.2.hook_mlp_out", lambda act, hook: rows.append(len(act)))
    recipes = [parse_recipe(f"base; patch L{i}.mlp <- tuned") for i in range(N_LAYERS)]
    read(pair, recipes, reads)
    assert rows == [4, 4, 4]
    read(llama, recipes, reads)
    assert rows == [4, 4, 4]


def test_a_pair_that_was_not_checked_shares_nothing(llama: Pair, reads: Reads) -> None:
    pair = dataclasses.replace(llama, report=type(llama.report)())
    assert pair.report.plain_because == "the pair was not checked"
    assert Loaded(llama.base, llama.tokenizer, "x").plain_because == "the model was not checked"
    recipe = parse_recipe("base; patch L1.mlp <- tuned")
    assert torch.equal(read(pair, [recipe], reads)[0], read(pair, [recipe], reads, plan="plain")[0])


@pytest.mark.parametrize("text", ["base; patch L0.mlp <- tuned @40", "base; patch L7.mlp <- tuned", "base; graft attn <- base"])
def test_what_does_not_exist_is_refused_before_anything_runs(llama: Pair, reads: Reads, text: str) -> None:
    with pytest.raises((SiteError, RecipeError)):
        list(run_recipes(llama, [parse_recipe(text)], reads))


def test_evaluate_takes_the_plan(llama: Pair) -> None:
    batch = probe(llama)
    recipes = [parse_recipe(text) for text in SWEEPS["outputs"]]
    shared, plain = (evaluate(llama, recipes, batch, lambda t: {"m": t[:, 0]}, plan=way)["m"] for way in ("shared", "plain"))
    assert shared.shape == (len(recipes), len(batch.rows)) and (shared - plain).abs().max() <= ROUNDING


def test_metrics_of_a_rows_answers_read_no_other_column(llama: Pair, reads: Reads) -> None:
    generator = torch.Generator().manual_seed(1)
    choices = torch.stack([torch.randperm(D_VOCAB, generator=generator)[:3] for _ in range(4)])
    choices[0, 2] = NO_TOKEN
    contrast = torch.tensor([NO_TOKEN, 5, NO_TOKEN, 9])
    batch = dataclasses.replace(reads.batch, answer=choices[:, 1], choices=choices, contrast=contrast)
    local, whole = reads_of(LOCAL, batch), reads_of((*LOCAL, "logprob"), batch)
    assert whole.columns is None and local.columns is not None and len(local.columns) < 16
    recipes = [parse_recipe(text) for text in SWEEPS["outputs"]]
    for ours, theirs in zip(read(llama, recipes, local), read(llama, recipes, whole), strict=True):
        few, full = measure(LOCAL, Context.of(local), ours), measure(LOCAL, Context.of(whole), theirs)
        assert torch.equal(few["choice_accuracy"], full["choice_accuracy"])
        assert (few["logit_diff"] - full["logit_diff"]).abs().max() <= ROUNDING
