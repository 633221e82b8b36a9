"""How LoFiT trains, as a value, with the paper's defaults by size of model; and which heads are taken. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from taia_lens.errors import SiteError, TaiaLensError
from taia_lens.sites import Site

LOSSES = ("ce", "dpo")
PAIRS = ("one", "all")
MOST = 1e6  # of a learning rate; much larger ones overflow in float32
LARGE = 10_000_000_000  # parameters: between the paper's 7B and 13B models, whose learning rates differ


@dataclass(frozen=True)
class Settings:
    """How to train scales; the defaults are those of LoFiT's training scripts (arXiv 2406.01563).

    Attributes:
        lr: First learning rate; it falls linearly to zero.
        l1: The loss has l1 * sum |A| added (a plain sum over all heads and dims).
        epochs: Passes over the data, at most.
        batch_size: Rows (pairs, with dpo) a step.
        micro_batch: Rows at a time, at most; it changes memory and speed, results only by rounding.
        patience: Stop after so many epochs without a lower validation loss; the best epoch is kept in any case.
        loss: `ce`, cross-entropy of the answer's tokens; or `dpo` on pairs of answers (arXiv 2305.18290).
        beta: Of dpo.
        pairs: With dpo: `one` pair a row (the first right answer, the first wrong one: what the paper's code does), or `all`.
        sigma: Standard deviation of the first values.
        weight_decay: AdamW's.
        max_length: Longest text in tokens; longer ones are left out.
        held_out: The fraction of rows that is the validation split, where no validation suite is given.
        seed: Of the first values, the order of the rows, and the validation split.
    """

    lr: float
    l1: float = 0.0
    epochs: int = 5
    batch_size: int = 8
    micro_batch: int = 64
    patience: int = 2
    loss: str = "ce"
    beta: float = 0.5
    pairs: str = "one"
    sigma: float = 1e-3
    weight_decay: float = 0.01
    max_length: int = 2048
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("loss", self.loss, LOSSES), ("pairs", self.pairs, PAIRS)):
            if value not in known:
                raise TaiaLensError(f"no {name} {value!r}; there are {', '.join(known)}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("micro_batch", 1), ("patience", 1), ("max_length", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise TaiaLensError(f"{name} is {getattr(self, name)}; write {least} or more")
        for name in ("lr", "beta"):
            if not 0 < getattr(self, name) <= MOST:
                raise TaiaLensError(f"{name} is {getattr(self, name):g}; write a number above 0, and {MOST:g} at most")
        for name in ("l1", "sigma", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise TaiaLensError(f"{name} is {getattr(self, name):g}; write 0 or more")
        if not 0 < self.held_out < 1:
            raise TaiaLensError(f"held_out is {self.held_out:g}; write a fraction between 0 and 1")


def select_settings(n_parameters: int) -> Settings:
    """The paper's first step: lr 5e-3 and l1 5e-4 (its 7B models on TruthfulQA), 1e-3 and 1e-3 above 10B parameters.

    >>> select_settings(7_000_000_000).lr, select_settings(13_000_000_000).lr
    (0.005, 0.001)
    """
    return Settings(lr=5e-3, l1=5e-4) if n_parameters < LARGE else Settings(lr=1e-3, l1=1e-3)


def tune_settings(n_parameters: int) -> Settings:
    """The paper's second step: lr 1e-2, no penalty (2e-2 for its 13B model on TruthfulQA)."""
    return Settings(lr=1e-2) if n_parameters < LARGE else Settings(lr=2e-2)


def how_many(asked: str | float | int, n: int) -> int:
    """How many of n heads: `3%`, a fraction below 1, or a number of them.

    >>> how_many("3%", 1024), how_many(0.1, 1024), how_many(4, 48), how_many("16", 48)
    (31, 102, 4, 16)

    The paper's 32 heads of Llama-2-7B's 1024 are 3.1%: a share is rounded to the nearest number.

    Raises:
        SiteError: No number, none, or more than there are.
    """
    try:
        text = str(asked).strip()
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise SiteError(f"cannot read the number of heads {asked!r}; write 16, or 3%") from error
    is_share = text.endswith("%") or 0 < value < 1
    if not math.isfinite(value) or value <= 0 or (is_share and value > 1) or (not is_share and value != int(value)):
        raise SiteError(f"{asked} is no number of heads; write 16, or 3%")
    k = max(1, round(value * n)) if is_share else int(value)
    if k > n:
        raise SiteError(f"{k} heads were asked for, and this model has {n}; write {n} or fewer, or a share such as 3%")
    return k


def top_heads(score: xr.DataArray, k: int) -> tuple[Site, ...]:
    """The k heads with the highest score, best first; of equal ones the one in the lower layer, then of the lower number.

    Args:
        score: With dims (layer, head).
        k: How many.

    >>> score = xr.DataArray([[0.0, 2.0], [3.0, 2.0]], dims=("layer", "head"))
    >>> [str(site) for site in top_heads(score, 3)]
    ['L1.h0', 'L0.h1', 'L1.h1']
    """
    return _in_order(score)[: how_many(k, score.size)]


def bottom_heads(score: xr.DataArray, k: int) -> tuple[Site, ...]:
    """The last k heads of the same order, last first: none of them is among the top k where there are 2 k heads, ties or not.

    >>> score = xr.DataArray([[0.0, 2.0], [0.0, 0.0]], dims=("layer", "head"))
    >>> [str(site) for site in bottom_heads(score, 2)], [str(site) for site in top_heads(score, 2)]
    (['L1.h1', 'L1.h0'], ['L0.h1', 'L0.h0'])
    """
    return _in_order(score)[::-1][: how_many(k, score.size)]


def _in_order(score: xr.DataArray) -> tuple[Site, ...]:
    values = score.transpose("layer", "head").values
    order = np.argsort(-values.ravel(), kind="stable")
    return tuple(Site("head", int(i) // values.shape[1], int(i) % values.shape[1]) for i in order)


def ties(score: xr.DataArray, k: int) -> int:
    """How many heads outside the top k score as much as the last one inside: where there are some, their order chose.

    >>> ties(xr.DataArray([[0.0, 2.0], [0.0, 0.0]], dims=("layer", "head")), 2)
    2
    """
    values = np.sort(score.values.ravel())[::-1]
    return int((values[k:] == values[k - 1]).sum())
