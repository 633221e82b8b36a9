"""PEFT adapters: found, held against their base, merged in float32, and the drift of merging measured."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import cached_file

from taia_lens.errors import PairError
from taia_lens.loading.models import LOAD_ERRORS, Options, Source, describe, first_line, from_folder, locate


def adapter_file(source: Source, options: Options) -> Path | None:
    """The adapter_config.json of a PEFT adapter, or None where the source is none."""
    if not isinstance(source, (str, Path)):
        return None
    local = Path(source).expanduser()
    if local.is_dir():
        found = local / "adapter_config.json"
        return found if found.is_file() and not (local / "config.json").is_file() else None
    locate(source, options)
    found = cached_file(
        str(source), "adapter_config.json", _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if found is None else Path(found)


def _adapter_weights(config: Path) -> dict[str, torch.Tensor]:
    path = config.parent / "adapter_model.safetensors"
    if not path.is_file():
        pickled = (config.parent / "adapter_model.bin").is_file()
        found = (
            "only adapter_model.bin, a pickle; load and save it with peft to get safetensors" if pickled else "no adapter_model.safetensors"
        )
        raise PairError(f"the adapter {config.parent} holds {found}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise PairError(f"cannot read {path}: {first_line(error)}; the file is damaged or cut short") from error


def merged(base: Source, config: Path, options: Options) -> tuple[PreTrainedModel, float]:
    """The base with the adapter merged in, in the base's dtype, and how far its logits are from the unmerged model's.

    Merged in float32 because half precision rounds the update away (peft#2502); cast afterwards.
    """
    model, dtype = _float32_base(base, options)
    model = _with_adapter(model, config)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.get_text_config().vocab_size, (2, 12), generator=generator).to(next(model.parameters()).device)
    with torch.no_grad():
        unmerged = model(tokens).logits
        merged = model.merge_and_unload(safe_merge=True).to(dtype)
        drift = (merged(tokens).logits.float() - unmerged).abs().max().item()
    return merged, drift


def _float32_base(base: Source, options: Options) -> tuple[PreTrainedModel, torch.dtype]:
    if isinstance(base, (str, Path)):
        model = from_folder(base, options)
    elif isinstance(base, PreTrainedModel):
        model = copy.deepcopy(base)
    else:
        raise PairError("an adapter needs its base as a folder, a Hub id or a transformers model; a TransformerLens model cannot take it")
    dtype = model.dtype
    return model.float().eval(), dtype


def _with_adapter(model: PreTrainedModel, config: Path) -> Any:
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    weights, where = _adapter_weights(config), config.parent
    try:
        peft_config = PeftConfig.from_pretrained(str(where))
        peft_config.base_model_name_or_path = None  # else peft warns that it puts its own idea of the name there
        peft_model = get_peft_model(model, peft_config).eval()
        result = set_peft_model_state_dict(peft_model, weights)
    except (*LOAD_ERRORS, TypeError, json.JSONDecodeError) as error:
        raise PairError(
            f"the adapter {where} does not fit this base ({first_line(error)}); give the base that it was trained on"
        ) from error
    odd = [*result.unexpected_keys, *(k for k in result.missing_keys if "lora_" in k)]
    if odd:
        raise PairError(
            f"the adapter {where} does not fit this base: {len(odd)} tensors have no counterpart, "
            f"for example {odd[0]}; give the base that it was trained on"
        )
    return peft_model.eval()


def adapter_notes(base: Source, config: Path) -> tuple[str, ...]:
    named = str(json.loads(config.read_text()).get("base_model_name_or_path") or "")
    if not named or Path(named).name == Path(describe(base)).name:
        return ()
    return (f"the adapter says that it was trained on {named}; the base given is {describe(base)}",)
