"""The page: its sections, its data, its style and its scripts, in one file that asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from plotly.io import templates
from plotly.offline import get_plotlyjs

from taia_lens import results
from taia_lens.report import parts
from taia_lens.report.cells import boards, embedded
from taia_lens.report.parts import esc
from taia_lens.report.runs import Run, dtype_of
from taia_lens.report.sections import STUDIES, Shown, Study

PAIR_ASKS = "Which parts of the update help, where, and on what data?"
MODEL_ASKS = "Which heads and directions of this model carry its skill, and on what data?"
FEW = 4
"""Sentences of a study that stand at the top of the page."""
_OPEN = ("compare", "adapters", "lofit-paper")  # whose tables are what one comes for


@dataclass(frozen=True, eq=False)
class Part:
    """A section of the page: where a link leads, its title, and what is in it."""

    ident: str
    title: str
    body: str


def document(runs: Sequence[Run], question: str | None) -> str:
    """The whole page as text.

    Args:
        runs: In the order in which they are shown.
        question: What stands on top; None for the question that every such report asks.
    """
    shown = [STUDIES[run.study].show(run) for run in runs]
    numbers = iter(range(sum(len(one.figures) for one in shown)))
    figures = [[parts.figure_block(next(numbers), i, figure) for figure in one.figures] for i, one in enumerate(shown)]
    data = embedded([boards(run.result) for run in runs])
    titles = _titles(runs)
    studies = [
        Part(f"run-{i}", title, _study(i, run, one, [place for place, _ in drawn], bool(data["runs"][i])))
        for i, (run, one, drawn, title) in enumerate(zip(runs, shown, figures, titles, strict=True))
    ]
    sections = [*_in_short(shown, titles), _models(runs), *studies, _provenance(runs, titles)]
    blocks = [block for drawn in figures for _, block in drawn]
    blocks += [parts.data_block("data", data), parts.data_block("template", templates["simple_white"].to_plotly_json())]
    return _file(_name(runs), _header(runs, question or _asks(runs)), sections, blocks)


def _titles(runs: Sequence[Run]) -> list[str]:
    """The study's title; with the run's name where there are several of it."""
    studies = [run.study for run in runs]
    return [STUDIES[run.study].title + (f": {run.name}" if studies.count(run.study) > 1 else "") for run in runs]


def _asks(runs: Sequence[Run]) -> str:
    return PAIR_ASKS if "tuned" in _attrs(runs) else MODEL_ASKS


def _attrs(runs: Sequence[Run]) -> dict[str, Any]:
    """Where the models are named: the attrs of a run of both, if there is one."""
    return next((run.result.attrs for run in runs if "tuned" in run.result.attrs), runs[0].result.attrs)


def _name(runs: Sequence[Run]) -> str:
    """What the window is called: the models, by the last part of their paths."""
    a = _attrs(runs)
    return ", ".join(_short(a[side]) for side in ("base", "tuned", "model") if side in a)


def _short(name: object) -> str:
    """The last two parts of a path, which are a whole id of the Hub."""
    return "/".join(str(name).rstrip("/").split("/")[-2:])


def _header(runs: Sequence[Run], question: str) -> str:
    a = _attrs(runs)
    models = " · ".join(f"{side} <b>{esc(_short(a[side]))}</b>" for side in ("base", "tuned", "model") if side in a)
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    written = f"{datetime.now(timezone.utc):%Y-%m-%d} by taia-lens {results.versions()['taia-lens']}"
    return (
        f'<p class="kicker">taia-lens report</p><h1>{esc(question)}</h1><p class="models">{models}</p>'
        f'<p class="source">From {count}, written on {esc(written)}. Every number can be made again: the command is below it.</p>'
    )


def _in_short(shown: Sequence[Shown], titles: Sequence[str]) -> list[Part]:
    """The first of what each study says in sentences, with a link to all of it; nothing where none says anything."""
    body = ""
    for i, (one, title) in enumerate(zip(shown, titles, strict=True)):
        more = f" and {len(one.said) - FEW} more" if len(one.said) > FEW else ""
        if one.said:
            body += f'<h3><a href="#run-{i}">{esc(title)}</a>{more}</h3>{parts.listed(one.said[:FEW], "said")}'
    note = '<p class="note">Where strongest cells are named, they were chosen by their means, and their intervals do not know it.</p>'
    return [Part("short", "In short", body + note)] if body else []


def _models(runs: Sequence[Run]) -> Part:
    """The pair and the check that it passed when it was loaded; or the one model."""
    run = next((run for run in runs if "pair" in run.meta), None)
    if run is None:
        model, first = runs[0].meta["model"], runs[0].result.attrs
        about = {
            "model": model["name"],
            "dtype": model["dtype"],
            "device": first.get("device", "not said"),
            "content hash": model["fingerprint"],
        }
        return Part("models", "The model", parts.facts(about))
    pair = run.meta["pair"]
    origin, report = pair["origin"], pair["report"]
    about = {"base": origin["base"], "tuned": origin["tuned"], "dtype": origin["dtype"], "device": run.result.attrs["device"]}
    about |= {"tokenizer": report["tokenizer"], "tensors that differ": pair["tensors_differing"]}
    if report["merge_drift"] is not None:
        about["adapter merged"] = f"in float32; merged and unmerged logits differ by at most {report['merge_drift']:.2g} on a probe"
    about |= {f"content hash of {side}": hashed for side, hashed in pair["fingerprint"].items()}
    shares = report["plain_because"]
    notes = [*report["notes"], *([f"recipes are run one by one: {shares}"] if shares else [])]
    return Part("models", "The pair and its check", parts.facts(about) + parts.listed(notes, "said") + _laws(report["laws"]))


def _laws(laws: Sequence[dict[str, Any]]) -> str:
    rows = [(law["name"], f"{law['value']:.2g}", _bound(law), "yes" if law["holds"] else "NO") for law in laws]
    made = parts.table(("law", "measured", "bound", "holds"), rows, caption="What was measured", numeric=(False, True, True, False))
    held = sum(law["holds"] for law in laws)
    said = f"The check: {held} of {len(laws)} laws, which any pair must obey, hold"
    return f"<details{'' if held == len(laws) else ' open'}><summary>{said}</summary>{made}</details>"


def _bound(law: dict[str, Any]) -> str:
    return f"{'>' if law['name'].startswith('zero-ablating') else '≤'} {law['bound']:.2g}"


def _study(i: int, run: Run, one: Shown, figures: Sequence[str], has_cells: bool) -> str:
    study: Study = STUDIES[run.study]
    notes = [str(note) for note in run.result.attrs.get("notes", ())]
    tables = "".join(map(parts.rich_table, one.tables))
    count = f"{len(one.tables)} table{'' if len(one.tables) == 1 else 's'}"
    opened = " open" if run.study in _OPEN else ""
    note = f'<p class="note">{esc(one.note)}</p>'
    numbers = f"<details{opened}><summary>The numbers: {count}</summary>{tables}{note}</details>" if tables else note
    return (
        f'<p class="asks">{esc(study.asks)}</p>{parts.listed(one.said, "said")}{parts.listed(notes, "note")}{"".join(figures)}'
        f"{_cells(i) if has_cells else ''}"
        f"{numbers}"
        f"<h3>How to get these numbers again</h3>{parts.command(run.meta['command'])}"
        f'<p class="note">{esc(_made(run))}</p>'
    )


def _cells(i: int) -> str:
    return (
        f'<section class="cells" data-run="{i}" aria-labelledby="cells-{i}"><h3 id="cells-{i}">Examples that a cell changed</h3>'
        '<p class="hint">Choose a cell here, or click on one in a figure above.</p></section>'
    )


def _made(run: Run) -> str:
    """When, from what and with which seed a run was made."""
    meta, seed = run.meta, run.meta.get("seed")
    suites = ", ".join(f"{s['name']} (sha256 {s['sha256'][:12]})" for s in _suites(run))
    parted = [f"run folder {run.name}", f"written {meta.get('created', 'at no known time')}", f"{meta.get('seconds', '?')} s"]
    parted += [f"seed {seed}"] if seed is not None else []
    return "; ".join([*parted, *([f"suites {suites}"] if suites else [])])


def _suites(run: Run) -> list[dict[str, Any]]:
    """The suites of a run, those that were trained on too."""
    meta = run.meta
    return [*([meta["train"]] if "train" in meta else []), *([meta["suite"]] if "suite" in meta else []), *meta.get("suites", [])]


def _provenance(runs: Sequence[Run], titles: Sequence[str]) -> Part:
    made = [
        (title, run.name, run.meta.get("created", ""), run.meta.get("seconds", ""), "none" if (s := run.meta.get("seed")) is None else s)
        for run, title in zip(runs, titles, strict=True)
    ]
    devices = [(run.result.attrs.get("device", "not said"), dtype_of(run)) for run in runs]
    columns = ("study", "run folder", "written (UTC)", "seconds", "seed", "device", "dtype")
    rows = [(*row, *device) for row, device in zip(made, devices, strict=True)]
    body = parts.table(columns, rows, caption="Runs", numeric=(False, False, False, True, True, False, False))
    suites = {(s["sha256"], s["name"]): s for run in runs for s in _suites(run)}
    if suites:
        found = [(name, *(s["rows"].get(d, 0) for d in ("id", "ood")), digest) for (digest, name), s in suites.items()]
        body += parts.table(
            ("suite", "in distribution", "out of it", "sha256"), found, caption="Suites: rows, and the hash of their content",
            numeric=(False, True, True, False),
        )  # fmt: skip
    return Part("provenance", "Provenance", body + _versions(runs))


def _versions(runs: Sequence[Run]) -> str:
    """Versions that numbers may depend on: one column where all runs agree."""
    found = [run.meta.get("versions", {}) for run in runs]
    columns = {"all runs": found[0]} if all(v == found[0] for v in found) else {run.name: v for run, v in zip(runs, found, strict=True)}
    names = dict.fromkeys(name for v in found for name in v)
    rows = [(name, *(v.get(name, "") for v in columns.values())) for name in names]
    return parts.table(("package", *columns), rows, caption="Versions")


def _file(name: str, header: str, sections: Sequence[Part], blocks: Sequence[str]) -> str:
    here = Path(__file__).parent
    style, script, plotly = (here / "page.css").read_text("utf-8"), (here / "page.js").read_text("utf-8"), get_plotlyjs()
    links = "".join(f'<li><a href="#{part.ident}">{esc(part.title)}</a></li>' for part in sections)
    body = "".join(map(_section, sections))
    # Nothing is fetched and nothing else runs: not even a script that some text smuggled in.
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {_hash(plotly)} {_hash(script)}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f'<title>{esc(name)}: taia-lens report</title>\n<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n'
        '<a class="skip" href="#main">Skip to the results</a>\n<div class="frame">\n'
        f'<header>{header}</header>\n<nav aria-label="Contents"><ol>{links}</ol></nav>\n<main id="main" tabindex="-1">{body}</main>\n'
        "<footer><noscript><p>Figures and lists of examples need JavaScript; the tables do not.</p></noscript></footer>\n</div>\n"
        + "\n".join(blocks)
        + f'\n<script type="text/plain" id="plotly">{plotly}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def _section(part: Part) -> str:
    title = f'<h2 id="{part.ident}-title">{esc(part.title)}</h2>'
    return f'<section id="{part.ident}" aria-labelledby="{part.ident}-title">{title}{part.body}</section>'


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
