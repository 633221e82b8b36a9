"""PEFT adapters: found, held against their base, merged in float32, and the drift of merging measured."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import cached_file

from taia_lens.errors import PairError
from taia_lens.loading.models import LOAD_ERRORS, Options, Source, describe, first_line, from_folder, load_message, locate

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_file(source: Source, options: Options) -> Path | None:
    """The adapter_config.json of a PEFT adapter, or None where the source is none."""
    if not isinstance(source, (str, Path)):
        return None
    local = Path(source).expanduser()
    if local.is_dir():
        found = local / CONFIG
        return found if found.is_file() and not (local / "config.json").is_file() else None
    locate(source, options)
    return _from_hub(source, CONFIG)


def _from_hub(source: str | Path, name: str) -> Path | None:
    """A file of a Hub repository, None where the repository has no such file."""
    try:
        found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)
    except LOAD_ERRORS as error:
        raise PairError(load_message(source, error)) from error
    return None if found is None else Path(found)


def _adapter_weights(source: str | Path) -> dict[str, torch.Tensor]:
    local = Path(source).expanduser()
    path = local / WEIGHTS if local.is_dir() else _from_hub(source, WEIGHTS)
    if path is None or not path.is_file():
        pickled = (local / "adapter_model.bin").is_file()
        found = "only adapter_model.bin, a pickle; load and save it with peft to get safetensors" if pickled else f"no {WEIGHTS}"
        raise PairError(f"the adapter {source} holds {found}")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PairError(f"cannot read {path}: {first_line(error)}; the file is damaged or cut short") from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise PairError(f"the adapter {source} has NaN or inf in {name}; its training diverged, or the file is damaged")
    return weights


def merged(base: Source, adapter: str | Path, config: Path, options: Options) -> tuple[PreTrainedModel, float]:
    """The base with the adapter merged in, in the base's dtypes, and how far its logits are from the unmerged model's.

    Merged in float32 because half precision rounds the update away (peft#2502); each weight is cast back afterwards, and
    buffers (rotary frequencies) stay as the base has them.
    """
    model = _base_model(base, options)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    peft_model = with_adapter(model.float().eval(), adapter, config)
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (2, 12), generator=generator).to(next(model.parameters()).device)
    with torch.no_grad():
        unmerged = peft_model(tokens).logits
        whole = peft_model.merge_and_unload(safe_merge=True)
        for name, parameter in whole.named_parameters():
            parameter.data = parameter.data.to(dtypes[name])
        for name, buffer in buffers.items():
            parent, _, leaf = name.rpartition(".")
            whole.get_submodule(parent)._buffers[leaf] = buffer
        drift = (whole(tokens).logits.float() - unmerged).abs().max().item()
    return whole, drift


def _base_model(base: Source, options: Options) -> PreTrainedModel:
    if isinstance(base, (str, Path)):
        return from_folder(base, options)
    if isinstance(base, PreTrainedModel):
        return copy.deepcopy(base)
    raise PairError("an adapter needs its base as a folder, a Hub id or a transformers model; a TransformerLens model cannot take it")


def with_adapter(model: PreTrainedModel, where: str | Path, config: Path) -> Any:
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    weights = _adapter_weights(where)
    try:
        peft_config = PeftConfig.from_pretrained(str(config.parent))
        if peft_config.peft_type != "LORA":
            raise PairError(
                f"the adapter {where} is of type {peft_config.peft_type}; only LORA adapters (DoRA, rsLoRA among them) can be merged"
            )
        peft_config.base_model_name_or_path = None  # else peft warns that it puts its own idea of the name there
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a name that it is about to drop
            peft_model = get_peft_model(model, peft_config).eval()
        result = set_peft_model_state_dict(peft_model, weights)
    except PairError:
        raise
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
