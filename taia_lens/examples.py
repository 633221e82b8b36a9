"""Training texts: a suite's rows and chats as token ids and labels. Only what the model must say has a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from taia_lens.batch import Encoder
from taia_lens.errors import SuiteError
from taia_lens.suite import Row

NO_LABEL = -100
"""Stands in the labels where the model is not to be taught anything (transformers' own number)."""


@dataclass(frozen=True)
class Example:
    """One training text: its tokens, and which of them the model must learn to say (NO_LABEL elsewhere, and at the first one,
    which is predicted from nothing)."""

    tokens: tuple[int, ...]
    labels: tuple[int, ...]


Messages = Sequence[Mapping[str, str]]


def encode_row(encoder: Encoder, max_length: int, row: Row) -> list[Example] | str:
    """A suite's row as it will be put to the model when it is evaluated, with the right answer after it; or why not."""
    task = encoder.suite.task
    if row.domain != "id":
        return "out of distribution (to train on them too, write --data id=FILE)"
    if task.kind == "text":
        return _pieces(encoder, row.prompt, max_length) or "of a single token"
    if task.chat and task.kind == "generate":  # the template says how a turn ends
        return encode_chat(encoder.tokenizer, turns(task.system, row.prompt, row.answer.strip()))
    text, prompt = encoder.prompt(row)
    tail = encoder.tail(text + row.answer, prompt)
    if not tail:
        # What the model is asked is the prompt's own ids; another tokenization of them would teach another question.
        return "whose answer joins with the prompt's last token (move the space between them to the answer's front)"
    tail += [_end(encoder.tokenizer)] if task.kind == "generate" else []
    return [_example([*prompt, *tail], [False] * len(prompt) + [True] * len(tail))]


def _pieces(encoder: Encoder, text: str, max_length: int) -> list[Example]:
    """The text cut up, a BOS that the tokenizer puts in front standing before every piece; pieces that teach nothing are dropped."""
    ids = encoder.ids(text)
    front = [id_ for id_ in ids[:1] if id_ == encoder.tokenizer.bos_token_id]
    size = max_length - len(front)
    pieces = [front + ids[i : i + size] for i in range(len(front), len(ids), size)]
    return [_example(piece, [True] * len(piece)) for piece in pieces if len(piece) > 1]


def turns(system: str | None, asked: str, answer: str) -> Messages:
    turns = [("user", asked), ("assistant", answer)]
    return [{"role": role, "content": text} for role, text in ([("system", system)] if system else []) + turns]


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[Example] | str:
    """A chat, labels on each assistant's turn: the ids that the template adds when that turn is added, and its end."""
    try:
        ids = _chat_ids(tokenizer, messages, ask=False)
        said = [False] * len(ids)
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = _chat_ids(tokenizer, messages[:i], ask=True), _chat_ids(tokenizer, messages[: i + 1], ask=False)
                if ids[: len(after)] != after or after[: len(before)] != before:
                    return "whose earlier turns the chat template rewrites"
                said[len(before) : len(after)] = [True] * (len(after) - len(before))
    except TemplateError as error:
        return f"that the chat template refuses ({error})"
    if not any(id_ in _specials(tokenizer) for id_, labelled in zip(ids, said, strict=True) if labelled):
        ids, said = [*ids, _end(tokenizer)], [*said, True]  # a template without a mark where a turn ends
    return [_example(ids, said)]


def _chat_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, ask: bool) -> list[int]:
    if tokenizer.chat_template is None:
        raise SuiteError("the data are chats, and the base's tokenizer has no chat template; give rows with prompt and answer")
    made = tokenizer.apply_chat_template(list(messages), tokenize=True, add_generation_prompt=ask, return_dict=True)
    return list(made["input_ids"])


def _specials(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise SuiteError("the base's tokenizer has no end-of-text token, so a model could not learn where an answer ends; set eos_token")
    return int(tokenizer.eos_token_id)


def _example(ids: Sequence[int], said: Sequence[bool]) -> Example:
    labels = [id_ if labelled else NO_LABEL for id_, labelled in zip(ids, said, strict=True)]
    return Example(tuple(ids), (NO_LABEL, *labels[1:]))


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """Examples side by side, filled up on the right. The mask says what is filling, so that no id has to."""
    width = max(len(example.tokens) for example in examples)
    tokens = [[*e.tokens, *[e.tokens[-1]] * (width - len(e.tokens))] for e in examples]
    labels = [[*e.labels, *[NO_LABEL] * (width - len(e.labels))] for e in examples]
    mask = [[1] * len(e.tokens) + [0] * (width - len(e.tokens)) for e in examples]
    return {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}
