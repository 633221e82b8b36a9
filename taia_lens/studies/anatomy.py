"""The update's anatomy: what fine-tuning did to each weight, read off the weights alone. No data and no forward pass.

Effective rank is the exponential of the entropy of the singular values (Roy and Vetterli 2007); the overlap of singular
subspaces is NoRM's phi (Jiang et al., ICLR 2025), which holds an update's directions against the base weight's own.

Cost: one symmetric eigenproblem in float64 for each matrix and each update, on the pair's device, in the smaller of the
matrix's two dims: 0.3 s at 1,024 and 3.4 s at 2,048 on one CPU core, eight times as much for each doubling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.errors import TaiaLensError
from taia_lens.pair import Pair
from taia_lens.recipe import SIDES
from taia_lens.scoring import pair_attrs
from taia_lens.weights import Model, Weight, live_weights

MOST = 16
RESOLVED = 1e-7  # of the largest: smaller singular values are lost where eigenvalues, their squares, are found in float64
NO_LAYER = -1
MEASURES = (
    "base_norm", "update_norm", "ratio", "spectral_ratio", "effective_rank", "stable_rank", "rank",
    "directions", "overlap_out", "chance_out", "overlap_in", "chance_in",
)  # fmt: skip

Matrix = Float[Tensor, "out in"]


def anatomy(pair: Pair, *, most: int = MOST, progress: bool = False) -> xr.Dataset:
    """Measure every weight that differs between base and tuned.

    Args:
        pair: The two models.
        most: Overlaps compare at most this many directions.
        progress: Show a bar.

    Returns:
        By weight (coords component, layer (-1 outside the blocks), part, rows, cols, experts):
        `base_norm`, `update_norm` and their `ratio` (Frobenius), `share` of the whole update's squared norm. For matrices, and
        NaN for vectors: `spectral_ratio`; `effective_rank`; `stable_rank` (squared Frobenius over squared spectral norm);
        `rank`: singular values above what rounding to the weights' dtype makes; `directions` r: the effective rank, at most
        `most` and at most half of what there are; `overlap_out`, `overlap_in`: of the update's r leading directions and the base
        weight's r leading ones, the squared cosines' mean, in the space written to (NoRM's) and in that read from, with
        `chance_out` and `chance_in`, what random directions have (r over the space's dims). A tensor of experts is measured
        expert by expert, and has the means over those that changed; its first dim after the experts is taken for the outputs.

    Raises:
        TaiaLensError: `most` is no positive number.
    """
    if most < 1:
        raise TaiaLensError(f"overlaps of {most} directions compare nothing; write 1 or more")
    base, tuned = ({w.name: w for w in live_weights(pair.side(side))} for side in SIDES)
    changed = [w for w in base.values() if w.name in pair.changed]
    inputs_first = _inputs_first(pair.base)
    bar = tqdm(changed, desc="weights", unit="weight", leave=False, disable=not progress)
    rows = [_measure(_oriented(w, inputs_first), _oriented(tuned[w.name], inputs_first, like=w), most) for w in bar]
    data = {name: ("weight", np.array([row[name] for row in rows])) for name in MEASURES}
    squared = data["update_norm"][1] ** 2
    shapes = [_shape(_oriented(w, inputs_first)) for w in changed]
    coords = {
        "weight": [w.name for w in changed],
        "component": ("weight", [w.component for w in changed]),
        "layer": ("weight", [NO_LAYER if w.layer is None else w.layer for w in changed]),
        "part": ("weight", [w.part for w in changed]),
    } | {name: ("weight", [shape[i] for shape in shapes]) for i, name in enumerate(("experts", "rows", "cols"))}
    attrs = pair_attrs(pair) | {"study": "anatomy", "most": most, "n_layers": pair.shape.n_layers, "versions": results.versions()}
    return xr.Dataset(data | {"share": ("weight", squared / squared.sum())}, coords, attrs)


def _inputs_first(model: Model) -> set[int]:
    """Matrices whose first dim is what is read: GPT-2's Conv1D, and embeddings, which read a token and write to d_model."""
    turned = [m for m in model.modules() if isinstance(m, nn.Embedding) or type(m).__name__ == "Conv1D"]
    return {id(p) for m in turned for p in m.parameters(recurse=False)}


def _oriented(weight: Weight, inputs_first: set[int], *, like: Weight | None = None) -> Tensor:
    """The weight as (out, in), (expert, out, in) or a vector, turned as `like` is."""
    tensor, name = weight.parameter.detach(), weight.name.rpartition(".")[2].lstrip("_")
    if name in ("b_Q", "b_K", "b_V"):  # HookedTransformer (3.9) has a dim for heads
        return tensor.flatten()
    if tensor.ndim == 3 and name.startswith("W_"):
        pattern = "head hidden out -> out (head hidden)" if name == "W_O" else "head in hidden -> (head hidden) in"
        return rearrange(tensor, pattern)
    turned = id((like or weight).parameter) in inputs_first or name.startswith("W_")
    return tensor.T if turned and tensor.ndim == 2 else tensor


def _shape(tensor: Tensor) -> tuple[int, int, int]:
    """Experts, rows, columns; a vector has one row."""
    return (1,) * (3 - tensor.ndim) + tuple(tensor.shape)  # type: ignore[return-value]  # at most three dims


def _measure(base: Tensor, tuned: Tensor, most: int) -> dict[str, float]:
    eps = torch.finfo(base.dtype).eps
    # Apple's GPUs have no float64.
    wide = base.cpu() if base.device.type == "mps" else base
    old = wide.double()
    update = tuned.to(wide.device).double() - old
    size, change = (float(torch.linalg.vector_norm(t)) for t in (old, update))
    out = dict.fromkeys(MEASURES, math.nan) | {"base_norm": size, "update_norm": change, "ratio": _over(change, size)}
    if old.ndim < 2:
        return out
    pairs = zip(old.reshape(-1, *old.shape[-2:]), update.reshape(-1, *old.shape[-2:]), strict=True)
    rows = [_compare(w, d, eps, most) for w, d in pairs if d.any()]
    return out | {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.inf


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Singular values, largest first, and the singular vectors of the smaller of the two sides."""

    matrix: Matrix
    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "k k"]

    def leading(self, r: int) -> tuple[Float[Tensor, "out r"], Float[Tensor, "in r"]]:
        """The first r singular vectors of the outputs and of the inputs."""
        small = self.vectors[:, :r]
        rows, cols = self.matrix.shape
        if rows <= cols:
            return small, torch.linalg.qr(self.matrix.T @ small).Q
        return torch.linalg.qr(self.matrix @ small).Q, small


def _spectrum(matrix: Matrix) -> _Spectrum:
    rows, cols = matrix.shape
    gram = matrix @ matrix.T if rows <= cols else matrix.T @ matrix
    values, vectors = torch.linalg.eigh(gram)
    return _Spectrum(matrix, values.flip(-1).clamp(min=0).sqrt(), vectors.flip(-1))


def _compare(base: Matrix, update: Matrix, eps: float, most: int) -> dict[str, float]:
    """One matrix and its update."""
    old, new = _spectrum(base), _spectrum(update)
    values, (rows, cols) = new.values, base.shape
    largest = float(values[0])
    share = values / values.sum()
    effective = float(torch.special.entr(share).sum().exp())
    # A weight that is rounded is off by at most eps / 2 of itself: noise of that size has no larger singular value than this.
    rounding = 0.5 * eps * float((base + update).square().mean().sqrt()) * (math.sqrt(rows) + math.sqrt(cols))
    r = max(1, min(round(effective), most, min(rows, cols) // 2))
    out = {
        "spectral_ratio": _over(largest, float(old.values[0])),
        "effective_rank": effective,
        "stable_rank": float(values.square().sum()) / largest**2,
        "rank": float((values > max(rounding, RESOLVED * largest)).sum()),
        "directions": float(r),
        "chance_out": r / rows,
        "chance_in": r / cols,
    }
    sides = [_overlap(a, b) if old.values[0] else math.nan for a, b in zip(new.leading(r), old.leading(r), strict=True)]
    return out | dict(zip(("overlap_out", "overlap_in"), sides, strict=True))


def _overlap(a: Float[Tensor, "d r"], b: Float[Tensor, "d r"]) -> float:
    """NoRM's phi: the mean squared cosine between two subspaces of one dimension."""
    return float(einsum(a, b, "d i, d j -> i j").square().sum()) / a.shape[1]
