"""Batches: a suite's rows as token ids, made once and shared by both models of a pair. Knows a tokenizer and no model.

Rows of about equal length are put together and padded on the right, with a mask: under causal attention what stands to the
right of the answer position cannot reach it, so a result does not depend on the batch it was computed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from taia_lens.errors import SiteError, SuiteError
from taia_lens.sites import Positions
from taia_lens.suite import Row, Suite

NO_TOKEN = -1
"""Fills `choices` and `contrast` where a row has none."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids of some rows.

    Attributes:
        rows: Where each row stands in the suite.
        tokens: Prompt ids, padded on the right.
        mask: True at prompt tokens, False at padding.
        answer: Id of the right answer, predicted at the last prompt token.
        choices: Ids of the choices, NO_TOKEN where a row has fewer (or none).
        contrast: Id of the contrast answer, NO_TOKEN where a row has none.
    """

    rows: tuple[int, ...]
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    answer: Int[Tensor, " batch"]
    choices: Int[Tensor, "batch choice"]
    contrast: Int[Tensor, " batch"]

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """The position that predicts the answer."""
        return self.mask.sum(1) - 1

    @property
    def key(self) -> str:
        """Hash of the tokens and the mask: what activations depend on besides the model."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.tokens, self.mask):
            digest.update(repr(tuple(tensor.shape)).encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.rows, *(t.to(device) for t in (self.tokens, self.mask, self.answer, self.choices, self.contrast)))

    def at(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        """Where the positions are, in each row.

        Raises:
            SiteError: A row is too short to have one of them.
        """
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        if positions == "all":
            return self.mask
        if positions == "last":
            return index == self.last[:, None]
        assert not isinstance(positions, str)
        out = torch.zeros_like(self.mask)
        length, shortest = self.last[:, None] + 1, int(self.last.min()) + 1
        for position in positions:
            if not -shortest <= position < shortest:
                raise SiteError(
                    f"no position {position}: the shortest prompt has {shortest} tokens; positions are -{shortest} to {shortest - 1}"
                )
            out |= index == (position if position >= 0 else length + position)
        return out


def make_batches(suite: Suite, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> list[Batch]:
    """Tokenize every row once and group rows of about equal length.

    Args:
        suite: The rows.
        tokenizer: The pair's tokenizer; it decides itself whether a BOS token stands in front.
        batch_size: Rows at a time.

    Raises:
        SuiteError: An answer, choice or contrast that is not exactly one token after its prompt.
    """
    if batch_size < 1:
        raise SuiteError(f"a batch size of {batch_size} holds no prompt; write 1 or more")
    encoded = [_encode(suite.name, row, tokenizer) for row in suite.rows]
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i][0]), i))
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [_collate(chunk, [encoded[i] for i in chunk]) for chunk in chunks]


_Encoded = tuple[list[int], int, list[int], int]


def _encode(suite: str, row: Row, tokenizer: PreTrainedTokenizerBase) -> _Encoded:
    where = f"suite {suite}, row {row.id}"
    prompt = _ids(tokenizer, row.prompt)
    if not prompt:
        raise SuiteError(f"{where}: the prompt {row.prompt!r} has no token")

    def one(what: str, ending: str) -> int:
        return _one_token(where, what, row.prompt, prompt, ending, tokenizer)

    choices = [one("choice", choice) for choice in row.choices]
    answer = one("answer", row.answer)
    contrast = NO_TOKEN if row.contrast is None else one("contrast", row.contrast)
    if len(set(choices)) != len(choices) or contrast == answer:
        raise SuiteError(f"{where}: two of its answers are the same token; they must differ")
    return prompt, answer, choices, contrast


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text's ids as the tokenizer makes them, without an EOS that it appends: the answer follows the text, not the EOS."""
    ids = list(tokenizer(text)["input_ids"])
    appended = bool(ids) and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token))
    return ids[:-1] if appended else ids


def _one_token(where: str, what: str, text: str, prompt: list[int], ending: str, tokenizer: PreTrainedTokenizerBase) -> int:
    tail = _tail(tokenizer, text + ending, prompt)
    if tail is not None and len(tail) == 1 and tail[0] != tokenizer.unk_token_id:
        return tail[0]
    if tail is None:
        found = "joins with the prompt's last word"
    elif tail == [tokenizer.unk_token_id]:
        found = "is not in the vocabulary"
    else:
        found = f"is {len(tail)} tokens ({' | '.join(tokenizer.convert_ids_to_tokens(tail))})"
    spaced = _tail(tokenizer, f"{text} {ending}", prompt)
    mend = "give one of one token"
    if not ending.startswith(" ") and spaced and len(spaced) == 1:
        mend = f"write {' ' + ending!r} with a leading space"
    raise SuiteError(f"{where}: the {what} {ending!r} {found}, and one token is needed; {mend}")


def _tail(tokenizer: PreTrainedTokenizerBase, text: str, prompt: list[int]) -> list[int] | None:
    """The ids that follow the prompt's, or None where the prompt's own ids change."""
    ids = _ids(tokenizer, text)
    return ids[len(prompt) :] if ids[: len(prompt)] == prompt else None


def _collate(rows: Sequence[int], encoded: Sequence[_Encoded]) -> Batch:
    lengths = torch.tensor([len(prompt) for prompt, *_ in encoded])
    width, n_choices = int(lengths.max()), max(len(choices) for _, _, choices, _ in encoded)
    tokens = torch.tensor([prompt + [prompt[-1]] * (width - len(prompt)) for prompt, *_ in encoded])
    choices = torch.tensor([c + [NO_TOKEN] * (n_choices - len(c)) for _, _, c, _ in encoded], dtype=torch.long).reshape(
        len(rows), n_choices
    )
    answer = torch.tensor([a for _, a, _, _ in encoded])
    contrast = torch.tensor([c for _, _, _, c in encoded])
    return Batch(tuple(rows), tokens, torch.arange(width) < lengths[:, None], answer, choices, contrast)
