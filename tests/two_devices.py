"""A second device on a machine that has none: tensors that say they are elsewhere, and refuse to be mixed with those that are here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

# It has an index, and so is another than "cpu"; what torch does on a CPU needs no driver.
ELSEWHERE = torch.device("cpu:1")
HERE = torch.device("cpu")
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class There(Tensor):
    """A tensor of the CPU that says it is on another device."""

    own: Tensor

    @staticmethod
    def __new__(cls, own: Tensor, device: torch.device) -> There:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, own.size(), strides=own.stride(), storage_offset=own.storage_offset(), dtype=own.dtype, device=device
        )
        made.own = own
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return _run(function, args, kwargs or {})


@contextmanager
def two_devices() -> Iterator[None]:
    """While it is on, tensors can be made on and moved to the other device; one operation on both raises, as on two GPUs."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # else module.to() keeps the parameter and changes its data
    try:
        with _Made(), _Run():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


class _Made(TorchFunctionMode):
    """What torch does to a tensor before it comes to operations: it would know nothing of the other device."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if function is Tensor.tolist:
            return _own(args[0]).tolist()
        if function == Tensor.data.__set__ and There in map(type, args):  # type: ignore[attr-defined]
            if args[0].device != args[1].device:
                raise RuntimeError(f"data on {args[1].device} for a tensor on {args[0].device}")
            args[0].own = args[1].own
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if function is torch.tensor else None
        made = function(*args, **kwargs)
        return made if device is None else made.to(device)


class _Run(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    # A number of the CPU goes anywhere, and so do indices of it.
    free = [t for t in given if t.device == HERE and (not t.ndim or (function is torch.ops.aten.index.Tensor and t is not args[0]))]
    devices = {t.device for t in given if not any(t is one for one in free)}
    if len(devices) > 1 and function not in MOVES:
        raise RuntimeError(f"{function} of tensors on {' and '.join(sorted(map(str, devices)))}")
    asked = kwargs.get("device")
    device = torch.device(asked) if asked is not None else given[0].device if function in MOVES else next(iter(devices), HERE)
    out = function(*tree_map(_own, args), **(tree_map(_own, kwargs) | ({} if asked is None else {"device": HERE})))

    def placed(found: Any) -> Any:
        if not isinstance(found, Tensor):
            return found
        for t in given:
            if isinstance(t, There) and t.own is found:  # what is done in place gives back the tensor itself
                return t
        return found if device == HERE else There(found, device)

    return tree_map(placed, out)


def _own(one: Any) -> Any:
    return one.own if isinstance(one, There) else one


def elsewhere(model: PreTrainedModel) -> PreTrainedModel:
    """Move a model's tensors, tied ones together."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved.setdefault(id(parameter), nn.Parameter(There(parameter.detach(), ELSEWHERE), requires_grad=False))
                module._parameters[name] = moved[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = There(buffer, ELSEWHERE)
    return model
