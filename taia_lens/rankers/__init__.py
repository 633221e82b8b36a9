"""Rankers of attention heads: by what is learnt, by what a probe reads, by what a change of the head does, by its update, by chance.

One interface: `rank("iti", model, suite)` gives a score for every (layer, head), the replicates that it is the mean of, and
their standard error. Some need a pair; those that look at one model take base of a pair, but for `ablate`, which takes tuned.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from taia_lens.errors import PairError, TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.pair import Pair
from taia_lens.rankers import attribution, causal, learned, probes, updates
from taia_lens.rankers.options import DEFAULT, Options, Ranked, rows_of
from taia_lens.rankers.steering import Directions, ResidualDirections, directions, iti_scales, repe_directions, repe_scales
from taia_lens.results import versions
from taia_lens.scoring import model_attrs, pair_attrs
from taia_lens.store import CellStore
from taia_lens.suite import Suite

__all__ = [
    "NEED_PAIR",
    "RANKERS",
    "Directions",
    "Options",
    "ResidualDirections",
    "check_ranker",
    "directions",
    "iti_scales",
    "rank",
    "repe_directions",
    "repe_scales",
]

_Trained = Callable[[Loaded, Suite, Options, CellStore | None, bool], Ranked]
_Probed = Callable[[Loaded, Suite, Options, bool], Ranked]
_Crossed = Callable[[Pair, Suite, Options, CellStore | None, bool], Ranked]
_LEARNED: dict[str, _Trained] = {
    "lofit": learned.lofit_norm,
    "lofit-relative": learned.lofit_relative,
    "lofit-effect": learned.lofit_effect,
    "lofit-offset": learned.lofit_offset,
    "jola": learned.jola,
}
_PROBED: dict[str, _Probed] = {"iti": probes.iti, "mass-mean": probes.mass_mean, "mean-diff": probes.mean_diff}
_CROSSED: dict[str, _Crossed] = {"patch": causal.patch, "graft": causal.graft, "atp": attribution.atp}
RANKERS: tuple[str, ...] = (*_LEARNED, *_PROBED, "patch", "graft", "ablate", "atp", "update", "random")
NEED_PAIR: tuple[str, ...] = (*_CROSSED, "update")


def rank(
    name: str,
    subject: Pair | Loaded,
    suite: Suite,
    *,
    options: Options = DEFAULT,
    store: CellStore | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Score every attention head.

    Args:
        name: One of RANKERS.
        subject: A pair, or one model for the rankers that need no tuned side.
        suite: Rows; those of the domain `id` are used, unless the options say every.
        options: Of all rankers.
        store: Where finished cells are kept and found (lofit, jola, patch, graft, ablate).
        progress: Show a bar.

    Returns:
        `score` (layer, head), higher being more important; `replicates` (replicate, layer, head), one per example, fold or seed,
        whose mean it is (its size, with `magnitude`); `se` (layer, head), their standard error, NaN where there is one.

    Raises:
        PairError: The ranker needs a pair.
        TaiaLensError and its kinds: No such ranker, or a suite that it cannot use.
    """
    check_ranker(name, subject)
    found = _run(name, subject, suite, options, store, progress)
    mean = found.replicates.mean(0)
    n = len(found.replicates)
    se = found.replicates.std(0, ddof=1) / n**0.5 if n > 1 else np.full(mean.shape, np.nan)
    signed = found.replicate == "example" and "metric" in found.attrs
    data = {
        "score": (("layer", "head"), abs(mean) if signed and options.magnitude else mean),
        "replicates": (("replicate", "layer", "head"), found.replicates),
        "se": (("layer", "head"), se),
    }
    attrs = dict(found.attrs)
    domains = attrs.pop("domains", None)
    coords: dict[str, Any] = {"replicate": list(found.labels), "layer": np.arange(mean.shape[0]), "head": np.arange(mean.shape[1])}
    if domains is not None:
        coords["domain"] = ("replicate", domains)
    return xr.Dataset(data, coords, _attrs(name, subject, suite, options, found, signed) | attrs)


def check_ranker(name: str, subject: Pair | Loaded) -> None:
    """Raise, before anything is computed, where there is no such ranker, or it needs another subject.

    Raises:
        TaiaLensError, PairError: As said.
    """
    if name not in RANKERS:
        near = difflib.get_close_matches(name, RANKERS, 1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise TaiaLensError(f"no ranker {name!r}{meant}; there are {', '.join(RANKERS)}")
    if name in NEED_PAIR and isinstance(subject, Loaded):
        able = ", ".join(r for r in RANKERS if r not in NEED_PAIR)
        raise PairError(f"the ranker {name} needs a tuned model beside {subject.name}; give a pair (--tuned), or rank by {able}")


def _run(name: str, subject: Pair | Loaded, suite: Suite, options: Options, store: CellStore | None, progress: bool) -> Ranked:
    if isinstance(subject, Pair) and name == "update":
        return updates.update(subject)
    if name == "random":
        return updates.chance(subject.shape, options)
    model = model_of(name, subject)
    if name in _LEARNED:  # these choose their rows themselves
        return _LEARNED[name](model, suite, options, store, progress)
    suite = rows_of(suite, options)
    if isinstance(subject, Pair) and name in _CROSSED:
        return _CROSSED[name](subject, suite, options, store, progress)
    if name == "ablate":
        return causal.ablate(model, suite, options, store, progress)
    return _PROBED[name](model, suite, options, progress)


def model_of(name: str, subject: Pair | Loaded) -> Loaded:
    """The one model that a ranker looks at: base of a pair, or tuned where heads are taken away from what was learnt."""
    return subject if isinstance(subject, Loaded) else subject.loaded("tuned" if name == "ablate" else "base")


def _attrs(name: str, subject: Pair | Loaded, suite: Suite, options: Options, found: Ranked, signed: bool) -> dict[str, Any]:
    whose = pair_attrs(subject) if isinstance(subject, Pair) else model_attrs(subject)
    how = ", its size" if signed and options.magnitude else ""
    return whose | {
        "study": "rank",
        "ranker": name,
        "unit": found.unit,
        "meaning": found.meaning + how,
        "replicate": found.replicate,
        "better": 1,
        "needs": "pair" if name in NEED_PAIR else "model",
        "suite": suite.name,
        "suite_sha256": suite.sha256,
        "every": int(options.every),
        "seed": options.seed,
        "batch_size": options.batch_size,
        "notes": list(found.notes),
        "versions": versions(),
    }
