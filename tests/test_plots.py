"""Figures of patching, layers and the grid: whatever they are given, they are drawn or refused in words; texts are text; what is
drawn fits two columns; every cell says what it is and has that cell's number; what is not significant looks so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from test_plots_more import LINE, TEXTS, cells, columns, lines, many, strings

from taia_lens import plots, summaries, tables
from taia_lens.errors import ResultError
from taia_lens.pair import Pair
from taia_lens.plots.look import COLOURS, DIVERGING, NOTHING, UNSURE, shades, shown
from taia_lens.plots.plane import _box, _meet, _placed
from taia_lens.studies.grid import Controls, compare
from taia_lens.studies.layers import Sampling, layers
from taia_lens.studies.patching import patch
from taia_lens.suite import Suite

PATCHED: dict[str, dict[str, Any]] = {
    "point": {"component": "mlp", "layers": 1},
    "points": {"component": ["attn", "mlp"], "layers": 1},
    "curves": {"component": ["attn", "mlp", "resid"]},
    "heads": {"component": "head"},
    "one layer's heads": {"component": "head", "layers": 1},
    "one head": {"component": "head", "layers": 1, "heads": 2},
    "positions": {"component": ["attn", "mlp"], "positions": "each"},
    "heads and positions": {"component": "head", "layers": [0, 2], "positions": "each-from-end"},
}


def made(name: str, pair: Pair, suite: Suite) -> xr.Dataset:
    """What a figure is drawn of."""
    if name in PATCHED:
        return summaries.patch_summary(patch(pair, suite, **PATCHED[name]))
    if name == "one prompt":
        return summaries.patch_summary(patch(pair, Suite("one", suite.rows[1:2]), component="mlp", positions="each", metrics=["logprob"]))
    asked = {"metrics": ["logprob", "accuracy"]}
    if name == "grid":
        return summaries.grid_summary(compare(pair, suite, norms="base", embed="base", controls=Controls(seeds=2), **asked))
    if name == "two suites":
        ood = Suite("other", tuple(row for row in suite.rows if row.domain == "ood"))
        both = [suite, Suite("another", tuple(row.__class__(f"{row.id}'", row.prompt, row.answer, "ood") for row in ood.rows))]
        return summaries.layers_summary(layers(pair, both, views=["alone", "cumulative"], metrics=["logprob"]))
    unit = {"layers": "component", "projections": "projection", "parts": "head"}[name]
    views = ["alone", "last", "shapley"] + ["cumulative"] * (unit == "component")
    return summaries.layers_summary(layers(pair, suite, unit=unit, views=views, sampling=Sampling(budget=60), **asked))


@dataclass(frozen=True)
class Case:
    """A figure, what it is drawn of, and the variable that it shows; `dims` may be empty, and that is refused."""

    draw: Callable[[xr.Dataset], go.Figure]
    of: str
    shows: str
    dims: tuple[str, ...]


PATCH_DIMS = ("domain", "metric", "component", "layer")
CASES = {
    "patch, a point": Case(plots.patch_figure, "point", "patched", PATCH_DIMS),
    "patch, points": Case(plots.patch_figure, "points", "patched", PATCH_DIMS),
    "patch, curves": Case(plots.patch_figure, "curves", "effect", PATCH_DIMS),
    "patch, heads": Case(plots.patch_figure, "heads", "effect", (*PATCH_DIMS, "head")),
    "patch, a layer's heads": Case(plots.patch_figure, "one layer's heads", "effect", (*PATCH_DIMS, "head")),
    "patch, one head": Case(plots.patch_figure, "one head", "patched", (*PATCH_DIMS, "head")),
    "patch, positions": Case(plots.patch_figure, "positions", "effect", (*PATCH_DIMS, "pos")),
    "patch, heads and positions": Case(plots.patch_figure, "heads and positions", "effect", (*PATCH_DIMS, "head", "pos")),
    "patch, one prompt": Case(plots.patch_figure, "one prompt", "effect", (*PATCH_DIMS, "pos")),
    "recovered": Case(plots.recovered_figure, "curves", "recovered", PATCH_DIMS),
    "recovered, points": Case(plots.recovered_figure, "points", "recovered", PATCH_DIMS),
    "gains, patched": Case(plots.gains_figure, "curves", "effect", PATCH_DIMS),
    "gains, patched heads": Case(plots.gains_figure, "heads", "effect", (*PATCH_DIMS, "head")),
    "gains": Case(plots.gains_figure, "layers", "shapley", ("group", "layer", "part")),
    "gains, heads": Case(plots.gains_figure, "parts", "shapley", ("group", "layer", "part")),
    "gains, two suites": Case(plots.gains_figure, "two suites", "alone", ("group", "layer", "part")),
    "layers": Case(plots.layers_figure, "layers", "alone", ("group", "layer", "part")),
    "layers, heads": Case(plots.layers_figure, "parts", "alone", ("group", "layer", "part")),
    "layers, two suites": Case(plots.layers_figure, "two suites", "alone", ("group", "layer", "part")),
    "cumulative": Case(plots.cumulative_figure, "layers", "cumulated", ("group", "layer")),
    "shapley": Case(plots.shapley_figure, "layers", "shapley", ("group", "layer", "part")),
    "shapley, projections": Case(plots.shapley_figure, "projections", "shapley", ("group", "layer", "part")),
    "compare": Case(plots.compare_figure, "grid", "value", ("group", "recipe")),
    "plane": Case(plots.plane_figure, "grid", "value", ("group", "recipe")),
}
EACH = [name for name in CASES if "," not in name] + ["patch, a point", "patch, curves", "patch, positions", "patch, one prompt"]
"""Every figure, and every form of one that has texts of its own."""
Of = Callable[[str], xr.Dataset]
Drawn = Callable[[str], go.Figure]


@pytest.fixture(scope="module")
def of(llama: Pair, suite: Suite) -> Of:
    """What a figure is drawn of; computed once."""
    known: dict[str, xr.Dataset] = {}

    def get(name: str) -> xr.Dataset:
        key = CASES[name].of if name in CASES else name
        if key not in known:
            known[key] = made(key, llama, suite)
        return known[key].copy(deep=True)

    return get


@pytest.fixture(scope="module")
def drawn(of: Of) -> Drawn:
    """A case's figure, drawn once; for looking only."""
    known: dict[str, go.Figure] = {}

    def get(name: str) -> go.Figure:
        if name not in known:
            known[name] = CASES[name].draw(of(name))
        return known[name]

    return get


def drawn_as(trace: Any, case: Case) -> list[Any]:
    """The numbers of a trace, one a cell; of points on lines of their own, where they stand across."""
    if trace.type == "heatmap":
        return np.ravel(np.array(trace.z, float)).tolist()
    return list(trace.x if case.shows in ("patched", "value") else trace.y)


def number_of(summary: xr.Dataset, cell: dict[str, Any], shows: str) -> float:
    """The number of the summary that a cell selects."""
    where = dict(cell)
    if "group" not in summary.dims:
        difference = shows == "effect" and "domain" not in where
        return float(summary["shift" if difference else shows].sel(where).squeeze())
    view = where.pop("view", shows)
    if "domain" not in where and "view" in cell:  # the difference has no group of its own
        part = summary[f"shift_{view}"].sel(shift_metric=where["metric"])
        return float(part.sel(layer=where["layer"], part=where["part"]))
    domain = where.pop("domain", "id")  # a point of the plane stands at its value in distribution
    group = f"{where.pop('suite')}|{domain}|{where.pop('metric')}"
    if view == "cumulative":
        return float(summary.cumulated.sel(group=group, **where))
    if where.get("part") == "rest":
        return float(summary.rest_shapley.sel(group=group))
    name = "component_shapley" if "component" in where else view
    return float(summary[name].sel(group=group, **where))


@pytest.mark.parametrize("name", CASES)
def test_it_is_drawn_in_at_most_two_columns_and_no_line_is_too_long(name: str, drawn: Drawn) -> None:
    figure = drawn(name)
    assert figure.data and 200 < figure.layout.height < 3000 and figure.layout.width is None
    assert 1 <= columns(figure) <= 2
    for where, line in lines(figure):
        assert len(line) <= LINE[where], (where, line)
    assert "q > 0.05" in figure.layout.title.subtitle.text or name in ("plane", "cumulative", "patch, one prompt", "shapley, projections")


@pytest.mark.parametrize("name", CASES)
def test_every_cell_says_which_one_it_is_and_has_its_number(name: str, of: Of, drawn: Drawn) -> None:
    summary, case, figure = of(name), CASES[name], drawn(name)
    traces = [trace for trace in figure.data if trace.meta is not None]
    assert traces
    checked = 0
    for trace in traces:
        json.dumps(trace.meta, allow_nan=False)
        numbers = drawn_as(trace, case)
        assert len(cells(trace)) == len(numbers)
        for cell, value in zip(cells(trace), numbers, strict=True):
            np.testing.assert_allclose(float(value), number_of(summary, cell, case.shows))
            checked += bool(np.isfinite(value))
    assert checked or name.startswith("recovered")
    others = [trace for trace in figure.data if trace.meta is None]
    assert all(trace.hoverinfo == "skip" or "(host)" in trace.name or "(donor)" in trace.name for trace in others)


def test_a_wrong_number_would_be_noticed(of: Of) -> None:
    summary = of("patch, heads")
    trace = plots.patch_figure(summary).data[0]
    cell = cells(trace)[0] | {"head": 1}
    assert number_of(summary, cell, "effect") != drawn_as(trace, CASES["patch, heads"])[0]


@pytest.mark.parametrize(("name", "dim"), [(name, dim) for name, case in CASES.items() for dim in case.dims])
def test_nothing_to_draw_is_refused_in_words(name: str, dim: str, of: Of) -> None:
    with pytest.raises(ResultError, match="there is nothing to draw"):
        CASES[name].draw(of(name).isel({dim: slice(0, 0)}))


@pytest.mark.parametrize(
    ("draw", "name", "message"),
    [
        (plots.recovered_figure, "heads", "recovered fractions are drawn by layer, and this result has a dim head; write patch_figure"),
        (plots.recovered_figure, "positions", "has a dim pos; write patch_figure"),
        (plots.recovered_figure, "grid", "the summary holds no recovered; give what summaries.patch_summary returned"),
        (plots.gains_figure, "positions", "this result has positions one by one; write patch_figure"),
        (plots.gains_figure, "grid", "the summary holds no view alone, last or shapley, but none; give what summaries.layers_summary"),
        (lambda s: plots.gains_figure(s, view="last"), "two suites", "the summary holds no view last, but alone; give"),
        (plots.cumulative_figure, "projections", "the summary holds no cumulated; .*the view cumulative"),
        (plots.shapley_figure, "two suites", "the summary holds no shapley; .*the view shapley"),
        (plots.layers_figure, "grid", "the summary holds no alone; give what summaries.layers_summary returned"),
        (plots.compare_figure, "layers", "the summary holds no value; give what summaries.grid_summary returned"),
        (lambda s: plots.plane_figure(s.isel(group=s.domain.values == "id")), "grid", "the plane needs a metric both in and out"),
    ],
)
def test_what_a_figure_is_not_of_is_refused_in_words(draw: Callable[[xr.Dataset], go.Figure], name: str, message: str, of: Of) -> None:
    with pytest.raises(ResultError, match=message):
        draw(of(name))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "layer" in case.dims])
def test_one_layer_is_drawn(name: str, of: Of) -> None:
    figure = CASES[name].draw(of(name).isel(layer=[-1]))
    assert figure.data and columns(figure) <= 2


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("plane", "patch, one prompt")])
def test_one_domain_is_drawn(name: str, of: Of) -> None:
    summary, domain = of(name), "ood"
    one = summary.sel(domain=[domain]) if "domain" in summary.dims else summary.isel(group=summary.domain.values == domain)
    left = one.drop_vars([v for v in one.data_vars if str(v).startswith("shift")])
    assert columns(CASES[name].draw(left)) == 1


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "layer" in case.dims])
def test_80_layers_of_64_heads_are_drawn(name: str, of: Of) -> None:
    summary = many(of(name), "layer", 80)
    summary = many(summary, "head", 64) if "head" in summary.dims and "pos" not in summary.dims else summary
    if CASES[name].of == "parts":
        summary = many(summary.assign_coords(part=range(summary.sizes["part"])), "part", 64)
        summary = summary.assign_coords(part=[f"h{i}" for i in range(64)])
    figure = CASES[name].draw(summary)
    panels = sum(trace.type == "heatmap" for trace in figure.data) or 1
    assert 200 < figure.layout.height < max(4000, 400 + 800 * panels) and columns(figure) <= 2
    wide = [trace for trace in figure.data if trace.type == "heatmap" and len(trace.x) > 40]
    assert not wide or columns(figure) == 1
    for where, line in lines(figure):
        assert len(line) <= LINE[where], (where, line)


def test_many_positions_are_drawn_one_below_the_other(of: Of) -> None:
    summary = many(of("one prompt"), "pos", 900)
    figure = plots.patch_figure(summary)
    assert np.shape(figure.data[0].z) == (900, 3) and figure.layout.height < 6000


@pytest.mark.parametrize("whole", [False, True], ids=["some", "all"])
@pytest.mark.parametrize("name", CASES)
def test_cells_without_a_number_are_drawn(name: str, whole: bool, of: Of) -> None:
    summary = of(name)
    for variable in summary.data_vars:
        values = summary[variable].values
        if values.dtype.kind == "f" and values.ndim:
            holes = values.astype(float).copy()
            holes[... if whole else (slice(None),) * (values.ndim - 1) + (0,)] = np.nan
            summary[variable] = (summary[variable].dims, holes)
    if "defined" in summary:
        summary["defined"] = summary.recovered.notnull()
    figure = CASES[name].draw(summary)
    json.loads(figure.to_json())
    assert figure.data
    for trace in figure.data:
        if trace.type == "heatmap":
            assert figure.layout.plot_bgcolor == NOTHING  # a cell without a number is not white


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", EACH)
def test_texts_of_the_users_are_text_and_no_longer_than_fits(name: str, text: str, of: Of) -> None:
    summary = of(name)
    summary = summary.assign_attrs({attr: TEXTS[text] for attr in ("base", "tuned", "suite") if attr in summary.attrs})
    for coord in {"suite", "token", "recipe", "text"} & set(summary.coords):
        old = [str(value) for value in summary[coord].values.tolist()]
        # One text a value, distinct at its end only; what the study itself names stays.
        new = [f"{TEXTS[text]}{old.index(v)}" if v not in ("base", "vanilla", "TAIA", "TAIF") else v for v in old]
        summary = summary.assign_coords({coord: (summary[coord].dims, np.array(new, dtype=object))})
    figure = CASES[name].draw(summary)
    assert figure.data and 1 <= columns(figure) <= 2
    texts = list(strings(figure.to_plotly_json()))
    assert not any("<script" in part for part in texts)
    assert text != "markup" or any("&lt;script" in part for part in texts)
    assert text != "percent" or not any("%{x} 100%" in trace.hovertemplate for trace in figure.data if trace.hovertemplate)
    for where, line in lines(figure):
        assert len(line) <= LINE[where], (where, line)
    for trace in figure.data:
        if trace.type == "heatmap":
            assert all(len(label) < 60 for label in map(str, (*trace.x, *trace.y)))


def test_names_that_read_the_same_keep_their_places(of: Of) -> None:
    summary = of("grid")
    names = [n if n in ("base", "vanilla", "TAIA") else f"{'x' * 100}{i}{'y' * 100}" for i, n in enumerate(summary.recipe.values.tolist())]
    figure = plots.compare_figure(summary.assign_coords(recipe=names))
    assert list(figure.layout.yaxis.tickvals) == list(range(len(names))) and len(set(figure.layout.yaxis.ticktext)) < len(names)


# The same look everywhere.


@pytest.mark.parametrize("name", CASES)
def test_signed_colours_are_white_at_zero(name: str, drawn: Drawn) -> None:
    figure = drawn(name)
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    for trace in maps:
        axis = figure.layout[trace.coloraxis]
        assert axis.cmin == -axis.cmax < 0 and float(np.nanmax(np.abs(np.array(trace.z, float)))) <= axis.cmax
        assert (
            figure.layout[trace.coloraxis].colorscale
            == go.Figure(layout={"coloraxis": {"colorscale": DIVERGING}}).layout.coloraxis.colorscale
        )
    assert maps or "coloraxis" not in figure.layout.to_plotly_json()


def test_a_scale_has_an_extent_whatever_it_is_given() -> None:
    assert shades("x", np.array([np.nan, np.inf]))["cmax"] == 1.0 == shades("x", np.zeros(3))["cmax"]
    assert shades("x", np.array([0.25, -3.0, np.nan]))["cmin"] == -3.0


MEANS = {name: COLOURS[name] for name in ("attn", "mlp", "resid", "base")} | {"vanilla": COLOURS["tuned"], "both": COLOURS["tuned"]}
MEANS |= {"TAIA": COLOURS["attn"], "TAIF": COLOURS["mlp"], "rest": COLOURS["rest"], "controls": COLOURS["control"]}
MEANS |= {"base (host)": COLOURS["base"], "tuned (donor)": COLOURS["tuned"]}
MEANS |= {f"base, {name} patched": COLOURS[name] for name in ("attn", "mlp", "head")}


def test_the_same_colour_means_the_same_in_every_figure(drawn: Drawn) -> None:
    seen: dict[str, set[str]] = {}
    for name in CASES:
        for trace in drawn(name).data:
            if trace.name in MEANS:
                marker = trace.marker.color if isinstance(trace.marker.color, str) else None
                seen.setdefault(trace.name, set()).update(filter(None, [marker, trace.line.color if trace.type == "scatter" else None]))
    assert set(seen) == set(MEANS)
    assert {name: colours for name, colours in seen.items() if colours != {MEANS[name]}} == {}


def test_the_legend_names_each_thing_once(drawn: Drawn) -> None:
    for name in CASES:
        named = [trace.name for trace in drawn(name).data if trace.name and trace.showlegend is not False and trace.type != "heatmap"]
        assert len(named) == len(set(named)), name


def test_no_template_is_set_and_nothing_is_shown_by_importing_and_drawing() -> None:
    code = (
        "import sys, plotly.io as pio\nbefore = pio.templates.default, set(pio.templates), pio.renderers.default\n"
        "from taia_lens import plots\nfrom taia_lens.plots.look import framed\nimport plotly.graph_objects as go\n"
        "framed(go.Figure(), 'a', ['b'], inside=100)\n"
        "assert before == (pio.templates.default, set(pio.templates), pio.renderers.default)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_chinese_letter_is_as_wide_as_two() -> None:
    assert shown("请写出第二个人的名字", most=9) == "请写…名字" and shown("abcdefghij", most=9) == "abcd…ghij"
    assert shown("请写出", most=6) == "请写出" and shown("é́" * 9, most=9) == "é́" * 9  # accents have no width
    assert shown("שלום", most=9) == "\u2068שלום\u2069"


# What is not significant looks so.


def made_sure(summary: xr.Dataset, q: float) -> xr.Dataset:
    return summary.assign(
        {name: xr.full_like(v, q) for name, v in summary.data_vars.items() if str(name) == "q" or str(name).endswith("_q")}
    )


def marks(figure: go.Figure) -> list[bool]:
    """Of every cell that can be marked, whether it looks sure."""
    out: list[bool] = []
    for trace in figure.data:
        if trace.meta is None or trace.name == "rest":
            continue
        if trace.type == "heatmap":
            drawn = np.isfinite(np.ravel(np.array(trace.z, float)))
            out += (np.ravel(trace.text)[drawn] != UNSURE).tolist()
        elif trace.type == "bar":
            out += [opacity == 1 for opacity in np.ravel(trace.marker.opacity)]
        elif trace.marker.symbol is not None and not isinstance(trace.marker.symbol, str):
            out += ["open" not in symbol for symbol in trace.marker.symbol]
    return out


TESTED = [
    n
    for n in CASES
    if n not in ("plane", "cumulative", "patch, one prompt", "shapley, projections", "layers", "layers, two suites", "compare")
]


@pytest.mark.parametrize("name", TESTED)
def test_cells_are_marked_by_their_adjusted_p(name: str, of: Of) -> None:
    sure, unsure = (marks(CASES[name].draw(made_sure(of(name), q))) for q in (0.04, 0.06))
    assert sure and all(sure)
    assert len(unsure) == len(sure) and not any(unsure)


def test_bars_and_recipes_are_marked_by_their_adjusted_p(of: Of) -> None:
    for name in ("layers", "compare"):
        sure, unsure = (marks(CASES[name].draw(made_sure(of(name), q))) for q in (0.04, 0.06))
        assert all(sure) and not all(unsure)
    figure = plots.compare_figure(made_sure(of("grid"), 0.5))
    hollow = {p["recipe"]: "open" in s for t in figure.data if t.meta for p, s in zip(t.meta["points"], t.marker.symbol, strict=True)}
    assert [name for name, open_ in hollow.items() if not open_] == ["vanilla"]  # it is what the others are held against


def test_one_prompt_has_no_marks_and_that_is_said(of: Of) -> None:
    figure = plots.patch_figure(of("one prompt"))
    assert not any(np.ravel(figure.data[0].text)) and "one prompt has no spread" in figure.layout.title.subtitle.text.replace("<br>", " ")


# What each figure says.


def test_a_patching_figure_says_suite_n_and_models(of: Of) -> None:
    for name in PATCHED:
        notes = plots.patch_figure(of(name).assign_attrs(base="org/small", tuned="/home/me/big/")).layout.title.subtitle.text
        assert "suite words; n = 7 id, n = 4 ood; base: small, tuned: big" in notes.replace("<br>", " ")
    assert "base:" not in plots.patch_figure(of("point").assign_attrs(base="base", tuned="x/tuned")).layout.title.subtitle.text


def test_every_shape_of_result_is_tabled(of: Of) -> None:
    for name in PATCHED:
        summary = of(name)
        records = tables.records(summary)
        assert len(records) == summary.effect.size
        json.dumps(records, allow_nan=False)
        assert len(tables.patch_tables(summary)) == 2


def test_heads_that_were_not_patched_have_no_place_on_the_axes(of: Of) -> None:
    figure = plots.patch_figure(of("heads").isel(layer=[0, 2], head=[0, 3]))
    assert list(figure.data[0].x) == ["0", "3"] and list(figure.data[0].y) == ["0", "2"]
    assert "effect on accuracy, the first metric" in figure.layout.title.subtitle.text


def test_a_map_shows_the_first_metric_that_changes(of: Of) -> None:
    summary = of("heads")
    summary["effect"] = summary.effect.where(summary.metric != "accuracy", 0.0)
    figure = plots.patch_figure(summary)
    assert figure.data[0].meta["at"]["metric"] == "logprob" and "since accuracy changes nowhere" in figure.layout.title.subtitle.text


def test_tokens_stand_beside_their_lines_and_are_whole_when_pointed_at(of: Of) -> None:
    summary = of("one prompt")
    tokens = ["counterrevolutionaries", "שלום", "第二个人的名字", " ", "a\nb", *["x"] * 20][: summary.sizes["pos"]]
    trace = plots.patch_figure(summary.assign_coords(token=("pos", tokens))).data[0]
    assert list(trace.y)[:5] == ["0 counterr…ionaries", "1 \u2068שלום\u2069", "2 第二个人的名字", "3 &#x27; &#x27;", "4 a\\nb"]
    assert "token counterrevolutionaries" in trace.customdata[0][0] and "layer 1" in trace.customdata[0][1]


def test_gains_come_with_their_difference_or_say_why_not(of: Of) -> None:
    figure = plots.gains_figure(of("layers"))
    titles = [note.text for note in figure.layout.annotations]
    assert [t.partition(",")[0] for t in titles[:3]] == [
        "out of distribution",
        "in distribution",
        "out of distribution - in distribution: logprob (nats)",
    ]
    (first, _, third) = figure.data[:3]
    assert first.coloraxis == third.coloraxis and figure.data[3].coloraxis != first.coloraxis  # a scale a metric
    assert list(first.x) == ["0", "1", "2"] and list(first.y) == ["attn", "mlp"]  # layers go across
    one = of("curves").sel(domain=["ood"]).drop_vars([v for v in of("curves").data_vars if str(v).startswith("shift")])
    assert "no difference: one of the domains is missing" in plots.gains_figure(one).layout.title.subtitle.text
    several = plots.gains_figure(of("two suites"))
    assert [trace.meta["at"].get("suite") for trace in several.data] == ["words", "another", "words", None]
    assert "over all suites" in several.layout.annotations[3].text


def test_the_sum_rule_is_said_and_checked(of: Of) -> None:
    for name in ("layers", "projections"):
        summary = of(name)
        figure = plots.shapley_figure(summary)
        notes = figure.layout.title.subtitle.text.replace("<br>", " ")
        assert "bars + rest = vanilla - base, checked in every panel" in notes  # norms and embeddings differ too
        group = summary.isel(group=0)
        title = figure.layout.annotations[0].text
        assert f"bars {float(group.shapley.sum()):+.3f}" in title and f"vanilla - base {float(group.gap):+.3f}" in title
        bars = sum(
            float(np.nansum(t.y)) for t in figure.data if t.type == "bar" and t.meta and all(k in group.group.item() for k in group_of(t))
        )
        assert bars == pytest.approx(float(group.gap))
        cut = plots.shapley_figure(summary.isel(layer=[0, 1])).layout.title.subtitle.text
        assert "does NOT hold" in cut.replace("<br>", " ")


def group_of(trace: Any) -> list[str]:
    at = trace.meta["at"]
    return [f"{at['suite']}|{at['domain']}|{at['metric']}"]


def test_cumulative_curves_have_their_bands(of: Of) -> None:
    summary = of("layers")
    figure = plots.cumulative_figure(summary)
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 4 * 2 * 3
    ends = summary[["cumulated_low", "cumulated_high"]].isel(group=0, direction=0, series=0)
    assert set(bands[0].y) - {None} == {*ends.cumulated_low.values.tolist(), *ends.cumulated_high.values.tolist()}
    assert [trace.name for trace in figure.data if trace.showlegend is None] == ["attn", "mlp", "both"]


def test_undefined_fractions_are_gaps_and_said(of: Of) -> None:
    summary = of("curves")
    summary["defined"] = xr.ones_like(summary.defined)
    for end, by in (("", 0.5), ("_low", 0.4), ("_high", 0.6)):
        summary[f"recovered{end}"] = xr.full_like(summary.recovered, by)
    assert "undefined" not in plots.recovered_figure(summary).layout.title.subtitle.text
    off = (summary.layer == 1) & (summary.component == "mlp") | (summary.metric == "logprob") & (summary.domain == "ood")
    off = off.broadcast_like(summary.defined).transpose(*summary.defined.dims)
    summary = summary.assign({f"recovered{end}": summary[f"recovered{end}"].where(~off) for end in ("", "_low", "_high")})
    summary["defined"] = ~off
    figure = plots.recovered_figure(summary)
    assert f"{int(off.sum())} of {off.size} fractions are undefined" in figure.layout.title.subtitle.text.replace("<br>", " ")
    mlp = next(t for t in figure.data if t.meta and t.meta["at"] == {"domain": "id", "metric": "accuracy", "component": "mlp"})
    assert np.isnan(mlp.y[1]) and mlp.connectgaps is None
    assert list(mlp.error_y.array) == pytest.approx([0.1, np.nan, 0.1], nan_ok=True)  # neither has a neighbour to make a band with
    assert [note.text for note in figure.layout.annotations if "noise" in note.text] == ["undefined: donor -<br>host is within noise"]


def test_the_plane_has_every_recipe_and_the_line_from_base_to_vanilla(of: Of) -> None:
    summary = of("grid")
    figure = plots.plane_figure(summary)
    points = [t for t in figure.data if t.meta and t.meta["at"]["metric"] == "logprob"]
    at = {point["recipe"]: (x, y) for t in points for point, x, y in zip(t.meta["points"], t.x, t.y, strict=True)}
    values = {d: summary.value.sel(group=f"words|{d}|logprob") for d in ("id", "ood")}
    assert at == {name: tuple(float(values[d].sel(recipe=name)) for d in ("id", "ood")) for name in summary.recipe.values.tolist()}
    line = figure.data[0]
    assert line.mode == "lines" and list(zip(line.x, line.y, strict=True)) == [at["base"], at["vanilla"]]
    cloud = next(t for t in points if t.name == "controls")
    assert cloud.opacity < 1 and cloud.marker.size < next(t for t in points if t.name == "TAIA").marker.size
    assert all(t.error_x.array is not None and t.error_y.array is not None for t in points)


def test_names_in_the_plane_never_meet() -> None:
    rng = np.random.default_rng(0)
    names = ["base", "vanilla", "TAIA", "TAIF"]
    left_out = 0
    for spread in (0.0, 5.0, 60.0):
        for _ in range(50):
            x, y = (150 + spread * rng.normal(size=(1, 4)) + np.array([[-4], [0], [4]]) for _ in range(2))
            places = _placed(x, y, names)
            boxes = [_box(a, b, 7.0 * len(n), place) for a, b, n, place in zip(x[1], y[1], names, places, strict=True) if place]
            assert not any(_meet(one, other) for i, one in enumerate(boxes) for other in boxes[:i])
            left_out += places.count("")
    assert left_out  # the legend names those


def test_a_suites_name_is_text_and_not_markup(llama: Pair, suite: Suite) -> None:
    named = Suite("<script>alert(1)</script>", suite.rows)
    notes = plots.patch_figure(summaries.patch_summary(patch(llama, named, component="mlp", layers=1))).layout.title.subtitle.text
    assert "<script>" not in notes and "&lt;script&gt;" in notes


def test_few_prompts_are_said_to_be_few(llama: Pair, suite: Suite) -> None:
    summary = summaries.patch_summary(patch(llama, suite, component="mlp", layers=1))
    assert "too few prompts" in str(tables.patch_tables(summary)[0].title)
    rows = tuple(row.__class__(f"{row.id}-{i}", row.prompt, row.answer, "id") for row in suite.rows for i in range(3))
    many_rows = summaries.patch_summary(patch(llama, Suite("many", rows), component="mlp", layers=1))
    assert "too few" not in str(tables.patch_tables(many_rows)[0].title)
