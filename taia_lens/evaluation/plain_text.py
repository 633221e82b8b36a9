"""The task `text`: how well the model predicts a text's own tokens."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from taia_lens.batch import Encoder
from taia_lens.errors import SuiteError
from taia_lens.evaluation.pieces import Piece, Setting
from taia_lens.evaluation.spans import Span, read_spans
from taia_lens.suite import Row

WINDOW = 2048  # tokens of a longer text that are read together, where the model has as many positions


def prepare_text(setting: Setting) -> list[Piece]:
    """Each text in windows that score every token once; the windows of a text stay in one piece.

    A BOS that the tokenizer puts in front begins every window and is not scored. Without one, a window begins with the last
    token of the window before, and the text's first token, which nothing comes before, is not scored; nor are its bytes counted.
    """
    windows = [_windows(setting.encoder, row, min(WINDOW, setting.n_ctx)) for row in setting.rows]
    pieces = []
    for group in setting.grouped([len(w) for w in windows], [len(w[0].ids) for w in windows]):
        sizes = [_scored_bytes(setting.encoder, setting.rows[i]) for i in group]
        content = [[[list(s.ids), s.start, list(s.targets)] for s in windows[i]] for i in group]
        some = [windows[i] for i in group]
        reading = read_spans([span for row in some for span in row], setting.batch_size, partial(_values, some, sizes, setting.metrics))
        pieces.append(Piece(group, setting.key([content, sizes]), reading))
    return pieces


def _ids(encoder: Encoder, row: Row) -> tuple[list[int], list[int]]:
    """What the tokenizer puts in front, and the text's own ids."""
    ids = encoder.ids(row.prompt)
    own = list(encoder.tokenizer(row.prompt, add_special_tokens=False)["input_ids"])
    return next((ids[:i] for i in range(len(ids)) if ids[i:] == own), []), own


def _scored_bytes(encoder: Encoder, row: Row) -> int:
    """UTF-8 bytes of the text's tokens that are scored: all, or where nothing stands in front those after the first token.

    A character that the first token shares with the second counts whole.
    """
    front, own = _ids(encoder, row)
    if front:
        return len(row.prompt.encode())
    if not encoder.tokenizer.is_fast:  # it does not know where its tokens lie
        first = encoder.tokenizer.decode(own[:1], clean_up_tokenization_spaces=False)
        return len(row.prompt.encode()) - len(first.encode())
    (_, end), (start, _), *_ = encoder.tokenizer(row.prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return len(row.prompt[min(end, start) :].encode())


def _windows(encoder: Encoder, row: Row, longest: int) -> list[Span]:
    front, own = _ids(encoder, row)
    before, own = (front, own) if front else (own[:1], own[1:])
    if not own:
        raise SuiteError(f"{encoder.where(row)}: the text {row.prompt!r} has no token to predict from another; give a longer one")
    size = longest - len(before) + 1
    starts = range(0, len(own), size)
    return [Span.after(before if front or not i else own[i - 1 : i], own[i : i + size]) for i in starts]


def _values(windows: list[list[Span]], sizes: list[int], metrics: tuple[str, ...], logprobs: np.ndarray) -> dict[str, np.ndarray]:
    nats = -np.add.reduceat(logprobs, np.cumsum([0, *[len(row) for row in windows[:-1]]]))
    per = {
        "cross_entropy": np.array([sum(len(span.targets) for span in row) for row in windows]),
        "bits_per_byte": np.array(sizes) * math.log(2),
    }
    return {name: nats / per[name] for name in metrics}
