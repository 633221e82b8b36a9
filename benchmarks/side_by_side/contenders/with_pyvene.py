"""pyvene: an IntervenableModel a place, given the donor's activations as `source_representations`.

After tutorials/basic_tutorials (pyvene 101: interchange interventions, `unit_locations`, activation collection) of
https://github.com/stanfordnlp/pyvene. Sources are collected once by CollectIntervention, which is faster than giving `sources` and
so running the donor anew for every patch. Prompts are padded on the left, so that `logits_to_keep=1` (an option of transformers'
forward) leaves one position to be unembedded.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel

from side_by_side.contenders import Job, absent
from side_by_side.models import Setting, score
from side_by_side.questions import Sweep
from taia_lens.batch import Batch
from taia_lens.recipe import Patch, Side

try:
    import pyvene
except (ImportError, AttributeError) as error:  # an older transformers' names, of which some are gone
    MISSING: str | None = absent("pyvene", error)
else:
    MISSING = None

NAMES = {"attn": "attention_output", "mlp": "mlp_output", "head": "head_attention_value_output"}


def interventions(setting: Setting, sweep: Sweep) -> Job | str:
    """One intervention a patch; an IntervenableModel is built once a component and layer."""
    if MISSING is not None:
        return MISSING
    if sweep.kind == "graft":
        return "pyvene intervenes on activations, not on weights"
    if sweep.kind == "attribution":
        return "pyvene has no attribution patching"
    models: dict[Side, PreTrainedModel] = {side: setting.own(side) for side in ("base", "tuned")}
    return partial(_sweep, setting, sweep, models)


def _inputs(batch: Batch) -> dict[str, Tensor | int]:
    """Rows padded on the left, with the positions that their tokens have in them."""
    left = batch.mask.flip(1)
    tokens = torch.zeros_like(batch.tokens)
    tokens[left] = batch.tokens[batch.mask]
    positions = (left.long().cumsum(1) - 1).clamp(min=0)
    return {"input_ids": tokens, "attention_mask": left.long(), "position_ids": positions, "logits_to_keep": 1}


def _sweep(setting: Setting, sweep: Sweep, models: dict[Side, PreTrainedModel]) -> Tensor:
    patches = [recipe.patches[0] for recipe in sweep.recipes]
    inputs = _inputs(sweep.batch)
    places = list(dict.fromkeys(_place(patch) for patch in patches))
    donor = _collected(setting, models["tuned"], inputs, places, sweep.batch)
    out = []
    for place, group in groupby(patches, key=_place):
        component, layer = place
        config = {"layer": layer, "component": NAMES[component], "unit": "h" if component == "head" else "pos"}
        model = pyvene.IntervenableModel(config | {"intervention_type": pyvene.VanillaIntervention}, models["base"])
        for patch in group:
            where, source = _unit(patch, donor[place], len(sweep.batch.rows))
            _, counterfactual = model(inputs, unit_locations=where, source_representations=source)
            out.append(score(counterfactual.logits[:, -1], sweep.batch))
    return torch.stack(out)


def _place(patch: Patch) -> tuple[str, int]:
    assert patch.site.layer is not None
    return patch.site.component, patch.site.layer


def _unit(patch: Patch, donor: Tensor, rows: int) -> tuple[dict | None, Tensor]:
    """Where, in pyvene's words, and what is put there: all of it, one position, or one head (row, head, pos, d_head)."""
    if patch.site.head is not None:
        at = [[[patch.site.head]] * rows]
        return {"sources->base": (at, at)}, donor[:, [patch.site.head]]
    if patch.positions == "all":
        return None, donor
    position = patch.positions[0]
    assert isinstance(position, int)
    return {"sources->base": position}, donor[:, [position]]


def _collected(
    setting: Setting, model: PreTrainedModel, inputs: dict[str, Tensor | int], places: list[tuple[str, int]], batch: Batch
) -> dict[tuple[str, int], Tensor]:
    """The donor's activations: (row, pos, d_model); of heads (row, head, pos, d_head)."""
    width, heads = batch.tokens.shape[1], setting.pair.shape.n_heads
    kind = {"unit": "pos", "max_number_of_units": width, "intervention_type": pyvene.CollectIntervention}
    # A head's values are cut out of what is collected whole.
    names = NAMES | {"head": "attention_value_output"}
    config = [{"layer": layer, "component": names[component], **kind} for component, layer in places]
    (_, acts), _ = pyvene.IntervenableModel(config, model)(inputs)
    found = {}
    for (component, layer), act in zip(places, acts, strict=True):
        act = act.reshape(len(batch.rows), width, -1)
        found[component, layer] = act.unflatten(-1, (heads, -1)).transpose(1, 2) if component == "head" else act
    return found
