"""Figures of heads, transfer, steering, drift, anatomy, attribution's check, lens, attention and training: whatever they are given,
they are drawn or refused in words; texts are text; what is drawn fits two columns; every cell says what it is.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import test_heads
import test_steering
import xarray as xr

from taia_lens import plots, summaries
from taia_lens.errors import ResultError
from taia_lens.pair import Pair
from taia_lens.plots.attribution import check_figure
from taia_lens.studies.anatomy import anatomy
from taia_lens.studies.attention import attention
from taia_lens.studies.attribution import attribution
from taia_lens.studies.drift import drift
from taia_lens.studies.lens import lens
from taia_lens.suite import Suite

PROMPT = "w1 w2 w3 w4 w5"
LONG = "a name of two hundred characters " * 6 + "end"
SCRIPT = "<script>alert(1)</script>"
HEBREW, CHINESE = "שלום עולם, מה שלומך היום", "请写出第二个人的名字和他的城市" * 4
TEXTS = {"long": LONG, "markup": SCRIPT, "right to left": HEBREW, "chinese": CHINESE, "blank": " \n\t ", "percent": "%{x} 100%"}
LINE = {"title": 60, "notes": 90, "panel": 64, "tick": 34, "legend": 40}
"""Characters of the longest line that fits 450 pixels."""
RECORD = {
    "epochs": [{"loss": 2.0 - i / 4, "penalty": 0.1 * i, "validation": 1.5 + (i - 2) ** 2 / 9} for i in range(4)],
    "best": 2,
    "stopped": None,
}


@dataclass(frozen=True)
class Case:
    """A figure, and what it is drawn of: `sizes` are dims that may be empty, `names` coords whose texts are the user's."""

    draw: Callable[[xr.Dataset], go.Figure]
    make: Callable[[Pair, Suite], xr.Dataset]
    sizes: tuple[str, ...]
    names: tuple[str, ...] = ()
    attrs: tuple[str, ...] = ("base", "tuned")


def heads(pair: Pair, suite: Suite) -> xr.Dataset:
    return summaries.heads_summary(test_heads.made()).assign_attrs(k=4, model="m")


def transfer(pair: Pair, suite: Suite) -> xr.Dataset:
    return summaries.transfer_summary(test_heads.moved()).assign_attrs(model="m")


def lens_of(pair: Pair, suite: Suite) -> xr.Dataset:
    return lens(pair, suite.rows[0], [" w7"], norms="base", embed="base")


def selection() -> xr.Dataset:
    rng = np.random.default_rng(0)
    values = {name: (("layer", "head"), rng.random((16, 8))) for name in ("norm", "relative", "effect")}
    return xr.Dataset(values, {"layer": range(16), "head": range(8)}, {"model": "m"})


CASES = {
    "maps": Case(plots.head_maps_figure, heads, ("ranker", "layer", "head"), ("ranker", "score_unit"), ("model",)),
    "selection": Case(
        plots.head_maps_figure,
        lambda pair, suite: summaries.selection_summary(selection(), 6, ("norm", "relative", "effect")),
        ("ranker", "layer", "head"),
        ("ranker",),
        ("model",),
    ),
    "agreement": Case(plots.agreement_figure, heads, ("ranker",), ("ranker", "other"), ("model",)),
    "arms": Case(plots.heads_figure, heads, ("group", "line"), ("suite", "by", "metric"), ("model",)),
    "transfer": Case(plots.transfer_figure, transfer, ("group", "row", "task"), ("suite", "row", "task", "own", "metric"), ("model",)),
    "anatomy": Case(plots.anatomy_figure, lambda pair, suite: anatomy(pair), ("weight",), ("weight", "part")),
    "drift": Case(
        plots.drift_figure,
        lambda pair, suite: summaries.drift_summary(drift(pair, suite, norms="base", embed="base")),
        ("group", "layer"),
        ("suite",),
    ),
    "steering": Case(
        plots.steering_figure,
        lambda pair, suite: summaries.steering_summary(test_steering.made()),
        ("group", "direction", "alpha"),
        ("suite", "direction", "arm", "metric"),
        ("model", "method"),
    ),
    "attribution": Case(
        plots.attribution_figure,
        lambda pair, suite: summaries.attribution_summary(attribution(pair, suite, component="attn,mlp", check=2)),
        ("layer", "component"),
        (),
        ("base", "tuned", "suite"),
    ),
    "check": Case(
        check_figure,
        lambda pair, suite: summaries.attribution_summary(attribution(pair, suite, component="attn,mlp", check=2)),
        ("check",),
        (),
        ("base", "tuned", "suite"),
    ),
    "lens": Case(
        plots.lens_figure, lens_of, ("recipe", "layer", "token"), ("recipe", "token", "first", "top"), ("base", "tuned", "prompt")
    ),
    "attention": Case(
        plots.attention_figure,
        lambda pair, suite: attention(pair, PROMPT, 1, 2),
        ("query", "key"),
        ("query_token", "key_token"),
        ("base", "tuned", "prompt"),
    ),
    "training": Case(
        plots.training_figure,
        lambda pair, suite: summaries.training_history({"selection": RECORD, "offsets": RECORD}, model="m"),
        ("run", "epoch"),
        ("run", "stopped"),
        ("model",),
    ),
}


@pytest.fixture(scope="module")
def of(llama: Pair, suite: Suite) -> Callable[[str], xr.Dataset]:
    """What a figure is drawn of; computed once."""
    known: dict[str, xr.Dataset] = {}

    def get(name: str) -> xr.Dataset:
        if name not in known:
            known[name] = CASES[name].make(llama, suite)
        return known[name].copy(deep=True)

    return get


Of = Callable[[str], xr.Dataset]


def strings(part: Any) -> Iterator[str]:
    """Every text of a figure, but for `meta`, which is not shown."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict):
        for key, value in part.items():
            if key != "meta":
                yield from strings(value)
    elif isinstance(part, (list, tuple)) or (isinstance(part, np.ndarray) and part.dtype.kind in "OU"):
        for value in part:
            yield from strings(value)


def lines(figure: go.Figure) -> Iterator[tuple[str, str]]:
    """What is shown without pointing at anything, line by line as it is read, and where it stands."""
    title = figure.layout.title
    shown = [("title", title.text), ("notes", title.subtitle.text)]
    shown += [("panel", note.text) for note in figure.layout.annotations]
    axes = [axis for name in figure.layout if name.startswith(("xaxis", "yaxis")) for axis in [figure.layout[name]]]
    shown += [("panel", axis.title.text) for axis in axes if axis.title.text]
    shown += [("tick", text) for axis in axes for text in axis.ticktext or ()]
    shown += [("legend", trace.name) for trace in figure.data if trace.showlegend and trace.name]
    for where, text in shown:
        for line in str(text).split("<br>"):
            yield where, html.unescape(re.sub(r"</?(?:span|sup)[^>]*>", "", line))


def columns(figure: go.Figure) -> int:
    """How many panels stand beside each other, a map's margin counting with the map."""
    domains = {tuple(figure.layout[name].domain or (0, 1)) for name in figure.layout if name.startswith("xaxis")}
    return len(domains)


def cells(trace: Any) -> list[dict[str, Any]]:
    """What each cell of a trace selects."""
    meta = trace.meta
    if "points" in meta:
        return [meta["at"] | point for point in meta["points"]]
    return [meta["at"] | row | column for row in meta["rows"] for column in meta["columns"]]


@pytest.mark.parametrize("name", CASES)
def test_it_is_drawn_in_at_most_two_columns_and_no_line_is_too_long(name: str, of: Of) -> None:
    figure = CASES[name].draw(of(name))
    assert figure.data and figure.layout.height > 200 and figure.layout.width is None
    assert 1 <= columns(figure) <= 2
    for where, line in lines(figure):
        assert len(line) <= LINE[where], (where, line)
    json.dumps(figure.to_plotly_json()["layout"]["title"])  # plain


def test_too_many_columns_and_too_long_lines_would_be_noticed() -> None:
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 3)
    assert columns(figure) == 3
    figure.update_layout(title={"text": "x" * 61, "subtitle": {"text": ""}})
    assert any(len(line) > LINE[where] for where, line in lines(figure))


@pytest.mark.parametrize("name", CASES)
def test_every_cell_says_which_one_it_is(name: str, of: Of) -> None:
    data = of(name)
    figure = CASES[name].draw(data)
    traces = [trace for trace in figure.data if trace.meta is not None]
    assert traces
    for trace in traces:
        json.dumps(trace.meta, allow_nan=False)
        if trace.type == "heatmap":
            assert np.shape(trace.z) == (len(trace.meta["rows"]), len(trace.meta["columns"]))
        else:
            assert len(trace.meta["points"]) == len(trace.x) == len(trace.y)
        for key in {key for cell in cells(trace) for key in cell}:
            known = set(np.atleast_1d(data[key].values).tolist())
            assert {cell[key] for cell in cells(trace) if key in cell} <= known, key
    silent = [trace for trace in figure.data if trace.meta is None]
    assert all(trace.hoverinfo == "skip" or trace.name in ("CKA prompts shuffled", "no error") for trace in silent)


@pytest.mark.parametrize("dim", ["ranker", "layer", "head", "token", "epoch", "weight"])
def test_cells_hold_the_values_of_what_they_say_they_are(dim: str, of: Of) -> None:
    """The other way round: what a cell selects has the number that is drawn there."""
    figures = {"ranker": ("maps", "score"), "layer": ("drift", "residual"), "head": ("maps", "score")}
    figures |= {"token": ("lens", "logprob"), "epoch": ("training", "validation"), "weight": ("attention", "pattern")}
    name, variable = figures[dim]
    data = of(name)
    checked = 0
    for trace in CASES[name].draw(data).data:
        if trace.meta is None:
            continue
        drawn = np.ravel(trace.z if trace.type == "heatmap" else trace.y)
        for cell, value in zip(cells(trace), drawn, strict=True):
            on_group = {key: cell.pop(key) for key in ("suite", "domain", "metric") if key in cell}
            part = data if not on_group else data.isel(group=(data.suite == on_group["suite"]) & (data.domain == on_group["domain"]))
            if set(data[variable].dims) - {"group"} == set(cell) and value is not None and np.isfinite(value):
                same = np.isclose(float(part[variable].sel(cell).squeeze()), value)
                checked += same
                if variable in ("score", "pattern"):
                    assert same
    assert checked > 0


@pytest.mark.parametrize(("name", "dim"), [(name, dim) for name, case in CASES.items() for dim in case.sizes])
def test_nothing_to_draw_is_refused_in_words(name: str, dim: str, of: Of) -> None:
    empty = of(name).isel({dim: slice(0, 0)})
    with pytest.raises(ResultError, match=r"nothing to draw|nothing to hold the estimate against|rankings and no check"):
        CASES[name].draw(empty)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "layer" in case.sizes or name == "anatomy"])
def test_one_layer_is_drawn(name: str, of: Of) -> None:
    data = of(name)
    one = data.isel(weight=data.layer.values == 0) if name == "anatomy" else data.isel(layer=[1])
    assert CASES[name].draw(one.assign_attrs(n_layers=1) if name == "anatomy" else one).data


def many(data: xr.Dataset, dim: str, n: int) -> xr.Dataset:
    """The same with n places along a dim."""
    first = int(data[dim].values.min())
    return data.isel({dim: np.arange(n) % data.sizes[dim]}).assign_coords({dim: np.arange(first, first + n)})


@pytest.mark.parametrize("name", ["maps", "selection", "agreement", "transfer", "drift", "lens", "anatomy", "attention"])
def test_80_layers_of_64_heads_are_drawn(name: str, of: Of) -> None:
    data = of(name)
    if name == "anatomy":
        one = data.isel(weight=data.layer.values == 1)
        parts = [one.assign_coords(layer=("weight", [i] * one.sizes["weight"])) for i in range(80)]
        data = xr.concat(parts, "weight").assign_attrs(data.attrs | {"n_layers": 80})
    elif name == "attention":
        data = many(many(data, "query", 200), "key", 200)
    else:
        data = many(data, "layer", 80)
        data = many(data, "head", 64) if "head" in data.dims else data
    figure = CASES[name].draw(data)
    assert 200 < figure.layout.height < 6000
    assert all(len(axis.ticktext) < 110 for axis in (*figure.select_xaxes(), *figure.select_yaxes()) if axis.ticktext)


def test_many_rankers_tasks_and_groups_are_drawn(of: Of) -> None:
    data = of("maps").isel(ranker=np.arange(14) % 4, other=np.arange(14) % 4)
    names = [f"ranker-{i}" for i in range(14)]
    figure = plots.agreement_figure(data.assign_coords(ranker=names, other=names))
    assert len(figure.layout.xaxis.ticktext) == 14
    wide = of("transfer")
    groups = wide.isel(group=np.arange(12) % 4).assign_coords(group=[f"g{i}" for i in range(12)])
    assert plots.transfer_figure(groups).data


def test_maps_of_signed_scores_are_white_at_zero(of: Of) -> None:
    data = of("maps")
    data["score"] = data.score - 1.0
    signed, plain = ([t for t in plots.head_maps_figure(d).data if t.type == "heatmap"] for d in (data, of("maps")))
    for one, other in zip(signed, plain, strict=True):
        assert one.zmin == -one.zmax < 0 and other.zmin is None and one.colorscale != other.colorscale


@pytest.mark.parametrize("whole", [False, True], ids=["some", "all"])
@pytest.mark.parametrize("name", CASES)
def test_cells_without_a_number_are_drawn(name: str, whole: bool, of: Of) -> None:
    data = of(name)
    for variable in data.data_vars:
        values = data[variable].values
        if values.dtype.kind == "f" and values.ndim:
            holes = values.astype(float).copy()
            holes[... if whole else (slice(None),) * (values.ndim - 1) + (0,)] = np.nan
            data[variable] = (data[variable].dims, holes)
    figure = CASES[name].draw(data)
    json.loads(figure.to_json())
    assert figure.data


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", CASES)
def test_texts_of_the_users_are_text_and_no_longer_than_fits(name: str, text: str, of: Of) -> None:
    case = CASES[name]
    data = of(name).assign_attrs({attr: f"{TEXTS[text]}" for attr in case.attrs})
    for coord in case.names:
        old = data[coord]
        number = {value: i for i, value in enumerate(dict.fromkeys(old.values.ravel().tolist()))}
        # One text a value, distinct at its end only: what is shown of them may be the same.
        new = np.array([f"{TEXTS[text]}{number[value]}" for value in old.values.ravel().tolist()], dtype=object).reshape(old.shape)
        data = data.assign_coords({coord: (old.dims, new)}) if coord in data.coords else data.assign({coord: (old.dims, new)})
    if name == "arms":  # the names of lines that the figure knows stay
        data = data.assign_coords(line=[f"{i}" for i in range(data.sizes["line"])])
    figure = case.draw(data)
    assert figure.data and 1 <= columns(figure) <= 2
    assert not any("<script" in part for part in strings(figure.to_plotly_json()))
    for where, line in lines(figure):
        assert len(line) <= LINE[where], (where, line)
    if text == "markup" and name != "anatomy" and case.names:
        assert any("&lt;script&gt;" in part or "&lt;script" in part for part in strings(figure.to_plotly_json()))


def test_markup_would_be_noticed() -> None:
    assert any("<script" in part for part in strings(go.Figure(go.Bar(x=[SCRIPT], y=[1])).to_plotly_json()))


def test_labels_that_read_the_same_keep_their_places(of: Of) -> None:
    data = of("agreement")
    names = [f"{'x' * 100}{i}{'y' * 100}" for i in range(data.sizes["ranker"])]
    figure = plots.agreement_figure(data.assign_coords(ranker=names, other=names))
    assert len(set(figure.layout.xaxis.ticktext)) == 1 and len(figure.layout.xaxis.tickvals) == len(names)


# What a figure says.
def test_outlines_are_the_top_k_and_bars_count_them(of: Of) -> None:
    data = of("maps")
    figure = plots.head_maps_figure(data.sel(ranker=["lofit"]))
    outlines = [trace for trace in figure.data if trace.type == "scatter"]
    corners = {(y + 0.5, x + 0.5) for t in outlines for x, y in zip(t.x[::6], t.y[::6], strict=True)}
    chosen = np.argwhere(data.sel(ranker="lofit").transpose("layer", "head", ...).chosen.values > 0)
    assert corners == {(float(layer), float(head)) for layer, head in chosen}
    (bars,) = [trace for trace in figure.data if trace.type == "bar"]
    np.testing.assert_array_equal(bars.x, data.per_layer.sel(ranker="lofit"))


def test_a_selections_top_heads_are_those_that_lofit_takes() -> None:
    from taia_lens.lofit import top_heads

    chosen = selection()
    chosen["norm"][3, 2] = chosen["norm"][9, 5] = chosen["norm"].max()  # ties
    summary = summaries.selection_summary(chosen, 5)
    ours = {(int(layer), int(head)) for layer, head in np.argwhere(summary.chosen.values[0] == 1)}
    assert ours == {(site.layer, site.head) for site in top_heads(chosen["norm"], 5)}
    assert int(summary.per_layer.sum()) == 5
    with pytest.raises(ResultError, match="no score 'z'; it has norm, relative, effect"):
        summaries.selection_summary(chosen, 5, ("z",))
    with pytest.raises(ResultError, match="129 of 128 heads cannot be chosen"):
        summaries.selection_summary(chosen, 129)


def test_cells_that_are_not_told_apart_are_visibly_so(of: Of) -> None:
    summary = of("arms")
    tops = [t for t in plots.heads_figure(summary).data if t.name == "top K" and t.meta["at"]["domain"] == "ood"]
    by = {point["by"]: symbol for t in tops for point, symbol in zip(t.meta["points"], t.marker.symbol, strict=True)}
    assert by["lofit"] == "circle" and by["iti"] == "circle-open"
    figure = plots.agreement_figure(summary)
    names = summary.ranker.values.tolist()
    text = figure.data[0].text
    assert "•" not in text[names.index("lofit")][names.index("patch")] and "•" in text[names.index("lofit")][names.index("iti")]
    steered = [t for t in plots.steering_figure(of("steering")).data if t.meta and t.meta["at"].get("direction") == "iti"]
    own = next(t for t in steered if t.meta["at"]["domain"] == "id")
    assert list(own.marker.symbol) == ["circle-open", "circle-open", "star"]


def test_a_heads_figure_shows_whole_models_by_their_colours(of: Of) -> None:
    figure = plots.heads_figure(of("arms"))
    colours = {trace.name: trace.line.color for trace in figure.data if trace.name in ("base", "vanilla", "TAIA")}
    assert colours == {"base": plots.COLOURS["base"], "vanilla": plots.COLOURS["tuned"], "TAIA": plots.COLOURS["attn"]}


def test_attention_shows_no_cell_to_the_right_and_the_difference_around_zero(of: Of) -> None:
    data = of("attention")
    base, tuned, apart = plots.attention_figure(data).data
    seen = np.tri(data.sizes["query"], dtype=bool)
    assert np.isnan(np.array(base.z, float)[~seen]).all() and np.isfinite(np.array(base.z, float)[seen]).all()
    np.testing.assert_allclose(np.array(apart.z, float)[seen], (np.array(tuned.z, float) - np.array(base.z, float))[seen])
    assert apart.zmin == -apart.zmax and (base.zmin, base.zmax) == (tuned.zmin, tuned.zmax)
    with pytest.raises(ResultError, match=r"a map of 300 x 300 tokens cannot be read; draw at most 256: result\.isel"):
        plots.attention_figure(many(many(data, "query", 300), "key", 300))
    with pytest.raises(ResultError, match="the result holds base; a difference needs base and tuned"):
        plots.attention_figure(data.isel(side=[0]))


def test_the_lens_shows_the_most_likely_tokens_and_refuses_what_cannot_be_read(of: Of) -> None:
    data = of("lens")
    tops = plots.lens_figure(data).data[-1]
    assert tops.text[-1][0] == data.top.values[0, -1].strip() and float(np.max(tops.z)) <= 1
    with pytest.raises(ResultError, match="20 tokens cannot be told apart in one figure"):
        plots.lens_figure(data.isel(token=np.arange(20) % data.sizes["token"]))


def test_the_best_epoch_is_marked_and_an_early_end_is_said(of: Of) -> None:
    figure = plots.training_figure(of("training"))
    stars = [trace for trace in figure.data if trace.name == "the best epoch"]
    assert [list(star.x) for star in stars] == [[3], [3]] and stars[0].y[0] == pytest.approx(1.5)
    assert sum("penalty" in note.text for note in figure.layout.annotations) == 2
    short = RECORD | {"epochs": RECORD["epochs"][:1], "best": 0, "stopped": "the loss became nan in epoch 2"}
    mixed = plots.training_figure(summaries.training_history({"a": RECORD, "b": short}))
    assert "b stopped: the loss became nan" in mixed.layout.title.subtitle.text
    assert not any(note.text == "b: penalty" for note in mixed.layout.annotations)  # it is zero
    with pytest.raises(ResultError, match="no finished epoch"):
        plots.training_figure(summaries.training_history({}))


def test_panels_of_suites_of_one_domain_stand_beside_each_other(of: Of) -> None:
    data = of("drift")
    figure = plots.drift_figure(data.assign_coords(suite=("group", ["stories", "wiki"])))
    both = plots.drift_figure(data)
    assert figure.layout.height <= both.layout.height + 60 and "stories" in str(figure.layout.annotations[0].text)
    assert plots.drift_figure(data.isel(group=[1])).data  # out of distribution alone


def test_biases_and_vectors_alone_are_bars_and_few_of_many() -> None:
    n = 60
    coords = {"weight": [f"blocks.{i}.ln1.weight" for i in range(n)], "component": ("weight", ["norms"] * n)}
    coords |= {"layer": ("weight", list(range(n))), "part": ("weight", ["ln1"] * n)}
    data = {name: ("weight", np.arange(n) / n) for name in ("ratio", "share", "spectral_ratio", "stable_rank", "rank", "directions")}
    data |= {name: ("weight", np.full(n, np.nan)) for name in ("effective_rank", "overlap_in", "overlap_out", "chance_in", "chance_out")}
    figure = plots.anatomy_figure(xr.Dataset(data, coords, {"n_layers": n}))
    (bars,) = figure.data
    assert len(bars.y) == 40 and "20 more are in the table" in figure.layout.title.subtitle.text
    assert min(bars.x) == pytest.approx(20 / n)
