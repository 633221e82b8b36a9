"""Positions one by one: which there are in some batches, which rows have them, and what stands there.

What takes batches takes those of `by_length`: their rows have one length, which is the batch's width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from taia_lens.batch import Batch


def by_length(batches: Sequence[Batch]) -> list[Batch]:
    """The same rows in batches of one length each: nothing is padded, and a position is in all rows of a batch or in none."""
    out = []
    for batch in batches:
        lengths = batch.mask.sum(1)
        for length in lengths.unique().tolist():
            (chosen,) = (lengths == length).nonzero(as_tuple=True)
            rows = tuple(batch.rows[i] for i in chosen.tolist())
            tokens, mask = batch.tokens[chosen, :length], batch.mask[chosen, :length]
            out.append(Batch(rows, tokens, mask, batch.answer[chosen], batch.choices[chosen], batch.contrast[chosen]))
    return out


def every(batches: Sequence[Batch], *, from_end: bool) -> tuple[int, ...]:
    """The positions of the longest prompt: 0, 1, ... from its start, or ..., -2, -1 to its end."""
    longest = max(batch.tokens.shape[1] for batch in batches)
    return tuple(range(-longest, 0)) if from_end else tuple(range(longest))


def has(batch: Batch, position: int) -> bool:
    """Whether a batch's rows have a position, negative ones counted from their end."""
    length = batch.tokens.shape[1]
    return -length <= position < length


def tokens_at(batches: Sequence[Batch], positions: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The token at each position where all prompts have the same one; where they differ, or one is too short, nothing.

    Args:
        batches: The rows.
        positions: From the start or, negative, from the end.
        tokenizer: The pair's.
    """

    def at(position: int) -> str:
        if not all(has(batch, position) for batch in batches):
            return ""
        ids = torch.cat([batch.tokens[:, position] for batch in batches]).unique().tolist()
        return token_text(tokenizer, ids[0]) if len(ids) == 1 else ""

    return [at(position) for position in positions]


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token by itself as text; where it is a part of a character, which is no text, as the tokenizer writes it."""
    text = str(tokenizer.decode([token]))
    return text if "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))
