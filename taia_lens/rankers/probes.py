"""Rankers that read one model: can right answers be told from wrong ones by a head's z at the answer's last token?

ITI's logistic probe and mass-mean direction (Li et al., arXiv 2306.03341), and the size of the mean difference, as RepE reads
the residual stream (Zou et al., arXiv 2310.01405). Accuracies are of rows that the probe was not fitted on: all texts of a row
share a prompt and stand on one side of every split. Nothing is standardised, so nothing leaks by a mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from torch import Tensor
from tqdm.auto import tqdm

from taia_lens.engine import padded, run_last
from taia_lens.errors import SuiteError, TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.rankers.options import Options, Ranked
from taia_lens.rankers.texts import Texts, right_and_wrong
from taia_lens.sites import Site
from taia_lens.suite import Suite

PROBES = ("probe", "mass-mean")
Z = Float[np.ndarray, "text layer head d_head"]
MAX_ITER = 1000


@dataclass(frozen=True, eq=False)
class Fitted:
    """A direction for each head, from wrong to right, and where between them the two are told apart.

    Attributes:
        theta: Of any length.
        cut: A text whose z @ theta is above it is called right.
        unfinished: How many logistic regressions stopped at MAX_ITER.
    """

    theta: Float[np.ndarray, "layer head d_head"]
    cut: Float[np.ndarray, "layer head"]
    unfinished: int = 0

    def accuracy(self, z: Z, right: Bool[np.ndarray, " text"]) -> Float[np.ndarray, "layer head"]:
        """The share of texts that are called what they are, right and wrong ones counting alike (balanced): chance is a half."""
        called = project(z, self.theta) > self.cut
        return (called[right].mean(0) + (~called[~right]).mean(0)) / 2


def read(model: Loaded, texts: Texts, component: str, batch_size: int) -> np.ndarray:
    """The component's activation at each text's last token: (text, layer, ...), in float64."""
    hooks = [Site(component, layer, 0 if component == "head" else None).hook for layer in range(model.shape.n_layers)]
    order = sorted(range(len(texts.ids)), key=lambda i: (len(texts.ids[i]), i))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        acts = run_last(model.model, *padded([texts.ids[i] for i in some], model.device), hooks)
        found |= dict(zip(some, torch.stack([acts[hook] for hook in hooks], dim=1).float().cpu(), strict=True))
    return torch.stack([found[i] for i in range(len(order))]).double().numpy()


def project(z: Z, theta: Float[np.ndarray, "layer head d_head"]) -> Float[np.ndarray, "text layer head"]:
    return einsum(z, theta, "text layer head d_head, layer head d_head -> text layer head")


def fit(z: Z, right: Bool[np.ndarray, " text"], kind: str) -> Fitted:
    """Fit every head by itself.

    Raises:
        TaiaLensError: No such kind.
    """
    if kind not in PROBES:
        raise TaiaLensError(f"no probe {kind!r}; there are {', '.join(PROBES)}")
    return _mass_mean(z, right) if kind == "mass-mean" else _logistic(z, right)


def _mass_mean(z: Z, right: Bool[np.ndarray, " text"]) -> Fitted:
    true, false = z[right].mean(0), z[~right].mean(0)
    theta = true - false
    return Fitted(theta, ((true + false) / 2 * theta).sum(-1))


def _logistic(z: Z, right: Bool[np.ndarray, " text"]) -> Fitted:
    theta, cut = np.zeros(z.shape[1:]), np.zeros(z.shape[1:3])
    unfinished = 0
    for layer, head in np.ndindex(*cut.shape):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            probe = LogisticRegression(max_iter=MAX_ITER, class_weight="balanced").fit(z[:, layer, head], right)
        unfinished += any(issubclass(w.category, ConvergenceWarning) for w in caught)
        theta[layer, head], cut[layer, head] = probe.coef_[0], -probe.intercept_[0]
    return Fitted(theta, cut, unfinished)


def splits(row: Int[np.ndarray, " text"], folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Texts to fit on and texts held out, all texts of a row on one side; each row is held out once.

    Raises:
        SuiteError: There are fewer rows than folds.
    """
    rows, group = np.unique(row, return_inverse=True)
    if len(rows) < folds:
        raise SuiteError(f"{len(rows)} rows have a right and a wrong answer, fewer than the {folds} folds; give more rows, or fewer folds")
    shuffled = np.random.default_rng(seed).permutation(len(rows))[group]
    yield from GroupKFold(folds).split(row, groups=shuffled)


def held_out(z: Z, texts: Texts, kind: str, folds: int, seed: int, *, progress: bool = False) -> tuple[np.ndarray, int]:
    """Accuracy (fold, layer, head) on rows that were not fitted on, and how many probes did not converge."""
    found, unfinished = [], 0
    for train, test in tqdm(list(splits(texts.row, folds, seed)), desc=kind, unit="fold", leave=False, disable=not progress):
        fitted = fit(z[train], texts.right[train], kind)
        found.append(fitted.accuracy(z[test], texts.right[test]))
        unfinished += fitted.unfinished
    return np.stack(found), unfinished


def rank_by_probe(model: Loaded, suite: Suite, options: Options, progress: bool, *, kind: str) -> Ranked:
    """Mean held-out accuracy of a probe on each head's z."""
    texts = right_and_wrong(model, suite)
    list(splits(texts.row, options.folds, options.seed))  # too few rows are refused before anything is run
    z = read(model, texts, "head", options.batch_size)
    found, unfinished = held_out(z, texts, kind, options.folds, options.seed, progress=progress)
    stopped = (f"{unfinished} of {found.size} logistic regressions stopped at {MAX_ITER} iterations",) if unfinished else ()
    attrs = {"chance": 0.5, "texts": len(texts.ids)}
    labels = tuple(str(fold) for fold in range(len(found)))
    meaning = "held-out balanced accuracy, right or wrong answer"
    return Ranked(found, "fold", labels, "balanced accuracy", meaning, notes(texts) + stopped, attrs)


iti = partial(rank_by_probe, kind="probe")
mass_mean = partial(rank_by_probe, kind="mass-mean")


def notes(texts: Texts) -> tuple[str, ...]:
    """What a reader may not expect."""
    return (f"left out: {texts.left_out} rows that have no wrong answer",) if texts.left_out else ()


def pair_differences(acts: np.ndarray, texts: Texts) -> np.ndarray:
    """Mean of a row's right texts less mean of its wrong ones: (row, ...)."""
    out = []
    for row in np.unique(texts.row):
        mine = texts.row == row
        out.append(acts[mine & texts.right].mean(0) - acts[mine & ~texts.right].mean(0))
    return np.stack(out)


def mean_difference(z: Z, texts: Texts) -> Float[np.ndarray, "row layer head"]:
    """Each row's difference along the other rows' mean difference, in units of the pooled sd along the mean difference.

    The direction leaves the row itself out: with it in, a head in which nothing differs would score sqrt(d_head / rows).
    """
    change = pair_differences(z, texts)
    whole = change.mean(0)
    others = len(change) * whole - change
    along = einsum(change, unit(others), "row layer head d_head, row layer head d_head -> row layer head")
    seen = project(z, unit(whole))
    sd = np.sqrt((seen[texts.right].var(0) + seen[~texts.right].var(0)) / 2)
    floor = 1e-6 * np.sqrt((z**2).sum(-1).mean(0))  # rounding: a head that says the same after every right answer has no spread
    return along / np.maximum(np.maximum(sd, floor), np.finfo(float).tiny)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors along the last axis, of length 1; zero where they are zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def mean_diff(model: Loaded, suite: Suite, options: Options, progress: bool) -> Ranked:
    """How far apart right and wrong answers are at each head."""
    texts = right_and_wrong(model, suite)
    if len(set(texts.row.tolist())) < 2:
        raise SuiteError(f"suite {suite.name}: one row with a wrong answer has no spread to measure its difference by; give two or more")
    found = mean_difference(read(model, texts, "head", options.batch_size), texts)
    labels = tuple(suite.rows[i].id for i in np.unique(texts.row))
    return Ranked(found, "example", labels, "pooled sd", "mean difference of right and wrong answers", notes(texts))


def principal(change: Float[np.ndarray, "row layer d_model"]) -> Float[np.ndarray, "layer d_model"]:
    """The direction in which pair differences are largest, with the sign in which right answers lie.

    Not centred: with the mean taken out, what all rows have in common, which is what is looked for, would be gone.
    """
    _, _, vt = np.linalg.svd(rearrange(change, "row layer d_model -> layer row d_model"), full_matrices=False)
    first = vt[:, 0]
    sign = np.sign(einsum(first, change.mean(0), "layer d_model, layer d_model -> layer"))
    return first * np.where(sign == 0, 1, sign)[:, None]
