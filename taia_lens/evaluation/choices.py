"""The task `choice`: which of several continuations, of any length, the model finds most likely."""

from __future__ import annotations

from functools import partial

import numpy as np

from taia_lens.batch import Encoder
from taia_lens.errors import SuiteError
from taia_lens.evaluation.pieces import Piece, Setting
from taia_lens.evaluation.spans import Span, read_spans
from taia_lens.metrics import Choices, measure_choices
from taia_lens.suite import Row


def prepare_choices(setting: Setting) -> list[Piece]:
    """Each choice as a span after its prompt; the choices of a row stay in one piece."""
    spans = []
    for row in setting.rows:
        if "mc2" in setting.metrics and not row.labels:
            where = setting.encoder.where(row)
            raise SuiteError(f"{where}: the metric mc2 needs labels, the numbers of all choices that are right; add them, or leave mc2 out")
        spans.append(_spans(setting.encoder, row))
        setting.fits(row, max(len(span.ids) for span in spans[-1]))
    pieces = []
    for group in setting.grouped([len(s) for s in spans], [max(len(span.ids) for span in s) for s in spans]):
        asked = [_asked(setting.rows[i]) for i in group]
        content = [[[list(s.ids), s.start, list(s.targets)] for s in spans[i]] for i in group]
        values = partial(_values, [len(spans[i]) for i in group], asked, setting.metrics)
        reading = read_spans([span for i in group for span in spans[i]], setting.batch_size, values)
        pieces.append(Piece(group, setting.key([content, asked]), reading))
    return pieces


_Asked = tuple[list[int], int, list[int]]


def _asked(row: Row) -> _Asked:
    """Sizes of the choices in UTF-8 bytes, the right one, all that are right."""
    return [len(choice.strip().encode()) for choice in row.choices], row.choices.index(row.answer), list(row.labels)


def _spans(encoder: Encoder, row: Row) -> list[Span]:
    where, (text, prompt) = encoder.where(row), encoder.prompt(row)
    tails = []
    for choice in row.choices:
        tail = encoder.tail(text + choice, prompt)
        if tail is None:
            mend = "end the prompt without a space and begin the choice with one"
            raise SuiteError(f"{where}: the choice {choice!r} joins with the prompt's last word, so it has no tokens of its own; {mend}")
        if not tail:
            raise SuiteError(f"{where}: the choice {choice!r} has no token; give another")
        if encoder.tokenizer.unk_token_id in tail:
            raise SuiteError(f"{where}: the choice {choice!r} is not in the vocabulary; give another")
        tails.append(tail)
    if len({tuple(tail) for tail in tails}) != len(tails):
        raise SuiteError(f"{where}: two of its choices are the same tokens; they must differ")
    return [Span.after(prompt, tail) for tail in tails]


def _values(sizes: list[int], asked: list[_Asked], metrics: tuple[str, ...], logprobs: np.ndarray) -> dict[str, np.ndarray]:
    """Of the choices of each row (so many) the metrics."""
    of_rows = np.split(logprobs, np.cumsum(sizes)[:-1])
    rows = [Choices(found, np.array(lengths), right, tuple(labels)) for found, (lengths, right, labels) in zip(of_rows, asked, strict=True)]
    return {name: np.array([measure_choices(name, row) for row in rows]) for name in metrics}
