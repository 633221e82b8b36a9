"""Who is compared: one file each, so that its authors can read at a glance how their library is used.

A contender is a function of a setting and a sweep that gives the job to be timed, from ids to numbers, or a text that says why it
has none. A job gives `score` of each recipe and row; of attribution patching, a number for each site (a layer's heads, then its
FFN) and token.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from side_by_side.models import Setting
from side_by_side.questions import Sweep

Job = Callable[[], Tensor]
Contender = Callable[[Setting, Sweep], Job | str]


def by_site(heads: list[Tensor], mlps: list[Tensor], mask: Tensor) -> Tensor:
    """Attributions of each layer's heads (row, pos, head) and FFN (row, pos) as one table: (site, token)."""
    both = [torch.cat([z, mlp[..., None]], -1)[mask] for z, mlp in zip(heads, mlps, strict=True)]
    return torch.cat(both, -1).T


def absent(package: str, error: ImportError | AttributeError) -> str:
    """Why a package cannot be used here, found when it was tried."""
    try:
        found = version(package)
    except PackageNotFoundError:
        return f"{package} is not installed; pip install --editable '.[bench]'"
    return f"{package} {found} does not import with transformers {version('transformers')}: {type(error).__name__}: {error}"
