"""What a result says, above its data: `show(result)`, or every result in a notebook after `%load_ext taia_lens`.

A result stays a plain xarray Dataset. A subclass with a repr of its own would have results know their summaries, which are made
from them; most of xarray's operations would keep it, some would not, and a part of a result would be headed like the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.html import Html, card, inline, listed, paragraph
from taia_lens.suite import DOMAINS
from taia_lens.summaries.headlines import headlines

STUDIES = {
    "patch": "Patching: what one model computed, put into the other, site by site",
    "attribution": "Attribution patching: what patching each site would do, to first order",
    "compare": "The grid: base, vanilla, TAIA, TAIF, their rivals and their controls",
    "layers": "Layers: what each part of the update adds",
    "heads": "Heads: rankings, how far they agree, and what their top heads do",
    "transfer": "Transfer: heads of one task, tuned on another",
    "anatomy": "Anatomy: the update itself, with no data",
    "drift": "Drift: how far the residual stream moves",
    "steering": "Steering: directions added, by strength",
    "adapters": "Adapters: base, and base under each of them",
    "lens": "Logit lens: what the residual stream would answer, layer by layer",
    "attention": "Attention: where heads look, in base and in tuned",
    "rank": "A ranking of heads",
    "lofit-select": "LoFiT's first step: how far each head's scale moved",
    "lofit-paper": "LoFiT by the paper's protocol",
}
_SETTINGS = ("host", "donor", "positions", "norms", "embed", "players", "k", "method", "seed")
_CHOSEN = "Where strongest cells are named, they were chosen by their means, and their intervals do not know it."


@dataclass(frozen=True, eq=False)
class Shown:
    """A result's sentences and facts, as HTML in a notebook and as text elsewhere; made by `show`."""

    html: Html
    text: str

    def _repr_html_(self) -> Html:
        return self.html

    def __repr__(self) -> str:
        return self.text


def show(result: xr.Dataset) -> Shown:
    """Show what a result says: its study, pair, prompts and sentences, above xarray's own view of the data.

    In a notebook `%load_ext taia_lens` does the same for every result that a cell ends in.

    Args:
        result: What a study returned, or `results.load` read.

    Raises:
        ResultError: It is no study's result.
    """
    title = _title(result)
    if title is None:
        raise ResultError(f"no study of that name: attrs['study'] is {result.attrs.get('study')!r}; give what a study returned")
    said = _said(result)
    facts = [fact for fact in (_models(result), _prompts(result), _settings(result)) if fact]
    parts = [*(paragraph(inline(fact)) for fact in facts), listed(said)]
    html = Html(card(title, *parts) + result._repr_html_())
    return Shown(html, "\n".join([title, *(f"  {fact}" for fact in facts), *said, repr(result)]))


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext taia_lens`: a cell that ends in a result shows it by `show`; other Datasets look as before.

    Args:
        shell: IPython's.
    """
    shell.display_formatter.formatters["text/html"].for_type(xr.Dataset, _dataset_html)


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext taia_lens`: results look like any other Dataset again."""
    shell.display_formatter.formatters["text/html"].pop(xr.Dataset, None)


def _dataset_html(result: xr.Dataset) -> str:
    return result._repr_html_() if _title(result) is None else show(result).html


def _title(result: xr.Dataset) -> str | None:
    return STUDIES.get(str(result.attrs.get("study")))


def _said(result: xr.Dataset) -> list[str]:
    try:
        found = headlines(result)
    except (KeyError, ValueError, IndexError, AttributeError):
        # Selections and summaries keep the attrs of the result that they come from.
        return ["This is not the whole of what the study returned, so no sentence is said about it."]
    return [*found, _CHOSEN] if any("strongest:" in sentence or ", most:" in sentence for sentence in found) else found


def _models(result: xr.Dataset) -> str:
    names = [f"{side} {result.attrs[side]}" for side in ("base", "tuned", "model") if side in result.attrs]
    return ", ".join(names) + "".join(f"; {result.attrs[key]}" for key in ("dtype", "device") if key in result.attrs)


def _prompts(result: xr.Dataset) -> str:
    if "domain" not in result.coords or "example" not in result.domain.dims:
        return ""
    suites = result.suite.values if "suite" in result.coords else np.full(result.sizes["example"], str(result.attrs.get("suite", "")))
    said = []
    for name in dict.fromkeys(suites.tolist()):
        own = result.domain.values[suites == name]
        said.append(f"suite {name}: " + ", ".join(f"{int((own == d).sum())} {d}" for d in DOMAINS if (own == d).any()))
    metrics = [f"{m} ({u})" for m, u in zip(result.metric.values, result.unit.values, strict=True)] if "metric" in result.dims else []
    return "; ".join([*said, *([f"metrics {', '.join(metrics)}"] if metrics else [])])


def _settings(result: xr.Dataset) -> str:
    return ", ".join(f"{key} {result.attrs[key]}" for key in _SETTINGS if key in result.attrs)
