"""What can be trained at heads, or at other sites: gains, offsets, both, or both behind gates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from taia_lens.errors import TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.lofit.train import Form, Values
from taia_lens.scales import Scales, width
from taia_lens.sites import Site

WHICH = ("gain", "offset")
# The hard concrete distribution (Louizos et al., arXiv 1712.01312) with the numbers that JoLA's code uses.
_TEMPERATURE, _LOW, _HIGH = 0.33, -0.1, 1.1
_OPEN = 2.0  # first log-odds of a gate: mostly open, so that all sites begin to learn


def heads_of(model: Loaded) -> tuple[Site, ...]:
    """Every head, layer by layer."""
    shape = model.shape
    return tuple(Site("head", layer, head) for layer in range(shape.n_layers) for head in range(shape.n_heads))


def plain(model: Loaded, sites: Sequence[Site], which: Sequence[str], *, sigma: float, l1: float, seed: int, method: str) -> Form:
    """Gains, offsets or both at some sites, each drawn from N(0, sigma^2); l1 * sum |gain| is added to the loss.

    Raises:
        TaiaLensError: Neither is named.
    """
    if not which or set(which) - set(WHICH):
        raise TaiaLensError(f"cannot train {', '.join(which) or 'nothing'}; write gain, offset, or both")
    start = {name: _draw(model, sites, sigma, seed + i) for i, name in enumerate(WHICH) if name in which}
    zeros = torch.zeros(len(sites), width(model.shape, sites[0].component))

    def scales(values: Values, generator: torch.Generator | None) -> Scales:
        gain, offset = (values.get(name, zeros.to(model.device)) for name in WHICH)
        return Scales(tuple(sites), gain, offset)

    def penalty(values: Values) -> Float[Tensor, ""]:
        return l1 * values["gain"].abs().sum() if l1 and "gain" in values else torch.zeros(())

    return Form(method, start, scales, penalty, {"which": sorted(which)})


def gated(model: Loaded, sites: Sequence[Site], *, sigma: float, l0: float, seed: int) -> Form:
    """JoLA (arXiv 2502.01179): z <- (1 + g * A) * z + h * v, a hard concrete gate for each A and each v of a head.

    The loss has l0 * the expected number of open gates added. A gate is drawn at each step, and judged at its median.

    Raises:
        TaiaLensError: l0 is no number of 0 or more.
    """
    if not 0 <= l0 < math.inf:
        raise TaiaLensError(f"l0 is {l0:g}; write 0 or more")
    odds = torch.full((len(sites),), _OPEN)
    start = {
        "gain": _draw(model, sites, sigma, seed),
        "offset": _draw(model, sites, sigma, seed + 1),
        "gain_gate": odds,
        "offset_gate": odds.clone(),
    }

    def scales(values: Values, generator: torch.Generator | None) -> Scales:
        gates = [_gate(values[f"{name}_gate"], generator)[:, None] for name in WHICH]
        return Scales(tuple(sites), gates[0] * values["gain"], gates[1] * values["offset"])

    def penalty(values: Values) -> Float[Tensor, ""]:
        shift = _TEMPERATURE * math.log(-_LOW / _HIGH)
        return l0 * sum(((values[f"{name}_gate"] - shift).sigmoid().sum() for name in WHICH), torch.zeros((), device=model.device))

    return Form("jola", start, scales, penalty, {"l0": l0})


def _gate(odds: Float[Tensor, " site"], generator: torch.Generator | None) -> Float[Tensor, " site"]:
    if generator is None:
        soft = odds.sigmoid()
    else:
        uniform = torch.rand(odds.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(odds)
        soft = ((uniform.log() - (1 - uniform).log() + odds) / _TEMPERATURE).sigmoid()
    return (soft * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _draw(model: Loaded, sites: Sequence[Site], sigma: float, seed: int) -> Float[Tensor, "site width"]:
    generator = torch.Generator().manual_seed(seed)
    return sigma * torch.randn(len(sites), width(model.shape, sites[0].component), generator=generator)
