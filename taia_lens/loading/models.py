"""Loading one model: a local folder, a Hub id, or a model in memory, as a TransformerBridge."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from taia_lens.errors import PairError
from taia_lens.scales import CONFIG as SCALES
from taia_lens.scales import is_scales
from taia_lens.weights import Model

Source = str | Path | Any
"""A local folder, a Hub id, a transformers model, a TransformerBridge, or a HookedTransformer of TransformerLens 3.9."""

LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Options:
    """How to load one side; but for the device, both alike."""

    device: str
    dtype: str
    allow_pickle: bool
    trust_remote_code: bool

    @property
    def torch_dtype(self) -> torch.dtype | str:
        return "auto" if self.dtype == "auto" else getattr(torch, self.dtype)


def resolve_device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=asked).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:  # torch's two ways to say that a device is not there
        raise PairError(f"no device {asked!r} here ({first_line(error)}); write cpu, or auto") from error
    return asked


def resolve_devices(asked: str) -> tuple[str, str]:
    """Base's and tuned's: `cuda` for both, or `cuda:0,cuda:1`.

    Raises:
        PairError: One is not there, or there are more than two.
    """
    names = [name.strip() for name in asked.split(",")]
    if len(names) > 2:
        raise PairError(f"{len(names)} devices in {asked!r}; write one for both sides, or base's and tuned's: cuda:0,cuda:1")
    return resolve_device(names[0]), resolve_device(names[-1])


def load_model(source: Source, side: str, tokenizer: PreTrainedTokenizerBase, options: Options) -> Model:
    if isinstance(source, (str, Path)):
        return bridge(from_folder(source, options), tokenizer, side)
    is_hf = isinstance(source, PreTrainedModel)
    model = bridge(private_copy(source, side), tokenizer, side) if is_hf else lens_model(source, side)
    own = str(next(model.parameters()).dtype).removeprefix("torch.")
    if options.dtype not in ("auto", own):
        raise PairError(f"{side} is in memory as {own}, and dtype {options.dtype} was asked for; cast it first, or leave dtype out")
    return model


def lens_model(model: Any, side: str) -> Model:
    """A TransformerLens model, as it is; refused where its weights were processed."""
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model, TransformerBridge):
        if model.compatibility_mode:
            raise PairError(
                f"{side} is in compatibility mode, which folds and centres its weights; load it without enable_compatibility_mode()"
            )
    elif type(model).__name__ == "HookedTransformer":
        if str(model.cfg.normalization_type).endswith("Pre"):
            raise PairError(
                f"{side} has its norms folded into its weights; load it with HookedTransformer.from_pretrained_no_processing(...)"
            )
    else:
        raise PairError(
            f"{side} is a {type(model).__name__}; give a folder, a Hub id, a transformers model, a TransformerBridge or a HookedTransformer"
            + (" (for a PeftModel, give the adapter's folder)" if type(model).__module__.startswith("peft") else "")
        )
    return model


def private_copy(model: PreTrainedModel, side: str) -> PreTrainedModel:
    """A copy of the modules around the same weights: the bridge rewires the modules that it is given."""
    if any("_original_component" in name for name, _ in model.named_parameters()):
        raise PairError(f"{side} is a transformers model inside a TransformerBridge already; give the bridge itself")
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared)


def bridge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, side: str) -> Model:
    from transformer_lens.model_bridge import TransformerBridge

    model.config.architectures = [type(model).__name__]  # a config made in memory lacks it, and the bridge reads it
    model.requires_grad_(False)
    # The bridge reloads a tokenizer by name unless it adds BOS already. Ours is only for text given to the bridge by hand.
    own = copy.deepcopy(tokenizer)
    own.init_kwargs |= {"name_or_path": own.name_or_path, "add_bos_token": True}
    first = next(model.parameters())
    try:
        bridge = TransformerBridge.boot_transformers(
            f"./{side}", hf_model=model.eval(), tokenizer=own, dtype=first.dtype, device=first.device
        )
    except LOAD_ERRORS as error:
        raise PairError(f"TransformerLens cannot load {side}, a {type(model).__name__}: {first_line(error)}") from error
    return bridge.eval()


def from_folder(source: str | Path, options: Options) -> PreTrainedModel:
    """Load a transformers model from a local folder (network off) or a Hub id; every weight must be in the file."""
    name = locate(source, options)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=options.torch_dtype,
            use_safetensors=None if options.allow_pickle else True,
            trust_remote_code=options.trust_remote_code,
            local_files_only=Path(name).is_dir(),
            output_loading_info=True,
        )
    except LOAD_ERRORS as error:
        raise PairError(load_message(source, error)) from error
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        # Tied output embeddings are rightly missing: the loader ties them itself and does not list them.
        if info[kind]:
            raise PairError(
                f"{source}: {len(info[kind])} {kind.replace('_', ' ')} in its weights, "
                f"for example {min(map(str, info[kind]))}; the checkpoint does not fit its config.json"
            )
    return model.to(options.device).eval()


def load_message(source: str | Path, error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return f"{source} brings its own modelling code, read it, then say --trust-remote-code (trust_remote_code=True)"
    if "safetensors" in text and "no file" in text.lower():
        return f"{source} holds no .safetensors weights; convert them with save_pretrained, or say --allow-pickle (allow_pickle=True)"
    if not Path(source).expanduser().exists():
        return f"{source} is no folder here and could not be had from the Hub ({first_line(error)}); check the name, and the network"
    return f"cannot load {source}: {first_line(error)}"


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    shown = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {shown}"


def locate(source: str | Path, options: Options) -> str:
    """The absolute path of a local folder that holds a model, or the Hub id.

    Absolute, because the bridge takes some folder names ("mixtral") for aliases of Hub models.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        if path.exists():
            raise PairError(f"{source} is a file; give the folder that holds config.json and the .safetensors files")
        if isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
            raise PairError(f"no folder {source}; give a folder that holds a model, or a Hub id with its owner: openai-community/gpt2")
        return str(source)
    files = sorted(p.name for p in path.iterdir())
    if "config.json" not in files:
        adapter = {"adapter_config.json", SCALES} & {*files}
        mend = "that is an adapter: give it as tuned" if adapter else f"it holds {', '.join(files[:5]) or 'nothing'}"
        raise PairError(f"{source} is no model folder: no config.json ({mend})")
    if not options.allow_pickle and not any(f.endswith(".safetensors") for f in files):
        pickles = [f for f in files if f.endswith((".bin", ".pt", ".pth"))]
        found = (
            f"only {pickles[0]}, a pickle, which can run code when opened; convert it, or say --allow-pickle (allow_pickle=True)"
            if pickles
            else "no weights at all"
        )
        raise PairError(f"{source} holds no .safetensors weights: {found}")
    try:
        AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=options.trust_remote_code)
    except LOAD_ERRORS as error:
        raise PairError(load_message(source, error)) from error
    return str(path.resolve())


def locate_any(source: Source, options: Options) -> None:
    """Raise, before anything is loaded, where a name is neither a model, nor an adapter, nor a Hub id."""
    if isinstance(source, (str, Path)) and not is_scales(source) and not (Path(source).expanduser() / "adapter_config.json").is_file():
        locate(source, options)


def describe(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    name = source.name_or_path if isinstance(source, PreTrainedModel) else source.cfg.model_name
    return f"{type(source).__name__} in memory ({name or 'unnamed'})"
