"""Figures as pictures: what is written is of its kind, and what is missing is said in a line."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import plotly.graph_objects as go
import pytest
from browser import NAMES, chromium_path
from choreographer.browsers.chromium import Chromium

from taia_lens.errors import ResultError
from taia_lens.images import write_image

BEGINS = {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}


@pytest.fixture
def figure() -> go.Figure:
    return go.Figure(go.Scatter(x=[0, 1], y=[1, 0])).update_layout(height=300)


@pytest.mark.parametrize("kind", BEGINS)
def test_a_picture_is_of_the_kind_that_its_name_says(kind: str, figure: go.Figure, tmp_path: Path) -> None:
    chromium_path()
    content = write_image(figure, tmp_path / f"figure.{kind.upper() if kind == 'png' else kind}", width=450).read_bytes()
    assert content.startswith(BEGINS[kind]) and len(content) > 1000
    if kind == "svg":
        assert b'width="450" height="300"' in content[:300]


def test_what_is_missing_is_said(figure: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResultError, match=r"figure\.gif as a picture: there are svg, png, pdf.*write_html"):
        write_image(figure, tmp_path / "figure.gif")
    with monkeypatch.context() as patched:
        patched.setattr(Chromium, "find_browser", lambda *args, **kwargs: None)
        patched.delenv("BROWSER_PATH", raising=False)
        with pytest.raises(ResultError, match=r"Chrome or Chromium, and none was found; .*apt-get install chromium.*BROWSER_PATH"):
            write_image(figure, tmp_path / "figure.png")
    with monkeypatch.context() as patched:
        patched.setattr("taia_lens.images.find_spec", lambda name: None if name == "kaleido" else util.find_spec(name))
        with pytest.raises(ResultError, match=r"pip install 'taia-lens\[export\]'"):
            write_image(figure, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_said(figure: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chromium_path()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ResultError, match=r"cannot write .*: (Not a directory|File exists); nothing was left behind"):
        write_image(figure, tmp_path / "file" / "figure.svg")
    kept = write_image(figure, tmp_path / "new" / "figure.svg").read_bytes()

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResultError, match="No space left on device; nothing was left behind"):
        write_image(figure.update_layout(height=400), tmp_path / "new" / "figure.svg")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figure.svg"]
    assert (tmp_path / "new" / "figure.svg").read_bytes() == kept  # what stood there before still does


def test_the_browsers_that_are_looked_for_are_those_that_make_browser_looks_for() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    assert f"BROWSERS := {' '.join(NAMES)}" in makefile
