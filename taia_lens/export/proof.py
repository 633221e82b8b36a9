"""The proof that a folded checkpoint is the hooked base: logits of both on a probe, the written one in plain transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taia_lens.batch import Batch
from taia_lens.check import probe
from taia_lens.engine import scaled
from taia_lens.errors import CheckError, PairError
from taia_lens.export.files import label
from taia_lens.export.sides import Full
from taia_lens.export.verify import ULPS
from taia_lens.loaded import Loaded
from taia_lens.loading import load_one
from taia_lens.loading.models import Options, from_folder
from taia_lens.scales import Scales, check_fits

TOLERANCE = 1e-5
"""How far folded logits may be from hooked ones in float32; more only where rounding explains it (deep models, large logits)."""


@dataclass(frozen=True)
class Proof:
    """Folded against hooked.

    Attributes:
        drift: The largest |logit difference| of what was written, in plain transformers, to base with the scales as hooks.
        effect: The largest that the scales make to base's logits.
        bound: What the drift may be at most.
        dtype: Of the logits.
    """

    drift: float
    effect: float
    bound: float
    dtype: str

    def __str__(self) -> str:
        return (
            f"in plain transformers its logits are those of base with the adapter on hooks to {self.drift:.2g} (bound {self.bound:.2g}, "
            f"{self.dtype}); the adapter moves them by {self.effect:.2g}"
        )


@dataclass(frozen=True, eq=False)
class Hooked:
    """Logits on the probe: of base, and of base with the scales on hooks."""

    batch: Batch
    plain: Tensor
    hooked: Tensor
    layers: int


def hooked(full: Full, base: str | Path, scales: Scales, options: Options, *, other_model: bool) -> Hooked:
    """Loads the base, and lets go of it: one model is enough to hold at a time."""
    model = load_one(full.folder, device=options.device, trust_remote_code=options.trust_remote_code)
    model = Loaded(model.model, model.tokenizer, label(base))
    check_fits(scales, model, other_model=other_model)
    batch = probe(model)

    def logits() -> Tensor:
        return model.model(batch.tokens, attention_mask=batch.mask.long(), return_type="logits")[batch.mask]

    plain = logits()
    with scaled(model.model, scales):
        found = logits()
    if not bool(torch.isfinite(found).all()):
        raise PairError(f"{model.name} under the adapter gives NaN or inf: its training diverged, or it is another model's")
    return Hooked(batch, plain, found, model.shape.n_layers)


def prove(folder: Path, wanted: Hooked, options: Options) -> Proof:
    """Hold what was written against the hooked base.

    Raises:
        CheckError: They are further apart than rounding explains.
    """
    model, batch = from_folder(folder, options), wanted.batch
    model.set_attn_implementation("eager")  # as TransformerLens runs it
    found = model(batch.tokens, attention_mask=batch.mask.long()).logits[batch.mask].double()
    live = wanted.hooked.double()
    drift, effect = ((live - other).abs().max().item() for other in (found, wanted.plain.double()))
    # In half precision a folded weight is rounded once more, as an activation is at every step: the same random walk over the layers.
    dtype = wanted.hooked.dtype
    rounding = ULPS * wanted.layers**0.5 * torch.finfo(dtype).eps * max(1.0, live.abs().max().item())
    bound = max(TOLERANCE, rounding)
    if not drift <= bound:
        raise CheckError(
            f"the verification fails: logits of what was written are off by {drift:.3g} from base with the adapter on hooks, and rounding "
            f"explains {bound:.3g}; nothing was left behind"
        )
    return Proof(drift, effect, bound, str(dtype).removeprefix("torch."))
