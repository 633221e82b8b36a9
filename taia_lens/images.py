"""A figure as a picture, SVG, PNG or PDF: drawn by kaleido in the Chrome or Chromium that is on the machine. Imports no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from taia_lens.errors import ResultError
from taia_lens.files import write_whole

if TYPE_CHECKING:
    import plotly.graph_objects as go

FORMATS = (".svg", ".png", ".pdf", ".jpg", ".webp")


def write_image(figure: go.Figure, path: str | Path, *, width: int = 900, scale: float = 1.0) -> Path:
    """Write a figure as a picture, of its own height; a file that exists is overwritten.

    Args:
        figure: Any Plotly figure.
        path: The file; its ending says which kind: svg, png, pdf, jpg, webp.
        width: In pixels, 450 or more: a column of a page, or a page.
        scale: Of png, jpg and webp: pixels of the file per pixel of the figure; 2 or 3 for print.

    Returns:
        The file's path.

    Raises:
        ResultError: There is no such kind, kaleido or a browser is missing, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        kinds = ", ".join(kind.removeprefix(".") for kind in FORMATS)
        raise ResultError(f"cannot write {path} as a picture: there are {kinds}; for a page that can be hovered over, fig.write_html")
    if find_spec("kaleido") is None:
        raise ResultError("pictures are drawn by kaleido, which is not installed; pip install 'taia-lens[export]', or fig.write_html")
    try:
        content = figure.to_image(format=path.suffix[1:].lower(), width=width, scale=scale)
    except RuntimeError as error:
        if "Chrome" not in str(error):
            raise
        raise ResultError(
            "pictures are drawn in Chrome or Chromium, and none was found; install one (Debian: apt-get install chromium; without root: "
            "plotly_get_chrome), or name it in the environment variable BROWSER_PATH; fig.write_html needs none"
        ) from error
    try:
        write_whole(path, content)
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from error
    return path
