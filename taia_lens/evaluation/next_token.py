"""The task `next`: the answer is the one token after the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from taia_lens.batch import make_batches
from taia_lens.engine import Reads
from taia_lens.evaluation.pieces import Piece, Reading, Setting
from taia_lens.metrics import Context, check_rows, measure, reads_of


def prepare_next(setting: Setting) -> list[Piece]:
    """One piece a batch."""
    pieces = []
    for batch in make_batches(setting.encoder.suite, setting.encoder.tokenizer, setting.batch_size):
        check_rows(setting.metrics, batch)
        for row, length in zip(batch.rows, batch.mask.sum(1).tolist(), strict=True):
            setting.fits(setting.rows[row], length)
        prompts = [tokens[mask].tolist() for tokens, mask in zip(batch.tokens, batch.mask, strict=True)]
        answers = [batch.answer.tolist(), batch.choices.tolist(), batch.contrast.tolist()]
        reading = Reading((reads_of(setting.metrics, batch),), partial(_measured, setting.metrics), partial(_values, setting.metrics))
        pieces.append(Piece(batch.rows, setting.key([prompts, answers]), reading))
    return pieces


def _measured(metrics: tuple[str, ...], reads: Reads, logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "metric row"]:
    found = measure(metrics, Context.of(reads), logits)
    return torch.stack([found[name] for name in metrics])


def _values(metrics: tuple[str, ...], found: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(metrics, found[0], strict=True))
