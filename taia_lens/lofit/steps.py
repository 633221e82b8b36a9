"""LoFiT's two steps (arXiv 2406.01563, section 3): which heads learning wants to scale, and offsets on those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from einops import rearrange

from taia_lens import results
from taia_lens.engine import mean_squares
from taia_lens.errors import SiteError, TaiaLensError
from taia_lens.examples import collate
from taia_lens.loaded import Loaded
from taia_lens.lofit.forms import gated, heads_of, plain
from taia_lens.lofit.settings import Settings, how_many, select_settings, top_heads, tune_settings
from taia_lens.lofit.texts import Texts, make_texts
from taia_lens.lofit.train import Form, Trained, train
from taia_lens.scales import Scales
from taia_lens.sites import PATCHABLE, Site
from taia_lens.store import CellStore
from taia_lens.suite import Suite

DIMS = ("layer", "head", "d_head")


def select(
    model: Loaded,
    suite: Suite,
    *,
    validation: Suite | None = None,
    settings: Settings | None = None,
    every: bool = False,
    store: CellStore | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Step 1: learn z <- (1 + A) * z at every head and position, and score each head by how far A moved.

    Args:
        model: Nothing of it is changed.
        suite: What to learn; rows of the domain `id`.
        validation: Judges each epoch; where None, a part of the rows is held out for it.
        settings: How; the paper's for a model of this size where None.
        every: Also learn from rows that are out of distribution.
        store: Where finished epochs are kept and found.
        progress: Show a bar.

    Returns:
        By (layer, head): `norm` = ||A||, the paper's score; `scale` = root mean square norm of z on the training texts;
        `relative` = norm / scale; `effect` = root mean square norm of A * z, the size of what is changed. By (layer, head,
        d_head) `gain` = A; by epoch `loss`, `penalty` and `validation`.

    Raises:
        TaiaLensError and its kinds: The suite cannot be learnt from, or the loss is no number.
    """
    settings = settings or select_settings(model.n_parameters)
    texts, held = _texts(model, suite, validation, settings, every)
    sites = heads_of(model)
    form = plain(model, sites, ("gain",), sigma=settings.sigma, l1=settings.l1, seed=settings.seed, method="lofit-select")
    found = train(model, form, texts, held, settings, store=store, progress=progress)
    shape = model.shape
    gain = rearrange(found.values["gain"].cpu(), "(layer head) d_head -> layer head d_head", head=shape.n_heads).double()
    squares = _squares(model, texts, settings)
    data = {
        "norm": (DIMS[:2], gain.norm(dim=-1).numpy()),
        "scale": (DIMS[:2], squares.sum(-1).sqrt().numpy()),
        "effect": (DIMS[:2], (gain**2 * squares).sum(-1).sqrt().numpy()),
        "gain": (DIMS, gain.float().numpy()),
        **{name: ("epoch", [getattr(epoch, name) for epoch in found.history]) for name in ("loss", "penalty", "validation")},
    }
    coords = {"layer": np.arange(shape.n_layers), "head": np.arange(shape.n_heads), "epoch": np.arange(1, len(found.history) + 1)}
    attrs = made(model, "lofit-select", suite, texts, held, settings, found) | {"study": "lofit-select", "versions": results.versions()}
    out = xr.Dataset(data, coords, attrs)
    # A head whose z is always zero has no scale to divide by, and nothing that a gain could change.
    return out.assign(relative=(out["norm"] / out["scale"]).where(out["scale"] > 0, 0.0))


def tune(
    model: Loaded,
    suite: Suite,
    heads: Sequence[Site],
    *,
    validation: Suite | None = None,
    settings: Settings | None = None,
    every: bool = False,
    store: CellStore | None = None,
    progress: bool = False,
) -> Scales:
    """Step 2: learn z <- z + v at the chosen heads, from a fresh model; arguments as of `select`.

    Raises:
        SiteError: No head, one that the model does not have, or something that is no head.
        TaiaLensError and its kinds: The suite cannot be learnt from, or the loss is no number.
    """
    settings = settings or tune_settings(model.n_parameters)
    _check_heads(model, heads)
    return train_scales(
        model, suite, heads, ("offset",), "lofit", settings, validation=validation, every=every, store=store, progress=progress
    )


def fit(
    model: Loaded,
    suite: Suite,
    k: str | float | int,
    *,
    validation: Suite | None = None,
    selecting: Settings | None = None,
    tuning: Settings | None = None,
    every: bool = False,
    store: CellStore | None = None,
    progress: bool = False,
) -> tuple[xr.Dataset, Scales]:
    """Both steps: select the k heads with the largest norm (`16`, `3%` or 0.03 of all), then tune offsets on them.

    Returns:
        What `select` returned, and the scales.

    Raises:
        TaiaLensError and its kinds: As of `select` and `tune`.
    """
    number = how_many(k, len(heads_of(model)))
    chosen = select(model, suite, validation=validation, settings=selecting, every=every, store=store, progress=progress)
    heads = top_heads(chosen["norm"], number)
    return chosen, tune(model, suite, heads, validation=validation, settings=tuning, every=every, store=store, progress=progress)


def jola(
    model: Loaded,
    suite: Suite,
    *,
    l0: float = 1e-3,
    validation: Suite | None = None,
    settings: Settings | None = None,
    every: bool = False,
    store: CellStore | None = None,
    progress: bool = False,
) -> Scales:
    """One step instead of two: gains and offsets at every head, each behind a gate that learns to close (arXiv 2502.01179).

    Args:
        model: Nothing of it is changed.
        suite: What to learn.
        l0: The loss has this much added for each gate that is expected to be open.
        validation: As of `select`.
        settings: As of `select`; JoLA's learning rate is that of LoFiT's first step.
        every: As of `select`.
        store: As of `select`.
        progress: As of `select`.

    Returns:
        The heads with an open gate, the gates multiplied in.

    Raises:
        TaiaLensError and its kinds: As of `select`; or every gate closed.
    """
    settings = settings or replace(select_settings(model.n_parameters), l1=0.0)
    texts, held = _texts(model, suite, validation, settings, every)
    form = gated(model, heads_of(model), sigma=settings.sigma, l0=l0, seed=settings.seed)
    found = train(model, form, texts, held, settings, store=store, progress=progress)
    whole = form.scales(found.values, None)
    is_open = [i for i in range(len(whole.sites)) if bool(whole.gain[i].any()) or bool(whole.offset[i].any())]
    if not is_open:
        raise TaiaLensError(f"every gate closed; lower l0 ({l0:g})")
    record = made(model, "jola", suite, texts, held, settings, found) | {"l0": l0, "trained": form.numbers}
    return _with_count(Scales(tuple(whole.sites[i] for i in is_open), whole.gain[is_open].cpu(), whole.offset[is_open].cpu(), record))


def train_scales(
    model: Loaded,
    suite: Suite,
    sites: Sequence[Site],
    which: Sequence[str],
    method: str,
    settings: Settings,
    *,
    validation: Suite | None = None,
    every: bool = False,
    store: CellStore | None = None,
    progress: bool = False,
) -> Scales:
    """Learn gains, offsets or both at any sites of one component; what `tune` is made of, and RED (arXiv 2402.15179).

    Args:
        model: Nothing of it is changed.
        suite: What to learn.
        sites: Where: heads, or the outputs of attn or mlp, or the residual stream.
        which: `gain`, `offset`, or both.
        method: Its name, for the adapter.
        settings: How.
        validation: As of `select`.
        every: As of `select`.
        store: As of `select`.
        progress: As of `select`.

    Raises:
        TaiaLensError and its kinds: As of `tune`.
    """
    if not sites or sites[0].component not in PATCHABLE:
        raise SiteError(f"no site to train; name some of the components {', '.join(PATCHABLE)}")
    texts, held = _texts(model, suite, validation, settings, every)
    form = plain(model, sites, which, sigma=settings.sigma, l1=settings.l1, seed=settings.seed, method=method)
    found = train(model, form, texts, held, settings, store=store, progress=progress)
    return _finished(model, form, suite, texts, held, settings, found)


def _finished(model: Loaded, form: Form, suite: Suite, texts: Texts, held: Texts, settings: Settings, found: Trained) -> Scales:
    whole = form.scales(found.values, None)
    record = made(model, form.method, suite, texts, held, settings, found) | {"trained": form.numbers}
    return _with_count(Scales(whole.sites, whole.gain.detach().cpu(), whole.offset.detach().cpu(), record))


def _with_count(scales: Scales) -> Scales:
    return replace(scales, made={**scales.made, "numbers": scales.numbers})


def made(model: Loaded, method: str, suite: Suite, texts: Texts, held: Texts, settings: Settings, found: Trained) -> dict[str, Any]:
    """Where trained numbers came from; no path of this machine is in it."""
    data = {"suite": suite.name, "sha256": suite.sha256, "texts": len(texts.items), "validation": len(held.items)}
    return {
        "method": method,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "rounded": model.rounded,
        "dtype": model.dtype,
        "data": data | {"left_out": dict(texts.left_out), "in_both": held.shared(texts)},
        "settings": asdict(settings),
        "training": found.record(),
    }


def _texts(model: Loaded, suite: Suite, validation: Suite | None, settings: Settings, every: bool) -> tuple[Texts, Texts]:
    texts = make_texts(model, suite, settings, every=every)
    if validation is None:
        return texts.split(settings.held_out, settings.seed)
    return texts, make_texts(model, validation, settings, every=every)


def _check_heads(model: Loaded, heads: Sequence[Site]) -> None:
    shape = model.shape
    if not heads:
        raise SiteError("no head was named; name some, for example L3.h5")
    for site in heads:
        if site.component != "head":
            raise SiteError(f"{site} is no head; LoFiT's offsets are at heads: write L{site.layer or 0}.h0")
        if (site.layer or 0) >= shape.n_layers or (site.head or 0) >= shape.n_heads:
            found = f"layers 0-{shape.n_layers - 1} and heads 0-{shape.n_heads - 1}"
            raise SiteError(f"no head {site}: this model has {found}; write one of those")


def _squares(model: Loaded, texts: Texts, settings: Settings) -> torch.Tensor:
    """Mean over the texts' positions of z squared: (layer, head, d_head)."""
    examples = list(texts.examples)
    batches = [collate(examples[i : i + settings.micro_batch]) for i in range(0, len(examples), settings.micro_batch)]
    return mean_squares(model.model, [(b["input_ids"], b["attention_mask"].bool()) for b in batches])
