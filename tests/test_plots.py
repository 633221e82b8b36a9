"""Figures: each shape of a patching result is drawn, says what it shows, and escapes what it is given."""

from __future__ import annotations

import json

import pytest

from taia_lens import plots, results, tables
from taia_lens.errors import ResultError
from taia_lens.pair import Pair
from taia_lens.studies.patching import patch
from taia_lens.suite import Suite

ASKED = {
    "one layer": {"component": "mlp", "layers": 1},
    "one layer of both": {"component": ["attn", "mlp"], "layers": 1},
    "several layers": {"component": ["attn", "mlp"], "layers": [0, 2]},
    "a map of heads": {"component": "head", "layers": [0, 2], "heads": [0, 3]},
    "one layer's heads": {"component": "head", "layers": 1},
    "one head": {"component": "head", "layers": 1, "heads": 2},
}


@pytest.mark.parametrize("case", ASKED)
def test_every_shape_of_result_is_drawn_and_tabled(llama: Pair, suite: Suite, case: str) -> None:
    summary = results.summary(patch(llama, suite, **ASKED[case]))
    figure = plots.patch_figure(summary)
    assert len(figure.data) >= summary.sizes["domain"]
    assert "n = 7 id, n = 4 ood" in figure.layout.title.text
    records = tables.records(summary)
    assert len(records) == summary.effect.size
    json.dumps(records, allow_nan=False)
    assert len(tables.patch_tables(summary)) == 2


def test_heads_that_were_not_patched_have_no_place_on_the_axes(llama: Pair, suite: Suite) -> None:
    figure = plots.patch_figure(results.summary(patch(llama, suite, **ASKED["a map of heads"])))
    assert list(figure.data[0].x) == ["0", "3"] and list(figure.data[0].y) == ["0", "2"]
    assert "effect on accuracy, the first metric" in figure.layout.title.text


def test_a_suites_name_is_text_and_not_markup(llama: Pair, suite: Suite) -> None:
    named = Suite("<script>alert(1)</script>", suite.rows)
    title = plots.patch_figure(results.summary(patch(llama, named, component="mlp", layers=1))).layout.title.text
    assert "<script>" not in title and "&lt;script&gt;" in title


def test_an_empty_result_is_refused_in_words(llama: Pair, suite: Suite) -> None:
    summary = results.summary(patch(llama, suite, component="mlp", layers=1))
    with pytest.raises(ResultError, match="nothing to draw"):
        plots.patch_figure(summary.isel(layer=slice(0, 0)))


def test_few_prompts_are_said_to_be_few(llama: Pair, suite: Suite) -> None:
    summary = results.summary(patch(llama, suite, component="mlp", layers=1))
    assert "too few prompts" in str(tables.patch_tables(summary)[0].title)
    many = Suite("many", tuple(row.__class__(f"{row.id}-{i}", row.prompt, row.answer, "id") for row in suite.rows for i in range(3)))
    assert "too few" not in str(tables.patch_tables(results.summary(patch(llama, many, component="mlp", layers=1)))[0].title)
