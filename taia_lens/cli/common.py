"""What the commands share: reading the pair and the suite, making the libraries quiet, the console on stderr."""

from __future__ import annotations

import gc
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taia_lens.errors import PairError, SuiteError, TaiaLensError
from taia_lens.recipe import Side, side_of
from taia_lens.suite import DOMAINS, Suite, load_suite

if TYPE_CHECKING:
    from rich.console import Console

    from taia_lens.budget import Budget
    from taia_lens.loaded import Loaded
    from taia_lens.pair import Pair
    from taia_lens.store import CellStore


DEMO_BASE = "demo:base"


def call_budget(call_tokens: int | None) -> Budget:
    """How much is run at a time, as asked for."""
    from taia_lens.budget import BUDGET, Budget

    return BUDGET if call_tokens is None else Budget(tokens=call_tokens)


def model_source(asked: str | None) -> str | Path:
    """The model asked for; `demo:base`, or nothing, is the demo's base."""
    from taia_lens.demo import BASE

    return BASE if asked in (None, DEMO_BASE) else str(asked)


@dataclass(frozen=True)
class PairOptions:
    """The options that say which two models, and how to load them."""

    base: str | None
    tuned: str | None
    device: str
    dtype: str
    allow_pickle: bool
    trust_remote_code: bool
    call_tokens: int | None = None

    def check(self) -> None:
        """Raise where only one side is named."""
        if (self.base is None) != (self.tuned is None):
            named, missing = ("--base", "--tuned") if self.tuned is None else ("--tuned", "--base")
            raise PairError(f"{named} was given without {missing}; give both ({DEMO_BASE} is the demo's), or neither for the demo pair")

    @property
    def demo(self) -> bool:
        """Whether the demo's base is meant, whose suites are at hand."""
        return self.base in (None, DEMO_BASE)

    def load(self, *, checked: bool = True) -> Pair:
        """Load the pair; with `checked=False`, a law that fails is reported and does not raise."""
        from taia_lens.demo import TUNED
        from taia_lens.loading import inspect_pair, load_pair

        quiet()
        function = load_pair if checked else inspect_pair
        pair = function(
            model_source(self.base),
            self.tuned or TUNED,
            device=self.device,
            dtype=self.dtype,
            allow_pickle=self.allow_pickle,
            trust_remote_code=self.trust_remote_code,
            budget=call_budget(self.call_tokens),
        )
        gc.freeze()
        gc.enable()
        return pair


@dataclass(frozen=True)
class ModelOptions:
    """The options that say which one model, and how to load it."""

    base: str | None
    device: str
    dtype: str
    allow_pickle: bool
    trust_remote_code: bool
    call_tokens: int | None = None

    @property
    def demo(self) -> bool:
        """Whether the demo's base is meant, whose suites are at hand."""
        return self.base in (None, DEMO_BASE)

    def load(self) -> Loaded:
        """Load the model; the demo's base where none is named."""
        from taia_lens.loading import load_one

        quiet()
        model = load_one(
            model_source(self.base),
            device=self.device,
            dtype=self.dtype,
            allow_pickle=self.allow_pickle,
            trust_remote_code=self.trust_remote_code,
            budget=call_budget(self.call_tokens),
        )
        gc.freeze()
        gc.enable()
        if model.plain_because:
            print(f"taia-lens: note: no work is shared on this model: {model.plain_because}", file=sys.stderr)
        return model


def read_suite(asked: str | None, options: PairOptions | ModelOptions) -> Suite:
    """The suite named: a JSONL file, `demo:NAME`, or the demo's routing suite where the demo pair is used and none is named."""
    from taia_lens.demo import demo_suite

    if asked is None:
        if not options.demo:
            raise SuiteError("your own pair needs prompts: give --suite FILE.jsonl (rows with prompt, answer and domain)")
        return demo_suite()
    if asked.startswith("demo:"):
        return demo_suite(asked.removeprefix("demo:"))
    return load_suite(asked)


def read_suites(asked: list[str] | None, options: PairOptions | ModelOptions, *, limit: int | None, seed: int) -> list[Suite]:
    """The suites named: `FILE`, or `id=FILE` and `ood=FILE`, which say the domain of all its rows; the demo's where none is named."""
    found = [one_suite(text, options) for text in asked] if asked else [read_suite(None, options)]
    names = [suite.name for suite in found]
    if asked and len(set(names)) < len(names):  # a/test.jsonl and b/test.jsonl: the folder tells them apart
        folders = [Path(text.rpartition("=")[2]).resolve().parent.name for text in asked]
        found = [replace(s, name=f"{folder}-{s.name}") for s, folder in zip(found, folders, strict=True)]
    return found if limit is None else [suite.limit(limit, seed=seed) for suite in found]


def one_suite(asked: str, options: PairOptions | ModelOptions) -> Suite:
    domain, sign, path = asked.partition("=")
    if not sign or Path(asked).exists():
        return read_suite(asked, options)
    if domain not in DOMAINS:
        raise SuiteError(
            f"cannot read --suite {asked!r}: no domain {domain!r}; write id=FILE, ood=FILE, or a FILE whose rows say their domain"
        )
    if path.startswith("demo:"):
        raise SuiteError(f"the rows of {path} say their own domain; write --suite {path}")
    return load_suite(path, domain=domain)


@contextmanager
def maybe_store(path: Path | None) -> Iterator[CellStore | None]:
    """The store of finished cells, or None."""
    from taia_lens.store import open_store

    if path is None:
        yield None
        return
    with open_store(path) as store:
        before = len(store)
        yield store
        print(f"store {path}: {len(store) - before} new cells, {before} from before", file=sys.stderr)


def check_side(name: str, side: str | None) -> Side | None:
    """`base`, `tuned` or None."""
    return None if side is None else side_of(side, name)


def names(text: str, what: str) -> tuple[str, ...]:
    """Read `accuracy, logprob` as names.

    >>> names("accuracy, logprob,", "metric")
    ('accuracy', 'logprob')

    Raises:
        TaiaLensError: There is none.
    """
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise TaiaLensError(f"--{what} {text!r} names nothing; write names with commas between them, or leave it out")
    return found


def numbers(text: str, what: str) -> tuple[float, ...]:
    """Read `0.3,0.5` as numbers; nothing as none.

    Raises:
        TaiaLensError: One of them is no number.
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise TaiaLensError(f"cannot read --{what} {text!r}; write numbers with commas between them: 0.3,0.5") from error


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


def run_folder(out: Path | None, study: str) -> Path:
    """The run folder to write: `out`, or a new one under runs/ named by study, date and time; refused where it exists already."""
    from taia_lens.results import check_out

    if out is None:
        stem = Path("runs") / f"{study}-{datetime.now():%Y%m%d-%H%M%S}"
        names = [stem, *(stem.with_name(f"{stem.name}-{i}") for i in range(2, 1000))]
        out = next(name for name in names if not name.exists())
    check_out(out)
    return out


def meta(subject: Pair | Loaded, *, started: float, seed: int | None) -> dict[str, Any]:
    """What every meta.json has: the exact command, when, how long (`started` is `time.time()` of its start), versions, the models."""
    from taia_lens.results import versions

    return {
        "command": exact_command(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 2),
        "seed": seed,
        "versions": versions(),
    } | models_meta(subject)


def models_meta(subject: Pair | Loaded) -> dict[str, Any]:
    """What meta.json keeps of the pair, or of the one model."""
    from taia_lens.pair import Pair

    if isinstance(subject, Pair):
        return {"pair": provenance(subject), "call_tokens": subject.budget.tokens}
    model = {"name": subject.name, "dtype": subject.dtype, "fingerprint": subject.fingerprint}
    return {"model": model, "call_tokens": subject.budget.tokens}


def suite_meta(suite: Suite, asked: str | None) -> dict[str, Any]:
    """What meta.json keeps of a suite, beside what was asked for on the command line."""
    counts = {domain: sum(row.domain == domain for row in suite.rows) for domain in suite.domains}
    return {"name": suite.name, "asked": asked, "sha256": suite.sha256, "rows": counts}


def provenance(pair: Pair) -> dict[str, Any]:
    """What meta.json keeps of a pair."""
    from dataclasses import asdict

    return {
        "origin": asdict(pair.origin),
        "fingerprint": pair.fingerprint,
        "report": asdict(pair.report),
        "tensors_differing": len(pair.differences),
    }


def quiet() -> None:
    """Libraries' chatter is not the user's: no loading bars, no advice, no notes on their own deprecations."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


BASE_HELP = "The base model: a local folder or a Hub id, or demo:base. Default: the demo pair."
TUNED_HELP = "Its fine-tuned version: a folder, a Hub id, a PEFT LoRA adapter, or what 'taia-lens lofit fit' wrote."
MODEL_HELP = "The model: a local folder or a Hub id. Default: the demo's base (demo:base)."
OTHER_MODEL_HELP = "Accept an adapter that was made for another model of this shape."
DEVICE_HELP = "cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."
DEVICES_HELP = f"{DEVICE_HELP} cuda:0,cuda:1 puts base on one and tuned on the other."
DTYPE_HELP = "auto keeps the checkpoint's own; float32, bfloat16, float16, float64."
PICKLE_HELP = "Also read weights from .bin files (pickles can run code when opened)."
REMOTE_HELP = "Also run modelling code that comes with a checkpoint."
SUITES_HELP = "Prompts: FILE.jsonl, or id=FILE and ood=FILE to say the domain of all rows; give it several times for several."
STORE = Path("runs/cells.sqlite")
STORE_HELP = "Where finished cells are kept, so that an interrupted run goes on where it stopped."
NORMS_HELP = "Whose norms TAIA and TAIF take: base or tuned. Must be said where they differ."
EMBED_HELP = "Whose embeddings and unembedding: base or tuned. Must be said where they differ."
CALL_HELP = (
    "Tokens that one call of a block is given; changes speed and memory, not results beyond rounding. "
    "'taia-lens check --measure' says what suits a model on a machine. Default: 1500."
)
DRY_HELP = "Print how much work it would be, and do no more."
LIMIT_HELP = "At most this many prompts of each domain, drawn with --seed."
