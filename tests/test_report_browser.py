"""The report in a real browser, from a file, without a network: drawn, chosen from, sorted, filtered, at night and on paper.

What it looked like is kept in .screenshots/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import SCREENSHOTS, chromium_path, playwright_api
from conftest import ROOT
from reports import IMAGE, SCRIPT, generated_result, layers_result, patch_result, write

from taia_lens import results
from taia_lens.report import write_report
from taia_lens.summaries.changed import changed

playwright = playwright_api()

SECONDS = 2.0
SHARE = 1.3  # of what a small report takes, 1.06 in the median of five on a slow day
WIDE, NARROW = 1200, 600


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Of this module alone: while it is there, an event loop runs, and no other test may start one."""
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    made = {"patch": patch_result(suite=IMAGE), "compare": generated_result(), "layers": layers_result()}
    return write_report([write(root / name, result) for name, result in made.items()], root / "report.html")


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Open]:
    """Open a page in a window of its own; in the end nothing has gone wrong in any of them, and nothing but the file was asked for."""
    contexts, asked, wrong = [], [], []

    def call(path: Path = report, *, width: int = WIDE, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function("window.Plotly")
        return page

    yield call
    assert wrong == []
    assert [url for url in asked if not url.startswith(("file://", "data:", "blob:"))] == [] and asked
    assert {url for url in asked if url.startswith("file://")} <= {context.pages[0].url.partition("#")[0] for context in contexts}
    for context in contexts:
        context.close()


def draw_all(page: Any) -> list[Any]:
    """Every figure's place, once it was scrolled to and drawn."""
    places = page.locator(".plot").all()
    for place in places:
        place.scroll_into_view_if_needed()
        place.locator(".main-svg").first.wait_for()
    page.evaluate("scrollTo(0, 0)")
    return places


def keep(page: Any, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"report-{name}.png", full_page=True)


def counts(page: Any, run: int) -> tuple[int, ...]:
    """Better (or fixed), worse (or broke), the same, and all, as the page says them."""
    text = page.locator(f".cells[data-run='{run}'] .counts").inner_text()
    return tuple(map(int, re.findall(r"(?:fixed|better|broke|worse|same|of) (\d+)", text)))


def expected(result: Any, cell: dict[str, Any]) -> tuple[int, ...]:
    change = changed(result, cell).change.values
    up, down = int((change > 1e-6).sum()), int((change < -1e-6).sum())
    return up, down, len(change) - up - down, len(change)


def click_cell(page: Any, place: Any, trace: int, row: int, column: int) -> dict[str, Any]:
    """Click on the middle of a heat map's cell with the mouse; the cell that it is."""
    place.scroll_into_view_if_needed()
    place.locator(".main-svg").first.wait_for()
    at = place.evaluate(
        """(gd, [trace, row, column]) => {
            const one = gd._fullData[trace], {left, top} = gd.getBoundingClientRect();
            const x = gd._fullLayout[one.xaxis.replace("x", "xaxis")], y = gd._fullLayout[one.yaxis.replace("y", "yaxis")];
            const meta = gd.data[trace].meta;
            const cell = {...meta.at, ...meta.rows[row], ...meta.columns[column]};
            return [left + x._offset + x.l2p(column), top + y._offset + y.l2p(row), cell];
        }""",
        [trace, row, column],
    )
    page.mouse.move(at[0], at[1])
    page.mouse.click(at[0], at[1])
    return at[2]


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (WIDE, "dark"), (NARROW, "light"), (NARROW, "dark")])
def test_every_figure_is_drawn_and_nothing_overflows(opened: Open, width: int, scheme: str) -> None:
    page = opened(width=width, scheme=scheme)
    places = draw_all(page)
    assert len(places) == 8
    for place in places:
        assert place.locator(".trace, .heatmaplayer image").count() > 0
        assert place.bounding_box()["width"] > width / 2
        assert place.evaluate("e => Boolean(e.ariaLabel) && e.getAttribute('role') === 'img'")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    keep(page, f"{width}-{scheme}")


@pytest.fixture(scope="module")
def demo_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that is known of the demo pair, on all its prompts: the results that figures/ is drawn from."""
    root = tmp_path_factory.mktemp("demo")
    found = {path.stem: results.load(path) for path in sorted((ROOT / "figures" / "saved").glob("*.nc")) if "own" not in path.stem}
    assert {"grid", "credit", "all_layers", "ranked", "anatomy", "drifted"} <= found.keys()
    return write_report([write(root / name, result) for name, result in found.items()], root / "report.html")


def first_figure(page: Any) -> float:
    """Seconds from opening the file until a figure is seen."""
    page.locator(".plot").first.scroll_into_view_if_needed()
    page.locator(".plot .main-svg").first.wait_for()
    return float(page.evaluate("performance.now()")) / 1000


def test_the_whole_demo_is_one_small_file_that_opens_in_under_two_seconds(opened: Open, demo_report: Path) -> None:
    """1.7 s on two idle cores; on a machine that is slow today, hardly longer than a page of three small runs, most of it plotly."""
    assert demo_report.stat().st_size < 10_000_000
    seconds, small = list[float](), list[float]()
    while len(seconds) < 10 and not (seconds and min(seconds) < max(SECONDS, SHARE * min(small))):
        seconds.append(first_figure(opened(demo_report)))
        small.append(first_figure(opened()))
    print(f"first figure after {seconds} s, of a small report after {small} s; {demo_report.stat().st_size / 1e6:.1f} MB")
    assert 0 < min(seconds) < max(SECONDS, SHARE * min(small))
    page = opened(demo_report)
    places = draw_all(page)
    assert len(places) > 15 and all(place.locator(".trace, .heatmaplayer image").count() > 0 for place in places)
    keep(page, "demo")


@pytest.mark.parametrize("run", [0, 1, 2])
def test_a_click_on_a_figure_lists_the_examples_of_that_cell(opened: Open, run: int) -> None:
    page, result = opened(), (generated_result(), layers_result(), patch_result())[run]
    places = [place for place in draw_all(page) if place.get_attribute("data-run") == str(run)]
    assert all("pickable" in (place.get_attribute("class") or "") for place in places[:1])
    if run:  # maps: a cell of the first that has one
        maps = [
            (p, t)
            for p in places
            for t in p.evaluate("gd => gd.data.flatMap((t, i) => (t.type === 'heatmap' && t.meta.at.domain ? [i] : []))")
        ]
        for row, column in ((0, 0), (1, 1)):
            cell = click_cell(page, *maps[0], row, column)
            cell.pop("suite", None)
            assert counts(page, run) == expected(result, cell), cell
    else:  # a point
        place = places[-1]
        place.scroll_into_view_if_needed()
        point = place.locator(".scatterlayer .trace .point").nth(2)
        cell = point.evaluate("(e) => { const t = e.__data__.trace; return {...t.meta.at, ...t.meta.points[e.__data__.i]}; }")
        box = point.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert counts(page, run) == expected(result, cell), cell
        panel = page.locator(".cells[data-run='0']")
        assert panel.locator("select").last.evaluate("s => s.options[s.selectedIndex].text") == cell["recipe"]
        keep(page, "after-a-click")


def test_a_cell_is_chosen_by_keyboard_alone(opened: Open) -> None:
    page, result = opened(), patch_result()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip" and page.locator(".skip").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    in_panel = "document.activeElement.matches('.cells[data-run=\"2\"] select')"
    for _ in range(400):
        page.keyboard.press("Tab")
        if page.evaluate(in_panel):
            break
    names = []
    while page.evaluate(in_panel):
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # one sees where one is
        names.append(page.evaluate("document.activeElement.labels[0].firstChild.textContent"))
        page.keyboard.press("Home")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Tab")
    assert names == ["examples", "metric", "component", "layer"]
    assert counts(page, 2) == expected(result, {"domain": "ood", "metric": "logprob", "component": "mlp", "layer": 1})
    status = page.locator(".cells[data-run='2'] [role=status]")
    assert "out of distribution" in status.inner_text() and "base with tuned's mlp, layer 1 patched in" in status.inner_text()


def test_lists_show_texts_as_they_are_and_grow_on_demand(opened: Open) -> None:
    page = opened()
    panel = page.locator(".cells[data-run='2']")

    def listed(domain: str) -> list[str]:
        for select, name in ((0, domain), (1, "logprob")):
            options = panel.locator("select").nth(select).locator("option").all_inner_texts()
            panel.locator("select").nth(select).select_option(
                index=next(i for i, text in enumerate(options) if text.removeprefix(f"{IMAGE}, ") == name)
            )
        while panel.locator(".more").count():
            panel.locator(".more").first.click()
        assert page.evaluate("document.activeElement.tagName") == "LI"  # the first of those that came
        return panel.locator(".prompt").all_inner_texts()

    prompts = listed("out of distribution")
    assert len(prompts) == 12 and {f"{SCRIPT} is it", "ما هي عاصمة فرنسا؟", "line one\nline two"} <= set(prompts)
    prompts = listed("in distribution")
    assert "法国的首都是什么？" in prompts and 'a "quoted" & <b>bold</b> one' in prompts
    assert [len(prompt) < 610 for prompt in prompts if prompt.startswith("long ") and " … " in prompt] == [True]  # of 1,000
    assert page.locator("img").count() == 0 and page.locator("body script:not([type])").count() == 1
    wrote = page.locator(".cells[data-run='0'] .about code").all_inner_texts()
    assert any(SCRIPT in text and "wrote" in text for text in wrote)
    keep(page, "texts")


def test_tables_sort_by_number_and_filter(opened: Open) -> None:
    page = opened()
    panel = page.locator("details", has=page.locator("caption", has_text="capitals, out of distribution")).first
    table = panel.locator("table", has=page.locator("caption", has_text="capitals, out of distribution")).first
    values = lambda: [float(text.split()[0]) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]  # noqa: E731
    head, before = table.locator("thead th").nth(1), values()
    for wanted, order in (("ascending", sorted(before)), ("descending", sorted(before, reverse=True)), ("none", before)):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == wanted and values() == order
    assert sorted(before) != before
    against = table.locator("thead th").nth(2)
    against.locator("button").click()
    against.locator("button").click()
    assert table.locator("tbody tr").last.locator("td").nth(1).inner_text().strip() == "-"  # no number: last, either way
    summary = page.locator("#run-2 summary")
    summary.focus()
    page.keyboard.press("Enter")
    field = page.locator("#run-2").get_by_label("Filter 12 rows").first
    rows = field.locator("xpath=ancestor::div[@class='tabled']").locator("tbody tr")
    total = rows.count()
    word = rows.nth(1).locator("td").first.inner_text()
    field.fill(word)
    left = [row for row in rows.all() if row.is_visible()]
    assert 0 < len(left) < total and all(word.lower() in row.inner_text().lower() for row in left)
    assert field.locator("xpath=ancestor::div[@class='filter']").locator("[role=status]").inner_text() == f"{len(left)} of {total} rows"


def test_figures_follow_the_scheme(opened: Open) -> None:
    page = opened(scheme="dark")
    place = draw_all(page)[0]
    ink = lambda: place.evaluate("gd => gd._fullLayout.font.color")  # noqa: E731
    paper = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    dark = ink(), paper()
    page.emulate_media(color_scheme="light")
    page.wait_for_function("gd => gd._fullLayout.font.color !== '%s'" % dark[0], arg=place.element_handle())  # noqa: UP031
    assert sum(map(int, re.findall(r"\d+", dark[1]))) < 120 and paper() == "rgb(255, 255, 255)"
    assert dark[0] != ink() == "rgb(36,36,36)"


def test_it_prints_every_figure_in_light_and_every_table(opened: Open) -> None:
    page = opened(scheme="dark")
    page.evaluate(
        """() => addEventListener("beforeprint", () => {
            const all = (what) => [...document.querySelectorAll(what)];
            window.printed = {
                drawn: all(".plot .main-svg").length, ink: all(".plot").map((gd) => gd._fullLayout.font.color),
                width: all(".plot").map((gd) => gd._fullLayout.width), folded: all("details:not([open])").length,
            };
        })"""
    )
    SCREENSHOTS.mkdir(exist_ok=True)
    content = page.pdf(path=SCREENSHOTS / "report.pdf", format="A4", print_background=True)
    seen = page.evaluate("window.printed")
    assert len(content) > 50_000 and seen["folded"] == 0 and seen["drawn"] >= 8
    assert set(seen["ink"]) == {"rgb(36,36,36)"} and set(seen["width"]) == {680}
    assert page.locator("details:not([open])").count() > 0  # folded again
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator(".cells form").first.is_visible()
    assert page.locator(".counts").first.is_visible()
    keep(page, "print")


def test_a_page_that_breaks_would_be_noticed(browser: Any, report: Path, tmp_path: Path) -> None:
    """What the other tests watch for is seen where it happens: a script that a text smuggles in is stopped, and reported."""
    broken = tmp_path / "broken.html"
    text = report.read_text(encoding="utf-8")
    broken.write_text(
        text.replace('<main id="main"', f'{SCRIPT.removeprefix("</script>")}<img src="http://example.org/x.png"><main id="main"')
    )
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append("a dialog"))
    page.goto(broken.as_uri())
    assert len([text for text in said if "Content Security Policy" in text]) == 2 and "a dialog" not in said
    broken.write_text(
        text.replace("Content-Security-Policy", "X-Nothing").replace(
            '<main id="main"', '<script>throw Error("seen")</script><main id="main"'
        )
    )
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(broken.as_uri())
    assert errors and "seen" in errors[0]
    page.close()


@pytest.mark.slow
def test_fifty_layers_of_many_examples_open_too(opened: Open, tmp_path: Path) -> None:
    """A map of 64 layers and lists at their budget: drawn, and quick to choose from."""
    page = opened(write_report([write(tmp_path / "big", patch_result(200, 64))], tmp_path / "report.html"))
    assert len(draw_all(page)) == 3
    select = page.locator(".cells select").last
    select.select_option(index=63)
    assert counts(page, 0)[3] == 100
