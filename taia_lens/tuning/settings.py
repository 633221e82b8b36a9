"""What to train and how, as a value; the published defaults. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from taia_lens.errors import TaiaLensError

TRAIN = {"all": ("attn", "mlp"), "attn": ("attn",), "mlp": ("mlp",)}
"""What --train names, and the components whose weights it means."""

METHODS = ("lora", "full", "red")
LR = {"lora": 2e-4, "full": 2e-5, "red": 8e-3}
"""Learning rates where none is said: of the TAIA paper's LoRA runs, of Stanford Alpaca's full fine-tune, and of RED's own code for
RoBERTa. For Llama-2-7B that code has 2e-5, over 4,500 steps, and for GPT-2 6e-2: few rows want the larger ones."""


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are those of the TAIA paper's LoRA runs (arXiv 2405.20192, its training scripts).

    Attributes:
        train: `all`, `attn` or `mlp`: whose weights are trained. In full, `all` is every parameter, norms and embeddings too.
        full: Train the weights themselves and not a LoRA adapter.
        r: Rank of the adapter.
        alpha: Its scale: the update is multiplied by alpha / r.
        dropout: On the adapter's input.
        lr: Highest learning rate; None for the published one.
        warmup: The fraction of the steps in which the rate rises; then it falls as a cosine.
        epochs: Passes over the data.
        batch_size: Rows a step.
        micro_batch: Rows at a time, at most; changes memory and speed, results only by rounding and dropout's draws.
        max_length: Longest row in tokens, never more than the model was made for.
        limit: At most this many rows, drawn with the seed.
        seed: Of the adapter's start, the order of the rows, and dropout.
        red: Train RED's scaling and bias of every layer's FFN output (arXiv 2402.15179), and no weight; r, alpha, dropout and
            warmup do not apply.
    """

    train: str = "all"
    full: bool = False
    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    lr: float | None = None
    warmup: float = 0.03
    epochs: float = 1.0
    batch_size: int = 64
    micro_batch: int = 8
    max_length: int = 3072
    limit: int | None = None
    seed: int = 0
    red: bool = False

    def __post_init__(self) -> None:
        if self.train not in TRAIN:
            raise TaiaLensError(f"cannot train {self.train!r}; there are {', '.join(TRAIN)}")
        self._check_red()
        for name, least in (("r", 1), ("alpha", 1), ("batch_size", 1), ("micro_batch", 1), ("max_length", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise TaiaLensError(f"{name} is {getattr(self, name)}; write {least} or more")
        for name in ("epochs", "rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise TaiaLensError(f"{'lr' if name == 'rate' else name} is {value:g}; write a number above 0")
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise TaiaLensError(f"{name} is {getattr(self, name):g}; write a fraction from 0, below 1")

    def _check_red(self) -> None:
        if not self.red:
            return
        if self.full:
            raise TaiaLensError("red trains no weight, and full trains them; write one of the two methods")
        if self.train == "attn":
            raise TaiaLensError("red is at the FFN's outputs, and attn was asked for; leave --train out")
        if self.epochs != int(self.epochs):
            raise TaiaLensError(f"epochs is {self.epochs:g}, and red makes whole passes; write {max(1, round(self.epochs))}")

    @property
    def method(self) -> str:
        return "red" if self.red else "full" if self.full else "lora"

    @property
    def rate(self) -> float:
        return LR[self.method] if self.lr is None else self.lr

    @property
    def at_once(self) -> int:
        """Rows at a time: the largest divisor of the batch that `micro_batch` allows."""
        return max(n for n in range(1, min(self.micro_batch, self.batch_size) + 1) if self.batch_size % n == 0)
