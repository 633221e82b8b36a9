"""The report as a file: what it holds, that nothing in it can do harm, and one line for each run folder it cannot be made of."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports
import xarray as xr
from reports import IMAGE, SCRIPT, about, examples, grid_result, layers_result, metrics, patch_result, write

from taia_lens import results, summaries
from taia_lens.errors import ResultError
from taia_lens.report import write_report
from taia_lens.report.cells import boards, embedded
from taia_lens.report.parts import embedded_json
from taia_lens.report.runs import NEEDS
from taia_lens.report.sections import STUDIES
from taia_lens.summaries.changed import EXAMPLED, changed

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, by tag, with their attributes and the text directly in them; what is left open is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[list[str]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.texts.append([])
        if tag not in VOID:
            self.open.append(len(self.found) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.found[self.open[-1]][0] == tag, f"</{tag}> closes {self.found[self.open[-1]]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]].append(data)

    def all(self, tag: str, **attrs: str) -> list[tuple[dict[str, str | None], str]]:
        fits = [(i, a) for i, (t, a) in enumerate(self.found) if t == tag and attrs.items() <= a.items()]
        return [(a, "".join(self.texts[i])) for i, a in fits]


def wrong(page: Page) -> set[str]:
    """What a screen reader, a keyboard or a machine without a network would stumble over."""
    out = set()
    tags = [tag for tag, _ in page.found]
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    ids = [a["id"] for _, a in page.found if "id" in a]
    out |= {"no language"} if page.all("html", lang="en") == [] else set()
    out |= {"landmarks"} if any(tags.count(tag) != 1 for tag in ("header", "nav", "main", "h1", "title")) else set()
    out |= {"heading levels"} if levels[0] != 1 or any(b > a + 1 for a, b in pairwise(levels)) else set()
    out |= {"ids"} if len(set(ids)) < len(ids) else set()
    out |= {"links"} if any(a.get("href", "").lstrip("#") not in [*ids, "data:,"] for _, a in page.found if "href" in a) else set()  # type: ignore[union-attr]
    out |= {"handlers"} if any(name.startswith("on") for _, a in page.found for name in a) else set()
    out |= {"sources"} if any({"src", "srcset", "action", "data"} & a.keys() for _, a in page.found) else set()
    out |= {"scope"} if any("scope" not in a for a, _ in page.all("th")) else set()
    out |= {"captions"} if tags.count("caption") != tags.count("table") else set()
    out |= {"names"} if any("aria-labelledby" not in a for a, _ in page.all("section")) else set()
    labelled = [a.get("aria-labelledby") for _, a in page.found if "aria-labelledby" in a]
    return out | ({"names"} if not set(labelled) <= set(ids) else set())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of each study that is made by hand."""
    root = tmp_path_factory.mktemp("runs")
    made = {"patch": patch_result(suite=IMAGE), "compare": grid_result(extra=SCRIPT), "layers": layers_result()}
    return {name: write(root / name, result) for name, result in made.items()}


@pytest.fixture(scope="module")
def text(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(list(folders.values()), tmp_path_factory.mktemp("out") / "report.html", question=f"Why {SCRIPT}?").read_text()


def data_of(text: str) -> dict[str, Any]:
    (found,) = [content for _, content in Page(text).all("script", id="data")]
    return json.loads(found)


def test_the_page_is_sound_and_asks_for_nothing_else(text: str) -> None:
    page = Page(text)
    assert wrong(page) == set()
    assert len(re.findall(r"plotly\.js v\d", text)) == 1
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"] or ""
    assert "default-src 'none'" in policy and policy.count("'sha256-") == 2 and "unsafe-inline" not in policy.split("script-src")[1]


@pytest.mark.parametrize(
    ("break_it", "found"),
    [
        (lambda t: t.replace('lang="en"', ""), "no language"),
        (lambda t: t.replace("<h2", "<h3", 1).replace("</h2>", "</h3>", 1), "heading levels"),
        (lambda t: t.replace('href="#main"', 'href="#nowhere"'), "links"),
        (lambda t: t.replace('<link rel="icon" href="data:,">', '<link rel="icon" href="https://example.org">'), "links"),
        (lambda t: t.replace("<table>", '<table onclick="x()">', 1), "handlers"),
        (lambda t: t.replace("<main", '<img src="x.png"><main', 1), "sources"),
        (lambda t: re.sub(r"<caption>.*?</caption>", "", t, count=1), "captions"),
        (lambda t: t.replace('scope="col"', "", 1), "scope"),
        (lambda t: t.replace('id="cells-0"', 'id="cells-1"'), "ids"),
    ],
)
def test_an_unsound_page_would_be_noticed(text: str, break_it: Callable[[str], str], found: str) -> None:
    assert found in wrong(Page(break_it(text)))


def test_it_holds_the_question_the_pair_the_sentences_and_how_to_do_it_again(text: str, folders: dict[str, Path]) -> None:
    page = Page(text)
    words = " ".join("".join(t) for t in page.texts)
    assert page.all("h1")[0][1] == f"Why {SCRIPT}?"
    titles = [content for _, content in page.all("h2")]
    assert titles == ["In short", "The pair and its check", "Recipes", "Layers", "Patches", "Provenance"]
    for sentence in summaries.sentences(summaries.grid_summary(grid_result(extra=SCRIPT))):
        assert words.count(sentence) == 2  # at the top, and beside its figure
    for needed in ("1 of 1 laws", "a note on the pair", "a note of the study", "b" * 32, "c" * 32, "d" * 64, "2026-01-02T03:04:05+00:00"):
        assert needed in words
    commands = ["".join(re.findall(r">([^<]+)<", c)) for c in re.findall(r'<pre class="command">(.*?)</pre>', text)]
    assert [html.unescape(c) for c in commands] == [
        json.loads((folders[n] / "meta.json").read_text())["command"] for n in ("compare", "layers", "patch")
    ]


def test_texts_of_suites_models_and_recipes_are_texts(text: str) -> None:
    page = Page(text)
    assert [a.get("type") for a, _ in page.all("script")].count(None) == 1  # the page's own; plotly.js waits as plain text
    assert page.all("img") == [] and page.all("b", **{}) == [(a, t) for a, t in page.all("b") if "models/" in t]
    assert SCRIPT not in text and IMAGE not in text
    assert any(SCRIPT in example[1] for example in data_of(text)["examples"])
    assert html.escape(f"models/{IMAGE}") in text and html.escape(f"update {SCRIPT}") in text


@pytest.mark.parametrize("value", [SCRIPT, "<!--<script>", "]]>", "\u2028\u2029", "&lt;", {"a<b": ["</SCRIPT >"]}, "\ud800"])
def test_embedded_json_ends_no_element_and_reads_back(value: object) -> None:
    found = embedded_json(value)
    assert not re.search("[<>&\u2028\u2029]", found) and json.loads(found) == value


def test_what_is_listed_is_what_changed_says() -> None:
    for result in (patch_result(), grid_result(), layers_result(), reports.generated_result()):
        for board, plain in zip(boards(result), (data := embedded([boards(result)]))["runs"][0], strict=True):
            sizes = [len(dim["places"]) for dim in plain["dims"]]
            assert len(plain["cells"]) == np.prod(sizes) > 0
            for i, cell in enumerate(plain["cells"]):
                at = dict(board.at)
                for dim, k in zip(plain["dims"], np.unravel_index(i, sizes), strict=True):
                    at |= dim["places"][k]
                found = changed(result, at)
                up, down = (found.isel(example=np.flatnonzero(sign * found.change.values > 0)) for sign in (1, -1))
                assert [cell[0], cell[4][0], cell[5][0]] == [found.sizes["example"], up.sizes["example"], down.sizes["example"]]
                np.testing.assert_allclose(cell[2:4], [found.before.mean(), found.after.mean()], rtol=1e-3)
                for side, part in ((cell[4], up), (cell[5], down)):
                    assert {data["examples"][k][0] for k in side[1]} == {str(name).split("/")[-1] for name in part.example.values}


def test_lists_are_cut_to_a_budget_and_counts_are_not() -> None:
    found = [boards(patch_result(400, 8))]
    whole, small = embedded(found, 10**9), embedded(found, 60_000)
    assert (whole["listed"], whole["letters"]) == (50, 600) and small["listed"] < 50
    assert len(json.dumps(small, ensure_ascii=False)) <= 60_000 < len(json.dumps(whole, ensure_ascii=False))
    counts = [[[c[0], c[4][0], c[5][0]] for c in data["runs"][0][0]["cells"]] for data in (whole, small)]
    assert counts[0] == counts[1]
    assert all(len(c[4][1]) <= small["listed"] for c in small["runs"][0][0]["cells"])
    texts = [prompt for _, prompt, _ in small["examples"]]
    assert max(map(len, texts)) <= small["letters"] + 5 and any(" … " in prompt for prompt in texts)


@pytest.mark.slow
def test_50_000_examples_do_not_choke_it(tmp_path: Path) -> None:
    """The whole of it: intervals and tests, figures, tables and lists of 6 sites."""
    folder = write(tmp_path / "run", patch_result(50_000, 3))
    started = time.perf_counter()
    page = write_report([folder], tmp_path / "report.html")
    assert time.perf_counter() - started < 90  # 25 s beside another worker
    (board,) = data_of(page.read_text())["runs"][0]
    assert page.stat().st_size < 10_000_000 and [cell[0] for cell in board["cells"]] == [25_000] * 24


def test_a_small_report_is_little_more_than_plotly(text: str) -> None:
    assert len(text.encode()) < 6_000_000


# ---- what it cannot be made of ----


def broken(root: Path, case: str) -> list[Path]:
    """Run folders that no report is made of."""
    good = write(root / "good", patch_result())
    bad = root / "bad"
    if case == "missing":
        return [good, root / "nowhere"]
    if case == "a file":
        return [good / "result.nc"]
    if case == "the parent":
        return [root]
    if case == "twice":
        return [good, root / "good" / ".." / "good"]
    result = patch_result()
    if case == "older":
        result = result.drop_vars("prompt")
    if case == "unknown study":
        result = result.assign_attrs(study="tarot")
    if case == "no examples":
        result = result.isel(example=[])
    if case == "another pair":
        result = result.assign_attrs(fingerprint=reports.PRINT | {"tuned": "e" * 32}, tuned="models/other")
    if case == "another model":
        result = grid_result().assign_attrs(fingerprint="f" * 32, model="models/stranger")
        result = result.assign_attrs({"study": "adapters"}).rename(recipe="model").drop_vars(("role", "text"))
        result = result.assign(numbers=("model", [0] * 5), n_sites=("model", [0] * 5)).assign_coords(sites=("model", [""] * 5))
        result.attrs = {k: v for k, v in result.attrs.items() if k not in ("base", "tuned")}
    write(bad, result)
    if case == "empty folder":
        (bad / "result.nc").unlink()
    if case == "damaged result":
        (bad / "result.nc").write_bytes((bad / "result.nc").read_bytes()[:500])
    if case == "no meta":
        (bad / "meta.json").unlink()
    if case == "damaged meta":
        (bad / "meta.json").write_text('{"command": ')
    if case == "meta of another":
        (bad / "meta.json").write_text('{"name": "a package"}')
    return [good, bad]


WRONG = {
    "missing": "no run folder .*nowhere; its path is what the command printed",
    "a file": "result.nc is a file; give the run folder",
    "the parent": "is no run folder of a study: it holds no result.nc; it holds run folders: good; name them",
    "twice": "was given twice; name each run folder once",
    "older": r"was written by another version \(0.1.0; this is .*\): its result has no prompt; run its command again: taia-lens patch",
    "unknown study": "holds a result of the study tarot, and a report knows compare, layers, patch",
    "no examples": "is empty: it has no example",
    "another pair": "good is of models/.* and models/tuned, float32, and bad of .* and models/other, float32, whose weights are others",
    "another model": "and bad of models/stranger, float32, whose weights are others",
    "empty folder": "bad is no run folder of a study: it holds no result.nc; a study writes one with --out",
    "damaged result": "cannot read .*result.nc: .*; the file is damaged or no result",
    "no meta": "bad holds no meta.json, which says how its numbers were made",
    "damaged meta": "cannot read .*meta.json: .*; the file is damaged",
    "meta of another": "meta.json does not say by which command",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_run_folder_that_cannot_be_used_is_one_line_and_nothing_is_written(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, case: str
) -> None:
    folders = broken(tmp_path / "runs", case)
    code, out, err = run("report", *map(str, folders), "-o", "report.html")
    assert (code, out) == (2, "") and len(err.strip().splitlines()) == 1
    assert re.search(WRONG[case], err), err
    assert not list(Path().glob("*report.html*"))


def test_a_report_never_overwrites_and_none_given_is_said(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    folder = write(tmp_path / "run", patch_result())
    assert run("report", str(folder)) == (0, "report.html\n", "")
    before = Path("report.html").read_bytes()
    code, _, err = run("report", str(folder))
    assert code == 2 and "report.html exists; give another --out, or move it away" in err and Path("report.html").read_bytes() == before
    code, _, err = run("report", str(folder), "-o", "run/result.nc/report.html")
    assert code == 2 and "is a file, not a folder" in err
    code, _, err = run("report")
    assert code == 2 and "RUN..." in err
    with pytest.raises(ResultError, match="none was given"):
        write_report([], tmp_path / "other.html")


def test_a_run_of_the_base_alone_may_stand_beside_its_pair(tmp_path: Path) -> None:
    alone = grid_result().rename(recipe="model").drop_vars(("role", "text")).assign_coords(sites=("model", [""] * 5))
    alone = alone.assign(numbers=("model", [0, 4, 4, 4, 4]), n_sites=("model", [0, 1, 1, 1, 1]))
    alone.attrs = {k: v for k, v in alone.attrs.items() if k not in ("base", "tuned")}
    alone = alone.assign_attrs(study="adapters", model="models/base", fingerprint=reports.PRINT["base"])
    folders = [write(tmp_path / "alone", alone), write(tmp_path / "pair", patch_result())]
    found = Page(write_report(folders, tmp_path / "report.html").read_text())
    assert [content for _, content in found.all("h2")][2:4] == ["Patches", "Adapters"]
    found = Page(write_report(folders[:1], tmp_path / "one.html").read_text())
    assert found.all("h1")[0][1].startswith("Which heads and directions") and found.all("h2")[1][1] == "The model"


def test_every_study_has_a_section_and_says_what_it_needs() -> None:
    assert list(STUDIES) and set(STUDIES) == set(NEEDS) >= set(EXAMPLED)


# ---- what a cell changed ----


def test_changes_add_up_to_the_summaries_differences() -> None:
    grid = grid_result(40)
    summary = summaries.grid_summary(grid)
    for reference in ("base", "vanilla", "TAIA"):
        found = changed(grid, {"recipe": "TAIF", "reference": reference, "domain": "ood"})
        cell = summary.sel(group="capitals|ood|accuracy", recipe="TAIF", reference=reference)
        assert float(found.change.mean()) == pytest.approx(float(cell["diff"])) and found.attrs["before"] == reference
    patched = patch_result(40)
    cells = summaries.patch_summary(patched)
    for metric in ("accuracy", "logprob"):
        found = changed(patched, {"component": "mlp", "layer": 2, "metric": metric, "domain": "id", "suite": "capitals"})
        effect = cells.effect.sel(component="mlp", layer=2, metric=metric, domain="id")
        assert float(found.change.mean()) == pytest.approx(float(effect)) and set(found.domain.values) == {"id"}
    layers = layers_result(40)
    by_view = summaries.layers_summary(layers).sel(group="capitals|id|accuracy", layer=1, part="mlp")
    for view in ("alone", "last", "shapley"):
        found = changed(layers, {"view": view, "layer": 1, "part": "mlp", "domain": "id"})
        assert float(found.change.mean()) == pytest.approx(float(by_view[view]))
    rest = changed(layers, {"view": "shapley", "part": "rest", "domain": "id"})
    assert float(rest.change.mean()) == pytest.approx(
        float(summaries.layers_summary(layers).rest_shapley.sel(group="capitals|id|accuracy"))
    )
    below = changed(layers, {"view": "cumulative", "direction": "above", "series": "both", "layer": 0})
    assert float(below.change.mean()) == pytest.approx(float(layers.cumulated[0, 1, 2, 0].mean()))
    assert below.attrs["after"] == "base with both of all layers from above to layer 0 from tuned"


def scored(study: str, dims: tuple[str, ...], coords: dict[str, Any], n: int = 10) -> xr.Dataset:
    """A result with one accuracy by these dims and example, each of them drawn."""
    whole = examples(n, "capitals") | metrics(["accuracy"]) | coords
    sizes = [n if dim == "example" else len(whole[dim]) for dim in dims]
    drawn = np.random.default_rng(3).integers(0, 2, sizes).astype(float)
    return xr.Dataset({"value": (dims, drawn)}, whole, about(study))


def test_studies_of_arms_rows_strengths_and_adapters() -> None:
    kinds = {"check": ["", "offsets", "offsets", "offsets"], "by": ["base", "lofit", "lofit", "random heads"]}
    kinds |= {"end": ["reference", "top", "top", "draw"]}
    arms = {"arm": ["base", "a #0", "a #1", "b #0"]} | {name: ("arm", values) for name, values in kinds.items()}
    heads = scored("heads", ("metric", "arm", "example"), arms)
    found = changed(heads, {"check": "offsets", "by": "lofit", "end": "top"})
    np.testing.assert_allclose(found.change, (heads.value[0, 1] + heads.value[0, 2]) / 2 - heads.value[0, 0])
    rows = {
        "row": ["truth", "facts", "random heads #0", "random heads #1"],
        "seed": [0, 1],
        "tuned_on": ("example", ["truth"] * 5 + ["facts"] * 5),
    }
    across = scored("transfer", ("metric", "row", "seed", "example"), rows)
    across["base"] = across.value[:, 0, 0].drop_vars(("row", "seed")) * 0
    found = changed(across, {"row": "random heads", "tuned_on": "facts"})
    np.testing.assert_allclose(found.after, across.value[0, 2:, :, 5:].mean(("row", "seed")))
    steps = {"direction": ["iti", "random 0"], "alpha": [0.0, 5.0], "arm": ["lofit"]}
    steered = scored("steering", ("direction", "alpha", "metric", "example"), steps)
    steered["arm_value"] = steered.value[1:, 1].drop_vars("alpha").rename(direction="arm").assign_coords(arm=["lofit"])
    found = changed(steered, {"direction": "iti", "alpha": 5.0, "domain": "id"})
    np.testing.assert_array_equal(found.change, (steered.value[0, 1, 0] - steered.value[0, 0, 0])[1::2])
    assert found.attrs["after"] == "the model steered by iti, alpha 5.0" and changed(steered, {"arm": "lofit"}).sizes["example"] == 10
    adapted = scored("adapters", ("metric", "model", "example"), {"model": ["base", "mine"], "sites": ("model", ["", "L0.h1"])})
    np.testing.assert_array_equal(changed(adapted, {"model": "mine"}).before, adapted.value[0, 0])


def test_an_attribution_s_own_cells_and_those_that_were_patched_really() -> None:
    result = patch_result().isel(metric=[1]).assign_attrs(study="attribution")
    result = result.assign(check_patched=(("check", "example"), np.full((1, 24), 0.5))).assign_coords(check=["L0.attn"])
    assert float(changed(result, {"check": "L0.attn"}).change.mean()) == pytest.approx(0.5)
    assert "estimates" in changed(result, {"component": "attn", "layer": 0}).attrs["after"]


def test_generated_texts_come_with_the_examples() -> None:
    found = changed(reports.generated_result(), {"recipe": "TAIA", "domain": "id"})
    assert str(found.before_text.values[0]).startswith("base wrote") and str(found.after_text.values[0]).startswith("TAIA wrote")


def test_where_smaller_is_better_a_fall_is_an_improvement() -> None:
    grid = grid_result().assign_coords(metric=["cross_entropy"])
    found = changed(grid, {"recipe": "TAIA"})
    np.testing.assert_array_equal(found.change, found.before - found.after)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"component": "mlp"}, "the cell leaves layer open; name one of 0, 1, 2"),
        ({"component": "ffn", "layer": 1}, "no component 'ffn' in this result; there are attn, mlp"),
        ({"recipe": "TAIA"}, "no cell recipe TAIA in this result; a cell is named by some of metric, component, layer, domain"),
        ({"component": "mlp", "layer": 1, "suite": "others"}, "no cell component mlp, layer 1, suite others"),
    ],
)
def test_a_cell_that_is_not_there_is_said(cell: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultError, match=message):
        changed(patch_result(), cell)


def test_studies_without_examples_before_and_after_say_so() -> None:
    with pytest.raises(ResultError, match="the study anatomy measures no example before and after; cells of these do: patch"):
        changed(xr.Dataset(attrs={"study": "anatomy"}), {})
    with pytest.raises(ResultError, match=r"taia-lens 0\.1\.0 that keeps no prompts; run its command again"):
        changed(patch_result().drop_vars("prompt"), {})


def pickable(figure: Any) -> list[dict[str, Any]]:
    """The cells that a figure's points are, by the convention that the page follows."""
    found = []
    for trace in figure.data:
        meta = trace.meta or {}
        if "rows" in meta:
            found += [meta["at"] | row | column for row in meta["rows"] for column in meta["columns"]]
        elif "points" in meta:
            found += [meta["at"] | point for point in meta["points"]]
    return found


@pytest.mark.parametrize("make", [patch_result, grid_result, layers_result], ids=lambda f: f.__name__)
def test_every_point_of_a_figure_that_names_a_cell_has_its_examples(make: Callable[[], xr.Dataset]) -> None:
    result = make()
    run = reports.as_run(result)
    seen = 0
    for figure in STUDIES[run.study].show(run).figures:
        for cell in pickable(figure):
            assert changed(result, cell).sizes["example"] > 0, cell
            seen += 1
    assert seen > 5


@pytest.mark.slow
def test_a_report_of_real_runs(run: Callable[..., tuple[int, str, str]]) -> None:
    """The demo pair, from the command line: what the commands write is what the report reads."""
    small = ("--limit", "12", "--out")
    for command in (
        ("patch", "--component", "attn,mlp", "--layer", "0-2", *small, "patch"),
        ("compare", "--seeds", "1", "--no-store", *small, "grid"),
        ("anatomy", "--out", "anatomy"),
    ):
        code, _, err = run(*command)
        assert code == 0, err
    code, out, err = run("report", "patch", "grid", "anatomy", "-o", "report.html")
    assert (code, out) == (0, "report.html\n"), err
    text = Path("report.html").read_text()
    assert wrong(Page(text)) == set() and len(text) < 10_000_000
    found = changed(results.load("grid"), {"recipe": "TAIA", "domain": "id", "suite": "routing"})
    board = data_of(text)["runs"][0][0]
    where, recipe = ([p.get(k) for p in d["places"]] for d, k in ((board["dims"][0], "domain"), (board["dims"][-1], "recipe")))
    at = np.ravel_multi_index((where.index("id"), 0, 0, recipe.index("TAIA")), [len(d["places"]) for d in board["dims"]])
    assert board["cells"][int(at)][4][0] == int((found.change > 0).sum())
    assert "taia-lens compare --seeds 1 --no-store --limit 12 --out grid" in re.sub(r"</?span>", "", text)
