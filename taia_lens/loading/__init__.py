"""Loading a pair: local folders, Hub ids, models in memory, adapters. The only place that names a loader.

Weights come from safetensors; pickles and remote code are refused unless the user names them. Nothing is folded, centred or
cast unasked. A transformers model given in memory is left as it was: the bridge is put around a copy that shares its weights.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from taia_lens import check
from taia_lens.budget import BUDGET, Budget
from taia_lens.engine import plain_because
from taia_lens.errors import PairError
from taia_lens.loaded import Loaded
from taia_lens.loading.adapters import adapter_file, adapter_notes, merged
from taia_lens.loading.models import DTYPES, Options, Source, bridge, describe, load_model, locate_any, resolve_device, resolve_devices
from taia_lens.loading.tokenizers import compare_tokenizers, tokenizer_of
from taia_lens.pair import Law, Origin, Pair, Report, config_differences, join
from taia_lens.scales import is_scales
from taia_lens.weights import Model

__all__ = ["Source", "inspect_pair", "load_one", "load_pair"]


def load_one(
    source: Source,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    budget: Budget = BUDGET,
) -> Loaded:
    """Load one model by itself.

    Args:
        source: A local folder, a Hub id, a transformers model, or a TransformerLens model, which is left as it is.
        tokenizer: Needed only where the source brings none.
        device: Where a model from a folder goes: `auto` takes a GPU where there is one.
        dtype: Of a model from a folder; `auto` keeps the checkpoint's own.
        allow_pickle: Also read weights from .bin files, which can run code when opened.
        trust_remote_code: Also run modelling code that comes with a checkpoint.
        budget: How much is run, and held, at a time.

    Raises:
        PairError: It cannot be loaded, is an adapter, or brings no tokenizer and none is given.
    """
    if dtype not in DTYPES:
        raise PairError(f"no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    options = Options(resolve_device(device), dtype, allow_pickle, trust_remote_code)
    with _stdout_to_stderr():
        locate_any(source, options)
        if is_scales(source) or adapter_file(source, options) is not None:
            raise PairError(f"{source} is an adapter; give a whole model, for example its base")
        found = tokenizer or tokenizer_of(source, "base", options)
        if found is None:
            raise PairError(f"{describe(source)} brings no tokenizer; put its files into the folder, or pass load_one(..., tokenizer=...)")
        model = Loaded(load_model(source, "model", found, options), found, describe(source), budget=budget)
        return replace(model, plain_because=plain_because(model, check.probe(model)))


def load_pair(
    base: Source,
    tuned: Source,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    other_model: bool = False,
    budget: Budget = BUDGET,
) -> Pair:
    """Load base and tuned, hold them against each other, and run the self-check.

    Args:
        base: A local folder, a Hub id, a transformers model, or a TransformerLens model. A model in memory is left as it is and
            shares its weights with the pair (equal tensors also with tuned): do not change them in place while the pair is used.
        tuned: The same, or an adapter of `base`: PEFT LoRA (folder or id), which is merged in float32, or the folder of scales that
            'taia-lens lofit fit' wrote, which both sides then get as parameters, base's being zero.
        tokenizer: Needed only where no side brings one.
        device: Where models from folders go: `auto` takes a GPU where there is one; `cuda:0,cuda:1` are base's and tuned's, where
            one has no room for both. Models in memory, and adapters of them, stay where they are. Numbers come to base's device;
            what a recipe takes from the other side is brought over each time, a layer at a time where work is shared.
        dtype: Of models from folders; `auto` keeps the checkpoint's own. Models in memory keep theirs, and another is refused.
        allow_pickle: Also read weights from .bin files, which can run code when opened.
        trust_remote_code: Also run modelling code that comes with a checkpoint.
        other_model: Accept scales that were made for another model of this shape.
        budget: How much is run, and held, at a time.

    Returns:
        The pair; its `report` holds the laws measured, the merge drift, and added tokens.

    Raises:
        PairError: Something cannot be loaded, or the two are no pair.
        CheckError: A law of the self-check fails.
    """
    pair = inspect_pair(
        base,
        tuned,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        other_model=other_model,
        budget=budget,
    )
    check.require(pair.report)
    return pair


def inspect_pair(
    base: Source,
    tuned: Source,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    other_model: bool = False,
    budget: Budget = BUDGET,
) -> Pair:
    """As `load_pair`, but a law that fails stands in the report and is no error."""
    if dtype not in DTYPES:
        raise PairError(f"no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    places = resolve_devices(device)
    options = Options(places[0], dtype, allow_pickle, trust_remote_code)
    with _stdout_to_stderr():
        for source in (base, tuned):
            locate_any(source, options)
        if is_scales(base) or adapter_file(base, options) is not None:
            raise PairError(f"base {base} is an adapter; give its base model as base, and the adapter as tuned")
        tokenizers = {"base": tokenizer_of(base, "base", options), "tuned": tokenizer_of(tuned, "tuned", options)}
        added = compare_tokenizers(tokenizers["base"], tokenizers["tuned"])
        shared = tokenizer or tokenizers["base"] or tokenizers["tuned"]
        if shared is None:
            raise PairError("neither side brings a tokenizer; pass load_pair(..., tokenizer=AutoTokenizer.from_pretrained(...))")
        sides = _sides(base, tuned, shared, options, replace(options, device=places[1]), other_model)
        origin = Origin(describe(base), describe(tuned), str(next(sides.base.parameters()).dtype).removeprefix("torch."))
        pair = replace(join(sides.base, sides.tuned, shared, origin), budget=budget)
        notes = sides.notes + config_differences(pair.base, pair.tuned)
        brought = [side for side, found in tokenizers.items() if found is not None]
        compared = (
            "both sides' tokenizers agree"
            if len(brought) == 2
            else f"tokenizer of {brought[0] if brought else 'the caller'}; none to compare it with"
        )
        why = plain_because(pair, check.probe(pair))
        if len(pair.devices) > 1:  # the laws share work, too, so that a layer's weights are brought over at a time and not all
            pair = replace(pair, report=Report(plain_because=why))
        notes += (f"recipes are run one by one on this pair: {why}",) if why else ()
        return replace(pair, report=Report(sides.drift, added, compared, notes, (*check.laws(pair), *sides.laws(pair)), why))


@dataclass(frozen=True, eq=False)
class _Sides:
    """Two models that are not a pair yet: how far merging moved tuned's logits, and laws beside those of any pair."""

    base: Model
    tuned: Model
    drift: float | None = None
    notes: tuple[str, ...] = ()
    laws: Callable[[Pair], tuple[Law, ...]] = lambda pair: ()


def _sides(base: Source, tuned: Source, tokenizer: PreTrainedTokenizerBase, options: Options, theirs: Options, other_model: bool) -> _Sides:
    if is_scales(tuned):
        if theirs.device != options.device:
            raise PairError(f"scales share their base's weights, and so its device; write device {options.device}")
        from taia_lens.loading.scaled import scaled_law, scaled_sides  # loads TransformerLens, which a loader's import need not

        made = scaled_sides(base, tuned, tokenizer, options, other_model=other_model)
        return _Sides(made.base, made.tuned, None, made.notes, lambda pair: (scaled_law(pair, made.scales),))
    base_model, adapter = load_model(base, "base", tokenizer, options), adapter_file(tuned, options)
    if adapter is None:
        return _Sides(base_model, load_model(tuned, "tuned", tokenizer, theirs))
    whole, drift = merged(base, tuned, adapter, theirs)
    return _Sides(base_model, bridge(whole, tokenizer, "tuned"), drift, adapter_notes(base, adapter))


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Stdout belongs to the result; libraries that print while loading print to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
