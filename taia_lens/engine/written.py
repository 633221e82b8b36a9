"""What an edit puts in the place of an activation: the one meaning of patch, ablate and scale, for the plain and the shared plan."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taia_lens.recipe import Ablate, Patch, Scale


def written(edit: Patch | Ablate | Scale, act: Tensor, donated: Callable[[Patch], Tensor]) -> Tensor:
    """The new activation.

    Args:
        edit: What is done.
        act: What the model computed.
        donated: What a patch takes, in the shape of `act`.
    """
    if isinstance(edit, Patch):
        return donated(edit).to(act)
    return torch.zeros_like(act) if isinstance(edit, Ablate) else (1 + edit.gain) * act + edit.offset
