"""Training data as token ids and labels: a suite, chats, or instructions, from JSONL. Only what the model must say has a label.

Whatever cannot be used as it is (an answer that joins with the prompt's last token, a row that is too long) is left out and
counted with its reason; nothing is cut, and no end-of-text token is lost to padding.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from taia_lens.batch import Encoder
from taia_lens.errors import SuiteError
from taia_lens.examples import NO_LABEL, Example, Messages, encode_chat, encode_row, turns
from taia_lens.suite import Task, load_suite, make_suite

_ALPACA = "Below is an instruction that describes a task{more}. Write a response that appropriately completes the request.\n\n"
_EMPTY_INPUTS = ("", "<no input>", "<noinput>")  # how files of Alpaca's form say that there is none


@dataclass(frozen=True)
class Data:
    """What was made of a file.

    Attributes:
        name: The file's, without its folders.
        form: What its rows are, and how they were put to the model.
        sha256: Of the file.
        read: Rows in the file (of those drawn, where a limit was given).
        left_out: Reason -> how many rows were not used.
        examples: To train on.
    """

    name: str
    form: str
    sha256: str
    read: int
    left_out: Mapping[str, int]
    examples: tuple[Example, ...]

    @property
    def n_labels(self) -> int:
        """Tokens that the loss is taken on."""
        return sum(label != NO_LABEL for example in self.examples for label in example.labels)


_Encoder = Callable[[Any], "list[Example] | str"]


def read_data(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int, every: bool = False, limit: int | None = None, seed: int = 0
) -> Data:
    """Read training rows: a suite's JSONL, chats (`messages`), or instructions (`instruction`, `input`, `output`).

    Args:
        path: The JSONL file.
        tokenizer: The base's.
        max_length: Longest text in tokens; plain text is cut into pieces of it, other rows that are longer are left out.
        every: Also train on rows that a suite calls out of distribution; they are left out otherwise.
        limit: At most this many rows, drawn with `seed`.
        seed: Of that draw.

    Raises:
        SuiteError: No such file, no rows, a row that cannot be read, or none that can be used.
    """
    path = Path(path)
    records = _records(path)
    form, rows, encode = _reader(path, records, tokenizer, max_length, every)
    if limit is not None and limit < len(rows):
        if limit < 1:
            raise SuiteError(f"a limit of {limit} leaves no row; write 1 or more, or leave it out")
        rows = [rows[i] for i in sorted(np.random.default_rng(seed).choice(len(rows), limit, replace=False))]
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        made = encode(row)
        if isinstance(made, str):
            left_out[made] += 1
            continue
        short = [example for example in made if len(example.tokens) <= max_length]
        left_out[f"longer than {max_length} tokens"] += len(short) < len(made)
        examples += short
    left_out = +left_out
    if not examples:
        reasons = "; ".join(f"{n} {reason}" for reason, n in left_out.items())
        raise SuiteError(f"{path} has no row to train on: of {len(rows)} rows, {reasons}")
    return Data(path.name, form, hashlib.sha256(path.read_bytes()).hexdigest(), len(rows), dict(left_out), tuple(examples))


def _records(path: Path) -> list[tuple[int, Any]]:
    """The file's JSON values with their line numbers."""
    if not path.is_file():
        raise SuiteError(f"no data file {path}; give a JSONL file: a suite, chats or instructions, one row a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (UnicodeDecodeError, PermissionError) as error:
        raise SuiteError(f"cannot read {path}: {error}; it must be readable UTF-8 text") from error
    records = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                records.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise SuiteError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}; write one row a line") from error
    if not records:
        raise SuiteError(f"{path} is empty; it needs at least one row")
    if isinstance(records[0][1], list):
        raise SuiteError(f"{path} holds a JSON list; write one row a line (JSONL)")
    return records


def _reader(
    path: Path, records: list[tuple[int, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int, every: bool
) -> tuple[str, list[Any], _Encoder]:
    """What the rows are, the rows, and how one is encoded."""
    first = records[0][1] if isinstance(records[0][1], dict) else {}
    if "messages" in first:
        chats = [_messages(f"{path}, line {number}", record) for number, record in records]
        return "chats, in the tokenizer's chat template", chats, lambda chat: encode_chat(tokenizer, chat)
    if {"instruction", "output"} <= set(first):
        pairs = [_instruction(f"{path}, line {number}", record) for number, record in records]
        if tokenizer.chat_template is not None:
            chats = [turns(None, "\n\n".join(filter(None, asked)), answer) for *asked, answer in pairs]
            return "instructions, in the tokenizer's chat template", chats, lambda chat: encode_chat(tokenizer, chat)
        made = [{"prompt": _alpaca(asked, given), "answer": answer, "domain": "id"} for asked, given, answer in pairs]
        rows = make_suite(path.name, made, task=Task("generate"))
        return "instructions, in Alpaca's template", list(rows.rows), partial(encode_row, Encoder(tokenizer, rows), max_length)
    has_domain = any(isinstance(record, dict) and "domain" in record for _, record in records)
    suite = load_suite(path, domain="id" if every or not has_domain else None)
    if suite.task.kind == "refuse":
        raise SuiteError(f"{path} asks whether the model refuses and has no answers to train on; give a suite or chats with answers")
    how = ", in the tokenizer's chat template" if suite.task.chat else ""
    return f"suite of kind {suite.task.kind}{how}", list(suite.rows), partial(encode_row, Encoder(tokenizer, suite), max_length)


def _messages(where: str, record: Any) -> Messages:
    messages = record.get("messages") if isinstance(record, dict) else None
    good = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not good or not messages:
        raise SuiteError(f"{where}: a chat is {{'messages': [{{'role': 'user', 'content': ...}}, ...]}}, found {str(record)[:80]}")
    if messages[0]["role"] == "assistant" or not any(m["role"] == "assistant" for m in messages):
        raise SuiteError(f"{where}: a chat begins with the user (or system) and has a turn of the assistant to learn from")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _instruction(where: str, record: Any) -> tuple[str, str, str]:
    found = record if isinstance(record, dict) else {}
    asked, given, answer = (found.get(key) for key in ("instruction", "input", "output"))
    given = given or ""
    if not isinstance(asked, str) or not isinstance(given, str) or not isinstance(answer, str) or not asked.strip() or not answer.strip():
        raise SuiteError(f"{where}: a row has the texts instruction, input (may be empty) and output, found {str(record)[:80]}")
    return asked, "" if given.strip().lower() in _EMPTY_INPUTS else given, answer


def _alpaca(instruction: str, given: str) -> str:
    """Stanford Alpaca's prompt (tatsu-lab/stanford_alpaca), for tokenizers without a chat template."""
    more = ", paired with an input that provides further context" if given else ""
    asked = f"### Instruction:\n{instruction}\n\n" + (f"### Input:\n{given}\n\n" if given else "")
    return _ALPACA.format(more=more) + asked + "### Response:"
