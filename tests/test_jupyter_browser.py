"""JupyterLab in a real browser: a notebook is run from a clean kernel, everything is drawn, and a click lists examples."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import nbformat
import pytest
from browser import SCREENSHOTS, chromium_path, playwright_api

playwright = playwright_api()
SCRIPT = "<script>document.title = 'broken'</script>"
CELLS = (
    """%load_ext taia_lens
import tqdm.auto, tqdm.notebook
import taia_lens as tl
assert issubclass(tqdm.auto.tqdm, tqdm.notebook.tqdm)  # a bar is a widget here
pair = tl.demo_pair()
rows = [{"prompt": row.prompt, "answer": row.answer, "domain": row.domain} for row in tl.demo_suite().limit(4).rows]
suite = tl.make_suite(SCRIPT, rows)
result = tl.patch(pair, suite, component="head", layers="0-1", metrics=["logprob"], progress=True)""",
    "pair",
    'tl.taia(norms="base", embed="base")',
    """tl.make_suite(SCRIPT, [
    {"prompt": SCRIPT, "answer": " <b>Paris</b>", "domain": "id"},
    {"prompt": "ما هي عاصمة فرنسا؟", "answer": " باريس", "domain": "ood"},
    {"prompt": "法国的首都是什么？", "answer": " 巴黎", "domain": "ood"},
])""",
    "tl.explore(result)",
    "result",
)
FIGURE, CELL = ".jp-OutputArea .js-plotly-plot", "[role=status] h4"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab of its own, with one notebook; it reads and writes nothing of the user's."""
    home = tmp_path_factory.mktemp("jupyter")
    (home / "work").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.replace("SCRIPT", repr(SCRIPT))) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, home / "work" / "seen.ipynb")
    settings = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
    (home / "JUPYTERLAB_SETTINGS_DIR").mkdir()
    (home / "JUPYTER_CONFIG_DIR" / "labconfig").mkdir(parents=True)
    (home / "JUPYTER_CONFIG_DIR" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("HOME", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    names += ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    options += ["--IdentityProvider.token=secret", f"--ServerApp.root_dir={home / 'work'}", "--LabApp.expose_app_in_browser=True"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly"]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=os.environ | {name: str(home / name) for name in names},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api?token=secret", server)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "JupyterLab ended before it was ready"
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("JupyterLab was not ready after a minute")


@pytest.fixture
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 2600})
        page.set_default_timeout(60_000)
        yield page
        looks(page, "end")
        browser.close()


def watched(page: Any, address: str) -> list[str]:
    """What goes wrong on the page from here on: errors, dialogs, and requests to anyone but its own server, which get no answer."""
    wrong: list[str] = []

    def only_ours(route: Any, request: Any) -> None:
        if request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            wrong.append(f"request: {request.url}")
            route.abort()

    page.route("**/*", only_ours)
    page.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    return wrong


def looks(page: Any, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"jupyterlab_{name}.png")


@pytest.mark.slow
def test_a_notebook_shows_everything_and_a_click_on_a_cell_lists_its_examples(lab: str, page: Any) -> None:
    wrong = watched(page, lab)
    page.goto(f"{lab}/lab/tree/seen.ipynb?token=secret&reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    # Asked to run before it has its kernel, Lab asks back which one.
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_selector(f"{FIGURE} .heatmaplayer .hm", state="attached")
    page.wait_for_selector(".xr-wrap")
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0
    texts = " ".join(page.locator(".jp-OutputArea-output").all_inner_texts())
    for text in (
        "112 of 146 tensors differ",
        "all 8 laws hold",
        "the weights of attention are tuned's",
        SCRIPT,
        "<b>Paris</b>",
        "Patching:",
    ):
        assert text in texts, text
    assert page.title() != "broken"

    # The figure comes to be as wide as the page, and its notes stand below its title.
    page.wait_for_function(f"""() => {{
      const box = (name) => document.querySelector("{FIGURE} " + name).getBoundingClientRect();
      const page = document.querySelector(".jp-OutputArea-output .widget-vbox").getBoundingClientRect();
      return box(".gtitle-subtitle").top >= box(".gtitle").bottom - 2 && Math.abs(box(".main-svg").width - page.width) < 20;
    }}""")
    looks(page, "light")

    # A click: the second layer, the first head of the first panel.
    before = page.inner_text(CELL)
    panel = page.locator(f"{FIGURE} .nsewdrag").first.bounding_box()
    assert panel and "layer 0" in before
    x, y = panel["x"] + panel["width"] / 16, panel["y"] + panel["height"] / 4
    page.mouse.move(x, y)
    page.wait_for_selector(f"{FIGURE} .hoverlayer .hovertext")
    page.mouse.click(x, y)
    page.wait_for_function("([where, said]) => document.querySelector(where).innerText !== said", arg=[CELL, before])
    assert page.inner_text(CELL) == "metric logprob, component head, domain id, layer 1, head 0"
    assert page.locator("[role=status] table td").first.inner_text().strip() in map(str, range(8))

    # The same with the keyboard alone.
    lists = page.locator(".widget-dropdown select")
    assert [lists.nth(i).evaluate("list => list.options[list.selectedIndex].text") for i in range(3)] == ["id", "1", "0"]
    lists.nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("where => document.querySelector(where).innerText.includes('domain ood')", arg=CELL)

    page.evaluate("() => { window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}) }")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    light = page.locator(CELL).evaluate("heading => getComputedStyle(heading).color")
    assert min(map(int, light.removeprefix("rgb(").removeprefix("rgba(").split(")")[0].split(",")[:3])) > 150  # bright on dark
    looks(page, "dark")
    assert wrong == []
