"""Where a model keeps a bias that scales' offsets can be folded into, if anywhere.

z <- z + v at a head adds W_O v, a constant, to what the output projection writes: the projection's bias, on any attention.
Where it has none, v can be a bias of the head's values, since a head's attention weights sum to 1: not under grouped queries,
whose values several heads share, nor with attention sinks, which take a share. Else the config may offer biases that are off.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from taia_lens.errors import PairError
from taia_lens.export.sides import Full
from taia_lens.export.skeleton import Skeleton
from taia_lens.scales import Scales
from taia_lens.weights import Weight

SWITCHES = {"head": "attention_bias", "attn": "attention_bias", "mlp": "mlp_bias", "resid": "mlp_bias"}
"""Keys of configs that give projections a bias; transformers' own names."""

PROJECTION = {"head": ("attn", "o"), "attn": ("attn", "o"), "mlp": ("mlp", "down"), "resid": ("mlp", "down")}
_POST_NORM = {"attn": "ln1_post", "mlp": "ln2_post", "resid": "ln2_post"}
KEEP = "keep the adapter: load_pair(base, adapter), or 'taia-lens lofit apply'"
Kind = Literal["none", "output", "value"]


@dataclass(frozen=True, eq=False)
class Slot:
    """Where offsets go.

    Attributes:
        kind: Into the output projection's bias, or the value bias; `none` where there is no offset.
        switch: The key of config.json that is turned on for it.
        added: Parameters that this gives the model, with their lengths; all zero but those folded into.
    """

    kind: Kind
    switch: str | None = None
    added: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        where = {"none": "no bias: v is zero", "output": "the output projection's bias", "value": "the value bias"}[self.kind]
        return where + (f" ({self.switch} turned on in config.json)" if self.switch else "")


@dataclass(frozen=True, eq=False)
class Projection:
    """A matrix and its bias, by transformers' names.

    Attributes:
        weight: The matrix.
        bias: None where the architecture has none there.
        inputs_first: Whether it is kept as (in, out), as GPT-2 does.
    """

    weight: str
    bias: str | None
    inputs_first: bool


def find_slot(base: Full, scales: Scales) -> Slot:
    """Where the offsets of scales go on a model.

    Raises:
        PairError: It has no such place, or the scales cannot be folded into weights at all.
    """
    skeleton = base.skeleton
    _check_foldable(skeleton, scales)
    found = {layer: output_projection(skeleton, scales.component, layer) for layer in scales.layers}
    if not bool(scales.offset.any()):
        return Slot("none")
    if all(projection.bias is not None for projection in found.values()):
        return Slot("output")
    reason = _no_value_slot(skeleton, scales)
    if not reason:
        return Slot("value")
    switch = SWITCHES[scales.component]
    added = _added(skeleton, switch)
    if all(_bias(projection.weight) in added for projection in found.values()):
        return Slot("output", switch, added)
    model, tried = type(skeleton.plain).__name__, "its output projection has none" + (f", {reason}" if scales.component == "head" else "")
    raise PairError(
        f"{model} has no bias that the offset v at {scales.sites[0]} could be folded into: {tried}, and its config offers none "
        f"(gains alone could be folded); {KEEP}"
    )


def output_projection(skeleton: Skeleton, component: str, layer: int) -> Projection:
    """The projection whose output is what the component adds to the residual stream.

    Raises:
        PairError: There is no such one matrix: a mixture of experts has many.
    """
    owner, part = PROJECTION[component]
    found = projection(skeleton, layer, owner, part)
    if found is None:
        raise PairError(
            f"{owner} of layer {layer} of {type(skeleton.plain).__name__} has no single output projection to fold scales into "
            f"(a mixture of experts has many); {KEEP}"
        )
    return found


def projection(skeleton: Skeleton, layer: int, owner: str, part: str) -> Projection | None:
    """One projection that is kept as a tensor of its own, and its bias; None where there is none, or several."""
    here = [w for w in skeleton.weights if w.layer == layer and w.component == owner and w.part == part and not w.copy]
    matrices = [w for w in here if w.parameter.ndim == 2]
    if len(matrices) != 1:
        return None
    weight = skeleton.parameter[matrices[0].name]
    names = {skeleton.parameter[w.name] for w in here if w.parameter.ndim == 1}
    module = skeleton.plain.get_submodule(weight.rpartition(".")[0])
    return Projection(weight, _bias(weight) if _bias(weight) in names else None, type(module).__name__ == "Conv1D")


def _bias(weight: str) -> str:
    return weight.removesuffix(".weight") + ".bias"


def _check_foldable(skeleton: Skeleton, scales: Scales) -> None:
    if scales.component == "resid" and bool(scales.gain.any()):
        raise PairError(f"{scales.sites[0]} multiplies the whole residual stream, which no weight does; {KEEP}")
    norm = _POST_NORM.get(scales.component)
    for layer in scales.layers:
        if norm in dict(skeleton.lens.blocks[layer].named_children()):
            raise PairError(
                f"scales of L{layer}.{scales.component} cannot be folded into {type(skeleton.plain).__name__}: what the module adds there "
                f"comes out of a norm, and no weight follows it; {KEEP}"
            )


def _no_value_slot(skeleton: Skeleton, scales: Scales) -> str:
    """Why the value bias cannot take the offsets; empty where it can."""
    shape = skeleton.shape
    if scales.component != "head":
        return "only heads have values"
    found = [projection(skeleton, layer, "attn", "v") for layer in scales.layers]
    if any(p is None or p.bias is None for p in found):
        return "its values have no bias of their own"
    if shape.n_key_value_heads != shape.n_heads:
        return f"its value bias is shared by {shape.n_heads // shape.n_key_value_heads} heads (grouped queries)"
    odd = [w for w in skeleton.weights if w.component == "attn" and _breaks_the_sum(w)]
    return f"its attention weights or values pass through {odd[0].name}" if odd else ""


def _breaks_the_sum(weight: Weight) -> bool:
    """Whether a head's z is not a mean of its values: attention sinks take a share, norms and gates change it afterwards."""
    return weight.part not in ("q", "k", "v", "o", "qkv", "q_norm", "k_norm")


def _added(skeleton: Skeleton, switch: str) -> dict[str, int]:
    """The biases that a config's switch gives the model, with their lengths; none where it has no such switch, or it is on."""
    config = copy.deepcopy(skeleton.plain.config)
    if config.to_dict().get(switch) is not False:
        return {}
    setattr(config, switch, True)
    with torch.device("meta"):
        other: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=skeleton.trust_remote_code)
    old, new = (dict(model.named_parameters()) for model in (skeleton.plain, other))
    added = {name: p.numel() for name, p in new.items() if name not in old and p.ndim == 1 and name.endswith(".bias")}
    return added if new.keys() - added.keys() == old.keys() else {}
