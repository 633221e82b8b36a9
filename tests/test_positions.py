"""Maps over positions: every cell is one patch at one position, and there is no cell where a prompt has no such position."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from architectures import N_LAYERS, make
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from taia_lens import plots, results, tables
from taia_lens.batch import Batch
from taia_lens.errors import RecipeError, SiteError
from taia_lens.loading import load_pair
from taia_lens.pair import Pair
from taia_lens.positions import token_text
from taia_lens.recipe import Patch
from taia_lens.recipe_text import parse_recipe
from taia_lens.sites import Site
from taia_lens.store import CellStore, open_store
from taia_lens.studies.patching import patch
from taia_lens.suite import Suite, make_suite

# Two float32 forwards of a 3-layer model in different order of summation.
CLOSE = 1e-5
ASKED = {"each": (0, 9), "each-from-end": (-9, 0)}


@pytest.fixture(scope="module")
def found(llama: Pair, suite: Suite) -> dict[str, xr.Dataset]:
    """Prompts of two to nine words, in batches of four: most batches hold several lengths."""
    return {
        asked: patch(llama, suite, component="attn,mlp", layers="0,2", positions=asked, metrics=["logprob"], batch_size=4)
        for asked in ASKED
    }


def by_hand(pair: Pair, tokens: Tensor, donor: Tensor, site: Site, position: int) -> Tensor:
    """TransformerLens's own functions, one prompt: log-probabilities of the next token with one position patched."""

    def put(act: Tensor, hook: object) -> Tensor:
        act = act.clone()
        act[0, position] = donor[0, position]
        return act

    return pair.base.run_with_hooks(tokens, fwd_hooks=[(site.hook, put)])[0, -1].log_softmax(-1)


@pytest.mark.parametrize("asked", ASKED)
def test_each_cell_is_one_position_patched_by_hand_and_nan_where_there_is_none(
    llama: Pair, suite: Suite, batch: Batch, found: dict[str, xr.Dataset], asked: str
) -> None:
    result = found[asked]
    assert result.patched.dims == ("metric", "component", "layer", "pos", "example")
    assert result.pos.values.tolist() == list(range(*ASKED[asked]))
    for i, row in enumerate(batch.rows):
        tokens = batch.tokens[i : i + 1, batch.mask[i]]
        length = tokens.shape[1]
        _, cache = llama.tuned.run_with_cache(tokens)
        for component in ("attn", "mlp"):
            for layer in (0, 2):
                site = Site(component, layer)
                got = result.patched.sel(metric="logprob", component=component, layer=layer).isel(example=row)
                for position in result.pos.values.tolist():
                    value = float(got.sel(pos=position))
                    assert np.isnan(value) == (not -length <= position < length)
                    if not np.isnan(value):
                        want = by_hand(llama, tokens, cache[site.hook], site, position)[batch.answer[i]]
                        assert abs(value - float(want)) < CLOSE
    assert not result.host.isnull().any() and not result.donor.isnull().any()
    moved = np.abs(result.patched - result.host).max(["metric", "component", "layer", "example"])
    assert float(moved.min()) > 100 * CLOSE  # every position matters somewhere: what is compared above is no constant


def test_one_cell_is_the_study_of_that_one_position(llama: Pair, suite: Suite, found: dict[str, xr.Dataset]) -> None:
    for asked, position in (("each", 5), ("each-from-end", -6)):
        long = tuple(row for row in suite.rows if len(row.prompt.split()) > 5)
        assert 0 < len(long) < len(suite)
        alone = patch(
            llama, Suite(suite.name, long), component="attn,mlp", layers="0,2", positions=(position,), metrics=["logprob"], batch_size=4
        )
        cell = found[asked].sel(pos=position).dropna("example")
        assert cell.example.values.tolist() == [row.id for row in long]
        np.testing.assert_allclose(cell.patched.values, alone.patched.values, atol=CLOSE)


def test_the_two_ways_to_count_hold_the_same_numbers(suite: Suite, found: dict[str, xr.Dataset]) -> None:
    for i, row in enumerate(suite.rows):
        one = found["each"].patched.isel(example=i).dropna("pos")
        other = found["each-from-end"].patched.isel(example=i).dropna("pos")
        assert one.sizes["pos"] == len(row.prompt.split())
        np.testing.assert_array_equal(one.values, other.values)


def test_results_do_not_depend_on_batch_size(llama: Pair, suite: Suite, found: dict[str, xr.Dataset]) -> None:
    again = patch(llama, suite, component="attn,mlp", layers="0,2", positions="each", metrics=["logprob"], batch_size=len(suite))
    np.testing.assert_allclose(again.patched, found["each"].patched, atol=CLOSE)


def test_heads_and_positions_have_a_dim_each(llama: Pair, suite: Suite) -> None:
    few = Suite(suite.name, suite.rows[:3])
    every = patch(llama, few, component="head", layers=1, heads="0,2", positions="each-from-end", metrics=["logprob"])
    assert every.patched.dims == ("metric", "component", "layer", "head", "pos", "example")
    last = patch(llama, few, component="head", layers=1, heads="0,2", positions="last", metrics=["logprob"])
    np.testing.assert_allclose(every.patched.sel(pos=-1), last.patched, atol=CLOSE)
    figure = plots.patch_figure(results.summary(every))
    assert list(figure.data[0].x) == ["L1.h0", "L1.h2"]


def test_an_interrupted_map_goes_on_from_the_store(llama: Pair, suite: Suite, tmp_path: Path) -> None:
    few = Suite(suite.name, suite.rows[:4])

    def run(layers: str, store: CellStore | None) -> xr.Dataset:
        return patch(llama, few, component="mlp", layers=layers, positions="each", metrics=["logprob"], store=store)

    with open_store(tmp_path / "cells.sqlite") as store:
        run("0", store)
        before = len(store)
        # A cell's last bits depend on what was run beside it.
        np.testing.assert_allclose(run("0,2", store).patched, run("0,2", None).patched, atol=CLOSE)
        after = len(store)
        run("0,2", store)
        assert before < after == len(store)


# A planted position


@pytest.mark.parametrize(("asked", "place"), [("each", 2), ("each-from-end", -3)])
def test_the_position_that_carries_the_update_stands_out(tokenizer: PreTrainedTokenizerBase, asked: str, place: int) -> None:
    """Only w7's embedding is tuned, and w7 stands at one place: nothing before it differs, and it carries the most."""
    base = make("llama", 0)
    tuned = copy.deepcopy(base)
    (token,) = tokenizer("w7")["input_ids"]
    tuned.model.embed_tokens.weight.data[token] += torch.randn(32, generator=torch.Generator().manual_seed(0))
    rows = []
    for i in range(24):
        words = [f"w{8 + (7 * i + 3 * j) % 50}" for j in range(4 + i % 4)]
        words[place] = "w7"
        rows.append({"prompt": " ".join(words), "answer": f" w{i}", "domain": ("id", "ood")[i % 2]})
    pair = load_pair(base, tuned, tokenizer=tokenizer)
    result = patch(pair, make_suite("planted", rows), component="resid", layers=0, positions=asked, metrics=["logprob"]).squeeze()
    effect = np.abs(result.patched - result.host)
    assert int(effect.mean("example").idxmax()) == place
    earlier = effect.sel(pos=slice(None, place - 1))
    assert float(earlier.max()) <= CLOSE
    assert float(effect.sel(pos=place).mean("example")) > 1000 * CLOSE
    assert result.token.sel(pos=place) == "w7" and (result.token != "").sum() == 1


# Summaries, tables, figures


def test_a_summary_is_of_the_examples_that_have_the_position(found: dict[str, xr.Dataset]) -> None:
    result = found["each"]
    summary = results.summary(result)
    assert summary.effect.dims == ("domain", "metric", "component", "layer", "pos") and summary.n.dims == ("domain", "pos")
    counts = result.patched.isel(metric=0, component=0, layer=0, drop=True).notnull()
    for domain in ("id", "ood"):
        inside = counts.isel(example=np.flatnonzero(result.domain.values == domain))
        np.testing.assert_array_equal(summary.n.sel(domain=domain), inside.sum("example"))
        for position in (1, 5):
            (those,) = inside.sel(pos=position).values.nonzero()
            assert len(those)
            here = np.flatnonzero(result.domain.values == domain)[those]
            alone = results.summary(result.isel(example=here).sel(pos=position)).squeeze("domain")
            cell = summary.sel(domain=domain, pos=position)
            for name in ("host", "donor", "gap", "effect", "effect_low", "effect_high", "recovered", "defined", "patched"):
                np.testing.assert_array_equal(cell[name].values, alone[name].values)


def test_a_domain_without_the_position_has_no_number_there(found: dict[str, xr.Dataset]) -> None:
    summary = results.summary(found["each"].sel(example=["row-1", "row-3"]))  # seven words, in distribution; nine, out of it
    assert summary.n.sel(domain="id").values.tolist() == [1] * 7 + [0] * 2
    assert summary.n.sel(domain="ood").values.tolist() == [1] * 9
    blank = summary.sel(domain="id", pos=8)
    assert np.isnan(blank.effect).all() and np.isnan(blank.host).all() and not blank.defined.any()
    assert not np.isnan(summary.effect.sel(domain="ood", pos=8)).any()
    json.dumps(tables.records(summary), allow_nan=False)
    plots.patch_figure(summary)


def test_a_result_with_positions_reads_back_as_it_was(found: dict[str, xr.Dataset], tmp_path: Path) -> None:
    for asked, result in found.items():
        results.save(result, tmp_path / f"{asked}.nc")
        again = results.load(tmp_path / f"{asked}.nc")
        assert again.identical(result) and again.attrs["positions"] == asked
        assert results.summary(again).identical(results.summary(result))


def test_a_table_shows_the_strongest_places_and_json_all(found: dict[str, xr.Dataset]) -> None:
    summary = results.summary(found["each"])
    records = tables.records(summary)
    assert len(records) == summary.effect.size
    assert {(r["layer"], r["pos"]) for r in records} == {(layer, p) for layer in (0, 2) for p in range(9)}
    table = tables.patch_tables(summary)[0]
    assert "the strongest of 36 places" in str(table.title) and table.row_count == tables.patching.STRONGEST
    here = sorted((r for r in records if r["domain"] == "id" and r["n"]), key=lambda r: (r["n"] == 1, -abs(r["effect"])))
    sites = [str(cell) for cell in table.columns[1].cells]
    assert sites == [f"L{r['layer']}.{r['component']} @{r['pos']}" for r in here[: tables.patching.STRONGEST]]


def test_a_map_is_drawn_for_each_component_and_domain(found: dict[str, xr.Dataset]) -> None:
    summary = results.summary(found["each-from-end"])
    figure = plots.patch_figure(summary)
    assert len(figure.data) == 4
    for trace, (component, domain) in zip(figure.data, [(c, d) for c in ("attn", "mlp") for d in ("id", "ood")], strict=True):
        want = summary.effect.sel(component=component, domain=domain, metric="logprob").transpose("pos", "layer")
        np.testing.assert_array_equal(trace.z, want)
        assert list(trace.y) == [str(p) for p in range(-9, 0)] and list(trace.x) == ["0", "2"]
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax  # white is no effect
    assert "each position by itself, counted from the end" in figure.layout.title.text.replace("<br>", " ")
    assert "dot: not told apart from 0 after correction" in figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "-1 predicts the answer" in figure.layout.yaxis.title.text and figure.layout.yaxis.autorange == "reversed"


def test_one_prompts_tokens_are_its_labels(llama: Pair) -> None:
    one = make_suite("one", [{"prompt": "w1 w2 w1", "answer": " w4", "domain": "id"}])
    result = patch(llama, one, component="mlp", positions="each", metrics=["logprob"])
    assert result.token.values.tolist() == ["w1", "w2", "w1"]
    figure = plots.patch_figure(results.summary(result))
    assert list(figure.data[0].y) == ["0 w1", "1 w2", "2 w1"] and list(figure.data[0].x) == [str(i) for i in range(N_LAYERS)]
    assert "no intervals and no tests: one prompt has no spread" in figure.layout.title.subtitle.text.replace("<br>", " ")


def test_a_token_is_text_and_not_markup(llama: Pair) -> None:
    one = make_suite("one", [{"prompt": "w1 w2", "answer": " w4", "domain": "id"}])
    result = patch(llama, one, component="mlp", positions="each", metrics=["logprob"]).assign_coords(token=("pos", ["<b>", "\n"]))
    assert list(plots.patch_figure(results.summary(result)).data[0].y) == ["0 &lt;b&gt;", "1 &#x27;\\n&#x27;"]


# What is asked


def test_each_has_no_place_in_a_recipe(llama: Pair, suite: Suite) -> None:
    for asked in ASKED:
        with pytest.raises(SiteError, match=f"'{asked}' are one edit each"):
            Patch(Site("mlp", 1), "tuned", asked)
    with pytest.raises(RecipeError, match="'each' are one edit each"):
        parse_recipe("base; patch L1.mlp <- tuned @each")
    with pytest.raises(SiteError, match="write all, last, each, each-from-end, or numbers"):
        patch(llama, suite, component="mlp", positions="every")


def test_the_command_writes_a_map(
    run: Callable[..., tuple[int, str, str]], suite: Suite, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for name, seed in (("base", 0), ("tuned", 1)):
        make("llama", seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"id": r.id, "prompt": r.prompt, "answer": r.answer, "domain": r.domain} for r in suite.rows]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["patch", "--component", "attn,mlp", "--layer", "all", "--pos", "each", "--base", "base", "--tuned", "tuned"]
    code, out, err = run(*command, "--suite", "prompts.jsonl", "--json", "--out", "here")
    assert code == 0
    records = json.loads(out)["results"]
    assert {r["pos"] for r in records} == set(range(9)) and len(records) == 2 * 2 * 2 * N_LAYERS * 9
    assert all((r["effect"] is None) == (r["n"] == 0) for r in records)
    assert results.load(Path("here")).sizes["pos"] == 9
    assert "strongest of 54 places" in err and Path("here/figure.html").exists()
    code, _, err = run(*command[:5], "--pos", "every")
    assert code == 2 and "cannot read the positions 'every'" in err


def test_a_token_that_is_a_part_of_a_character_is_told_from_others() -> None:
    """A byte-level tokenizer with no merges: each byte of a Chinese character is a token, and none of them is text by itself."""
    alphabet = sorted(ByteLevel.alphabet())
    raw = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    ids = tokenizer("\u4f60a").input_ids
    assert tokenizer.decode(ids) == "\u4f60a" and tokenizer.decode(ids[:1]) == "\ufffd"
    texts = [token_text(tokenizer, i) for i in ids]
    assert texts[-1] == "a" and len(set(texts)) == 4 and "\ufffd" not in texts
