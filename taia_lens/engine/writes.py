"""What recipes put into activations, on stacked rows: each row of a stack has its own writes, at its own positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from taia_lens.batch import Batch
from taia_lens.engine.plan import Step
from taia_lens.engine.words import Gain, Write
from taia_lens.engine.written import written
from taia_lens.recipe import Patch, Side
from taia_lens.sites import Positions

Hook = Callable[..., Tensor]


@dataclass(eq=False)
class Writer:
    """What is put where.

    Attributes:
        batch: The rows.
        acts: Of each side: the activations that patches take, by hook.
        laid_out: Gain and offset of a set of scales at a layer, as its activation is shaped.
        where: By positions: where they are in each row.
    """

    batch: Batch
    acts: dict[Side, dict[str, Tensor]]
    laid_out: Callable[[Gain], tuple[Tensor, Tensor]]
    where: dict[Positions, Bool[Tensor, "batch pos"]] = field(default_factory=dict)

    def hooks(self, step: Step, rows: slice) -> tuple[tuple[str, Hook], ...]:
        """For each hook point that rows of this stretch of a step's stack write at, what writes there."""
        n = len(self.batch.tokens)
        found: dict[str, list[tuple[slice, slice, Write]]] = {}
        for i, row in enumerate(step.rows):
            begin, end = max(rows.start, i * n), min(rows.stop, (i + 1) * n)
            if begin < end:
                here, there = slice(begin - rows.start, end - rows.start), slice(begin - i * n, end - i * n)
                # A head that is written to is in the attention output that is taken, and its hook does not fire.
                taken = "head" if row.attn_of is not None else None
                for write in (write for write in row.writes if write.site.component != taken):
                    found.setdefault(write.site.hook, []).append((here, there, write))
        return tuple((name, self._hook(name, step.start, writes)) for name, writes in found.items())

    def _hook(self, name: str, start: int, writes: Sequence[tuple[slice, slice, Write]]) -> Hook:
        def write(act: Tensor, hook: object) -> Tensor:
            out = act.clone()
            for here, there, edit in writes:
                part = out[here] if edit.site.head is None or isinstance(edit, Gain) else out[here][:, :, edit.site.head]
                at = self._at(edit.positions)[there, start:].to(act.device)
                at = at.reshape(*at.shape, *[1] * (part.ndim - 2))
                part.copy_(torch.where(at, self._new(edit, name, part, there, start), part))
            return out

        return write

    def _at(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        if positions not in self.where:
            self.where[positions] = self.batch.at(positions)
        return self.where[positions]

    def _new(self, edit: Write, name: str, act: Tensor, rows: slice, start: int) -> Tensor:
        if isinstance(edit, Gain):
            gain, offset = self.laid_out(edit)
            # Half precision would round 1 + A away: A starts at 1e-3, and bfloat16's steps at 1 are 8e-3.
            return ((1 + gain) * act + offset).to(act.dtype)

        def donated(patch: Patch) -> Tensor:
            donor = self.acts[patch.source][name][rows, start:]
            return donor if patch.site.head is None else donor[:, :, patch.site.head]

        return written(edit, act, donated)
