"""The logit lens and a head's attention on one prompt: the last layer is the model's own prediction, rows of a pattern sum to 1."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from taia_lens import results
from taia_lens.engine import applied, run_plain
from taia_lens.errors import RecipeError, SiteError, SuiteError, TaiaLensError
from taia_lens.pair import Pair
from taia_lens.prompts import read_prompt
from taia_lens.recipe import Graft, Recipe
from taia_lens.recipe_text import parse_recipe
from taia_lens.rows import Row
from taia_lens.sites import Site
from taia_lens.studies.attention import attention
from taia_lens.studies.lens import EMBEDDING, lens
from taia_lens.suite import Suite

Run = Callable[..., tuple[int, str, str]]
ROUTING = "color user please Quentin Jana please answer:"
PROMPT = "w1 w2 w3 w4 w5"
RECIPES = {
    "base": "base",
    "tuned": "vanilla",
    "attn": Recipe("base", (Graft("attn", "tuned"),)),
    "patched": "base; patch L2.resid <- tuned; patch L0.attn <- tuned @last",
}
CLOSE = 1e-5  # rounding of float32 log-probabilities
SIDES = {"norms": "base", "embed": "base"}


def own(pair: Pair, recipe: Recipe, prompt: str) -> torch.Tensor:
    """The log-probabilities that the model itself gives at the last position."""
    batch = read_prompt(pair, prompt).batch
    with applied(pair, recipe, batch=batch) as model:
        return run_plain(model, batch).logits[0].float().log_softmax(-1).cpu()


def test_the_last_layer_is_what_the_model_predicts(pair: Pair) -> None:
    found = lens(pair, PROMPT, [" w7", " w8", " w9"], recipes=RECIPES, **SIDES)
    assert found.layer.values.tolist() == [EMBEDDING, 0, 1, 2]
    tokens = [read_prompt(pair, PROMPT).first_token(text) for text in found.token.values.tolist()]
    for name, text in found.attrs["recipes"].items():
        logprobs = own(pair, parse_recipe(text), PROMPT)
        cell = found.sel(recipe=name)
        np.testing.assert_allclose(cell.logprob.isel(layer=-1), logprobs[tokens], atol=CLOSE)
        assert abs(cell.logprob.isel(layer=-2) - logprobs[tokens].numpy()).max() > 100 * CLOSE  # the check can fail
        assert float(cell.top_logprob[-1]) == pytest.approx(float(logprobs.max()), abs=CLOSE)
        assert cell.top.values[-1] == pair.tokenizer.decode([int(logprobs.argmax())])
        np.testing.assert_array_equal(cell["rank"].isel(layer=-1), [(logprobs > logprobs[i]).sum() for i in tokens])
        assert float(cell.entropy[-1]) == pytest.approx(float(torch.special.entr(logprobs.exp()).sum()), abs=CLOSE)


def test_grafts_and_patches_are_seen_where_they_act_and_not_before(llama: Pair) -> None:
    late = {"base": "base", "late": "base; graft L2.mlp <- tuned", "patched": "base; patch L1.resid <- tuned", "tuned": "vanilla"}
    found = lens(llama, PROMPT, " w7", recipes=late).logprob.isel(token=0)
    np.testing.assert_allclose(found.sel(recipe="late", layer=[-1, 0, 1]), found.sel(recipe="base", layer=[-1, 0, 1]), atol=CLOSE)
    assert abs(float(found.sel(recipe="late", layer=2) - found.sel(recipe="base", layer=2))) > 100 * CLOSE
    np.testing.assert_allclose(found.sel(recipe="patched", layer=[-1, 0]), found.sel(recipe="base", layer=[-1, 0]), atol=CLOSE)
    assert abs(float(found.sel(recipe="patched", layer=1) - found.sel(recipe="base", layer=1))) > 100 * CLOSE


def test_nothing_of_the_pair_is_changed(llama: Pair) -> None:
    before = own(llama, Recipe("base"), PROMPT)
    lens(llama, PROMPT, **SIDES)
    assert torch.equal(own(llama, Recipe("base"), PROMPT), before)


def test_a_rows_answer_contrast_and_choices_are_followed(llama: Pair, suite: Suite) -> None:
    row = replace(suite.rows[0], choices=(" w3", suite.rows[0].answer, " w5"))
    found = lens(llama, row, " w9", **SIDES)
    assert found.token.values.tolist() == [row.answer, row.contrast, " w3", " w5", " w9"]
    assert found.role.values.tolist() == ["answer", "contrast", "choice", "choice", "asked"]
    assert found.recipe.values.tolist() == ["base", "vanilla", "TAIA"] and found.attrs["prompt"] == row.prompt
    assert found.attrs["recipes"]["TAIA"] == "base; graft attn <- tuned"


def test_where_nothing_is_asked_what_is_said_in_the_end_is_followed(llama: Pair) -> None:
    found = lens(llama, PROMPT, **SIDES)
    assert set(found.role.values) == {"said"}
    assert set(found.first.values) == set(found.top.isel(layer=-1).values)
    assert int(found["rank"].isel(layer=-1).min("token").max()) == 0


def test_it_comes_back_from_disk(llama: Pair, tmp_path: Path) -> None:
    for found in (lens(llama, PROMPT, **SIDES), attention(llama, PROMPT, 1, 2)):
        path = tmp_path / f"{found.attrs['study']}.nc"
        results.save(found, path)
        back = results.load(path)
        assert back.equals(found) and back.attrs["prompt"] == PROMPT


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({"recipes": {}}, TaiaLensError, "no recipe was named; give some by name"),
        ({"recipes": {"x": "base; patch L9.mlp <- tuned"}}, SiteError, "no layer 9: this model has 3 layers"),
        ({"recipes": {"x": "tuna"}}, RecipeError, "tuna"),
        ({"recipes": {"x": "taia"}, "norms": None}, RecipeError, "taia does not say whose norms"),
        ({"norms": None}, RecipeError, "differ in this pair, so TAIA must say whose it takes"),
        ({"tokens": [" w7 w8", " w7"]}, SuiteError, "' w7 w8' and ' w7' begin with the same token"),
        ({"tokens": [""]}, SuiteError, "the text '' after the prompt has no token"),
        ({"prompt": ""}, SuiteError, "the prompt is empty"),
        ({"prompt": " ".join(["w1"] * 100)}, SuiteError, "the prompt has 10. tokens, and the model has 64 positions"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(asked: dict, kind: type[Exception], said: str, llama: Pair) -> None:
    settings = {"prompt": PROMPT, "tokens": [" w7"]} | SIDES | asked
    with pytest.raises(kind, match=said):
        lens(llama, **settings)


def test_a_model_without_a_lens_is_refused_in_words(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise ValueError("this bridge carries two streams")

    monkeypatch.setattr("transformer_lens.tools.analysis.logit_lens", refused)
    with pytest.raises(TaiaLensError, match="no logit lens for this model: this bridge carries two streams"):
        lens(llama, PROMPT, **SIDES)


def test_an_older_transformerlens_is_named(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens.tools.analysis", None)  # as where there is no such module
    with pytest.raises(TaiaLensError, match="a tool of TransformerLens 4, which is not installed"):
        lens(llama, PROMPT, **SIDES)


# Attention.
def test_rows_of_a_pattern_sum_to_one_and_look_back_only(pair: Pair) -> None:
    found = attention(pair, PROMPT, 1, 3)
    np.testing.assert_allclose(found.pattern.sum("key"), 1, atol=CLOSE)
    assert not np.allclose(found.pattern.sum("query"), 1, atol=0.1)  # the check can fail
    assert float(found.pattern.where(found["key"] > found["query"], 0).max()) == 0
    assert float(abs(found.pattern.sel(side="tuned") - found.pattern.sel(side="base")).max()) > 1e-3
    assert "".join(map(str, found.query_token.values)).replace(" ", "").endswith(PROMPT.replace(" ", ""))
    assert found.attrs["site"] == "L1.h3"


def test_a_head_is_the_head_that_was_asked_for(llama: Pair) -> None:
    """Its pattern is what mixes the values: zeroing the others' z leaves it alone, and each head has its own."""
    maps = [attention(llama, PROMPT, 1, head).pattern.values for head in range(4)]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(maps) for b in maps[:i])
    batch = read_prompt(llama, PROMPT).batch
    acts = run_plain(llama.base, batch, ["blocks.1.attn.hook_v", Site("head", 1, 0).hook]).acts
    values, z = acts["blocks.1.attn.hook_v"][0], acts[Site("head", 1, 0).hook][0]
    for head in range(4):
        mixed = torch.from_numpy(maps[head][0]).float() @ values[:, head // 2]  # two heads share a value
        torch.testing.assert_close(mixed, z[:, head], atol=CLOSE, rtol=0)


@pytest.mark.parametrize(
    ("layer", "head", "said"), [(3, 0, "no layer 3: this model has 3 layers"), (0, 4, "no head 4: this model has 4 heads")]
)
def test_a_head_that_is_not_there_is_refused(layer: int, head: int, said: str, llama: Pair) -> None:
    with pytest.raises(SiteError, match=said):
        attention(llama, PROMPT, layer, head)


def test_an_architecture_without_a_pattern_is_refused(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taia_lens.studies.attention.PATTERN", "blocks.{layer}.attn.hook_shape")
    with pytest.raises(SiteError, match=r"this model has no blocks\.1\.attn\.hook_shape; under blocks\.1\.attn it has"):
        attention(llama, PROMPT, 1, 0)


# A prompt.
@pytest.mark.parametrize("text", ["w1 w2", "w1"])
def test_a_prompt_is_what_the_tokenizer_makes_of_it(text: str, llama: Pair) -> None:
    read = read_prompt(llama, text)
    assert list(read.ids) == llama.tokenizer(text)["input_ids"][: len(read.ids)]
    assert read.batch.tokens.tolist() == [list(read.ids)] and bool(read.batch.mask.all())
    row = read_prompt(llama, Row("a", text, " w3", "ood"))
    assert row.ids == read.ids and row.first_token(" w3 w4") == llama.tokenizer.convert_tokens_to_ids("w3")


# The commands.
def test_lens_prints_what_is_said_after_each_layer_and_writes_a_run_folder(run: Run) -> None:
    code, out, err = run("lens", "--prompt", ROUTING, "--token", " silver", "--json", "--out", "here")
    assert code == 0 and "run folder: here" in err and "embedding" in err and "'silver'" in err, err
    assert sorted(p.name for p in Path("here").iterdir()) == ["figure.html", "meta.json", "result.nc"]
    records = json.loads(out)["results"]
    assert [record["layer"] for record in records] == list(range(-1, 16))
    said = records[-1]["most_likely"]
    assert said["TAIA"]["token"] == "silver" and said["base"]["token"] != "silver"
    assert np.exp(records[-1]["logprob"]["TAIA"][" silver"]) == pytest.approx(said["TAIA"]["probability"])
    assert results.load("here").attrs["prompt"] == ROUTING


def test_attention_writes_a_run_folder(run: Run) -> None:
    code, out, err = run("attention", "--prompt", ROUTING, "--layer", "0", "--head", "3", "--out", "there")
    assert (code, out.strip()) == (0, "there"), err
    assert sorted(p.name for p in Path("there").iterdir()) == ["figure.html", "meta.json", "result.nc"]
    assert results.load("there").attrs["site"] == "L0.h3"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("lens", "--prompt", ROUTING, "--norms", "mine"), "no norms 'mine'; write base or tuned"),
        (("attention", "--prompt", ROUTING, "--layer", "16", "--head", "0"), "no layer 16: this model has 16 layers"),
        (("lens", "--prompt", ROUTING, "--base", "x"), "--base was given without --tuned"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(command: tuple[str, ...], said: str, run: Run) -> None:
    code, _, err = run(*command)
    assert code == 2 and re.search(said, err) and err.strip().startswith("taia-lens: ")
