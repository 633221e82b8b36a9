"""The settings of LoFiT's experiments, as data: those of its training scripts by model and task."""

from __future__ import annotations

from dataclasses import dataclass, replace

from taia_lens.errors import TaiaLensError
from taia_lens.lofit import Settings, how_many
from taia_lens.lofit.settings import LARGE


@dataclass(frozen=True)
class Published:
    """What the training scripts say of one model and task; `heads` is the 3% setting."""

    select_lr: float
    l1: float
    tune_lr: float
    heads: int


MODELS = {"Llama-2-7B": (32, 32, 128), "Llama-2-13B": (40, 40, 128), "Gemma-7B": (28, 16, 256)}
"""Layers, heads and d_head: a model is known by its shape, not by the name of its folder."""

PUBLISHED = {
    ("Llama-2-7B", "truthfulqa"): Published(5e-3, 5e-4, 1e-2, 32),
    ("Llama-2-7B", "mquake"): Published(5e-3, 1e-3, 1e-2, 32),
    ("Llama-2-7B", "clutrr"): Published(5e-4, 5e-3, 1e-2, 32),
    ("Llama-2-13B", "truthfulqa"): Published(1e-3, 1e-3, 2e-2, 48),
    ("Llama-2-13B", "mquake"): Published(1e-3, 1e-3, 8e-3, 48),
    ("Llama-2-13B", "clutrr"): Published(1e-3, 1e-3, 1e-2, 48),
    ("Gemma-7B", "truthfulqa"): Published(5e-3, 5e-4, 2e-2, 16),
    ("Gemma-7B", "mquake"): Published(5e-3, 5e-4, 8e-3, 16),
    ("Gemma-7B", "clutrr"): Published(5e-4, 5e-3, 1e-2, 16),
}
SHARE = "3%"  # of the heads, of a model that is not in the paper
LENGTHS = {"truthfulqa": 256, "mquake": 400, "clutrr": 400}  # tokens: 128 of prompt and 128 of answer; 400 in all
LOSS = {"truthfulqa": "dpo", "mquake": "ce", "clutrr": "ce"}


@dataclass(frozen=True)
class Protocol:
    """How one task is done with one model.

    Attributes:
        task: `truthfulqa`, `mquake` or `clutrr`.
        selecting: Of step 1.
        tuning: Of step 2.
        k: How many heads.
        source: Whose published settings these are, and what was said otherwise.
    """

    task: str
    selecting: Settings
    tuning: Settings
    k: int
    source: str


def protocol(
    task: str,
    shape: tuple[int, int, int],
    n_parameters: int,
    *,
    k: str | float | int | None = None,
    select_lr: float | None = None,
    l1: float | None = None,
    tune_lr: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    max_length: int | None = None,
    pairs: str | None = None,
) -> Protocol:
    """The settings of a task: the paper's for this model, or for the nearest one by size; each can be said otherwise.

    Args:
        task: A name of TASKS.
        shape: Layers, heads, d_head of the model.
        n_parameters: Of the model.
        k: Heads, `16` or `3%`.
        select_lr: Learning rate of step 1.
        l1: Its penalty on the sum of |A|.
        tune_lr: Learning rate of step 2.
        epochs: Of both steps; 5 in the paper.
        batch_size: Of both; 8 in the paper.
        micro_batch: Rows at a time; changes memory, not results.
        max_length: Longest text in tokens.
        pairs: TruthfulQA: `one` pair of answers a question, as the code, or `all`: the best answer with every wrong one.

    >>> protocol("clutrr", (32, 32, 128), 7_000_000_000).k, protocol("clutrr", (5, 8, 8), 260_000).k
    (32, 1)

    Raises:
        TaiaLensError: No such task, or a setting that is none.
    """
    if task not in LOSS:
        raise TaiaLensError(f"no task {task!r} of the paper; there are {', '.join(LOSS)}")
    if pairs is not None and LOSS[task] != "dpo":
        raise TaiaLensError(f"{task} is learnt by cross-entropy and has no pairs; leave pairs out")
    known = next((name for name, found in MODELS.items() if found == shape), None)
    like = known or ("Llama-2-7B" if n_parameters < LARGE else "Llama-2-13B")
    found = PUBLISHED[like, task]
    n_heads = shape[0] * shape[1]
    asked = {"epochs": epochs, "batch_size": batch_size, "micro_batch": micro_batch, "max_length": max_length, "pairs": pairs}
    said: dict[str, object] = {name: value for name, value in asked.items() if value is not None}
    common = Settings(lr=found.tune_lr, loss=LOSS[task], max_length=LENGTHS[task], seed=42, micro_batch=8)
    common = replace(common, **said)  # type: ignore[arg-type]
    selecting = replace(common, lr=found.select_lr if select_lr is None else select_lr, l1=found.l1 if l1 is None else l1)
    tuning = replace(common, lr=found.tune_lr if tune_lr is None else tune_lr)
    number = how_many(str(k if k is not None else found.heads if known else SHARE), n_heads)
    said |= {name: value for name, value in (("k", k), ("select_lr", select_lr), ("l1", l1), ("tune_lr", tune_lr)) if value is not None}
    whose = f"the paper's for {like}" if known else f"the paper's for {like}, the nearest by size to a model that it does not have"
    return Protocol(task, selecting, tuning, number, whose + (f"; but {_listed(said)}" if said else ""))


def _listed(said: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in said.items())
