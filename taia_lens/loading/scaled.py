"""An adapter of scales as the tuned side of a pair: both sides get them as parameters, base's are zero.

They stand at the hook point of their site, before any hook there: a head's activation is its scaled z, so that a patch carries
the scales, an ablation leaves nothing of them, and a graft moves them like any weight. The arithmetic is `engine.scaled`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from taia_lens.check import noise, probe
from taia_lens.engine import scaled
from taia_lens.engine.scaled import laid_out
from taia_lens.errors import PairError
from taia_lens.loaded import Loaded
from taia_lens.loading.models import Options, Source, describe, from_folder, load_model
from taia_lens.pair import Law, Pair
from taia_lens.scales import Scales, check_fits, load_scales
from taia_lens.weights import Model


class ScaledPoint(HookPoint):
    """A hook point with scales in front of it. Made of the hook point that is there: other modules hold on to that one."""

    gain: nn.Parameter
    offset: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        # As in engine.scaled: half precision would round 1 + A away.
        return ((1 + self.gain) * x + self.offset).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Sides:
    """Base and tuned of an adapter of scales; they share every weight but the scales."""

    base: Model
    tuned: Model
    scales: Scales
    notes: tuple[str, ...]


def scaled_sides(base: Source, folder: str | Path, tokenizer: PreTrainedTokenizerBase, options: Options, *, other_model: bool) -> Sides:
    """Load the base once, and make both sides of it.

    Raises:
        ResultError: The adapter is damaged.
        PairError, SiteError: It was made for another model, or cannot be a side of a pair.
    """
    scales = load_scales(folder)
    if scales.component == "resid":
        raise PairError(
            f"{folder} changes the residual stream ({scales.sites[0]}), which lies under no component that a recipe could take; "
            "apply it by hand, with engine.scaled(model, load_scales(folder)), or with 'taia-lens lofit apply'"
        )
    if not isinstance(base, (str, Path, PreTrainedModel)):
        raise PairError(
            "an adapter needs its base as a folder, a Hub id or a transformers model; on a TransformerLens model apply it by hand, "
            "with engine.scaled(model, load_scales(folder))"
        )
    plain = base if isinstance(base, PreTrainedModel) else from_folder(base, options)
    models = {side: load_model(plain, side, tokenizer, options) for side in ("base", "tuned")}
    check_fits(scales, Loaded(models["base"], tokenizer, describe(base)), other_model=other_model)
    nothing = Scales(scales.sites, torch.zeros_like(scales.gain), torch.zeros_like(scales.offset))
    for model, what in ((models["base"], nothing), (models["tuned"], scales)):
        _put(model, what)
    made = scales.made
    notes = (f"tuned is base under {scales.numbers} numbers at {len(scales.sites)} sites ({made.get('method', 'scales')})",)
    return Sides(models["base"], models["tuned"], scales, notes)


def _put(model: Model, scales: Scales) -> None:
    for layer in scales.layers:
        name, gain, offset = laid_out(model, scales, layer)
        point: Any = model.hook_dict[name]
        point.__class__ = ScaledPoint
        for leaf, value in (("gain", gain), ("offset", offset)):
            # The bridge's points before a projection see all heads side by side.
            point.register_parameter(leaf, nn.Parameter(value.detach().float().flatten().clone(), requires_grad=False))


def scaled_law(pair: Pair, scales: Scales) -> Law:
    """Tuned against base with the scales applied by hooks, on the probe: an architecture that passes its hook points by fails."""
    batch = probe(pair)
    with torch.no_grad():
        with scaled(pair.base, scales) as model:
            wanted = model(batch.tokens, attention_mask=batch.mask.long(), return_type="logits")[batch.mask]
        found = pair.tuned(batch.tokens, attention_mask=batch.mask.long(), return_type="logits")[batch.mask]
    value, bound = (found - wanted).abs().max().item(), noise(wanted)
    return Law("tuned is base with the scales applied by hooks", value, bound, value <= bound)
