"""Tables and records of the bench of rankers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from taia_lens.tables.grid import adjusted, interval, plain, title_of

SHOWN = 8  # heads of a ranker that are listed; more do not fit a line
_WORDS = {"offsets": "offsets trained on {k} heads", "graft": "base with tuned's weights of {k} heads"}
_CELL = ("diff", "diff_low", "diff_high", "p", "q")


def heads_tables(summary: xr.Dataset) -> list[Table]:
    """Each ranker's top heads, the agreement of rankers, where their heads lie, and a table a group and check."""
    checks = [check for check in _WORDS if check in summary.check.values]
    groups = [summary.isel(group=i) for i in range(summary.sizes["group"])]
    return [_tops(summary), _agreement(summary), _layers(summary), *(_check(group, check) for group in groups for check in checks)]


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE, title=title, title_justify="left", padding=(0, 1, 0, 0))


def top_sites(summary: xr.Dataset, ranker: str) -> list[tuple[str, float, float]]:
    """A ranker's top heads: site, the share of seeds that choose it, mean score; the most often chosen first."""
    one = summary.sel(ranker=ranker).stack(site=("layer", "head"))
    chosen, score = one.chosen.values, one.score.values
    order = np.lexsort((-score, -chosen))[: int((chosen > 0).sum())]
    return [(f"L{one.layer.values[i]}.h{one['head'].values[i]}", float(chosen[i]), float(score[i])) for i in order]


def _tops(summary: xr.Dataset) -> Table:
    seeds = len(summary.attrs["seeds"])
    table = _table(
        f"top {summary.attrs['k']} of {summary.attrs['n_heads']} heads" + (f", in how many of {seeds} seeds" if seeds > 1 else "")
    )
    table.add_column("ranker", no_wrap=True)
    table.add_column("heads, best first" if seeds == 1 else "heads, most often chosen first")
    table.add_column("scored by", no_wrap=True)
    for name in summary.ranker.values.tolist():
        sites = top_sites(summary, name)
        shown = [site if seeds == 1 else f"{site} {round(share * seeds)}/{seeds}" for site, share, _ in sites[:SHOWN]]
        more = f" and {len(sites) - SHOWN} more" if len(sites) > SHOWN else ""
        table.add_row(Text(name), ", ".join(shown) + more, Text(str(summary.score_unit.sel(ranker=name).item())))
    return table


def _agreement(summary: xr.Dataset) -> Table:
    title = f"shared share of the top {summary.attrs['k']} (chance {float(summary.chance):.0%}) and Kendall's tau over all heads"
    table = _table(title + "; with itself: between seeds")
    table.add_column("", no_wrap=True)
    names = summary.ranker.values.tolist()
    for name in names:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for i, a in enumerate(names):
        table.add_row(Text(a), *(_shared(summary.sel(ranker=a, other=b)) if j <= i else "" for j, b in enumerate(names)))
    return table


def _shared(cell: xr.Dataset) -> str:
    if math.isnan(float(cell.overlap)):
        return "- " if bool(cell.seeded) or len(cell.attrs["seeds"]) == 1 else "no seed "
    star = "*" if float(cell.overlap_q) <= 0.05 else " "
    tau = f"{float(cell.tau):+.2f}".replace("0.", ".")
    return f"{float(cell.overlap):.0%} {tau}{star}"


def _layers(summary: xr.Dataset) -> Table:
    table = _table("how many of the top heads lie in each layer" + (" (mean over seeds)" if len(summary.attrs["seeds"]) > 1 else ""))
    table.add_column("layer", justify="right", no_wrap=True)
    for name in summary.ranker.values.tolist():
        table.add_column(Text(name), justify="right", no_wrap=True)
    for layer in summary.layer.values.tolist():
        counts = summary.per_layer.sel(layer=layer).values
        if counts.any():
            table.add_row(str(layer), *(f"{count:.3g}" if count else "" for count in counts))
    return table


def _check(group: xr.Dataset, check: str) -> Table:
    table = _table(f"{title_of(group)}: {_WORDS[check].format(k=group.attrs['k'])}")
    table.add_column("heads of", no_wrap=True)
    for name in ("numbers", "value", "seeds", "- random [95%] q ", "- its bottom [95%] q ", f"- {group.ranker.values[0]} [95%] q "):
        table.add_column(name, justify="right", no_wrap=True)
    for i in range(group.sizes["line"]):
        line = group.isel(line=i)
        if line.check.item() in ("", check):
            table.add_row(*_row(line))
    return table


def _row(line: xr.Dataset) -> list[Text]:
    runs = int(line.runs)
    spread = f"{float(line.least):.2f} to {float(line.most):.2f}" if runs > 1 else ""
    cells = [_difference(line.sel(reference=name)) for name in ("random", "bottom", "first")]
    return [Text(text) for text in (line_name(line), f"{int(line.numbers):,}", f"{float(line.value):.3f}", spread, *cells)]


def line_name(line: xr.Dataset) -> str:
    """A line without what was done: `lofit top`, `random (3 draws)`."""
    name, end = str(line.by.item()), str(line.end.item())
    return f"{name} {end}" if end in ("top", "bottom") else f"random ({int(line.runs)} draws)" if end == "draw" else name


def _difference(cell: xr.Dataset) -> str:
    if math.isnan(float(cell["diff"])):
        return ""
    if math.isnan(float(cell.p)):
        return "0        "  # the same on every prompt
    return f"{interval(cell, 'diff')} {adjusted(float(cell.q)).removeprefix('q').removeprefix('='):>6}"


def heads_note(summary: xr.Dataset) -> str:
    """What the columns mean."""
    return (
        "numbers: how many of the model's are changed (offsets: the trained parameters; grafts: entries taken that differ); value: mean "
        "over prompts, seeds and draws; seeds: its least and most over them; [95% paired bootstrap interval over prompts, for these seeds "
        "and draws]; q: sign-flip p, adjusted over all differences (false-discovery rate); * at most .05"
    )


def heads_records(summary: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a (group, line), ready for JSON."""
    out = []
    for group in (summary.isel(group=i) for i in range(summary.sizes["group"])):
        labels = {name: group[name].item() for name in ("suite", "domain", "metric", "n", "better")}
        for line in (group.isel(line=i) for i in range(group.sizes["line"])):
            record = labels | {name: line[name].item() for name in ("check", "by", "end", "runs", "numbers", "above", "draws")}
            record |= {name: plain(line[name]) for name in ("value", "low", "high", "least", "most")}
            record |= {name: plain(line[name]) for name in ("fraction", "fraction_low", "fraction_high")}
            for reference in line.reference.values.tolist():
                record[f"minus_{reference}"] = {name: plain(line[name].sel(reference=reference)) for name in _CELL}
            out.append(record)
    return out


def heads_report(summary: xr.Dataset) -> dict[str, Any]:
    """All numbers of a heads summary, ready for JSON: rankings, agreement, check."""
    names = summary.ranker.values.tolist()
    agreement = [
        {"ranker": a, "other": b} | {key: plain(summary[key].sel(ranker=a, other=b)) for key in _AGREE}
        for i, a in enumerate(names)
        for b in names[: i + 1]
    ]
    rankings = [
        {
            "ranker": name,
            "unit": str(summary.score_unit.sel(ranker=name).item()),
            "top": [{"site": site, "seeds": share, "score": score} for site, share, score in top_sites(summary, name)],
            "per_layer": summary.per_layer.sel(ranker=name).values.tolist(),
        }
        for name in names
    ]
    head = {name: summary.attrs[name] for name in ("k", "n_heads", "seeds")} | {"chance": float(summary.chance)}
    return head | {"notes": list(summary.attrs["notes"]), "rankings": rankings, "agreement": agreement, "results": heads_records(summary)}


_AGREE = ("overlap", "overlap_least", "overlap_most", "overlap_p", "overlap_q", "tau")
