"""Rankers by what is learnt when heads may be scaled or shifted: LoFiT (arXiv 2406.01563) and JoLA (arXiv 2502.01179)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from taia_lens import lofit
from taia_lens.loaded import Loaded
from taia_lens.lofit import Settings
from taia_lens.rankers.options import Options, Ranked
from taia_lens.scales import Scales
from taia_lens.store import CellStore
from taia_lens.suite import Suite


def _by_gain(model: Loaded, suite: Suite, options: Options, store: CellStore | None, progress: bool, *, score: str) -> Ranked:
    found = []
    for settings in _settings(options, options.selecting or lofit.select_settings(model.n_parameters)):
        chosen = lofit.select(model, suite, settings=settings, every=options.every, store=store, progress=progress)
        found.append(chosen[score].transpose("layer", "head").values)
    return _ranked(found, options, *_MEANING[score])


_MEANING = {
    "norm": ("norm of gain", "||A||, LoFiT's score"),
    "relative": ("norm of gain / rms norm of z", "||A|| over the size of the head's z"),
    "effect": ("rms norm of A * z", "the size of what A changes"),
}
lofit_norm, lofit_relative, lofit_effect = (partial(_by_gain, score=score) for score in _MEANING)


def lofit_offset(model: Loaded, suite: Suite, options: Options, store: CellStore | None, progress: bool) -> Ranked:
    """The norm of the offset that is learnt at each head, all heads being shifted at once."""
    found = []
    for settings in _settings(options, options.tuning or lofit.tune_settings(model.n_parameters)):
        heads = lofit.heads_of(model)
        scales = lofit.tune(model, suite, heads, settings=settings, every=options.every, store=store, progress=progress)
        found.append(_at_heads(model, scales))
    return _ranked(found, options, "norm of offset", "||v||, offsets at every head")


def jola(model: Loaded, suite: Suite, options: Options, store: CellStore | None, progress: bool) -> Ranked:
    """The joint norm of the gated gain and offset of each head; 0 where both gates closed."""
    found = []
    for settings in _settings(options, options.selecting or replace(lofit.select_settings(model.n_parameters), l1=0.0)):
        scales = lofit.jola(model, suite, settings=settings, every=options.every, store=store, progress=progress)
        found.append(_at_heads(model, scales))
    return _ranked(found, options, "norm of gated gain and offset", "||(g A, h v)||, 0 where both gates are closed")


def _at_heads(model: Loaded, scales: Scales) -> np.ndarray:
    out = np.zeros((model.shape.n_layers, model.shape.n_heads))
    both = scales.gain.double().norm(dim=-1) ** 2 + scales.offset.double().norm(dim=-1) ** 2
    for site, square in zip(scales.sites, both.tolist(), strict=True):
        out[site.layer or 0, site.head or 0] = square**0.5
    return out


def _settings(options: Options, settings: Settings) -> list[Settings]:
    return [replace(settings, seed=seed) for seed in range(options.seed, options.seed + options.seeds)]


def _ranked(found: list[np.ndarray], options: Options, unit: str, meaning: str) -> Ranked:
    labels = tuple(str(seed) for seed in range(options.seed, options.seed + options.seeds))
    return Ranked(np.stack(found), "seed", labels, unit, meaning)
