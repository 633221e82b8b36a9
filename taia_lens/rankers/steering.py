"""Steering vectors as scales: ITI at heads (arXiv 2306.03341), RepE in the residual stream (arXiv 2310.01405)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from taia_lens.errors import SiteError, TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.rankers import probes
from taia_lens.rankers.options import DEFAULT, Options, rows_of
from taia_lens.rankers.texts import right_and_wrong
from taia_lens.scales import Scales
from taia_lens.sites import Site, select
from taia_lens.suite import Suite

RESIDUAL = ("pca", "mean")


@dataclass(frozen=True, eq=False)
class Directions:
    """From wrong answers to right ones, at every head.

    Attributes:
        theta: Unit length; zero at a head in which nothing differs.
        sigma: Standard deviation of all texts' z along it.
        accuracy: Of the probe on rows held out.
        made: Where they came from, for the scales.
    """

    theta: Float[Tensor, "layer head d_head"]
    sigma: Float[Tensor, "layer head"]
    accuracy: Float[Tensor, "layer head"]
    made: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ResidualDirections:
    """From wrong answers to right ones, in the residual stream after every layer.

    Attributes:
        theta: Unit length.
        sigma: Standard deviation of all texts' residual along it.
        made: Where they came from, for the scales.
    """

    theta: Float[Tensor, "layer d_model"]
    sigma: Float[Tensor, " layer"]
    made: Mapping[str, Any]


def directions(model: Loaded, suite: Suite, kind: str = "probe", *, options: Options = DEFAULT, progress: bool = False) -> Directions:
    """Fit a direction at every head on z at the last token of right and wrong answers.

    Args:
        model: What is read, and what the scales will be for.
        suite: Rows with a contrast, or choices; those of the domain `id`, unless options say every.
        kind: `probe`, the weight of a logistic regression, or `mass-mean`, the difference of the means.
        options: folds, seed, batch_size, every.
        progress: Show a bar.

    Raises:
        SuiteError: No wrong answers, fewer rows than folds, or a row that cannot be read.
        TaiaLensError: No such kind.
    """
    suite = rows_of(suite, options)
    texts = right_and_wrong(model, suite)
    z = probes.read(model, texts, "head", options.batch_size)
    accuracy, _ = probes.held_out(z, texts, kind, options.folds, options.seed, progress=progress)
    theta = probes.unit(probes.fit(z, texts.right, kind).theta)
    sigma = probes.project(z, theta).std(0)
    settings = {"kind": kind, "folds": options.folds, "seed": options.seed}
    return Directions(_tensor(theta), _tensor(sigma), _tensor(accuracy.mean(0)), _made(model, suite, "iti", len(texts.ids), settings))


def iti_scales(directions: Directions, heads: Sequence[Site], alpha: float) -> Scales:
    """z + alpha * sigma * theta at some heads, at every position.

    Args:
        directions: From `directions`.
        heads: Where.
        alpha: In standard deviations; the paper's is 15 for Llama-7B.

    Raises:
        SiteError: A site that is no head, or is not in the model.
    """
    n_layers, n_heads = directions.sigma.shape
    for site in heads:
        if site.component != "head" or (site.layer or 0) >= n_layers or (site.head or 0) >= n_heads:
            raise SiteError(f"{site} is no head of this model, which has layers 0-{n_layers - 1} and heads 0-{n_heads - 1}; write L0.h0")
    at = tuple(zip(*((site.layer, site.head) for site in heads), strict=True)) or ((), ())
    layer, head = (torch.tensor(index, dtype=torch.long) for index in at)
    offset = alpha * directions.sigma[layer, head, None] * directions.theta[layer, head]
    return _scales(tuple(heads), offset, directions.made, {"alpha": alpha})


def repe_directions(
    model: Loaded, suite: Suite, kind: str = "pca", *, options: Options = DEFAULT, progress: bool = False
) -> ResidualDirections:
    """Fit a direction in the residual stream after every layer on pairs of right and wrong answers.

    Args:
        model: What is read, and what the scales will be for.
        suite: As of `directions`.
        kind: `pca`, the direction in which the pairs' differences are largest, or `mean`, their mean.
        options: batch_size, every.
        progress: Taken for the sake of one signature.

    Raises:
        SuiteError: No wrong answers, or a row that cannot be read.
        TaiaLensError: No such kind.
    """
    if kind not in RESIDUAL:
        raise TaiaLensError(f"no direction {kind!r}; there are {', '.join(RESIDUAL)}")
    suite = rows_of(suite, options)
    texts = right_and_wrong(model, suite)
    acts = probes.read(model, texts, "resid", options.batch_size)
    change = probes.pair_differences(acts, texts)
    theta = probes.principal(change) if kind == "pca" else probes.unit(change.mean(0))
    sigma = np.einsum("tld,ld->tl", acts, theta).std(0)
    return ResidualDirections(_tensor(theta), _tensor(sigma), _made(model, suite, "repe", len(texts.ids), {"kind": kind}))


def repe_scales(directions: ResidualDirections, layers: str | int | Sequence[int], coefficient: float) -> Scales:
    """residual + coefficient * theta after some layers, at every position: RepE's linear control.

    Args:
        directions: From `repe_directions`.
        layers: `all`, a number, a list, or a text like `8-15`.
        coefficient: In the residual stream's own unit, as RepE's; multiply by `directions.sigma` for standard deviations.

    Raises:
        SiteError: A layer that the model does not have.
    """
    chosen = select(layers, len(directions.theta), "layer")
    offset = coefficient * directions.theta[list(chosen)]
    return _scales(tuple(Site("resid", layer) for layer in chosen), offset, directions.made, {"coefficient": coefficient})


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()


def _scales(sites: tuple[Site, ...], offset: Tensor, made: Mapping[str, Any], settings: Mapping[str, Any]) -> Scales:
    record = {**made, "settings": {**made["settings"], **settings}}
    scales = Scales(sites, torch.zeros_like(offset), offset, record)
    return replace(scales, made={**record, "numbers": scales.numbers})


def _made(model: Loaded, suite: Suite, method: str, texts: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    data = {"suite": suite.name, "sha256": suite.sha256, "texts": texts}
    who = {"model": model.name, "fingerprint": model.fingerprint, "rounded": model.rounded, "dtype": model.dtype}
    return {"method": method, **who, "data": data, "settings": dict(settings)}
