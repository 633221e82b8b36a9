"""Loading a pair: local folders, Hub ids, models in memory, adapters. The only file that names a loader.

Weights come from safetensors; pickles and remote code are refused unless the user names them. Nothing is folded, centred or
cast unasked. A transformers model given in memory is left as it was: the bridge is put around a copy that shares its weights.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from taia_lens import check
from taia_lens.errors import PairError
from taia_lens.pair import Model, Origin, Pair, Report, join

Source = str | Path | Any
"""A local folder, a Hub id, a transformers model, a TransformerBridge, or a HookedTransformer of TransformerLens 3.9."""

PROBE_TEXT = "The quick brown fox: 12.5% of naïve 東京 users\n\tsaid \"hello, world\" — don't they? def f(x): return x**2"
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


@dataclass(frozen=True)
class Options:
    """How to load: applies to both sides alike."""

    device: str
    dtype: str
    allow_pickle: bool
    trust_remote_code: bool

    @property
    def torch_dtype(self) -> torch.dtype | str:
        return "auto" if self.dtype == "auto" else getattr(torch, self.dtype)


DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def load_pair(
    base: Source,
    tuned: Source,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Pair:
    """Load base and tuned, hold them against each other, and run the self-check.

    Args:
        base: A local folder, a Hub id, a transformers model, or a TransformerLens model.
        tuned: The same, or a PEFT LoRA adapter (folder or id) of `base`; it is merged in float32.
        tokenizer: Needed only where no side brings one.
        device: Where both models go (models in memory stay where they are).
        dtype: `auto` keeps the checkpoint's own.
        allow_pickle: Also read weights from .bin files, which can run code when opened.
        trust_remote_code: Also run modelling code that comes with a checkpoint.

    Returns:
        The pair; its `report` holds the laws measured, the merge drift, and added tokens.

    Raises:
        PairError: Something cannot be loaded, or the two are no pair.
        CheckError: A law of the self-check fails.
    """
    pair = inspect_pair(
        base, tuned, tokenizer=tokenizer, device=device, dtype=dtype, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    check.require(pair.report.laws)
    return pair


def inspect_pair(
    base: Source,
    tuned: Source,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Pair:
    """As `load_pair`, but a law that fails stands in the report and is no error."""
    if dtype not in DTYPES:
        raise PairError(f"no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    options = Options(device, dtype, allow_pickle, trust_remote_code)
    with _stdout_to_stderr():
        tokenizers = {"base": _tokenizer(base, options), "tuned": _tokenizer(tuned, options)}
        added = _compare_tokenizers(tokenizers["base"], tokenizers["tuned"])
        shared = tokenizer or tokenizers["base"] or tokenizers["tuned"]
        if shared is None:
            raise PairError("neither side brings a tokenizer; pass load_pair(..., tokenizer=AutoTokenizer.from_pretrained(...))")
        base_model = _load(base, "base", shared, options)
        adapter = _adapter_file(tuned, options)
        drift, notes = None, ()
        if adapter is None:
            tuned_model = _load(tuned, "tuned", shared, options)
        else:
            merged, drift = _merged(base, adapter, options)
            tuned_model, notes = _bridge(merged, shared, "tuned"), _adapter_notes(base, adapter)
        origin = Origin(_describe(base), _describe(tuned), str(next(base_model.parameters()).dtype).removeprefix("torch."))
        pair = join(base_model, tuned_model, shared, origin)
        return replace(pair, report=Report(drift, added, notes, check.laws(pair)))


def _load(source: Source, side: str, tokenizer: PreTrainedTokenizerBase, options: Options) -> Model:
    if isinstance(source, (str, Path)):
        return _bridge(_from_folder(source, options), tokenizer, side)
    if isinstance(source, PreTrainedModel):
        return _bridge(_private(source, side), tokenizer, side)
    return _lens_model(source, side)


def _lens_model(model: Any, side: str) -> Model:
    """A TransformerLens model, as it is; refused where its weights were processed."""
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model, TransformerBridge):
        if model.compatibility_mode:
            raise PairError(f"{side} is in compatibility mode, which folds and centres its weights; load it without enable_compatibility_mode()")
    elif type(model).__name__ == "HookedTransformer":
        if str(model.cfg.normalization_type).endswith("Pre"):
            raise PairError(f"{side} has its norms folded into its weights; load it with HookedTransformer.from_pretrained_no_processing(...)")
    else:
        raise PairError(
            f"{side} is a {type(model).__name__}; give a folder, a Hub id, a transformers model, a TransformerBridge or a HookedTransformer"
            + (" (for a PeftModel, give the adapter's folder)" if type(model).__module__.startswith("peft") else "")
        )
    return model


def _private(model: PreTrainedModel, side: str) -> PreTrainedModel:
    """A copy of the modules around the same weights: the bridge rewires the modules that it is given."""
    if any("_original_component" in name for name, _ in model.named_parameters()):
        raise PairError(f"{side} is a transformers model inside a TransformerBridge already; give the bridge itself")
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared)


def _bridge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, side: str) -> Model:
    from transformer_lens.model_bridge import TransformerBridge

    model.config.architectures = [type(model).__name__]  # a config made in memory lacks it, and the bridge reads it
    model.requires_grad_(False)
    # The bridge reloads a tokenizer by name unless it adds BOS already. Ours is only for text given to the bridge by hand.
    own = copy.deepcopy(tokenizer)
    own.init_kwargs |= {"name_or_path": own.name_or_path, "add_bos_token": True}
    first = next(model.parameters())
    try:
        bridge = TransformerBridge.boot_transformers(f"./{side}", hf_model=model.eval(), tokenizer=own, dtype=first.dtype, device=first.device)
    except LOAD_ERRORS as error:
        raise PairError(f"TransformerLens cannot load {side}, a {type(model).__name__}: {_first_line(error)}") from error
    return bridge.eval()


def _from_folder(source: str | Path, options: Options, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """Load a transformers model from a local folder (network off) or a Hub id; every weight must be in the file."""
    name = _locate(source, options)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=options.torch_dtype if dtype is None else dtype,
            use_safetensors=None if options.allow_pickle else True,
            trust_remote_code=options.trust_remote_code,
            local_files_only=Path(name).is_dir(),
            output_loading_info=True,
        )
    except LOAD_ERRORS as error:
        raise PairError(_load_message(source, error)) from error
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        # Tied output embeddings are rightly missing: the loader ties them itself and does not list them.
        if info[kind]:
            raise PairError(f"{source}: {len(info[kind])} {kind.replace('_', ' ')} in its weights, for example {sorted(map(str, info[kind]))[0]}; the checkpoint does not fit its config.json")
    return model.to(options.device).eval()


def _load_message(source: str | Path, error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return f"{source} brings its own modelling code, which would run on this machine; read it, then say --trust-remote-code"
    if "safetensors" in text and "no file" in text.lower():
        return f"{source} holds no .safetensors weights; convert them (save_pretrained writes safetensors), or say --allow-pickle"
    return f"cannot load {source}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _locate(source: str | Path, options: Options) -> str:
    """The absolute path of a local folder that holds a model, or the Hub id.

    Absolute, because the bridge takes some folder names ("mixtral") for aliases of Hub models.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        if path.exists():
            raise PairError(f"{source} is a file; give the folder that holds config.json and the .safetensors files")
        if isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
            raise PairError(f"no folder {source}; give a folder with config.json and .safetensors files, or a Hub id like name/model")
        return str(source)
    files = sorted(p.name for p in path.iterdir())
    if "config.json" not in files:
        mend = "that is an adapter: give it as tuned" if "adapter_config.json" in files else f"it holds {', '.join(files[:5]) or 'nothing'}"
        raise PairError(f"{source} is no model folder: no config.json ({mend})")
    if not options.allow_pickle and not any(f.endswith(".safetensors") for f in files):
        pickles = [f for f in files if f.endswith((".bin", ".pt", ".pth"))]
        found = f"only {pickles[0]}, a pickle, which can run code when opened; convert it, or say --allow-pickle" if pickles else "no weights at all"
        raise PairError(f"{source} holds no .safetensors weights: {found}")
    try:
        AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=options.trust_remote_code)
    except LOAD_ERRORS as error:
        raise PairError(_load_message(source, error)) from error
    return str(path.resolve())


def _tokenizer(source: Source, options: Options) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a side brings, or None."""
    if not isinstance(source, (str, Path)):
        return vars(source).get("tokenizer")
    local = Path(source).expanduser().is_dir()
    if local and not (Path(source).expanduser() / "tokenizer_config.json").is_file():
        return None
    if not local:
        _locate(source, options)
    name = str(Path(source).expanduser().resolve()) if local else str(source)
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=options.trust_remote_code)
    except LOAD_ERRORS as error:
        if not local and _adapter_file(source, options) is not None:
            return None  # adapters on the Hub often bring no tokenizer
        raise PairError(f"cannot load the tokenizer of {source}: {_first_line(error)}") from error


def _compare_tokenizers(base: PreTrainedTokenizerBase | None, tuned: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """Tokens that only tuned has; raises where the two would give one text two sequences of ids."""
    if base is None or tuned is None:
        return ()
    ours, theirs = base.get_vocab(), tuned.get_vocab()
    moved = sorted(t for t in ours.keys() & theirs.keys() if ours[t] != theirs[t])
    if moved:
        raise PairError(f"tokenizers differ: {moved[0]!r} is id {ours[moved[0]]} in base and {theirs[moved[0]]} in tuned; a pair shares one tokenizer")
    gone = sorted(ours.keys() - theirs.keys())
    if gone:
        raise PairError(f"tokenizers differ: tuned lacks {len(gone)} of base's tokens, for example {gone[0]!r}; a pair shares one tokenizer")
    ids = [list(t(PROBE_TEXT)["input_ids"]) for t in (base, tuned)]
    if ids[0] != ids[1]:
        raise PairError(f"tokenizers differ on a probe text: base gives {ids[0][:8]}..., tuned {ids[1][:8]}...; a pair shares one tokenizer")
    return tuple(sorted(theirs.keys() - ours.keys()))


def _adapter_file(source: Source, options: Options) -> Path | None:
    """The adapter_config.json of a PEFT adapter, or None where the source is none."""
    if not isinstance(source, (str, Path)):
        return None
    local = Path(source).expanduser()
    if local.is_dir():
        found = local / "adapter_config.json"
        return found if found.is_file() and not (local / "config.json").is_file() else None
    _locate(source, options)
    found = cached_file(str(source), "adapter_config.json", _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    return None if found is None else Path(found)


def _adapter_weights(config: Path) -> dict[str, torch.Tensor]:
    path = config.parent / "adapter_model.safetensors"
    if not path.is_file():
        pickled = (config.parent / "adapter_model.bin").is_file()
        found = "only adapter_model.bin, a pickle; load and save it with peft to get safetensors" if pickled else "no adapter_model.safetensors"
        raise PairError(f"the adapter {config.parent} holds {found}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise PairError(f"cannot read {path}: {_first_line(error)}; the file is damaged or cut short") from error


def _merged(base: Source, config: Path, options: Options) -> tuple[PreTrainedModel, float]:
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
        model = _from_folder(base, options)
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
        peft_model = get_peft_model(model, PeftConfig.from_pretrained(str(where))).eval()
        result = set_peft_model_state_dict(peft_model, weights)
    except (*LOAD_ERRORS, TypeError, json.JSONDecodeError) as error:
        raise PairError(f"the adapter {where} does not fit this base ({_first_line(error)}); give the base that it was trained on") from error
    odd = [*result.unexpected_keys, *(k for k in result.missing_keys if "lora_" in k)]
    if odd:
        raise PairError(f"the adapter {where} does not fit this base: {len(odd)} tensors have no counterpart, for example {odd[0]}; give the base that it was trained on")
    return peft_model.eval()


def _adapter_notes(base: Source, config: Path) -> tuple[str, ...]:
    named = str(json.loads(config.read_text()).get("base_model_name_or_path") or "")
    if not named or Path(named).name == Path(_describe(base)).name:
        return ()
    return (f"the adapter says that it was trained on {named}; the base given is {_describe(base)}",)


def _describe(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    name = source.name_or_path if isinstance(source, PreTrainedModel) else source.cfg.model_name
    return f"{type(source).__name__} in memory ({name or 'unnamed'})"


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Stdout belongs to the result; libraries that print while loading print to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
