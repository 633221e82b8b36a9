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


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; to a GPU from pinned memory, so that neither this copy nor what was asked before it is waited for."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return (tensor.pin_memory() if tensor.device.type == "cpu" else tensor).to(device, non_blocking=True)


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

    @classmethod
    def of(cls, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> Batch:
        """Rows that have no answer: what a forward needs."""
        none = torch.full_like(tokens[:, 0], NO_TOKEN)
        return cls(tuple(range(len(tokens))), tokens, mask, none, none[:, None], none)

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
        return Batch(self.rows, *(sent(t, device) for t in (self.tokens, self.mask, self.answer, self.choices, self.contrast)))

    def take(self, rows: slice) -> Batch:
        """Some of the rows, no wider than the longest of them."""
        mask = self.mask[rows]
        width = int(mask.sum(1).max())
        answers = self.answer[rows], self.choices[rows], self.contrast[rows]
        return Batch(self.rows[rows], self.tokens[rows, :width], mask[:, :width], *answers)

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


@dataclass(frozen=True, eq=False)
class Encoder:
    """How a suite's rows become ids: the tokenizer, which decides itself whether a BOS token stands in front, and the task.

    With a chat template, the template decides that, and writes the tokens around the user's message itself.
    """

    tokenizer: PreTrainedTokenizerBase
    suite: Suite

    def __post_init__(self) -> None:
        task = self.suite.task
        if task.chat and task.kind == "text":
            raise SuiteError(f"suite {self.suite.name}: plain text is no chat message; leave chat out, or give another task")
        if task.chat and self.tokenizer.chat_template is None:
            mend = "give a pair whose tokenizer has one, or leave chat out of the suite's task"
            raise SuiteError(f"suite {self.suite.name}: the task is a chat, and the tokenizer has no chat template; {mend}")
        if task.system is not None and not task.chat:
            raise SuiteError(f"suite {self.suite.name}: a system message goes with chat; set chat in the suite's task, or leave system out")

    def where(self, row: Row) -> str:
        return f"suite {self.suite.name}, row {row.id}"

    def text(self, row: Row) -> str:
        """The prompt as the model reads it, with the chat template around it where the task asks for that."""
        task = self.suite.task
        if not task.chat:
            return row.prompt
        from jinja2 import TemplateError  # comes with transformers' templates

        system = [] if task.system is None else [{"role": "system", "content": task.system}]
        messages = [*system, {"role": "user", "content": row.prompt}]
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise SuiteError(f"{self.where(row)}: the tokenizer's chat template refuses it: {error}") from error

    def ids(self, text: str) -> list[int]:
        """The text's ids, without an EOS that the tokenizer appends: the answer follows the text, not the EOS."""
        if self.suite.task.chat:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = list(self.tokenizer(text)["input_ids"])
        appended = bool(ids) and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(str(self.tokenizer.eos_token))
        return ids[:-1] if appended else ids

    def prompt(self, row: Row) -> tuple[str, list[int]]:
        """The prompt and its ids.

        Raises:
            SuiteError: It has none, or the chat template refuses it.
        """
        text = self.text(row)
        ids = self.ids(text)
        if not ids:
            raise SuiteError(f"{self.where(row)}: the prompt {row.prompt!r} has no token")
        return text, ids

    def tail(self, text: str, prompt: list[int]) -> list[int] | None:
        """The ids that follow the prompt's, or None where the prompt's own ids change."""
        ids = self.ids(text)
        return ids[len(prompt) :] if ids[: len(prompt)] == prompt else None


def make_batches(suite: Suite, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> list[Batch]:
    """Tokenize every row once and group rows of about equal length.

    Args:
        suite: The rows.
        tokenizer: The pair's tokenizer; it decides itself whether a BOS token stands in front.
        batch_size: Rows at a time.

    Raises:
        SuiteError: The task is not to predict the next token, or an answer, choice or contrast is not exactly one token.
    """
    check_size(batch_size)
    if suite.task.kind != "next":
        raise SuiteError(f"the suite {suite.name} is of the task {suite.task.kind}; here the task is next: an answer of one token a row")
    encoder = Encoder(tokenizer, suite)
    encoded = [_encode(encoder, row) for row in suite.rows]
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i][0]), i))
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [_collate(chunk, [encoded[i] for i in chunk]) for chunk in chunks]


def check_size(batch_size: int) -> None:
    """Raise where a batch would hold nothing."""
    if batch_size < 1:
        raise SuiteError(f"a batch size of {batch_size} holds no prompt; write 1 or more")


_Encoded = tuple[list[int], int, list[int], int]


def _encode(encoder: Encoder, row: Row) -> _Encoded:
    where = encoder.where(row)
    text, prompt = encoder.prompt(row)

    def one(what: str, ending: str) -> int:
        return _one_token(encoder, where, what, text, prompt, ending)

    choices = [one("choice", choice) for choice in row.choices]
    answer = one("answer", row.answer)
    contrast = NO_TOKEN if row.contrast is None else one("contrast", row.contrast)
    if len(set(choices)) != len(choices) or contrast == answer:
        raise SuiteError(f"{where}: two of its answers are the same token; they must differ")
    return prompt, answer, choices, contrast


def _one_token(encoder: Encoder, where: str, what: str, text: str, prompt: list[int], ending: str) -> int:
    tokenizer, tail = encoder.tokenizer, encoder.tail(text + ending, prompt)
    if tail is not None and len(tail) == 1 and tail[0] != tokenizer.unk_token_id:
        return tail[0]
    if tail is None:
        found = "joins with the prompt's last word"
    elif tail == [tokenizer.unk_token_id]:
        found = "is not in the vocabulary"
    else:
        found = f"is {len(tail)} tokens ({' | '.join(tokenizer.convert_ids_to_tokens(tail))})"
    spaced = encoder.tail(f"{text} {ending}", prompt)
    mend = "give one of one token"
    if not ending.startswith(" ") and spaced and len(spaced) == 1:
        mend = f"write {' ' + ending!r} with a leading space"
    raise SuiteError(f"{where}: the {what} {ending!r} {found}, and one token is needed; {mend}")


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
