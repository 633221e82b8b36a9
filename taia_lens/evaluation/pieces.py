"""What the tasks share: pieces, their keys, how rows are put together, and the length limit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from taia_lens.batch import Encoder
from taia_lens.errors import SuiteError
from taia_lens.suite import Row
from taia_lens.weights import Model


@dataclass(frozen=True, eq=False)
class Scored:
    """One value per row for each metric, and one text per row where text was generated."""

    values: Mapping[str, np.ndarray]
    transcripts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of a suite, tokenized.

    Attributes:
        rows: Where they stand in the suite.
        key: Hash of all that the values depend on besides the model: ids, answers, the task, the metrics. Neither the suite's
            name nor its other rows are in it.
        run: Scores them on a live model.
    """

    rows: tuple[int, ...]
    key: str
    run: Callable[[Model], Scored] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Setting:
    """What a suite is prepared with."""

    encoder: Encoder
    models: tuple[Model, ...]
    n_ctx: int
    metrics: tuple[str, ...]
    batch_size: int

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.encoder.suite.rows

    def key(self, content: Any) -> str:
        """Hash of the kind of task, the metrics and this content, which must be plain JSON."""
        text = json.dumps([self.encoder.suite.task.kind, sorted(self.metrics), content], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def fits(self, row: Row, length: int) -> None:
        """Raise where a row has more tokens than the model has positions."""
        if length > self.n_ctx:
            raise SuiteError(f"{self.encoder.where(row)}: {length} tokens, and the model has {self.n_ctx} positions; shorten it")

    def grouped(self, sizes: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, ...]]:
        """Rows of about equal length together, as many as give one batch of sequences.

        Args:
            sizes: Sequences of each row.
            lengths: Tokens of its longest.
        """
        groups: list[list[int]] = []
        filled = 0
        for row in sorted(range(len(sizes)), key=lambda i: (lengths[i], i)):
            if not groups or filled + sizes[row] > self.batch_size:
                groups.append([])
                filled = 0
            groups[-1].append(row)
            filled += sizes[row]
        return [tuple(group) for group in groups]
