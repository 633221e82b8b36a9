"""What a bench of rankers supports, in sentences, and no more. Imports no torch."""

from __future__ import annotations

import numpy as np
import xarray as xr

from taia_lens.suite import DOMAIN_NAMES

ALPHA = 0.05
# Rankers that ask which heads carry what tuned does, and those that ask which heads a small training wants to change.
CARRIERS, LEARNED = ("patch", "graft", "atp", "update"), ("lofit", "lofit-relative", "lofit-effect", "lofit-offset", "jola")
_CHECKS = {"offsets": "offsets trained on", "graft": "tuned's weights of"}
_AGAINST = {"random": "random heads", "bottom": "its own bottom heads"}


def heads_sentences(summary: xr.Dataset) -> list[str]:
    """A sentence a group and check, then how far the rankers agree, then the bridge to TAIA where there is a pair.

    One is said to beat another where the adjusted p is at most 0.05; else the two are not told apart.

    Args:
        summary: What `heads_summary` returned.
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
    start = f"{_where(group)}, {_CHECKS[check]} the top {group.attrs['k']} of {group.attrs['n_heads']} heads"
    parts = [_against(tops, name, words, int(group.better)) for name, words in _AGAINST.items()]
    said = ". ".join(part for part in parts if part)
    return start[0].upper() + start[1:] + (f". {said}." if said else ": there is no control to hold them against.")


def _against(tops: list[xr.Dataset], reference: str, words: str, better: int) -> str:
    """Who beats a control, who does not, each with its difference."""
    found: dict[str, list[str]] = {"Better than": [], "Worse than": [], "Not told apart from": [], "The same on every prompt as": []}
    for top in tops:
        cell = top.sel(reference=reference)
        if np.isnan(float(cell["diff"])):
            continue
        name = str(top.by.item())
        if np.isnan(float(cell.p)):
            found["The same on every prompt as"].append(name)
            continue
        place = {1: "Better than", -1: "Worse than", 0: "Not told apart from"}[order(cell, better)]
        found[place].append(f"{name} ({_numbers(cell, reference)})")
    said = [f"{place} {words}: {', '.join(names)}" for place, names in found.items() if names]
    return "; ".join(text if i == 0 else text[0].lower() + text[1:] for i, text in enumerate(said))


def _numbers(cell: xr.Dataset, reference: str) -> str:
    numbers = f"{float(cell['diff']):+.3f} [{float(cell.diff_low):+.3f}, {float(cell.diff_high):+.3f}]"
    # An interval that leaves out 0 is not yet a finding among this many: the adjusted p says why.
    numbers += "" if float(cell.q) <= ALPHA else f", q = {float(cell.q):.2g}"
    # The test is over prompts, for the draws that were made: what is left between draws is said beside it.
    return numbers + (f", above {int(cell.above)} of {int(cell.draws)} draws" if reference == "random" else "")


def _agreement(summary: xr.Dataset) -> list[str]:
    names = summary.ranker.values.tolist()
    k, total, chance = summary.attrs["k"], summary.attrs["n_heads"], f"{float(summary.chance):.0%}"
    said = []
    if len(names) > 1:
        parts = [f"{_share(summary, names[0], name)} with {name} (tau {_tau(summary, names[0], name)})" for name in names[1:]]
        said.append(f"Of its top {k} of {total} heads {names[0]} shares {', '.join(parts)}; chance gives {chance}.")
    if len(summary.attrs["seeds"]) > 1:
        parts = [_seeds(summary, name) for name in names]
        said.append(f"From seed to seed, of {len(summary.attrs['seeds'])}: {'; '.join(parts)}.")
    return said


def _seeds(summary: xr.Dataset, name: str) -> str:
    if not bool(summary.seeded.sel(ranker=name)):
        return f"{name} does not depend on it"
    return f"{name} keeps {float(summary.overlap.sel(ranker=name, other=name)):.0%} of its top heads (tau {_tau(summary, name, name)})"


def _share(summary: xr.Dataset, a: str, b: str) -> str:
    cell = summary.sel(ranker=a, other=b)
    q = float(cell.overlap_q)
    return f"{float(cell.overlap):.0%} ({'beyond chance' if q <= ALPHA else 'not beyond chance'}, q = {q:.2g})"


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
    value, low, high = (f"{float(line[f'fraction{end}']):.0%}".replace("-0%", "0%") for end in ("", "_low", "_high"))
    return f"{name} {value} [{low}, {high}]"
