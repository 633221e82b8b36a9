"""The weights of a model: which component, layer and projection each belongs to.

Knows TransformerLens's model interface (`blocks`, module names) and no loader; runs no forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from taia_lens.errors import PairError
from taia_lens.sites import COMPONENTS, GRAFTABLE

Model = Any
"""A TransformerBridge, or an unprocessed HookedTransformer of TransformerLens 3.9: the same interface, no common class."""


@dataclass(frozen=True)
class Weight:
    """One tensor of a model.

    Attributes:
        name: Without the bridge's wrappers.
        component: Which of the graftable ones it belongs to.
        layer: None outside the blocks.
        part: The projection inside attention or FFN: `q`, `k`, `v`, `o`, `gate`, `up`, `down`, or the model's own name.
        head_dim: The dim along which the heads of q, k, v and o lie; None where there is none.
        parameter: The tensor itself.
        copy: True for the parts of a fused projection (GPT-2's c_attn, Phi-3's gate_up_proj) that the bridge splits off and
            runs beside the fused tensor that the checkpoint has: they are swapped with it and never counted.
    """

    name: str
    component: str
    layer: int | None
    part: str
    head_dim: int | None
    parameter: nn.Parameter
    copy: bool


# Module that the bridge makes -> the fused one beside it that it is cut from.
_SPLIT_FROM = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up_proj", "in": "gate_up_proj"}


def weights(model: Model) -> list[Weight]:
    """Every parameter of the model once, with the component it belongs to; the components partition the parameters.

    Raises:
        PairError: A parameter lies under no component, or under two.
    """
    outputs = _output_scales(model)
    owner: dict[int, tuple[str, int | None]] = dict(outputs)
    for component, layer, module in _component_modules(model):
        for parameter in (p for p in module.parameters() if id(p) not in outputs):
            known = owner.setdefault(id(parameter), (component, layer))
            # Tied embeddings are one tensor under two names; it counts as the embedding.
            if known != (component, layer) and {known[0], component} != {"embed", "unembed"}:
                raise PairError(f"a weight lies under both {known[0]} and {component}: this architecture is not supported")
    named = {name.replace("._original_component", ""): parameter for name, parameter in model.named_parameters()}
    for name, parameter in named.items():
        if id(parameter) not in owner:
            raise PairError(f"the weight {name} lies under none of {', '.join(GRAFTABLE)}: this architecture is not supported")
    parts = _parts(model)
    return [
        Weight(name, *owner[id(p)], *parts.get(id(p), (_own_part(name), None)), p, fused_name(name) in named) for name, p in named.items()
    ]


def live_weights(model: Model) -> list[Weight]:
    """The weights that a forward pass uses: fused projections are left out where the bridge runs what it split off them."""
    return live(weights(model))


def live(found: Sequence[Weight]) -> list[Weight]:
    """Of a model's weights those that a forward pass uses."""
    fused = {fused_name(w.name) for w in found if w.copy}
    return [w for w in found if w.name not in fused]


def stored_buffers(model: Model) -> dict[str, Tensor]:
    """Tensors that a checkpoint keeps and that are no weights, by name: DeepSeek's correction of expert scores, for one."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        kept = {key: buffer for key, buffer in module.named_buffers(recurse=False) if key not in module._non_persistent_buffers_set}
        found |= {f"{name}.{key}".replace("._original_component", ""): buffer for key, buffer in kept.items()}
    return found


# The bridge's names of projections (and HookedTransformer's, whose weights are parameters of one module) -> the words used here.
_PART = {"in": "up", "out": "down", "hook_out": "scale"}
_HOOKED = {"Q": "q", "K": "k", "V": "v", "O": "o", "gate": "gate", "in": "up", "out": "down"}


# Scales that are a side of a pair (loading.scaled): parameters of a hook point. The heads' stand before the output projection.
_SCALES = (".hook_in.gain", ".hook_in.offset", ".hook_out.gain", ".hook_out.offset")
_HEAD_SCALES = ("hook_in.gain", "hook_in.offset")
_POST_NORMS = {"ln1_post": "attn", "ln2_post": "mlp"}


def is_idle(weight: Weight) -> bool:
    """Whether it is scales of zero, which change nothing: the base's, beside a tuned side that is an adapter of scales."""
    return weight.name.endswith(_SCALES) and not weight.parameter.any()


def _output_scales(model: Model) -> dict[int, tuple[str, int | None]]:
    """Scales of attn's and mlp's output behind a post-norm: the component's, though they lie in the norm's module."""
    found: dict[int, tuple[str, int | None]] = {}
    for layer, block in enumerate(model.blocks):
        for attribute, norm in block.named_children():
            if attribute in _POST_NORMS:
                scales = [p for name, p in norm.named_parameters() if f".{name}" in _SCALES]
                found |= dict.fromkeys(map(id, scales), (_POST_NORMS[attribute], layer))
    return found


def _parts(model: Model) -> dict[int, tuple[str, int | None]]:
    """Of every parameter of a projection: the projection's name, and the dim along which its heads lie."""
    found: dict[int, tuple[str, int | None]] = dict.fromkeys(_output_scales(model), ("scale", None))
    for block in model.blocks:
        for attribute, module in block.named_children():
            if attribute not in (*COMPONENTS["attn"].modules, *COMPONENTS["mlp"].modules):
                continue
            for name, child in module.named_children():
                if name != "_original_component":
                    for leaf, parameter in child.named_parameters():
                        head_dim = 0 if name == "o" and leaf in _HEAD_SCALES else _head_dim(name, child, parameter)
                        found.setdefault(id(parameter), (_PART.get(name, name), head_dim))
            for name, parameter in module.named_parameters(recurse=False):
                kind, _, projection = name.removeprefix("_").partition("_")
                if projection in _HOOKED and kind in ("W", "b"):
                    has_heads = projection in "QKVO" and name != "b_O"
                    found[id(parameter)] = (_HOOKED[projection], 0 if has_heads else None)
    return found


def _head_dim(name: str, module: nn.Module, parameter: nn.Parameter) -> int | None:
    """Heads lie along the outputs of q, k, v and the inputs of o; GPT-2's Conv1D keeps inputs first, Linear outputs."""
    inputs_first = any(type(m).__name__ == "Conv1D" for m in module.modules())
    if name in ("q", "k", "v"):
        return 1 if inputs_first and parameter.ndim == 2 else 0
    if name == "o" and parameter.ndim == 2:
        return 0 if inputs_first else 1
    return None


def _own_part(name: str) -> str:
    """The module's own name for a weight that is no projection of the table: `experts` of `mlp.experts.down_proj`."""
    return name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]


def fused_name(name: str) -> str | None:
    """Of a part that the bridge split off, the name of the fused weight beside it."""
    *stem, module, kind = name.split(".")
    return ".".join((*stem, _SPLIT_FROM[module], kind)) if stem and module in _SPLIT_FROM else None


def _component_modules(model: Model) -> Iterator[tuple[str, int | None, nn.Module]]:
    for component in GRAFTABLE:
        for attribute in COMPONENTS[component].modules:
            for layer, block in enumerate(model.blocks):
                if attribute in (children := dict(block.named_children())):
                    yield component, layer, children[attribute]
            if attribute in (children := dict(model.named_children())):
                yield component, None, children[attribute]
