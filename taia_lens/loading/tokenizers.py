"""The tokenizers that two sides bring, held against each other."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from taia_lens.errors import PairError
from taia_lens.loading.adapters import adapter_file
from taia_lens.loading.models import LOAD_ERRORS, Options, Source, first_line, lens_model, load_message, locate

PROBE_TEXT = 'The quick brown fox: 12.5% of naïve 東京 users\n\tsaid "hello, world" — don\'t they? def f(x): return x**2'


def tokenizer_of(source: Source, side: str, options: Options) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a side brings, or None."""
    if not isinstance(source, (str, Path)):
        return None if isinstance(source, PreTrainedModel) else lens_model(source, side).tokenizer
    local = Path(source).expanduser().is_dir()
    if local and not (Path(source).expanduser() / "tokenizer_config.json").is_file():
        return None
    if not local:
        locate(source, options)
    name = str(Path(source).expanduser().resolve()) if local else str(source)
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=options.trust_remote_code)
    except LOAD_ERRORS as error:
        if not local and adapter_file(source, options) is not None:
            return None  # adapters on the Hub often bring no tokenizer
        raise PairError(
            load_message(source, error) if not local else f"cannot load the tokenizer of {source}: {first_line(error)}"
        ) from error


def compare_tokenizers(base: PreTrainedTokenizerBase | None, tuned: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """Tokens that only tuned has; raises where the two would give one text two sequences of ids."""
    if base is None or tuned is None:
        return ()
    ours, theirs = base.get_vocab(), tuned.get_vocab()
    moved = sorted(t for t in ours.keys() & theirs.keys() if ours[t] != theirs[t])
    if moved:
        raise PairError(
            f"tokenizers differ: {moved[0]!r} is id {ours[moved[0]]} in base and {theirs[moved[0]]} in tuned; a pair shares one tokenizer"
        )
    gone = sorted(ours.keys() - theirs.keys())
    if gone:
        raise PairError(
            f"tokenizers differ: tuned lacks {len(gone)} of base's tokens, for example {gone[0]!r}; a pair shares one tokenizer"
        )
    ids = [list(t(PROBE_TEXT)["input_ids"]) for t in (base, tuned)]
    if ids[0] != ids[1]:
        raise PairError(
            f"tokenizers differ on a probe text: base gives {ids[0][:8]}..., tuned {ids[1][:8]}...; a pair shares one tokenizer"
        )
    return tuple(sorted(theirs.keys() - ours.keys()))
