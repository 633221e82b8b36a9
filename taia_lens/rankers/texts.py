"""A suite's rows as token ids with answers after them, right and wrong: what probes read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taia_lens.batch import Encoder
from taia_lens.errors import SuiteError
from taia_lens.loaded import Loaded
from taia_lens.suite import Row, Suite


@dataclass(frozen=True, eq=False)
class Texts:
    """Prompts with an answer after them.

    Attributes:
        ids: Of each text.
        right: Whether its answer is right.
        row: Which row of the suite it is of, the first one with its prompt; a row has texts of both kinds.
        left_out: How many rows have no wrong answer.
    """

    ids: tuple[tuple[int, ...], ...]
    right: np.ndarray
    row: np.ndarray
    left_out: int


def right_and_wrong(model: Loaded, suite: Suite) -> Texts:
    """Each row's prompt with its right answers, and with its wrong ones: its contrast, or else its other choices.

    Raises:
        SuiteError: No row has a wrong answer, or a row's answers cannot be told apart from its prompt or from each other.
    """
    encoder, n_ctx = Encoder(model.tokenizer, suite), int(model.model.cfg.n_ctx)
    found: list[tuple[tuple[int, ...], bool, int]] = []
    first: dict[str, int] = {}
    used = 0
    for number, row in enumerate(suite.rows):
        right, wrong = _answers(row)
        if not wrong:
            continue
        prompt = encoder.prompt(row)
        texts = [(*prompt[1], *tail(encoder, row, prompt, answer)) for answer in (*right, *wrong)]
        if len(set(texts)) < len(texts):
            raise SuiteError(f"{encoder.where(row)}: two of its answers are the same tokens; they must differ")
        longest = max(map(len, texts))
        if longest > n_ctx:
            raise SuiteError(f"{encoder.where(row)}: {longest} tokens, and the model has {n_ctx} positions; shorten it")
        # Rows of one prompt stay together: a probe could know the prompt, and with it the answer.
        group, used = first.setdefault(row.prompt, number), used + 1
        found += [(ids, i < len(right), group) for i, ids in enumerate(texts)]
    if not found:
        raise SuiteError(
            f"suite {suite.name}: no row has a wrong answer, so a probe would see one class; give rows a contrast, or choices and a label"
        )
    ids, truth, rows = zip(*found, strict=True)
    return Texts(ids, np.array(truth), np.array(rows), len(suite) - used)


def _answers(row: Row) -> tuple[list[str], list[str]]:
    if row.contrast is not None and row.answer:
        return [row.answer], [row.contrast]
    right = [row.choices[i] for i in row.labels] or [row.answer]
    return right, [choice for choice in row.choices if choice not in right]


def tail(encoder: Encoder, row: Row, prompt: tuple[str, list[int]], answer: str) -> list[int]:
    """The ids of an answer after the prompt's.

    Raises:
        SuiteError: It has none of its own.
    """
    ids = encoder.tail(prompt[0] + answer, prompt[1])
    if ids is None:
        mend = "end the prompt without a space and begin the answer with one"
        raise SuiteError(f"{encoder.where(row)}: the answer {answer!r} joins with the prompt's last word; {mend}")
    if not ids or encoder.tokenizer.unk_token_id in ids:
        what = "has no token" if not ids else "is not in the vocabulary"
        raise SuiteError(f"{encoder.where(row)}: the answer {answer!r} {what}; give another")
    return ids
