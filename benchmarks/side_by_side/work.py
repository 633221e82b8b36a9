"""How much a sweep must compute where no prefix is computed twice, in forwards' worth: the limit, by counting.

A model is run in stages, three a layer: attention up to z, its output projection, the FFN. Two recipes share a stage where they
agree on it and on all stages before it. Stages cost what their weights do, per token (norms and attention's scores are left
out: short prompts); the unembedding costs what its weights do per row, since one position a row is read.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from side_by_side.models import Setting
from side_by_side.questions import Sweep
from taia_lens.recipe import Graft, Patch, Recipe, other

STAGES = ("attn", "o", "mlp")


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of each stage of each layer on the whole batch, and of the reading at the end."""

    stages: tuple[tuple[float, float, float], ...]
    reading: float

    @property
    def forward(self) -> float:
        return sum(map(sum, self.stages)) + self.reading


def costs(setting: Setting, sweep: Sweep) -> Costs:
    """Counted from the weights and the batch."""
    parts, tokens = setting.parts, int(sweep.batch.mask.sum())
    stages = []
    for block in setting.base.get_submodule(parts.blocks):
        attn, o, mlp = (sum(p.numel() for p in block.get_submodule(n).parameters()) for n in (parts.attn, parts.o, parts.mlp))
        stages.append((float(tokens * (attn - o)), float(tokens * o), float(tokens * mlp)))
    return Costs(tuple(stages), float(len(sweep.batch.rows) * setting.base.get_output_embeddings().weight.numel()))


def work(setting: Setting, sweep: Sweep) -> float:
    """Forwards' worth of all distinct stages, with the donor's forward that patches need.

    Attribution patching is a forward of each side and a backward; a backward to activations only costs about a forward.
    """
    if sweep.kind == "attribution":
        return 3.0
    cost, width = costs(setting, sweep), sweep.batch.tokens.shape[1]
    seen: dict[Hashable, float] = {}
    for recipe in sweep.recipes:
        path: tuple[Hashable, ...] = ()
        share = 1.0
        for layer, by_stage in enumerate(cost.stages):
            for stage, price in zip(STAGES, by_stage, strict=True):
                mark, begins = _mark(recipe, layer, stage, width)
                share = share if begins is None else min(share, 1 - begins / width)
                path = (*path, mark)
                replaced = isinstance(mark, Patch) and mark.site.head is None
                # Where only later positions are touched, those before are the host's, which is on another path already.
                seen[path] = min(seen.get(path, price), 0.0 if replaced else price * share)
        seen[path, "read"] = cost.reading
    donor = cost.forward if any(recipe.patches for recipe in sweep.recipes) else 0.0
    return (sum(seen.values()) + donor) / cost.forward


def _mark(recipe: Recipe, layer: int, stage: str, width: int) -> tuple[Hashable, int | None]:
    """What tells this stage of the recipe from another's, and the first position that a patch here touches."""
    component = "mlp" if stage == "mlp" else "attn"
    for edit in recipe.edits:
        if isinstance(edit, Graft) and edit.component == component and (edit.layers is None or layer in edit.layers):
            return other(recipe.host), None
        if isinstance(edit, Patch) and edit.site.layer == layer:
            # A head is patched between z and the projection; attn and mlp after all of their stages.
            at = {"head": "o", "attn": "o", "mlp": "mlp"}[edit.site.component]
            whole = edit.site.component == component and edit.positions == "all"
            if stage == at or whole:
                begins = min(edit.positions) if not isinstance(edit.positions, str) else 0
                return edit, begins % width
    return recipe.host, None
