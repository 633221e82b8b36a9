"""In a notebook: what pair, recipe, suite and results look like, what completion offers, and what `explore` shows and hears."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from IPython.core.completer import IPCompleter, provisionalcompleter
from IPython.core.formatters import DisplayFormatter

import taia_lens as tl
from taia_lens import results
from taia_lens.errors import ResultError
from taia_lens.explorer import cells_of, explore
from taia_lens.html import cut, table
from taia_lens.pair import Law, Pair, Report
from taia_lens.recipe import Recipe
from taia_lens.sites import COMPONENTS
from taia_lens.studies.patching import patch
from taia_lens.suite import Suite, make_suite

PACKAGE = Path(tl.__file__).parent
SCRIPT = "<script>alert(1)</script>"
VIEW = "application/vnd.jupyter.widget-view+json"


def tags(page: str) -> set[str]:
    """The tags that a browser would see."""
    return set(re.findall(r"<([a-z0-9]+)", page))


def prompts() -> Suite:
    """Four prompts of each domain, one of which is markup, one Arabic and one Chinese."""
    texts = [SCRIPT, "ما هي عاصمة فرنسا؟", "法国的首都是什么？", "The capital of France is"] * 2
    rows = [
        {"id": f"row-{i}", "prompt": f"{text} {i}", "answer": " <b>Paris</b>", "contrast": " Rome", "domain": "ood" if i > 3 else "id"}
        for i, text in enumerate(texts)
    ]
    return make_suite("capitals <i>", rows)


def planted(*, heads: bool = False, layers: int = 3) -> xr.Dataset:
    """A patching result in which one site does something: at L1 it fixes rows 4, 5 and 6 and breaks row 7, all out of distribution."""
    suite = prompts()
    coords: dict[str, tuple] = {"component": ("head",), "layer": tuple(range(layers)), "head": (0, 1)}
    coords = coords if heads else {"component": ("attn", "mlp"), "layer": tuple(range(layers))}
    host, donor = np.zeros((1, 8)), np.ones((1, 8))
    host[:, 7] = 1.0
    patched = np.broadcast_to(host, (*(len(v) for v in coords.values()), 8)).copy()
    patched[(0, 1, 1) if heads else (1, 1)] = [0, 0, 0, 0, 1, 1, 1, 0]
    attrs = {"study": "patch", "host": "base", "donor": "tuned", "positions": "all", "base": SCRIPT, "tuned": "./tuned", "seed": 0}
    attrs |= {"suite": suite.name, "dtype": "float32", "device": "cpu"}
    return results.patch_dataset(host, donor, patched[None], np.zeros(1), metrics=("accuracy",), coords=coords, suite=suite, attrs=attrs)


# What it looks like


def test_a_pair_says_what_it_is_what_differs_and_whether_the_laws_hold(llama: Pair) -> None:
    page = llama._repr_html_()
    for text in ("Pair: base | tuned", "LlamaForCausalLM", "3 layers, 4 heads (2 key-value)", "float32, on cpu", "parameters each"):
        assert text in page, text
    attn = [w for w in llama.weights["base"] if w.component == "attn"]
    assert re.search(rf"attn</td><td[^>]*>{len(attn)} of {len(attn)}</td><td[^>]*>3<", page)
    assert "Self-check: all 8 laws hold" in page and "<details>" in page
    assert "script" not in tags(page)


def test_a_law_that_fails_is_seen_at_once_and_names_are_text(llama: Pair) -> None:
    report = Report(laws=(Law("good", 0.0, 1.0, True), Law("bad", 2.0, 1.0, False)), notes=(SCRIPT,), plain_because="")
    page = replace(llama, origin=replace(llama.origin, base=SCRIPT), report=report)._repr_html_()
    assert "Self-check: 1 of 2 laws FAIL" in page and "<details open>" in page
    assert page.index(">bad<") < page.index(">good<")
    assert page.count("&lt;script&gt;") == 2 and "script" not in tags(page)


def test_a_recipe_says_in_words_what_each_edit_does() -> None:
    recipe = tl.parse_recipe(
        "base; graft L0,3-5.attn.q <- tuned; graft L3.h5,6 <- tuned; graft all <- tuned keep 0.3 seed 1; graft mlp <- tuned x0.5; "
        "patch L2.mlp <- tuned @last; ablate L3.h5 @0,-1; scale L1.resid a=0.5 v=0.1; patch embed <- tuned"
    )
    assert [edit.words for edit in recipe.edits] == [
        "the projection q of attention in layers 0, 3-5 is tuned's",
        "the weights of heads 5-6 in layer 3 are tuned's",
        "to all weights is added a random 0.3 of the update's entries (seed 1), divided by 0.3, which is tuned - host",
        "to the weights of the FFN is added 0.5 times the update, which is tuned - host",
        "the output of the FFN in layer 2 becomes what tuned computed there, at the last position of the prompt",
        "the output (z) of head 5 in layer 3 becomes zero, at positions 0, -1",
        "the residual stream after layer 1 is multiplied by 1.5, and 0.1 is added, at every position",
        "the embedding becomes what tuned computed there, at every position",
    ]
    page = recipe._repr_html_()
    assert page.count("<li") == 8 and "graft L0,3,4,5.attn.q &lt;- tuned" in page
    assert "Grafted weights run on the host&#x27;s" in page or "Grafted weights run on the host's" in page
    assert "as they are" in Recipe("tuned")._repr_html_()
    assert all(row.words for row in COMPONENTS.values())


def test_a_long_recipe_is_not_put_into_words_whole() -> None:
    page = tl.parse_recipe("base; patch L0-31.h0-31 <- tuned")._repr_html_()
    assert "and 1004 edits more" in page and page.count("<li") == 21


def test_a_suite_shows_some_rows_as_text_and_prints_on_one_line() -> None:
    suite = prompts()
    page = suite._repr_html_()
    assert "Suite capitals &lt;i&gt;" in page and "n = 8: 4 id, 4 ood" in page and "next: the answer is the next token" in page
    assert page.count("<tr>") == 1 + 6 and "the first 3 of each domain" in page
    assert not tags(page) & {"script", "b", "i"}
    assert 'dir="auto">ما هي' in page
    assert repr(suite) == "Suite(capitals <i>: 4 id, 4 ood; task next)"


def test_texts_in_tables_are_escaped_cut_and_kept_on_their_line() -> None:
    page = table(["<a>"], [[" x" * 200], ["<b>"]], caption="<c>")
    assert not tags(page) & {"a", "b", "c"}
    assert "…" in page and "\u00a0x" in page and len(cut("y" * 1000)) < 310
    assert "prefers-color-scheme" not in page and "color: inherit" in prompts()._repr_html_()


# Results


def test_a_result_is_shown_with_its_study_pair_prompts_and_sentences() -> None:
    result = planted()
    made = tl.show(result)
    for text in ("Patching:", "base &lt;script&gt;", "suite capitals &lt;i&gt;: 4 id, 4 ood", "host base, donor tuned", "xarray.Dataset"):
        assert text in made.html, text
    assert "of 6 sites, patched one at a time, the strongest: L1.mlp +0.500" in made.html
    assert "In distribution (capitals &lt;i&gt;, accuracy, n = 4)" in made.html and "no site changes it" in made.html
    assert not tags(made.html) & {"script", "b", "i"}
    assert repr(made).startswith("Patching:") and "<xarray.Dataset>" in repr(made) and "L1.mlp +0.500" in repr(made)


def test_the_extension_shows_every_result_so_and_leaves_other_datasets_alone() -> None:
    shell = SimpleNamespace(display_formatter=DisplayFormatter())
    result, other = planted(), xr.Dataset({"x": ("i", [1, 2])})

    def page(value: Any) -> str:
        return shell.display_formatter.format(value)[0]["text/html"]

    assert "Patching:" not in page(result)  # nothing is changed by importing the package
    tl.load_ipython_extension(shell)
    assert "Patching:" in page(result) and page(other).startswith("<div><svg")
    tl.unload_ipython_extension(shell)
    assert "Patching:" not in page(result)


def test_a_part_of_a_result_is_not_headed_like_the_whole() -> None:
    assert "not the whole" in tl.show(planted().drop_vars("donor")).html
    assert "not the whole" in tl.show(planted().mean("example")).html


def test_what_no_study_returned_is_refused() -> None:
    with pytest.raises(ResultError, match="attrs\\['study'\\] is None; give what a study returned"):
        tl.show(xr.Dataset())


# explore


def test_the_cells_of_a_figure_are_what_its_traces_say() -> None:
    found = explore(planted(heads=True))
    assert {tuple(sorted(cell)) for cell in found.cells.values()} == {("component", "domain", "head", "layer", "metric")}
    assert len(found.cells) == 2 * 3 * 2
    assert found.strongest == {"metric": "accuracy", "component": "head", "domain": "ood", "layer": 1, "head": 1}
    curves = explore(planted())
    assert curves.strongest == {"metric": "accuracy", "component": "mlp", "domain": "ood", "layer": 1}
    assert cells_of(go.Figure(go.Scatter(y=[1]))) == {}


@pytest.fixture
def shown_outputs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[dict[str, Any]]]:
    """What a cell that ends in an object shows, as MIME bundles."""

    def call(value: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        monkeypatch.setattr("IPython.display.display", lambda bundle, raw: found.append(bundle))
        value._ipython_display_()
        return found

    return call


def test_explore_shows_a_live_figure_and_lists_and_for_other_pages_a_static_figure_and_a_table(shown_outputs: Callable) -> None:
    explorer = explore(planted(heads=True))
    figure, listed = shown_outputs(explorer)
    # The live form comes first: a page that knows several forms alike takes the first.
    assert list(figure) == [VIEW, "application/vnd.plotly.v1+json", "text/plain"] and list(listed) == [VIEW, "text/html", "text/plain"]
    assert figure[VIEW]["model_id"] == explorer.widgets.map.model_id and listed[VIEW]["model_id"] == explorer.widgets.panel.model_id
    assert len(figure["application/vnd.plotly.v1+json"]["data"]) == 2
    assert "this page runs no Jupyter widgets" in listed["text/html"] and "Fixed: 3" in listed["text/html"]
    assert "fixed 3, broke 1 of 4 examples" in listed["text/plain"]


@pytest.mark.parametrize("missing", ["ipywidgets", "anywidget"])
def test_explore_without_a_package_says_which_and_stays_static(
    missing: str, shown_outputs: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    figure, listed = shown_outputs(explore(planted(heads=True)))
    assert VIEW not in figure and VIEW not in listed
    assert f"{missing} is not installed (pip install &#x27;taia-lens[notebooks]&#x27;)" in listed["text/html"].replace("'", "&#x27;")
    assert "Fixed: 3" in listed["text/html"] and "Broke: 1" in listed["text/html"]


def clicked(figure: Any, trace: int, point: Any) -> None:
    """What plotly's widget sends when a point is clicked."""
    device = {"alt": False, "ctrl": False, "meta": False, "shift": False, "button": 0, "buttons": 1}
    points = {"trace_indexes": [trace], "point_indexes": [point], "xs": [0], "ys": [0]}
    figure._js2py_pointsCallback = {"event_type": "plotly_click", "points": points, "device_state": device, "selector": None}


def test_a_click_and_a_choice_from_the_lists_do_the_same() -> None:
    live = explore(planted(heads=True)).widgets
    assert live.cell["layer"] == 1 and "fixed 3, broke 1 of 4 examples" in live.examples.value
    assert 'aria-live="polite"' in live.examples.value
    assert [chosen.description for chosen in live.panel.children[0].children] == ["domain", "layer", "head"]  # what leaves a choice
    clicked(live.figure, 0, [2, 0])
    assert live.cell == {"metric": "accuracy", "component": "head", "domain": "id", "layer": 2, "head": 0}
    assert "fixed 0, broke 0 of 4 examples" in live.examples.value and "row-4" not in live.examples.value
    for name, value in (("domain", "ood"), ("layer", 1), ("head", 1)):
        live.lists[name].value = value
    assert "fixed 3, broke 1" in live.examples.value and "row-4" in live.examples.value


def test_a_click_on_a_curve_is_heard_too() -> None:
    explorer = explore(planted(), tl.patch_figure(tl.summary(planted())))
    assert explorer.strongest == {"metric": "accuracy", "component": "mlp", "domain": "ood", "layer": 1}
    there = next(place for place, cell in explorer.cells.items() if cell == explorer.strongest)
    other = next(place for place, cell in explorer.cells.items() if cell["component"] == "attn" and cell["layer"] == 2)
    assert len(there) == 2  # the curve, and the point on it
    for place in (there, other, there):
        clicked(explorer.widgets.figure, *place)
        assert explorer.widgets.cell == explorer.cells[place]


def test_prompts_are_shown_as_text() -> None:
    value = explore(planted()).widgets.examples.value
    assert not tags(value) & {"script", "b", "i"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 4" in value and "&lt;b&gt;Paris&lt;/b&gt;" in value
    assert "ما هي" in value and "法国" in value


def test_a_cell_without_a_value_is_sent_as_json_can_say_it() -> None:
    meta = {"at": {"component": "head", "domain": "ood", "head": 1}, "rows": [{}], "columns": [{"layer": 0}, {"layer": 1}]}
    figure = go.Figure(go.Heatmap(z=np.array([[np.nan, 1.0]]), meta=meta))
    live = explore(planted(heads=True), figure).widgets
    json.dumps(live.figure.get_state("_widget_data"), allow_nan=False)
    with pytest.raises(ValueError, match="Out of range float"):
        json.dumps(go.FigureWidget(figure).get_state("_widget_data"), allow_nan=False)
    assert live.cell["layer"] == 1


def test_what_has_no_cells_is_refused_in_words() -> None:
    with pytest.raises(ResultError, match="no map of the study 'drift'; give a result of one of patch"):
        explore(planted().assign_attrs(study="drift"))
    with pytest.raises(ResultError, match="no cell of this figure can be picked"):
        explore(planted(), go.Figure(go.Scatter(y=[1])))


def test_a_cell_that_the_figure_lacks_is_said() -> None:
    live = explore(planted()).widgets
    live.lists["layer"].options = [*live.lists["layer"].options, ("7", 7)]
    live.lists["layer"].value = 7
    assert "no such cell" in live.examples.value


def test_cells_that_name_fewer_dims_can_be_chosen_too() -> None:
    """The map of the difference of two domains is of no domain."""
    live = explore(planted()).widgets
    assert [label for label, _ in live.lists["domain"].options] == ["ood", "id", "any"]
    live.lists["domain"].value = dict(live.lists["domain"].options)["any"]
    assert "domain" not in live.cell and "fixed 3, broke 1 of 8 examples" in live.examples.value


# Completion and docstrings


@pytest.mark.parametrize("jedi", [True, False])
def test_completion_offers_what_is_there(jedi: bool) -> None:
    completer = IPCompleter(namespace={"tl": tl})
    completer.use_jedi = jedi

    def offered(text: str) -> set[str]:
        with provisionalcompleter():
            return {found.text.lstrip(".") for found in completer.completions(text, len(text))}

    assert {"patch", "patch_figure", "parse_recipe"} <= offered("tl.pa")
    assert not [name for name in offered("tl.pa") if not name.startswith("pa")]
    assert set(tl.__all__) <= offered("tl.") | {"TaiaLensError"}
    assert {"component=", "layers="} <= offered("tl.patch(")


def test_editors_that_run_nothing_are_told_every_name() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = [alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(told) == sorted(tl.__all__)


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    yield from ((name, getattr(tl, name)) for name in tl.__all__ if inspect.isfunction(getattr(tl, name)))


def unhelpful(function: Callable[..., Any]) -> list[str]:
    """Parameters that a signature hides or a docstring leaves out."""
    given = inspect.signature(function).parameters.values()
    hidden = [p.name for p in given if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return hidden + [p.name for p in given if not re.search(rf"\b{p.name}\b", inspect.getdoc(function) or "")]


def test_every_parameter_is_named_and_explained() -> None:
    assert {name: unhelpful(function) for name, function in functions() if unhelpful(function)} == {}
    assert unhelpful(lambda **options: None) == ["options", "options"]


def test_no_module_hides_a_public_name() -> None:
    """Importing taia_lens.x binds `x` in the package; a function of that name would be gone."""
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {name for name in tl.__all__ if name in modules and not inspect.ismodule(getattr(tl, name))} == set()
    assert {"lofit", "plots"} <= modules


def test_dir_offers_the_public_names_only() -> None:
    assert dir(tl) == sorted(tl.__all__)


# Bars


def wrong_bars(source: str) -> list[str]:
    """Bars of another tqdm, and bars that nobody can turn off."""
    tree = ast.parse(source)
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    found = [name for name in modules if name.split(".")[0] == "tqdm" and name != "tqdm.auto"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tqdm":
            off = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("disable", "")
            found += [] if off in ("not progress", "None") else [ast.unparse(node)]  # None: off where there is no terminal
    return found


def test_every_bar_is_of_tqdm_auto_and_off_unless_asked_for() -> None:
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert {name: wrong_bars(source) for name, source in sources.items() if wrong_bars(source)} == {}
    assert sum("tqdm(" in source for source in sources.values()) > 10
    assert wrong_bars("from tqdm import tqdm\ntqdm(total=3)") == ["tqdm", "tqdm(total=3)"]


def test_commands_ask_for_a_bar_on_a_terminal_only() -> None:
    found = {}
    for path in (PACKAGE / "cli").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asked = [k.value for node in ast.walk(tree) if isinstance(node, ast.Call) for k in node.keywords if k.arg == "progress"]
        if asked:
            names = [value.id for value in asked if isinstance(value, ast.Name)]
            found[path.name] = [ast.unparse(value) for value in asked if not isinstance(value, ast.Name)]
            found[path.name] += ["sys.stderr.isatty()"] if names and "= sys.stderr.isatty()" in path.read_text(encoding="utf-8") else names
    assert len(found) > 8 and {text for texts in found.values() for text in texts} == {"sys.stderr.isatty()"}


def test_a_bar_is_drawn_on_stderr_where_it_is_asked_for(llama: Pair, suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    patch(llama, suite, component="mlp", layers=1)
    assert capsys.readouterr().err == ""
    patch(llama, suite, component="mlp", layers=1, progress=True)
    out, err = capsys.readouterr()
    assert "patching" in err and out == ""
