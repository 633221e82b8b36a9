"""What the commands share: reading the pair and the suite, making the libraries quiet, the console on stderr."""

from __future__ import annotations

import gc
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taia_lens.errors import PairError, SuiteError
from taia_lens.suite import Suite, load_suite

if TYPE_CHECKING:
    from rich.console import Console

    from taia_lens.pair import Pair


@dataclass(frozen=True)
class PairOptions:
    """The options that say which two models, and how to load them."""

    base: str | None
    tuned: str | None
    device: str
    dtype: str
    allow_pickle: bool
    trust_remote_code: bool

    def check(self) -> None:
        """Raise where only one side is named."""
        if (self.base is None) != (self.tuned is None):
            named, missing = ("--base", "--tuned") if self.tuned is None else ("--tuned", "--base")
            raise PairError(f"{named} was given without {missing}; give both, or neither for the demo pair")

    def load(self, *, checked: bool = True) -> Pair:
        """Load the pair; with `checked=False`, a law that fails is reported and does not raise."""
        from taia_lens.demo import BASE, TUNED
        from taia_lens.loading import inspect_pair, load_pair

        _quiet()
        function = load_pair if checked else inspect_pair
        pair = function(
            self.base or BASE,
            self.tuned or TUNED,
            device=self.device,
            dtype=self.dtype,
            allow_pickle=self.allow_pickle,
            trust_remote_code=self.trust_remote_code,
        )
        gc.freeze()
        gc.enable()
        return pair


def read_suite(asked: str | None, options: PairOptions) -> Suite:
    """The suite named: a JSONL file, `demo:NAME`, or the demo's routing suite where the demo pair is used and none is named."""
    from taia_lens.demo import demo_suite

    if asked is None:
        if options.base is not None:
            raise SuiteError("your own pair needs prompts: give --suite FILE.jsonl (rows with prompt, answer and domain)")
        return demo_suite()
    if asked.startswith("demo:"):
        return demo_suite(asked.removeprefix("demo:"))
    return load_suite(asked)


def console() -> Console:
    """Progress and tables go to stderr; stdout belongs to the result."""
    from rich.console import Console

    width = None if sys.stderr.isatty() else 140
    return Console(stderr=True, width=width, highlight=False)


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner on a terminal, nothing elsewhere."""
    shown = console()
    if not shown.is_terminal:
        yield
        return
    with shown.status(text):
        yield


def exact_command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def provenance(pair: Pair) -> dict[str, Any]:
    """What meta.json keeps of a pair."""
    from dataclasses import asdict

    return {
        "origin": asdict(pair.origin),
        "fingerprint": pair.fingerprint,
        "report": asdict(pair.report),
        "tensors_differing": len(pair.differences),
    }


def _quiet() -> None:
    """Libraries' chatter is not the user's: no loading bars, no advice, no notes on their own deprecations."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


BASE_HELP = "The base model: a local folder or a Hub id. Default: the demo pair."
TUNED_HELP = "Its fine-tuned version: a folder, a Hub id, or a PEFT LoRA adapter."
DEVICE_HELP = "cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."
DTYPE_HELP = "auto keeps the checkpoint's own; float32, bfloat16, float16, float64."
PICKLE_HELP = "Also read weights from .bin files (pickles can run code when opened)."
REMOTE_HELP = "Also run modelling code that comes with a checkpoint."
