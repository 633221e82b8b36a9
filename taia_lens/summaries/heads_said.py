"""What a bench of rankers supports, in sentences, and no more. Imports no torch."""

from __future__ import annotations

import numpy as np
import xarray as xr

from taia_lens.suite import DOMAIN_NAMES

ALPHA = 0.05
# Rankers that ask which heads carry what tuned does, and those that ask which heads a small training wants to change.
CARRIERS, LEARNED = ("patch", "graft", "atp", "update"), ("lofit", "lofit-relative", "lofit-effect", "lofit-offset", "jola")
_CHECKS = {"offsets": "offsets trained on", "graft": "tuned's weights of"}


def heads_sentences(summary: xr.Dataset) -> list[str]:
    """A sentence a group and check, then how far the rankers agree, then the bridge to TAIA where there is a pair.

    One is said to beat another where the adjusted p is at most 0.05; else the two are not told apart.
    """
    checks = [c for c in _CHECKS if c in summary.check.values]
    said = [_causal(summary.isel(group=i), check) for i in range(summary.sizes["group"]) for check in checks]
    return [*said, *_agreement(summary), *_bridge(summary)]


def order(cell: xr.Dataset, better: int) -> int:
    """+1 where a line is better than its reference after correction, -1 where worse, 0 where they are not told apart."""
    return int(np.sign(float(cell["diff"])) * better) if float(cell.q) <= ALPHA else 0


def _where(group: xr.Dataset) -> str:
    return f"{DOMAIN_NAMES[str(group.domain.item())]} ({group.suite.item()}, {group.metric.item()}, n = {int(group.n)})"


def _causal(group: xr.Dataset, check: str) -> str:
    tops = [group.isel(line=int(i)) for i in np.flatnonzero((group.check.values == check) & (group.end.values == "top"))]
    start = f"{_where(group)}, {_CHECKS[check]} {group.attrs['k']} of {group.attrs['n_heads']} heads: "
    return start[0].upper() + start[1:] + "; ".join(_one(top, int(group.better)) for top in tops) + "."


def _one(top: xr.Dataset, better: int) -> str:
    parts = [_relation(top, reference, words, better) for reference, words in (("random", "random heads"), ("bottom", "its bottom heads"))]
    parts = [part for part in parts if part]
    return f"{top.by.item()}'s top heads {' and '.join(parts) if parts else 'have no control to be held against'}"


def _relation(top: xr.Dataset, reference: str, words: str, better: int) -> str:
    cell = top.sel(reference=reference)
    difference = float(cell["diff"])
    if np.isnan(difference):
        return ""
    if np.isnan(float(cell.p)):
        return f"give what {words} give on every prompt"
    found = order(cell, better)
    verb = {1: "beat", -1: "are worse than", 0: "are not told apart from"}[found]
    numbers = f"{difference:+.3f} [{float(cell.diff_low):+.3f}, {float(cell.diff_high):+.3f}]"
    numbers += "" if found else f", q = {float(cell.q):.2g}"
    # The test is over prompts, for the draws that were made: what is left between draws is said beside it.
    draws = f"; above {int(top.above)} of {int(top.draws)} draws" if reference == "random" else ""
    return f"{verb} {words} ({numbers}{draws})"


def _agreement(summary: xr.Dataset) -> list[str]:
    names = summary.ranker.values.tolist()
    k, total, chance = summary.attrs["k"], summary.attrs["n_heads"], f"{float(summary.chance):.0%}"
    said = []
    if len(names) > 1:
        parts = [f"{_share(summary, names[0], name)} with {name} (tau {_tau(summary, names[0], name)})" for name in names[1:]]
        said.append(f"Of its top {k} of {total} heads {names[0]} shares {', '.join(parts)}; chance gives {chance}.")
    if len(summary.attrs["seeds"]) > 1:
        parts = [_seeds(summary, name) for name in names]
        said.append(f"Between {len(summary.attrs['seeds'])} seeds: {'; '.join(parts)}.")
    return said


def _seeds(summary: xr.Dataset, name: str) -> str:
    if not bool(summary.seeded.sel(ranker=name)):
        return f"{name} draws nothing"
    return f"{name} keeps {float(summary.overlap.sel(ranker=name, other=name)):.0%} of its top heads (tau {_tau(summary, name, name)})"


def _share(summary: xr.Dataset, a: str, b: str) -> str:
    cell = summary.sel(ranker=a, other=b)
    q = float(cell.overlap_q)
    return f"{float(cell.overlap):.0%} ({'beyond chance' if q <= ALPHA else 'no more than chance explains'}, q = {q:.2g})"


def _tau(summary: xr.Dataset, a: str, b: str) -> str:
    return f"{float(summary.tau.sel(ranker=a, other=b)):+.2f}"


def _bridge(summary: xr.Dataset) -> list[str]:
    if "TAIA" not in summary.by.values:
        return []
    names = summary.ranker.values.tolist()
    pairs = [(a, b) for a in LEARNED if a in names for b in CARRIERS if b in names]
    said = []
    if pairs:
        parts = [f"{a} and {b} share {_share(summary, a, b)}, tau {_tau(summary, a, b)}" for a, b in pairs]
        said.append(f"LoFiT's heads and those that carry the update: {'; '.join(parts)}.")
    for group in (summary.isel(group=i) for i in range(summary.sizes["group"])):
        grafts = [group.isel(line=int(i)) for i in np.flatnonzero(group.fraction.notnull().values)]
        parts = [_fraction(line) for line in grafts if line.end.item() in ("top", "draw", "all")]
        if parts:
            said.append(f"Of TAIA's gain {_where(group)}, grafting heads alone gives: {', '.join(parts)}.")
        elif (group.check.values == "graft").any():
            said.append(f"TAIA's gain {_where(group)} is not told apart from 0, so no part of it is given.")
    return said


def _fraction(line: xr.Dataset) -> str:
    name = f"{line.by.item()}'s top" if line.end.item() == "top" else str(line.by.item())
    return f"{name} {float(line.fraction):.0%} [{float(line.fraction_low):.0%}, {float(line.fraction_high):.0%}]"
